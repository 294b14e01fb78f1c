"""Edits, masks and what must stay untouched."""

import comfy.model_management
import comfy.samplers
import torch
from helpers import STEPS, Counter, advanced, invert, no_interrupt, refuses, relative, same_snapshot, snapshot


def _mask(latent, scale=8):
    """White in the middle of the picture, in pixels, not on cell borders."""
    height, width = (side * scale for side in latent["samples"].shape[-2:])
    mask = torch.zeros(1, height, width)
    mask[:, height // 4 + 3 : height // 2 + 5, width // 4 + 2 : width // 2 + 7] = 1.0
    return mask


def check_outside_the_mask_is_bit_equal(pack):
    """For every format, values near zero included, with a recorded path and without, feathered and not."""
    grid = pack.module("nodes.host.masks")
    for kind in pack.tiny.KINDS:
        latent = pack.tiny.latent(kind, batch=2)
        latent["samples"][..., 0, :] = 0.0
        latent["samples"][..., 1, :] *= 1e-12
        mask = _mask(latent)
        target = pack.tiny.conditioning(kind, seed=9)
        for keep_path, feather in ((False, 0), (True, 6)):
            model, _, _, (linked, *_) = invert(pack, kind, latent=latent, keep_path=keep_path)
            (edited,) = pack.call(
                "Resample", model=model, inversion=linked, cfg=1.0, positive=target, mask=mask, feather=feather
            )
            cells = grid.on_latent_grid(mask, latent["samples"].shape, feather)
            outside = (cells == 0).expand_as(latent["samples"])
            changed = edited["samples"] != latent["samples"]
            assert not bool((changed & outside).any()), kind
            assert 0.9 < float(changed[~outside].float().mean()), kind
            assert 0.1 < float(outside.float().mean()) < 0.95, kind


def check_masks_hold_at_every_step(pack):
    """Not only at the end: after each step the state outside is the source's own, recorded or re-noised."""
    Branch, EditArea = pack.module("nodes.host.session").Branch, pack.module("nodes.host.masks").EditArea  # noqa: N806
    runs = pack.module("nodes.inverting.runs")
    for kind in ("sd15", "flux", "wan"):
        for keep_path in (False, True):
            model, _, latent, (linked, *_) = invert(pack, kind, keep_path=keep_path)
            mask = _mask(latent)
            shape = latent["samples"].shape
            outside = (pack.module("nodes.host.masks").on_latent_grid(mask, shape) == 0).expand(shape)
            levels = []

            def tap(report, record=linked, outside=outside, levels=levels):
                level = record.index - 1 - report.index
                levels.append(level)
                assert torch.equal(report.x[outside], record.state_at(record.sigmas[level])[outside]), level

            with torch.inference_mode():
                runs.run_replay(model, linked, Branch(pack.tiny.conditioning(kind, seed=9)), EditArea(mask), tap=tap)
            assert levels == list(range(STEPS))[::-1]


def check_mask_survives_the_file(pack):
    """A record from a file edits inside a mask as well, without the source latent at hand."""
    for kind in pack.tiny.KINDS:
        latent = pack.tiny.latent(kind)
        latent["samples"][..., 0, :] = 0.0
        model, _, _, (linked, *_) = invert(pack, kind, latent=latent)
        (name,) = pack.call("SaveInversion", inversion=linked, filename_prefix="masks/one", half=False)
        (loaded,) = pack.call("LoadInversion", file=name)
        assert loaded.samples is None and loaded.source is None
        target = pack.tiny.conditioning(kind, seed=9)
        inputs = {"model": model, "cfg": 1.0, "positive": target, "mask": _mask(latent)}
        (fresh,) = pack.call("Resample", inversion=linked, **inputs)
        (stored,) = pack.call("Resample", inversion=loaded, **inputs)
        assert torch.equal(fresh["samples"], stored["samples"]), kind


def check_masks_of_all_shapes(pack):
    """One picture for all, one a row, one a frame; feathering never grows a mask."""
    masks = pack.module("nodes.host.masks")
    soft = masks.on_latent_grid(_mask({"samples": torch.zeros(1, 4, 8, 12)}), (1, 4, 8, 12), 0)
    for feather in (1, 5, 8):
        feathered = masks.on_latent_grid(_mask({"samples": torch.zeros(1, 4, 8, 12)}), (1, 4, 8, 12), feather)
        assert not bool(((soft == 0) & (feathered > 0)).any()), feather
        assert bool((feathered <= soft + 1e-12).all()), feather
    refuses(
        lambda: masks.on_latent_grid(_mask({"samples": torch.zeros(1, 4, 8, 12)}), (1, 4, 8, 12), 12),
        "feather must be less than half",
    )
    full = masks.on_latent_grid(torch.ones(64, 96), (2, 4, 8, 12), 10)
    assert full.shape == (2, 1, 8, 12) and bool((full == 1).all())
    rows = torch.stack([torch.zeros(8, 12), torch.ones(8, 12)])
    assert masks.on_latent_grid(rows, (2, 4, 8, 12))[:, 0].mean(dim=(1, 2)).tolist() == [0.0, 1.0]
    frames = torch.zeros(9, 64, 96)
    frames[8] = 1.0
    clip = masks.on_latent_grid(frames, (1, 16, 3, 8, 12))
    assert clip[0, 0].mean(dim=(1, 2)).tolist() == [0.0, 0.0, 1.0]
    still = masks.on_latent_grid(torch.ones(1, 64, 96), (2, 16, 3, 8, 12))
    assert still.shape == (2, 1, 3, 8, 12) and bool((still == 1).all())
    refuses(lambda: masks.on_latent_grid(torch.ones(3, 8, 12), (2, 4, 8, 12)), "mask must hold 1 or 2 pictures")
    refuses(lambda: masks.on_latent_grid(torch.full((8, 12), torch.nan), (1, 4, 8, 12)), "mask must be finite")
    refuses(lambda: masks.on_latent_grid(torch.ones(8, 12), (1, 64, 100)), "mask must belong to a picture or a clip")


def check_noise_mask_is_dropped_and_carried(pack):
    """It changes nothing in the inversion; the LATENT carries it with the source, where it is right."""
    # Below the top level of eps models, where the host scales a stock sampler's noise by 0.2 % more than its mask's.
    for kind, strength in (("sd15", 0.5), ("flux", 1.0)):
        latent = pack.tiny.latent(kind)
        masked = {**latent, "noise_mask": _mask(latent)}
        model, source, _, (plain, *_) = invert(pack, kind, latent=latent, strength=strength)
        _, _, _, (linked, out, noise, sigmas) = invert(pack, kind, model=model, latent=masked, strength=strength)
        assert torch.equal(plain.x, linked.x), kind
        assert torch.equal(out["samples"], latent["samples"]) and "noise_mask" in out, kind
        cells = torch.nn.functional.interpolate(masked["noise_mask"][:, None], size=(8, 12), mode="bilinear")
        outside = (cells == 0).expand_as(latent["samples"])
        by_noise = advanced(model, source, comfy.samplers.sampler_object("euler"), sigmas, out, noise)
        (euler,) = pack.call("InversionSampler", inversion=linked, sampler_name="euler")
        by_state = advanced(model, source, euler, sigmas, out)
        # Inside, too: what the network sees outside is re-noised with the noise of the inversion, by either way.
        assert relative(by_state, by_noise) < 1e-4, (kind, relative(by_state, by_noise))
        (resume,) = pack.call("InversionSampler", inversion=linked, sampler_name="same as inversion")
        for edited in (by_noise, by_state, advanced(model, source, resume, sigmas, out)):
            assert relative(edited[outside], latent["samples"][outside]) < 1e-4, kind
            assert relative(edited[~outside], latent["samples"][~outside]) > 1e-3, kind


def check_models_stay_untouched(pack):
    """Neither weights nor options of the MODEL change, nor any input; a patched clone leaves it alone."""
    for kind in pack.tiny.KINDS:
        model, source, latent = pack.tiny.model(kind), pack.tiny.conditioning(kind), pack.tiny.latent(kind)
        before, kept, cond = snapshot(model), latent["samples"].clone(), source[0][0].clone()
        _, _, _, (linked, out, noise, sigmas) = invert(pack, kind, model=model, latent=latent)
        state = linked.x.clone()
        pack.call("Resample", model=model, inversion=linked, cfg=1.0, mask=_mask(latent))
        (resume,) = pack.call("InversionSampler", inversion=linked, sampler_name="same as inversion")
        (rf,) = pack.call("RFSolverSample", solver="fireflow")
        advanced(model, source, resume, sigmas, out, noise)
        advanced(model, source, rf, sigmas.flip(0), latent)
        pack.call("InversionReport", inversion=linked, model=model)
        clone = model.clone()
        weights = {key: value for key, value in model.model.state_dict().items() if value.ndim == 2}
        fingerprint = pack.module("nodes.host.fingerprint").fingerprint_model
        with torch.inference_mode():
            clone.add_patches({key: ("diff", (torch.ones_like(value),)) for key, value in weights.items()}, 0.5)
        invert(pack, kind, model=clone, latent=latent)
        patched = model.model.state_dict()
        assert all(torch.equal(patched[key], before[0][key] + 0.5) for key in weights), "the patch is not loaded"
        lora = fingerprint(clone)
        clone.unpatch_model()
        same_snapshot(model, before)
        assert lora == linked.fingerprints["model"], "a LoRA must not change whose record it is"
        assert torch.equal(latent["samples"], kept) and torch.equal(source[0][0], cond), kind
        assert torch.equal(linked.x, state), kind


def check_twice_is_bit_equal(pack):
    """The same inputs give the same bits, on a new model as on a used one."""
    for kind in pack.tiny.KINDS:
        negative, target = pack.tiny.conditioning(kind, seed=3), pack.tiny.conditioning(kind, seed=4)
        results = []
        for _ in range(2):
            model, _, latent, (linked, out, noise, _) = invert(pack, kind, cfg=2.0, negative=negative)
            (edit,) = pack.call(
                "Resample", model=model, inversion=linked, cfg=4.0, positive=target, negative=negative,
                mask=_mask(latent), feather=3,
            )  # fmt: skip
            results.append((linked.x, out["samples"], noise.generate_noise(out), edit["samples"]))
        assert all(torch.equal(a, b) for a, b in zip(*results)), kind


def check_interrupt_stops_within_one_call(pack):
    """An interrupt in the middle of Invert or Resample ends it before the next call, and the next run is right."""
    for kind in ("sd15", "flux"):
        model, _, latent, (wanted, *_) = invert(pack, kind)
        before = snapshot(model)
        counter = Counter(model, interrupt_after=3)
        with no_interrupt():
            for run in (
                lambda m, k=kind, z=latent: invert(pack, k, model=m, latent=z),
                lambda m, w=wanted: pack.call("Resample", model=m, inversion=w, cfg=1.0),
            ):
                counter.calls = 0
                try:
                    run(counter.model)
                except comfy.model_management.InterruptProcessingException:
                    pass
                else:
                    raise AssertionError("the interrupt was swallowed")
                assert counter.calls == 3, counter.calls
        same_snapshot(model, before)
        _, _, _, (again, *_) = invert(pack, kind, model=model, latent=latent)
        assert torch.equal(again.x, wanted.x), kind


def check_evaluations_are_counted(pack):
    """The record counts the calls that the network really saw."""
    for method, calls in (("euler", STEPS), ("midpoint", 2 * STEPS), ("fireflow", STEPS + 1), ("ddim", STEPS)):
        model = pack.tiny.model("sd15")
        counter = Counter(model)
        _, _, _, (linked, *_) = invert(pack, "sd15", model=counter.model, method=method)
        assert counter.calls == calls == linked.meta["evaluations"], (method, counter.calls)
    # Guided, each conditioning is a forward of its own: whether two fit into one depends on free memory, and gives
    # other bits.
    counter = Counter(pack.tiny.model("sd15"))
    negative = pack.tiny.conditioning("sd15", seed=3)
    _, _, _, (linked, *_) = invert(pack, "sd15", model=counter.model, method="euler", cfg=3.0, negative=negative)
    assert counter.calls == 2 * STEPS and counter.first.shape[0] == 1
    assert linked.meta["evaluations"] == STEPS


def check_steps_are_shown(pack):
    """Every step reports progress with the true clean latent in it, in Invert and under SamplerCustomAdvanced."""
    import latent_preview

    seen = []
    original = latent_preview.prepare_callback

    def watch(model, steps, x0_output_dict=None):
        def callback(step, x0, x, total):
            seen.append((step, total, x0.clone(), x.clone()))

        return callback

    latent_preview.prepare_callback = watch
    try:
        _, _, _, (linked, *_) = invert(pack, "sd15", method="euler", keep_path=True)
    finally:
        latent_preview.prepare_callback = original
    record = linked
    assert [(step, total) for step, total, *_ in seen] == [(i, STEPS) for i in range(STEPS)]
    for (step, _, x0, x), sigma, after in zip(seen, record.sigmas, record.sigmas[1:]):
        # Euler: x' = x + (s' - s) (x - D) / s, solved for D with the floor at the model's lowest level.
        floor = max(sigma, 0.0292)
        slope = (record.path[step + 1] - record.path[step]) / (after - sigma)
        denoised = record.path[step] - slope * floor
        assert relative(x0, denoised) < 1e-3, (step, relative(x0, denoised))
        assert relative(x, record.path[step + 1]) < 1e-6


def check_other_solver_down(pack):
    """Another single-state solver may play a record; it then differs from the record's own."""
    model, _, _, (linked, *_) = invert(pack, "sd15")
    (own,) = pack.call("Resample", model=model, inversion=linked, cfg=1.0)
    (same,) = pack.call("Resample", model=model, inversion=linked, cfg=1.0, method="midpoint")
    (other,) = pack.call("Resample", model=model, inversion=linked, cfg=1.0, method="euler")
    assert torch.equal(own["samples"], same["samples"])
    assert relative(other["samples"], own["samples"]) > 1e-3


def check_sigmas_input(pack):
    """SIGMAS rising, falling or flipped by the host replace steps and scheduler."""
    model, _, latent, (linked, _, _, sigmas) = invert(pack, "sd3")
    flipped = sigmas.flip(0).clone()
    flipped[0] = 0.0001
    for given in (sigmas, sigmas.flip(0), flipped):
        _, _, _, (other, *_) = invert(pack, "sd3", model=model, latent=latent, sigmas=given, steps=99)
        assert torch.equal(other.x, linked.x)
