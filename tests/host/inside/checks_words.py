"""PromptToPrompt, LocalBlend and WordMask in the host."""

import functools
import logging
import random
import types
from dataclasses import replace

import attending
import comfy.latent_formats
import comfy.model_management
import comfy.sd1_clip
import comfy.text_encoders.flux
import nodes
import tiny_dits
import torch
from helpers import Counter, no_interrupt, refuses, relative, same_snapshot, snapshot

SOURCE = "a big red circle on the left of a blue background"
TARGET = "a big green circle on the left of a blue background"
STEPS = 6


@functools.cache
def _shapes(pack, kind):
    return pack.call("LoadShapesModel", kind=kind)


@functools.cache
def _scenes(pack, count):
    found = list(pack.module("demo.world").scenes())
    random.Random(5).shuffle(found)
    return found[:count]


def _encoded(pack, kind, scenes, seed):
    """Latent, pictures and true masks of some scenes."""
    vae = _shapes(pack, kind)[2]
    pixels, masks = pack.module("demo.world").render(scenes, seed)
    image = torch.from_numpy(pixels) / 255
    with torch.inference_mode():
        return {"samples": vae.encode(image)}, image, torch.from_numpy(masks)


def _prompts(pack, kind="eps", before=SOURCE, after=TARGET, **changes):
    model, clip, _ = _shapes(pack, kind)
    inputs = {
        "model": model,
        "clip": clip,
        "source_text": before,
        "target_text": after,
        "mode": "replace",
        "cross_end": 0.8,
        "self_end": 0.4,
        "weights": "",
        "schedule": "",
        "blend_words": "",
        "layers": "",
        "source": "pinned",
        **changes,
    }
    return pack.call("PromptToPrompt", **inputs)


def _blended(pack, plan, **changes):
    inputs = {
        "words": "",
        "threshold": 0.3,
        "threshold_by": "absolute",
        "start": 0.2,
        "end": 1.0,
        "grow": 0,
        "blur": 0.0,
        **changes,
    }
    return pack.call("LocalBlend", attention=plan, **inputs)[0]


@functools.cache
def _inverted(pack, kind, batch=1, steps=STEPS):
    """An inversion of a picture of the source's words, and its true mask."""
    scene = pack.module("demo.world").parse(SOURCE)
    latent, _, mask = _encoded(pack, kind, [scene] * batch, 3)
    inputs = {"steps": steps, "scheduler": "normal" if kind == "eps" else "simple", "strength": 1.0, "cfg": 1.0}
    method = "ddim" if kind == "eps" else "euler"
    source = _prompts(pack, kind)[0]
    linked = pack.call(
        "Invert", model=_shapes(pack, kind)[0], source=source, latent=latent, method=method, keep_path=True, **inputs
    )[0]
    return linked, latent["samples"], mask


def _edited(pack, kind, target, plan, cfg=4.0, batch=1, **changes):
    model, clip, _ = _shapes(pack, kind)
    linked = _inverted(pack, kind, batch)[0]
    (negative,) = nodes.CLIPTextEncode().encode(clip, "")
    inputs = {"model": model, "inversion": linked, "cfg": cfg, "positive": target, "negative": negative, **changes}
    return pack.call("Resample", attention=plan, **inputs)[0]["samples"]


def check_prompt_to_prompt_of_equal_prompts_is_the_identity(pack):
    """With the source beside it, equal prompts give what no plan gives, in every mode; weights then change it."""
    for kind in ("eps", "flow"):
        plain = None
        for mode in ("replace", "refine", "similarity", "reweight"):
            # A reweighting of no word is refused; one by 1 is none.
            weights = "red:1" if mode == "reweight" else ""
            source, target, plan, summary = _prompts(
                pack, kind, after=SOURCE, mode=mode, source="free", weights=weights
            )
            assert torch.equal(source[0][0], target[0][0]) and "kept: a big red circle" in summary, summary
            if plain is None:
                plain = _edited(pack, kind, target, None, cfg=1.0)
            same = _edited(pack, kind, target, plan, cfg=1.0)
            assert relative(same, plain) < 1e-5, (kind, mode, relative(same, plain))
        for mode in ("refine", "reweight"):
            heavy = _prompts(pack, kind, after=SOURCE, mode=mode, source="free", weights="red:4")[2]
            assert relative(_edited(pack, kind, target, heavy, cfg=1.0), plain) > 1e-4, (kind, mode)
        # At no step, no rule acts: bit for bit.
        _, target, still, _ = _prompts(pack, kind, cross_end=0.0, self_end=0.0)
        assert torch.equal(_edited(pack, kind, target, still), _edited(pack, kind, target, None)), kind


def check_prompt_to_prompt_keeps_the_outside_better(pack):
    """A colour swap at the same guidance: less of what lies outside the shape moves, and the colour still changes."""
    for kind in ("eps", "flow"):
        model = _shapes(pack, kind)[0]
        before = snapshot(model)
        _, target, plan, summary = _prompts(pack, kind)
        assert "replaced: red > green" in summary, summary
        vae, (_, samples, mask) = _shapes(pack, kind)[2], _inverted(pack, kind)
        outside, inside = mask[0] < 0.01, mask[0] > 0.95
        found = {}
        for name, used in (("plain", None), ("p2p", plan), ("again", plan)):
            with torch.inference_mode():
                edit, kept = (vae.decode(x)[0] for x in (_edited(pack, kind, target, used), samples))
            found[name] = edit
            green = edit[inside].mean(0)
            assert green[1] > green[0] + 0.1 and green[1] > green[2], (kind, name, green)
            found[f"{name} psnr"] = float(-10 * ((edit - kept)[outside] ** 2).mean().log10())
        print(kind, "outside:", f"plain {found['plain psnr']:.2f} dB, p2p {found['p2p psnr']:.2f} dB")  # noqa: T201
        assert torch.equal(found["p2p"], found["again"]), "the second run must be equal to the first"
        assert found["p2p psnr"] > found["plain psnr"] + 0.5, (kind, found["p2p psnr"], found["plain psnr"])
        same_snapshot(model, before)


def check_prompt_to_prompt_on_every_architecture(pack):
    """Prompts of a real tokenizer with an embedding a token: equal prompts are the identity, others follow the map."""
    module = pack.module("attention")
    for kind in tiny_dits.KINDS:
        reads_clip = kind in tiny_dits.READS_CLIP
        model = tiny_dits.model(kind)
        results = {}
        for name, text in (("same", "a red cat on a mat"), ("other", "a tiny blue lynx on a mat")):
            source, one = _by_table(pack, kind, "a red cat on a mat", reads_clip)
            target, other = _by_table(pack, kind, text, reads_clip)
            tokens = pack.module("attention.token_map").token_map(source, target, "replace", window=(0.0, 1.0))
            family = pack.module("nodes.attending.resolvers").resolver_for(model.model.diffusion_model).family
            settings = module.Settings(layers="all", start=0.0, end=1.0, text=tokens)
            plan = replace(module.get_preset("p2p").build(settings, family), source="free")
            _, linked = attending.inverted(pack, kind, model=model, batch=2, source=one)
            for used in (None, plan):
                results[name, used is not None] = attending.resampled(pack, model, linked, kind, used, target=other)
        error = relative(results["same", True], results["same", False])
        assert error < 1e-5, (kind, error)
        # Otherwise the target attends as the source does, and is another edit.
        assert relative(results["other", True], results["other", False]) > 1e-4, kind


def check_prompt_to_prompt_of_prompts_of_two_lengths(pack):
    """Networks without CLIP take prompts of any length, which Z-Image fills up to different numbers of tokens."""
    module = pack.module("attention")
    for kind in tiny_dits.DITS:
        if kind in tiny_dits.READS_CLIP or tiny_dits.TINY[kind].filled_text:
            continue
        model, found = tiny_dits.model(kind), {}
        family = pack.module("nodes.attending.resolvers").resolver_for(model.model.diffusion_model).family
        source, one = _by_table(pack, kind, "a red cat on a mat", False, 9)
        _, linked = attending.inverted(pack, kind, model=model, source=one)
        for length in (9, 13):
            target, other = _by_table(pack, kind, "a red cat on a mat", False, length)
            tokens = pack.module("attention.token_map").token_map(source, target, "replace", window=(0.0, 1.0))
            for variant in ("text", "joint"):
                settings = module.Settings(layers="all", start=0.0, end=1.0, text=tokens, variant=variant)
                plan = module.get_preset("p2p").build(settings, family)
                found[length, variant] = attending.resampled(pack, model, linked, kind, plan, target=other)
                assert torch.isfinite(found[length, variant]).all(), (kind, length)
        # More pads are another prompt, but hardly another edit; no map is.
        for variant in ("text", "joint"):
            plain = attending.resampled(pack, model, linked, kind, None, target=other)
            assert relative(found[13, variant], plain) > 1e-4, (kind, variant)


def _by_table(pack, kind, text, reads_clip, length=12):
    """A prompt and a conditioning whose every token has the vector of its id and place."""
    tokenizer = comfy.sd1_clip.SD1Tokenizer() if reads_clip else comfy.text_encoders.flux.FluxTokenizer()
    rows = tokenizer.tokenize_with_weights(text)
    name = "l" if reads_clip else "t5xxl"
    rows = {name: [row if reads_clip else row[:length] for row in rows[name]]}
    length = len(rows[name][0])
    clip = types.SimpleNamespace(tokenizer=tokenizer, cond_stage_model=types.SimpleNamespace())
    prompt = pack.module("nodes.host.prompts").prompt_of(clip, text, rows, length)
    made = tiny_dits.conditioning(kind, tokens=length)
    vectors = [
        torch.randn(made[0][0].shape[-1], generator=torch.Generator().manual_seed(int(entry[0]) + 77 * place))
        for place, entry in enumerate(rows[name][0])
    ]
    return prompt, [[torch.stack(vectors)[None], made[0][1]]]


def check_local_blend_keeps_the_source_bit_for_bit(pack):
    """Outside a mask, and outside the words; pictures of a batch have masks of their own."""
    for kind in ("eps", "flow"):
        _, target, plan, _ = _prompts(pack, kind)
        linked, samples, true = _inverted(pack, kind, 2)
        h, w = samples.shape[-2:]
        mask = torch.zeros(2, h, w)
        mask[0, 2:9, 1:6] = mask[1, 4:6, 8:14] = 1.0
        both = _edited(pack, kind, target, _blended(pack, plan, mask=mask), batch=2)
        kept = (mask == 0)[:, None].expand_as(samples)
        assert torch.equal(both[kept], samples[kept]) and not torch.equal(both[~kept], samples[~kept]), kind
        words = _edited(pack, kind, target, _blended(pack, plan, words="circle", threshold=0.5), batch=2)
        changed = (words != samples).any(1)
        assert 0.02 < float(changed.float().mean()) < 0.75, (kind, float(changed.float().mean()))
        grid = torch.nn.functional.adaptive_avg_pool2d(true, (h, w)) > 0.5
        assert float((changed & grid).sum() / grid.sum()) > 0.6, (kind, float((changed & grid).sum() / grid.sum()))
        meet = _edited(pack, kind, target, _blended(pack, plan, words="circle", mask=mask), batch=2)
        assert not ((meet != samples).any(1) & (mask == 0)).any(), kind
        del linked


def check_blend_words_of_prompt_to_prompt(pack):
    """The short form is the LocalBlend node with its defaults."""
    _, target, short, _ = _prompts(pack, blend_words="circle, green")
    _, _, plain, _ = _prompts(pack)
    long = _blended(pack, plain, words="circle, green")
    assert torch.equal(_edited(pack, "eps", target, short), _edited(pack, "eps", target, long))


def check_word_nodes_refuse_in_a_sentence(pack):
    """Words that are not there, weights that are none, plans without prompts, layers that match nothing."""
    refuses(lambda: _prompts(pack, weights="dog:2"), "word 'dog' must be in the prompt 'a big green circle")
    refuses(lambda: _prompts(pack, schedule="green#2:0.5"), "must occur 2 times", "got 1")
    refuses(lambda: _prompts(pack, weights="green"), "weights must read like")
    refuses(lambda: _prompts(pack, blend_words="bird"), "word 'bird' must be in the prompt")
    refuses(lambda: _prompts(pack, mode="reweight"), "weights must name a word for mode reweight, got none")
    refuses(lambda: _prompts(pack, clip=None), "clip must be connected")
    refuses(lambda: _prompts(pack, layers="everything"), "layers must be like")
    node = pack.node("PromptToPrompt")
    assert node.validate_inputs(weights="green") != node.validate_inputs(weights="green:2") is True
    assert "must name a word" in node.validate_inputs(weights="", mode="reweight")
    assert node.validate_inputs(weights="", mode="replace") is True and node.validate_inputs(mode="reweight") is True
    blank = pack.module("attention").AttentionPlan()
    refuses(lambda: _blended(pack, blank, words="circle"), "must come with a plan that knows its prompts")
    refuses(lambda: _blended(pack, blank), "must have words or a mask")
    refuses(lambda: _word_mask(pack, "eps", _scenes(pack, 1)[0], 0, words="dog"), "word 'dog' must be in the prompt")
    refuses(lambda: _word_mask(pack, "eps", _scenes(pack, 1)[0], 0, latent=None), "latent or an inversion, got neither")
    refuses(lambda: _word_mask(pack, "eps", _scenes(pack, 1)[0], 0, layers="output:9"), "layers of words must match")
    _, target, plan, _ = _prompts(pack, layers="output:9")
    refuses(lambda: _edited(pack, "eps", target, plan), "must match an attention layer", "'output:9'")


def _iou(mask, true):
    one, other = mask > 0.5, true > 0.5
    return float((one & other).sum() / (one | other).sum())


def _word_mask(pack, kind, scene, seed, batch=1, **changes):
    model, clip, _ = _shapes(pack, kind)
    latent, image, true = _encoded(pack, kind, [scene] * batch, seed)
    inputs = {
        "model": model,
        "clip": clip,
        "text": scene.caption,
        "words": scene.shape,
        "threshold": 0.5,
        "threshold_by": "otsu",
        "grow": 0,
        "blur": 0.0,
        "evaluations": 3,
        "low": 0.2,
        "high": 0.8,
        "seed": seed,
        "latent": latent,
        "image": image,
        **changes,
    }
    heat, mask = pack.call("WordMask", **inputs)
    return heat, mask, true


def check_word_masks_lie_on_the_object(pack):
    """Mean IoU with the true mask of the shape over 50 pictures, on both demo models."""
    for kind, wanted in (("eps", 0.6), ("flow", 0.5)):
        found = []
        for seed, scene in enumerate(_scenes(pack, 50)):
            heat, mask, true = _word_mask(pack, kind, scene, seed)
            assert heat.shape == (1, 64, 64, 3) and mask.shape == (1, 64, 64)
            found.append(_iou(mask, true))
        mean = sum(found) / len(found)
        print(f"{kind}: mean IoU {mean:.3f}, least {min(found):.3f}")  # noqa: T201
        assert mean >= wanted, (kind, mean)


def check_word_mask_reads_inversions_and_batches(pack):
    """An inversion in place of a latent; a batch has a mask each; the MODEL stays as it was; one forward a level."""
    model, clip, _ = _shapes(pack, "eps")
    before = snapshot(model)
    linked, _, true = _inverted(pack, "eps", 2)
    scene = pack.module("demo.world").parse(SOURCE)
    heat, mask, _ = _word_mask(pack, "eps", scene, 0, latent=None, image=None, inversion=linked)
    # A cell of the demo's latent stands for 4 pixels.
    assert heat.shape == (2, 64, 64, 3) and mask.shape == (2, 64, 64)
    assert all(_iou(one, other) > 0.4 for one, other in zip(mask, true, strict=True))
    assert not torch.equal(mask[0], mask[1])
    counter = Counter(model)
    _, first, _ = _word_mask(pack, "eps", scene, 0, batch=2, model=counter.model, evaluations=4)
    assert counter.calls == 4 and torch.equal(first, _word_mask(pack, "eps", scene, 0, batch=2, evaluations=4)[1])
    wide = _word_mask(pack, "eps", scene, 0, grow=3)[1]
    narrow = _word_mask(pack, "eps", scene, 0)[1]
    soft = _word_mask(pack, "eps", scene, 0, blur=2.0)[1]
    assert bool((wide >= narrow).all()) and wide.sum() > narrow.sum() and bool(((soft > 0) & (soft < 1)).any())
    for how in ("absolute", "mean", "quantile"):
        other = _word_mask(pack, "eps", scene, 0, threshold_by=how)[1]
        assert 0.0 < float(other.mean()) < 0.9, (how, float(other.mean()))
    same_snapshot(model, before)
    del clip


def check_word_maps_of_every_architecture(pack):
    """Non-square pictures and clips, two at a time: one map a picture and frame, a share of attention each."""
    maps = pack.module("nodes.attending.word_maps")
    words = pack.module("attention.word_list").parse_words("red cat, mat")
    for kind in tiny_dits.KINDS:
        model = tiny_dits.model(kind)
        before = snapshot(model)
        prompt, conditioning = _by_table(pack, kind, "a red cat on a mat", kind in tiny_dits.READS_CLIP)
        samples = tiny_dits.latent(kind, batch=2, size=(4, 6), frames=2)["samples"]
        sigmas = maps.sigmas_of(model, 0.3, 0.7, 2)
        states = maps.latent_states(model, samples, 0)
        with torch.inference_mode():
            heat = maps.read_words(model, prompt, conditioning, words, samples, sigmas, states, "all")
        frames = samples.shape[2] if samples.ndim == 5 else 1
        assert heat.shape[:3] == (2, 2, frames) and heat.shape[3] * 3 == heat.shape[4] * 2, (kind, heat.shape)
        assert bool((heat > 0).all()) and float(heat.sum(1).max()) <= 1.0, kind
        assert not torch.equal(heat[0], heat[1]) and not torch.equal(heat[:, 0], heat[:, 1]), kind
        same_snapshot(model, before)


def check_the_picture_has_the_size_of_the_latent_format(pack):
    """Pixels of a cell as the host's formats have them, on hosts that say so and on those that do not."""
    compat, formats = pack.module("nodes.host.compat"), comfy.latent_formats
    for kind in tiny_dits.KINDS:
        assert compat.pixels_of_a_cell(tiny_dits.model(kind)) == tiny_dits.TINY[kind].pixels, kind
    assert compat.pixels_of_a_cell(_shapes(pack, "eps")[0]) == 4
    model = tiny_dits.model("wan")
    known = {"Wan22": 16, "HunyuanImage21": 32, "Flux": 8, "Mochi": 8, "SC_B": 4, "ChromaRadiance": 1}
    for name, pixels in known.items():
        other = model.clone()
        other.add_object_patch("latent_format", getattr(formats, name)())
        assert compat.pixels_of_a_cell(other) == pixels, name

    class Silent(formats.Wan22):
        """A format of a host that does not say it, in a class of another pack."""

        spacial_downscale_ratio = None

    other.add_object_patch("latent_format", Silent())
    assert compat.pixels_of_a_cell(other) == 16


def check_prompts_of_another_node_are_told(pack):
    """A plan that meets other conditionings than those that its words were found in says so, in the log; else not."""
    model, clip, _ = _shapes(pack, "eps")
    linked, samples, _ = _inverted(pack, "eps")
    source, target, plan, _ = _prompts(pack)
    (same,) = nodes.CLIPTextEncode().encode(clip, SOURCE)
    (other,) = nodes.CLIPTextEncode().encode(clip, "a small white star at the top of a green background")
    assert _warned(lambda: _edited(pack, "eps", target, plan)) == []
    assert _warned(lambda: _edited(pack, "eps", other, plan)) == ["target"]
    inverted_as = {"steps": 2, "scheduler": "normal", "method": "euler", "strength": 1.0, "cfg": 1.0}
    for prompt, found in ((same, []), (other, ["source"])):
        latent = {"samples": samples}
        (made, *_) = pack.call("Invert", model=model, source=prompt, latent=latent, keep_path=True, **inverted_as)
        inputs = {"model": model, "inversion": made, "cfg": 1.0, "positive": target, "attention": plan}
        assert _warned(lambda i=inputs: pack.call("Resample", **i)) == found
    assert _warned(lambda: _edited(pack, "eps", other, None)) == []
    edit = {"model": model, "latent": {"samples": samples}, "steps": 2, "scheduler": "normal", "target_cfg": 1.0}
    edit.update(source_cfg=1.0, strength=1.0, eta=1.0, seed=0, attention=plan)
    assert _warned(lambda: pack.call("InfEdit", source=source, target=target, **edit)) == []
    assert _warned(lambda: pack.call("InfEdit", source=other, target=target, **edit)) == ["source"]
    del linked


def _warned(call):
    """Branches whose conditioning a call says is not that of the words."""
    told = []

    class Told(logging.Handler):
        def emit(self, record):
            if "must be that of the node which found the words" in record.getMessage():
                told.append(record.args[0])

    handler = Told()
    logging.getLogger().addHandler(handler)
    try:
        call()
    finally:
        logging.getLogger().removeHandler(handler)
    return told


def check_word_mask_can_be_interrupted(pack):
    """The run ends within a call, and the next one is as if nothing had been."""
    model = _shapes(pack, "eps")[0]
    before, scene = snapshot(model), _scenes(pack, 1)[0]
    wanted = _word_mask(pack, "eps", scene, 0)[1]
    counter = Counter(model, interrupt_after=1)
    with no_interrupt():
        try:
            _word_mask(pack, "eps", scene, 0, model=counter.model)
        except comfy.model_management.InterruptProcessingException:
            pass
        else:
            raise AssertionError("the run went on after an interrupt")
    assert counter.calls == 1
    same_snapshot(model, before)
    assert torch.equal(_word_mask(pack, "eps", scene, 0)[1], wanted)
