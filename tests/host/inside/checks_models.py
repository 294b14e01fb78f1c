"""Round trips and transport on every kind of model."""

import torch


def check_models_are_finite(pack):
    """Every tiny model inverts and comes back, finite, in every kind."""
    for kind in pack.tiny.KINDS:
        model, source = pack.tiny.model(kind), pack.tiny.conditioning(kind)
        latent = pack.tiny.latent(kind, batch=2)
        bundle, out, noise, sigmas = pack.call(
            "Invert",
            model=model,
            source=source,
            latent=latent,
            steps=4,
            scheduler="normal",
            method="midpoint",
            cfg=1.0,
            strength=1.0,
        )
        (back,) = pack.call("Resample", model=model, inversion=bundle, cfg=1.0)
        for tensor in (out["samples"], back["samples"], noise.generate_noise(out), sigmas):
            assert torch.isfinite(tensor).all(), kind
        assert back["samples"].shape == latent["samples"].shape, kind
        print(kind, bundle.record.space, bundle.record.sigmas, bundle.record.fingerprints)
