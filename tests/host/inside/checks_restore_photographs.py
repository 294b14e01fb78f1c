"""Restoration of two photographs at their own size by tiny random models.

This shows mechanics and no more: a model with random weights knows nothing of pictures, so that what is asked is that
every damage and every node runs at such a size, and that the result explains the damaged photograph far better than
what the same model makes of the same seed without it.
"""

import torch
from helpers import refuses, same_snapshot, snapshot
from photographs import BLOCK, NAMES, cosine_vae, photograph
from restoring import chi2, damaged_by, damages, pixel_model, sample, sampler_of, tiny_model
from running import decode

# The eps model's prediction is worth nothing at high sigmas, and more of the way has to be below them.
CHANNELS, STEPS = {"sd15": 4, "sd3": 16}, {"sd15": 5, "sd3": 2}
# Share of the residual without the photo that may be left; a gradient through a model of nonsense does less.
LEFT, LEFT_BY_GRADIENTS = 0.8, 0.95
# The bound leaves such a gradient no way to go in so few steps.
GUIDED = {"measurement_weight": 0.3, "start_from_photo": True, "largest_step": 0.0}
UNGUIDED = {"measurement_weight": 0.0, "gluing": 0.0, "largest_step": 0.0}


class Bench:
    """A photograph without what makes no whole cell, as the host's VAEEncode cuts it, and a model that takes it."""

    def __init__(self, pack, kind, name):
        image = photograph(name)
        height, width = (side - side % BLOCK for side in image.shape[1:3])
        top, left = ((side - inside) // 2 for side, inside in zip(image.shape[1:3], (height, width)))
        self.image = image[:, top : top + height, left : left + width]
        self.pack, self.kind, self.vae = pack, kind, cosine_vae(pack, CHANNELS[kind])
        self.known = damages(pack, height, width)
        config, make = pack.tiny._build(kind)
        if kind == "sd15":
            # Attention on the coarser grid alone; on the finer one it would be nearly all of the time.
            config.unet_config.update(transformer_depth=[0, 1], transformer_depth_output=[0, 0, 1, 1])
        else:
            config.unet_config.update(pos_embed_max_size=32, num_patches=1024)
        self.model = tiny_model(pack, config, make)

    def restored(self, operator, damaged, node="RestoreDDS", **settings):
        """What a restore sampler makes of it."""
        cells = (side // BLOCK for side in self.image.shape[1:3])
        shape, prompt = (len(self.image), CHANNELS[self.kind], *cells), self.pack.tiny.conditioning(self.kind)
        sampler = sampler_of(self.pack, node, operator, damaged, self.vae, **settings)
        drawn = sample(self.model, prompt, sampler, shape, STEPS[self.kind])
        picture = decode(self.vae, drawn)
        assert picture.shape == self.image.shape and bool(torch.isfinite(picture).all())
        return picture


def _every_damage(pack, kind, name):
    bench = Bench(pack, kind, name)
    before, left = snapshot(bench.model), {}
    free = bench.restored(bench.known["noise"], bench.image, trust=0.0)
    for what, operator in bench.known.items():
        damaged = damaged_by(pack, bench.image, operator, 0.0 if what in ("jpeg", "all") else 4.0)
        (noise,) = pack.call("MeasureNoise", image=damaged, operator=operator)
        assert 1.27 < noise < 60, (what, noise)
        restored = bench.restored(operator, damaged)
        mine, theirs = (chi2(pack, picture, operator, damaged) for picture in (restored, free))
        left[what] = mine / theirs
        inputs = {"operator": operator, "damaged": damaged, "noise": 4.0}
        (snapped,) = pack.call("SnapToMeasurement", image=restored, **inputs)
        nearer = chi2(pack, snapped, operator, damaged)
        assert snapped.shape == bench.image.shape and nearer < mine, (kind, name, what, nearer, mine)
    assert max(left.values()) < LEFT, (kind, name, left)
    same_snapshot(bench.model, before)


def check_photographs_by_an_eps_model(pack):
    _every_damage(pack, "sd15", NAMES[1])


def check_photographs_by_a_flow_model(pack):
    _every_damage(pack, "sd3", NAMES[0])


def check_photographs_by_every_sampler(pack):
    """RED-diff, the guided sampler, and the other two ways to the latent."""
    bench = Bench(pack, "sd3", NAMES[1])
    operator = bench.known["small"]
    damaged = damaged_by(pack, bench.image, operator, 4.0)

    def left(node="RestoreDDS", **settings):
        return chi2(pack, bench.restored(operator, damaged, node, **settings), operator, damaged)

    untrusted = left(trust=0.0)
    for settings in (
        {"node": "RestoreREDDiff", "prior": 0.05},
        {"latent_method": "decode, correct, encode"},
        {"latent_method": "decoder gradient"},
    ):
        assert left(**settings) < LEFT * untrusted, settings
    assert left("RestoreGuided", **GUIDED) < LEFT_BY_GRADIENTS * left("RestoreGuided", **UNGUIDED)


def check_photographs_of_odd_size(pack):
    """300 x 451 is no whole number of cells, which a sentence says; a model that samples pixels takes it as it is."""
    image, bench = photograph(NAMES[1]), Bench(pack, "sd15", NAMES[1])
    assert image.shape[1:3] == (300, 451)
    refuses(
        lambda: bench.restored(bench.known["noise"], image),
        "damaged image must be 448 x 296 pixels",
        "got 451 x 300",
        "crop",
    )
    # At this size attention would be all of the time.
    shape = {"transformer_depth": [0, 0], "transformer_depth_output": [0] * 4, "transformer_depth_middle": -1}
    model, operator = pixel_model(pack, **shape), damages(pack, 300, 451)["smaller"]
    damaged = damaged_by(pack, image, operator, 4.0)

    def left(trust):
        sampler = sampler_of(pack, "RestoreDDS", operator, damaged, trust=trust)
        state = sample(model, pack.tiny.conditioning("sd15"), sampler, (1, 3, 300, 451), 3)
        return chi2(pack, (state.movedim(1, -1) + 1) / 2, operator, damaged)

    assert left(1.0) < 0.1 * left(0.0)
