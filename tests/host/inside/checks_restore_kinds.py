"""Restoration on every kind of model: latents of all formats, batch 2, not square, clips; mechanics and no more."""

import torch
from helpers import same_snapshot, snapshot
from restoring import cached_vae, chi2, damaged_by, damages, hole, photo, pixel_model, sample, sampler_of


class Kind:
    """A tiny model of a kind with a VAE, for two latents or clips."""

    def __init__(self, pack, kind):
        self.pack, self.model, self.prompt = pack, pack.tiny.model(kind), pack.tiny.conditioning(kind)
        self.shape = tuple(pack.tiny.latent(kind, batch=2)["samples"].shape)
        self.vae = cached_vae(pack, self.shape[1], video=kind == "wan")
        with torch.inference_mode():
            decoded = self.vae.first_stage_model.decode(torch.zeros(1, *self.shape[1:]))
        self.frames, (self.height, self.width) = (decoded.shape[2] if kind == "wan" else 2), decoded.shape[-2:]

    def run(self, operator, damaged, node="RestoreDDS", **settings):
        """Restore; the model is as before."""
        sampler, before = sampler_of(self.pack, node, operator, damaged, self.vae, **settings), snapshot(self.model)
        drawn = sample(self.model, self.prompt, sampler, self.shape)
        same_snapshot(self.model, before)
        assert drawn.shape == self.shape and bool(torch.isfinite(drawn).all())
        return drawn


def check_restore_every_kind(pack):
    """Finite, of the latent's shape, the same bits twice, and moved by the photo."""
    # Through gradients too: there what a mask hides says nothing, and each row is alone.
    small = damages(pack)["small"]
    for name in pack.tiny.KINDS:
        kind = Kind(pack, name)
        damaged = photo(kind.frames, height=kind.height // 2, width=kind.width // 2)
        drawn = kind.run(small, damaged)
        assert torch.equal(drawn, kind.run(small, damaged)), name
        assert not torch.equal(drawn, kind.run(small, 1.0 - damaged)), name
        mask = hole((0, 2, kind.height // 2, kind.width // 2 - 2), height=kind.height, width=kind.width)
        (operator,) = pack.call("DamageMask", mask=mask)
        whole = photo(kind.frames, height=kind.height, width=kind.width)
        unseen, half = torch.where(mask[..., None] > 0, 1.0 - whole, whole), torch.cat([whole[:1], 1.0 - whole[1:]])
        drawn, same, changed = (kind.run(operator, each, "RestoreGuided") for each in (whole, unseen, half))
        assert torch.equal(drawn, same), name
        assert not torch.allclose(changed[1], drawn[1], atol=1e-3), name
        assert name == "wan" or torch.allclose(changed[0], drawn[0], atol=1e-4), name


def check_restore_clips_and_latent_methods(pack):
    """Frames along time of a video latent in every pattern, and the two other ways to a latent, also of a flow."""
    wan, blur = Kind(pack, "wan"), damages(pack)["motion"]
    for pattern, every, count, height in (
        ("dropped", 2, (wan.frames + 1) // 2, wan.height),
        ("interlaced", 2, wan.frames, wan.height // 2),
        ("averaged", wan.frames, 1, wan.height),
    ):
        (operator,) = pack.call("DamageFrames", pattern=pattern, every=every)
        damaged = photo(count, height=height, width=wan.width)
        apart, together = (
            wan.run(operator, damaged, **settings)
            for settings in ({}, {"temporal_smoothing": 1.0, "share_noise": True})
        )
        assert not torch.equal(apart, together), pattern
    for name in ("flux", "sdxl", "wan"):
        kind = Kind(pack, name)
        damaged = photo(kind.frames, height=kind.height, width=kind.width)
        for method in ("decode, correct, encode", "decoder gradient"):
            kind.run(blur, damaged, latent_method=method)


def check_restore_pictures_without_a_vae(pack):
    """A model of pictures needs no VAE: the photo's own pixels come back within the noise."""
    model, prompt, image = pixel_model(pack), pack.tiny.conditioning("sd15"), photo(2, 5, 16, 24)
    small = damages(pack)["small"]
    damaged = damaged_by(pack, image, small, 0.0)
    for node, settings in (
        ("RestoreDDS", {}),
        ("RestoreDDS", {"temporal_smoothing": 1.0, "share_noise": True}),
        ("RestoreREDDiff", {"prior": 0.1, "sigma_max": 9.0}),
    ):
        sampler = sampler_of(pack, node, small, damaged, noise=2.0, **settings)
        restored = (sample(model, prompt, sampler, (2, 3, 16, 24), 20).movedim(1, -1) + 1) / 2
        mine, wrong = (chi2(pack, shown, small, damaged, 2.0) for shown in (restored, 1 - image))
        assert mine < 0.05 * wrong, (node, settings, mine, wrong)
