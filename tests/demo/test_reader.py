"""The reader: right on pictures of the world, honest on empty ones, and not blind to faults."""

import numpy as np
import pytest
from PIL import Image

from retrace.demo import reader, world

WORDS = ("colour", "background", "shape", "size", "position")
ALL = list(world.scenes())
CHOSEN = [ALL[i] for i in np.random.default_rng(1).permutation(len(ALL))[:300]]


@pytest.fixture(scope="module")
def drawn():
    """300 pictures and masks."""
    return world.render(CHOSEN, seed=17)


def share_right(scenes, pictures, word):
    """Fraction of the pictures in which a word is read as the scene says."""
    return np.mean([getattr(s, word) == getattr(reader.read(p), word) for s, p in zip(scenes, pictures)])


@pytest.mark.parametrize("word", WORDS)
def test_reads_what_was_drawn(drawn, word):
    assert share_right(CHOSEN, drawn[0], word) >= 0.99


@pytest.mark.parametrize("word", WORDS)
def test_notices_the_wrong_word(drawn, word):
    # A reader that guesses, or echoes the most frequent word, would pass a picture of another scene.
    lists = (world.COLOURS, world.COLOURS, world.SHAPES, world.SIZES, world.POSITIONS)
    choices = dict(zip(WORDS, lists, strict=True))[word]
    wrong = []
    for scene in CHOSEN[:100]:
        taken = {getattr(scene, word), scene.colour, scene.background}
        wrong.append(scene.changed(**{word: next(choice for choice in choices if choice not in taken)}))
    assert share_right(wrong, drawn[0], word) <= 0.01


def test_the_mask_is_the_object(drawn):
    overlaps = []
    for picture, mask in zip(*drawn):
        seen, true = reader.read(picture).mask, mask > 0.5
        overlaps.append((seen & true).sum() / (seen | true).sum())
    assert np.mean(overlaps) > 0.95 and np.min(overlaps) > 0.8


@pytest.mark.parametrize("background", world.COLOURS)
def test_an_empty_background_shows_nothing(background):
    rng = np.random.default_rng(0)
    picture = np.array(world.COLOURS[background]) + rng.normal(0, 2, (64, 64, 3))
    reading = reader.read(np.clip(picture, 0, 255).astype(np.uint8))
    assert reading.background == background
    assert (reading.colour, reading.shape, reading.size, reading.position) == (None,) * 4


def test_specks_are_no_object():
    picture = np.full((64, 64, 3), 30, np.uint8)
    picture[::9, ::9] = 255
    assert reader.read(picture).shape is None


def test_reads_floats_and_other_sizes(drawn):
    for scene, picture in zip(CHOSEN[:20], drawn[0]):
        before, whole = picture.copy(), reader.read(picture)
        halves = reader.read(picture.astype(np.float32) / 255)
        assert np.array_equal(whole.mask, halves.mask) and whole.shape == halves.shape
        assert np.array_equal(picture, before)
        large = np.asarray(Image.fromarray(picture).resize((256, 256), Image.Resampling.BICUBIC))
        assert reader.read(large).shape == scene.shape and reader.read(large).colour == scene.colour


def test_grey_pictures_and_batches_are_refused():
    for shape in ((64, 64), (1, 64, 64, 3)):
        with pytest.raises(ValueError, match="pass one RGB picture"):
            reader.read(np.zeros(shape, np.uint8))
