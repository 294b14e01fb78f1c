"""Edits, masks and what must stay untouched."""

import comfy.samplers
import latent_preview
import torch
from helpers import Counter, interrupted, refuses, relative, same_snapshot, snapshot
from running import STEPS, advanced, invert, play, reloaded, resuming


def _mask(latent, scale=8):
    """White in the middle of the picture, in pixels, not on cell borders."""
    height, width = (side * scale for side in latent["samples"].shape[-2:])
    mask = torch.zeros(1, height, width)
    mask[:, height // 4 + 3 : height // 2 + 5, width // 4 + 2 : width // 2 + 7] = 1.0
    return mask


def check_outside_the_mask_is_bit_equal(pack):
    """For every format, values near zero included, with a recorded path and without, feathered and not, from a file."""
    # Not only at the end: after each step the state outside is the source's own, recorded or re-noised.
    session, masks, runs = (pack.module(f"nodes.{name}") for name in ("host.session", "host.masks", "inverting.runs"))
    for kind in pack.tiny.KINDS:
        latent, target = pack.tiny.latent(kind, batch=2), pack.tiny.conditioning(kind, seed=9)
        samples = latent["samples"]
        samples[..., 0, :] = 0.0
        samples[..., 1, :] *= 1e-12
        mask = _mask(latent)
        for keep_path, feather in ((False, 0), (True, 6)):
            model, _, _, (inversion, *_) = invert(pack, kind, latent=latent, keep_path=keep_path)
            inputs = {"positive": target, "mask": mask, "feather": feather}
            edited, loaded = play(pack, model, inversion, **inputs), reloaded(pack, inversion)
            assert loaded.samples is None and loaded.source is None
            stored, rows = play(pack, model, loaded, **inputs), [0, *range(2, 8)]
            # A file has not the LATENT itself, so that a format's shift takes 1e-12 away.
            assert torch.equal(edited[..., rows, :], stored[..., rows, :]), kind
            outside = (masks.on_latent_grid(mask, samples.shape, feather) == 0).expand_as(samples)
            changed = edited != samples
            assert not bool((changed & outside).any()), kind
            assert 0.9 < float(changed[~outside].float().mean()), kind
            assert 0.1 < float(outside.float().mean()) < 0.95, kind
            levels = []

            def tap(report, own=inversion, outside=outside, levels=levels):
                levels.append(own.index - 1 - report.index)
                state = own.state_at(own.sigmas[levels[-1]])
                assert torch.equal(report.x[outside], state[outside]), levels

            with torch.inference_mode():
                runs.run_replay(model, inversion, session.Branch(target), masks.EditArea(mask, feather), tap=tap)
            assert levels == list(range(STEPS))[::-1]


def check_masks_of_all_shapes(pack):
    """One picture for all, one a row, one a frame; feathering never grows a mask."""
    on_grid, shape = pack.module("nodes.host.masks").on_latent_grid, (1, 4, 8, 12)
    mask = _mask({"samples": torch.zeros(shape)})
    soft = on_grid(mask, shape, 0)
    for feather in (1, 5, 8):
        feathered = on_grid(mask, shape, feather)
        assert not bool(((soft == 0) & (feathered > 0)).any()), feather
        assert bool((feathered <= soft + 1e-12).all()), feather
    full = on_grid(torch.ones(64, 96), (2, 4, 8, 12), 10)
    assert full.shape == (2, 1, 8, 12) and bool((full == 1).all())
    rows = torch.stack([torch.zeros(8, 12), torch.ones(8, 12)])
    assert on_grid(rows, (2, 4, 8, 12))[:, 0].mean(dim=(1, 2)).tolist() == [0.0, 1.0]
    frames = torch.zeros(9, 64, 96)
    frames[8] = 1.0
    assert on_grid(frames, (1, 16, 3, 8, 12))[0, 0].mean(dim=(1, 2)).tolist() == [0.0, 0.0, 1.0]
    still = on_grid(torch.ones(1, 64, 96), (2, 16, 3, 8, 12))
    assert still.shape == (2, 1, 3, 8, 12) and bool((still == 1).all())
    for given, to, feather, part in (
        (mask, shape, 12, "feather must be less than half"),
        (torch.ones(3, 8, 12), (2, 4, 8, 12), 0, "mask must hold 1 or 2 pictures"),
        (torch.full((8, 12), torch.nan), shape, 0, "mask must be finite"),
    ):
        refuses(lambda given=given, to=to, feather=feather: on_grid(given, to, feather), part)


def check_noise_mask_is_dropped_and_carried(pack):
    """It changes nothing in the inversion; the LATENT carries it with the source, where it is right."""
    # Below the top level of eps models, where the host scales a stock sampler's noise by 0.2 % more than its mask's.
    for kind, strength in (("sd15", 0.5), ("flux", 1.0)):
        latent = pack.tiny.latent(kind)
        masked = {**latent, "noise_mask": _mask(latent)}
        model, source, _, (plain, *_) = invert(pack, kind, strength=strength)
        _, _, _, (inversion, out, noise, sigmas) = invert(pack, kind, model=model, latent=masked, strength=strength)
        assert torch.equal(plain.x, inversion.x), kind
        assert torch.equal(out["samples"], latent["samples"]) and "noise_mask" in out, kind
        cells = torch.nn.functional.interpolate(masked["noise_mask"][:, None], size=(8, 12), mode="bilinear")
        outside = (cells == 0).expand_as(latent["samples"])
        by_noise = advanced(model, source, comfy.samplers.sampler_object("euler"), sigmas, out, noise)
        by_state, own = (
            advanced(model, source, resuming(pack, inversion, name), sigmas, out)
            for name in ("euler", "same as inversion")
        )
        # Inside, too: what the network sees outside is re-noised with the noise of the inversion, by either way.
        assert relative(by_state, by_noise) < 1e-4, (kind, relative(by_state, by_noise))
        for edited in (by_noise, by_state, own):
            assert relative(edited[outside], latent["samples"][outside]) < 1e-4, kind
            assert relative(edited[~outside], latent["samples"][~outside]) > 1e-3, kind


def check_models_stay_untouched(pack):
    """Neither weights nor options of the MODEL change, nor any input; a patched clone leaves it alone."""
    (solver,) = pack.call("RFSolverSample", solver="fireflow")
    for kind in pack.tiny.KINDS:
        model, source, latent = pack.tiny.model(kind), pack.tiny.conditioning(kind), pack.tiny.latent(kind)
        before, samples, text = snapshot(model), latent["samples"].clone(), source[0][0].clone()
        given = {"latent": latent, "source": source}
        _, _, _, (inversion, out, noise, sigmas) = invert(pack, kind, model=model, **given)
        state = inversion.x.clone()
        play(pack, model, inversion, mask=_mask(latent))
        advanced(model, source, resuming(pack, inversion), sigmas, out, noise)
        advanced(model, source, solver, sigmas.flip(0), latent)
        pack.call("InversionReport", inversion=inversion, model=model)
        clone = model.clone()
        weights = {key: value for key, value in model.model.state_dict().items() if value.ndim == 2}
        with torch.inference_mode():
            clone.add_patches({key: ("diff", (torch.ones_like(value),)) for key, value in weights.items()}, 2**-7)
        invert(pack, kind, model=clone, **given)
        patched = model.model.state_dict()
        assert all(torch.equal(patched[key], before[0][key] + 2**-7) for key in weights), "the patch is not loaded"
        lora = pack.module("nodes.host.fingerprint").fingerprint_model(clone)
        clone.unpatch_model()
        same_snapshot(model, before)
        assert lora == inversion.fingerprints["model"], "a LoRA must not change whose inversion it is"
        assert torch.equal(latent["samples"], samples) and torch.equal(source[0][0], text), kind
        assert torch.equal(inversion.x, state), kind


def check_twice_is_bit_equal(pack):
    """The same inputs give the same bits, on a new model as on a used one, and after an interrupt."""
    for kind in pack.tiny.KINDS:
        negative, target = pack.tiny.conditioning(kind, seed=3), pack.tiny.conditioning(kind, seed=4)
        results = []
        for _ in range(2):
            model, _, latent, (inversion, out, noise, _) = invert(pack, kind, cfg=2.0, negative=negative)
            prompts = {"positive": target, "negative": negative, "cfg": 4.0}
            edited = play(pack, model, inversion, mask=_mask(latent), feather=3, **prompts)
            results.append((inversion.x, out["samples"], noise.generate_noise(out), edited))
        assert all(torch.equal(a, b) for a, b in zip(*results)), kind
    for kind in ("sd15", "flux"):
        model, _, _, (inversion, *_) = invert(pack, kind)
        for run in (lambda m, k=kind: invert(pack, k, model=m), lambda m, i=inversion: play(pack, m, i)):
            interrupted(run, model, 3)
        assert torch.equal(invert(pack, kind, model=model)[3][0].x, inversion.x), kind


def check_evaluations_are_counted(pack):
    """As many as the network really saw."""
    for method, calls in (("euler", STEPS), ("midpoint", 2 * STEPS), ("fireflow", STEPS + 1), ("ddim", STEPS)):
        counter = Counter(pack.tiny.model("sd15"))
        inversion = invert(pack, "sd15", model=counter.model, method=method)[3][0]
        assert counter.calls == calls == inversion.meta["evaluations"], (method, counter.calls)
    # Guided, each conditioning is a forward of its own: whether two fit into one depends on free memory, and gives
    # other bits.
    counter, guided = Counter(pack.tiny.model("sd15")), {"cfg": 3.0, "negative": pack.tiny.conditioning("sd15", seed=3)}
    inversion = invert(pack, "sd15", model=counter.model, method="euler", **guided)[3][0]
    assert counter.calls == 2 * STEPS and counter.first.shape[0] == 1
    assert inversion.meta["evaluations"] == STEPS


def check_steps_are_shown(pack):
    """Every step reports progress with the true clean latent in it."""
    steps, original = [], latent_preview.prepare_callback
    latent_preview.prepare_callback = lambda model, count, x0_output_dict=None: (
        lambda step, x0, x, total: steps.append((step, total, x0.clone(), x.clone()))
    )
    try:
        path = invert(pack, "sd15", method="euler", keep_path=True)[3][0]
    finally:
        latent_preview.prepare_callback = original
    assert [(step, total) for step, total, *_ in steps] == [(i, STEPS) for i in range(STEPS)]
    for (step, _, x0, x), sigma, after in zip(steps, path.sigmas, path.sigmas[1:]):
        # Euler: x' = x + (s' - s) (x - D) / s, solved for D with the floor at the model's lowest level.
        slope = (path.path[step + 1] - path.path[step]) / (after - sigma)
        denoised = path.path[step] - slope * max(sigma, 0.0292)
        assert relative(x0, denoised) < 1e-3, (step, relative(x0, denoised))
        assert relative(x, path.path[step + 1]) < 1e-6


def check_other_solver_and_sigmas(pack):
    """Another single-state solver may play an inversion, which then differs; SIGMAS replace steps and scheduler."""
    model, _, _, (inversion, _, _, sigmas) = invert(pack, "sd3")
    ways = ({}, {"method": "midpoint"}, {"method": "euler"})
    own, same, other = (play(pack, model, inversion, **how) for how in ways)
    assert torch.equal(own, same) and relative(other, own) > 1e-3
    flipped = sigmas.flip(0).clone()
    flipped[0] = 0.0001
    for given in (sigmas, sigmas.flip(0), flipped):
        again = invert(pack, "sd3", model=model, sigmas=given, steps=99)[3][0]
        assert torch.equal(again.x, inversion.x)
