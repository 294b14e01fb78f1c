"""What models come with: the pooled part of SDXL and SD3, and networks of half precision."""

import torch
from helpers import never_worse, relative
from running import edit, fit, invert, play

CFG = 3.0
HALVES = (torch.bfloat16, torch.float16)


def check_pooled_conditioning_acts(pack):
    """The pooled vector of SDXL and SD3 reaches the network in every node."""
    for kind in ("sdxl", "sd3"):
        model, latent = pack.tiny.model(kind), pack.tiny.latent(kind, batch=2)
        source, target = pack.tiny.conditioning(kind), pack.tiny.conditioning(kind, 9)
        other = [[source[0][0], {**source[0][1], "pooled_output": target[0][1]["pooled_output"]}]]
        for node in ("EDICTCouple", "BDIAInvert", "BELMInvert", "FixedPointInvert"):
            given = {"node": node, "model": model, "latent": latent}
            states = [invert(pack, kind, source=prompt, **given)[3][0].x for prompt in (source, other)]
            assert relative(*states) > 1e-4, (kind, node)
        for node in ("InfEdit", "FlowEdit"):
            edited = edit(pack, node, kind, model, latent, target=other)
            assert relative(edited, latent["samples"]) > 1e-4, (kind, node)
        inversion = invert(pack, kind, model=model, latent=latent, method="ddim", keep_path=True)[3][0]
        fits = [fit(pack, model, inversion, negative, inner_steps=1)[0] for negative in (source, other)]
        assert relative(*(each.embeddings[0] for each in fits)) > 1e-6, kind


def check_half_precision_networks(pack):
    """The states stay float64 and finite, exact pairs come back, equal prompts give the source back."""
    for dtype, kind in ((dtype, kind) for dtype in HALVES for kind in ("sd15", "sdxl", "sd3", "wan")):
        model, latent = pack.tiny.model(kind, dtype=dtype), pack.tiny.latent(kind, batch=2)
        assert model.model.get_dtype() == dtype
        exact = invert(pack, kind, 2, method="edict")[3][0]
        for method in ("edict", "bdia", "belm", "noise_map"):
            inversion = invert(pack, kind, model=model, latent=latent, method=method)[3][0]
            assert inversion.x.dtype == torch.float64 and bool(inversion.x.isfinite().all())
            # A state on the border of two halves may fall to the other side on the way back (solvers.md: 9e-4).
            assert relative(play(pack, model, inversion), latent["samples"]) < 1e-3, (kind, dtype, method)
            if method == "edict":
                assert relative(inversion.x, exact.x) > 1e-4, (kind, dtype, "this is no half precision")
        for node in ("InfEdit", "FlowEdit"):
            same = edit(pack, node, kind, model, latent, target=pack.tiny.conditioning(kind))
            assert relative(same, latent["samples"]) < 1e-6, (kind, dtype, node)
            edited = edit(pack, node, kind, model, latent)
            assert bool(edited.isfinite().all()) and relative(edited, latent["samples"]) > 1e-3, (kind, node)


def check_half_precision_of_the_other_methods(pack):
    """Direct inversion is exact at any cfg, a full pull gives the picture, and a descent or fit beats its beginning."""
    for dtype, kind in ((dtype, kind) for dtype in HALVES for kind in ("sd15", "sd3")):
        model, latent = pack.tiny.model(kind, dtype=dtype), pack.tiny.latent(kind, batch=2)
        target, negative = (pack.tiny.conditioning(kind, seed) for seed in (9, 5))
        guided = {"cfg": CFG, "negative": negative}
        # The pulls of RF-Inversion: none at all, half way, and one that leaves nothing of the model's answer.
        direct, plain, pulled, full, euler, solved, climbed = (
            invert(pack, kind, model=model, latent=latent, method=method, **settings)[3][0]
            for method, settings in (
                ("direct", guided),
                ("rf_inversion", {"rf_inversion_gamma": 0.0, "rf_inversion_eta": 0.0}),
                ("rf_inversion", {"rf_inversion_eta": 0.5}),
                ("rf_inversion", {"rf_inversion_eta": 1.0, "rf_inversion_stop": 1.0}),
                ("euler", {}),
                ("spd", {"spd_iterations": 2, "spd_stop": 0.0}),
                ("ddim", {"keep_path": True}),
            )
        )
        for inversion in (direct, plain, pulled, full):
            assert inversion.x.dtype == torch.float64 and bool(inversion.x.isfinite().all())
            edited = play(pack, model, inversion, positive=target, **guided)
            assert bool(edited.isfinite().all()), (kind, dtype, inversion.method)
        for back in (play(pack, model, direct), play(pack, model, full, positive=target, **guided)):
            assert relative(back, latent["samples"]) < 1e-6, (kind, dtype)
        assert torch.equal(plain.x, euler.x) and bool(solved.x.isfinite().all()), (kind, dtype)
        for step in str(solved.meta["losses"]).split():
            first, last = map(float, step.split(">"))
            assert 0.0 <= last < first, (kind, dtype, step)
        fitted, _, text = fit(pack, model, climbed, negative)
        assert all(bool(each.isfinite().all()) for each in fitted.embeddings), (kind, dtype)
        never_worse(text)
