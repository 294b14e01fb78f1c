"""The Shapes world: the same bits everywhere, captions that read back, masks that are exact."""

import zlib

import numpy as np
import pytest

from retrace.demo import world

ALL = list(world.scenes())


def some(count, seed=0):
    """Scenes chosen by a seed."""
    return [ALL[i] for i in np.random.default_rng(seed).permutation(len(ALL))[:count]]


def test_captions_read_back():
    for scene in ALL:
        assert world.parse(scene.caption) == scene
    assert len({scene.caption for scene in ALL}) == len(ALL)
    scene = world.Scene("big", "red", "circle", "middle", "blue")
    assert world.parse("  A Big RED circle on a blue background") == scene


def test_what_is_no_scene_is_refused():
    words = ("", "a big red circle", "a big red circle on a blue table", "a huge red circle on a blue background")
    for caption in words:
        with pytest.raises(ValueError, match="write it that way|use one of these words"):
            world.parse(caption)
    with pytest.raises(ValueError, match="colour must differ from the background, got 'red'"):
        world.Scene("big", "red", "circle", "middle", "red")
    with pytest.raises(ValueError, match="shape must be one of"):
        ALL[0].changed(shape="cube")


def test_held_out_scenes_are_never_trained_on():
    held, trained = set(world.scenes(held_out=True)), set(world.scenes(held_out=False))
    assert not held & trained and held | trained == set(ALL)
    # Whole triples are kept back: no picture of them was seen in another size or place.
    triples = [{(s.shape, s.colour, s.background) for s in part} for part in (held, trained)]
    assert not triples[0] & triples[1]
    assert 200 <= len(held) <= 0.15 * len(ALL)


def test_the_split_is_the_same_on_every_machine():
    # Written down once.
    assert zlib.crc32(bytes(scene.held_out for scene in ALL)) == 1289591441


def test_the_same_seed_draws_the_same_bits():
    """Whatever stands before it in the batch."""
    batch = some(6)
    pictures, masks = world.render(batch, seed=3)
    fewer, masks_again = world.render([*some(2, seed=9), *batch[2:]], seed=3)
    assert np.array_equal(pictures[2:], fewer[2:]) and np.array_equal(masks[2:], masks_again[2:])
    other, _ = world.render(batch, seed=4)
    assert all(not np.array_equal(a, b) for a, b in zip(pictures, other))


# Areas of the shapes of half extent 1, by school geometry.
AREAS = {
    "circle": np.pi,
    "ring": np.pi * (1 - 0.52**2),
    "square": (2 * 0.88) ** 2,
    "cross": 4 * 0.64 - 0.64**2,
    "triangle": 0.5 * (2 * (0.85 + 0.95) / 1.8) * (0.85 + 0.95),
    # Ten triangles with sides 1 and 0.5 around an angle of 36 degrees.
    "star": 10 * 0.5 * 1 * 0.5 * np.sin(np.pi / 5),
}


@pytest.mark.parametrize("shape", world.SHAPES)
def test_the_mask_has_the_area_of_the_shape(shape):
    for half in (9.5, 17.0, 40.0):
        mask = world.coverage(shape, (64.3, 63.6), half, size=128)
        # The edge is blurred over one pixel: the error grows with the length of the edge only at corners.
        assert mask.sum() == pytest.approx(AREAS[shape] * half**2, rel=0.03), half


def test_the_mask_is_where_the_words_say():
    grid = np.arange(world.SIZE) + 0.5
    for scene in some(60, seed=2):
        _, (mask,) = world.render([scene])
        centre = np.array([(mask.sum(0) * grid).sum(), (mask.sum(1) * grid).sum()]) / mask.sum() - 32
        direction = np.array(world.POSITIONS[scene.position])
        offset = world.SIZES[scene.size][1] * direction
        # 1.5 of jitter, and a triangle's centre of mass lies lower than its box's.
        assert np.abs(centre - offset).max() < 1.6 + 0.25 * world.SIZES[scene.size][0] * (scene.shape == "triangle")
        assert mask[0].max() == mask[-1].max() == mask[:, 0].max() == mask[:, -1].max() == 0.0


def test_colours_inside_and_outside_the_mask():
    batch = some(80, seed=5)
    pictures, masks = world.render(batch, seed=5)
    for scene, picture, mask in zip(batch, pictures.astype(float), masks):
        inside = picture[mask == 1.0].mean(0) - world.COLOURS[scene.colour]
        # The shade varies by 8 a channel; white and black are clipped a little.
        assert np.abs(inside).max() < 10, scene
        outside = picture[mask == 0.0].mean(0) - world.COLOURS[scene.background]
        # The gradient changes the brightness by up to 8 % at the edges.
        assert np.abs(outside).max() < 8 + 0.08 * 255 * 0.5, scene
        edge = (mask > 0) & (mask < 1)
        assert 0 < edge.sum() < 0.25 * mask.size


def test_the_mask_is_the_share_of_the_object_in_every_pixel():
    # On a black background without noise a pixel is mask * paint, up to noise and the background's shade.
    scene = world.Scene("big", "white", "star", "middle", "black")
    (picture,), (mask,) = world.render([scene], seed=11)
    paint = picture[mask == 1.0].mean()
    ground = picture[mask == 0.0].mean()
    share = (picture.mean(-1) - ground) / (paint - ground)
    assert np.abs(share - mask).max() < 0.06 and np.corrcoef(share.ravel(), mask.ravel())[0, 1] > 0.999
