"""PromptToPrompt, LocalBlend and WordMask in the host."""

import functools
import random
from dataclasses import replace

import attending
import comfy.latent_formats
import tiny_dits
import torch
from attending import SOURCE, blended, by_table, latent_of, pictured, prompts, repainted, resolver
from helpers import Counter, interrupted, logged, refuses, refuses_each, relative, same_snapshot, snapshot
from running import decode, edit, encode, play, rendered, shapes


@functools.cache
def _scenes(pack, count):
    scenes = list(pack.module("demo.world").scenes())
    random.Random(5).shuffle(scenes)
    return scenes[:count]


def check_prompt_to_prompt_of_equal_prompts_is_the_identity(pack):
    """With the source beside it, equal prompts give what no plan gives, in every mode; weights then change it."""
    for kind in ("eps", "flow"):
        plain = None
        for mode in ("replace", "refine", "similarity", "reweight"):
            # A reweighting of no word is refused; one by 1 is none.
            weights = "red:1" if mode == "reweight" else ""
            source, target, plan, summary = prompts(pack, kind, after=SOURCE, mode=mode, source="free", weights=weights)
            assert torch.equal(source[0][0], target[0][0]) and "kept: a big red circle" in summary, summary
            plain = repainted(pack, kind, target, None, cfg=1.0) if plain is None else plain
            error = relative(repainted(pack, kind, target, plan, cfg=1.0), plain)
            assert error < 1e-5, (kind, mode, error)
        for mode in ("refine", "reweight"):
            heavy = prompts(pack, kind, after=SOURCE, mode=mode, source="free", weights="red:4")[2]
            assert relative(repainted(pack, kind, target, heavy, cfg=1.0), plain) > 1e-4, (kind, mode)
        # At no step, no rule acts: bit for bit.
        _, target, still, _ = prompts(pack, kind, cross_end=0.0, self_end=0.0)
        assert torch.equal(repainted(pack, kind, target, still), repainted(pack, kind, target, None)), kind


def check_prompt_to_prompt_keeps_the_outside_better(pack):
    """A colour swap at the same guidance: less of what lies outside the shape moves, and the colour still changes."""
    for kind in ("eps", "flow"):
        model, _, vae = shapes(pack, kind)
        before, (_, samples, mask) = snapshot(model), pictured(pack, kind)
        _, target, plan, summary = prompts(pack, kind)
        assert "replaced: red > green" in summary, summary
        outside, inside, there, psnr, edits = mask[0] < 0.01, mask[0] > 0.95, decode(vae, samples)[0], [], []
        for used in (None, plan, plan):
            edits.append(decode(vae, repainted(pack, kind, target, used))[0])
            green = edits[-1][inside].mean(0)
            assert green[1] > green[0] + 0.1 and green[1] > green[2], (kind, green)
            psnr.append(float(-10 * ((edits[-1] - there)[outside] ** 2).mean().log10()))
        assert torch.equal(edits[1], edits[2]), "the second run must be equal to the first"
        assert psnr[1] > psnr[0] + 0.5, (kind, psnr)
        same_snapshot(model, before)


def check_words_on_every_architecture(pack):
    """Prompts of a real tokenizer with an embedding a token: equal prompts are the identity, others follow the map."""
    # By PromptToPrompt beside an inversion, and by unified control under InfEdit.
    module, token_map = pack.module("attention"), pack.module("attention.token_map").token_map
    for kind in tiny_dits.KINDS:
        model, latent = tiny_dits.model(kind), latent_of(kind, batch=2)
        source, one = by_table(pack, kind, "a red cat on a mat")
        _, inversion = attending.inverted(pack, kind, model=model, latent=latent, source=one)
        for same, text in ((True, "a red cat on a mat"), (False, "a tiny blue lynx on a mat")):
            target, other = by_table(pack, kind, text)

            def plan(preset, mode, source=source, target=target, model=model, **changes):
                settings = module.Settings(text=token_map(source, target, mode, **changes), layers="all", start=0.0)
                return module.get_preset(preset).build(settings, resolver(pack, model).family)

            words = replace(plan("p2p", "replace", window=(0.0, 1.0)), source="free")
            pairs = {
                "p2p": [attending.resampled(pack, model, inversion, kind, p, target=other) for p in (words, None)],
                "unified": [
                    edit(pack, "InfEdit", kind, model, latent, source=one, target=other, attention=p)
                    for p in (plan("unified", "refine"), None)
                ],
            }
            for name, (edited, plain) in pairs.items():
                # Otherwise the target attends as the source does, and is another edit.
                error = relative(edited, latent["samples"] if same and name == "unified" else plain)
                assert error < (1e-5 if name == "p2p" else 1e-3) if same else error > 1e-4, (kind, name, error)


def check_prompt_to_prompt_of_prompts_of_two_lengths(pack):
    """Networks without CLIP take prompts of any length, which Z-Image fills up to different numbers of tokens."""
    module, token_map = pack.module("attention"), pack.module("attention.token_map").token_map
    for kind in tiny_dits.DITS:
        if kind in tiny_dits.READS_CLIP or tiny_dits.TINY[kind].filled_text:
            continue  # rows of 77, and the host pads Wan's text to one length
        model = tiny_dits.model(kind)
        source, one = by_table(pack, kind, "a red cat on a mat", 9)
        _, inversion = attending.inverted(pack, kind, model=model, source=one)
        for length in (9, 13):
            target, other = by_table(pack, kind, "a red cat on a mat", length)
            tokens = token_map(source, target, "replace", window=(0.0, 1.0))
            plain = attending.resampled(pack, model, inversion, kind, None, target=other)
            for variant in ("text", "joint"):
                settings = module.Settings(layers="all", start=0.0, end=1.0, text=tokens, variant=variant)
                plan = module.get_preset("p2p").build(settings, resolver(pack, model).family)
                edited = attending.resampled(pack, model, inversion, kind, plan, target=other)
                # More pads are another prompt, but hardly another edit; no map is.
                assert torch.isfinite(edited).all(), (kind, length)
                assert length == 9 or relative(edited, plain) > 1e-4, (kind, variant)


def check_local_blend_keeps_the_source_bit_for_bit(pack):
    """Outside a mask, and outside the words, also as the short form; pictures of a batch have masks of their own."""
    for kind in ("eps", "flow"):
        _, target, plan, _ = prompts(pack, kind)
        _, samples, true = pictured(pack, kind, 2)
        h, w = samples.shape[-2:]
        mask = torch.zeros(2, h, w)
        mask[0, 2:9, 1:6] = mask[1, 4:6, 8:14] = 1.0
        by_mask, by_words, by_both = (
            repainted(pack, kind, target, blended(pack, plan, **inputs), batch=2) != samples
            for inputs in ({"mask": mask}, {"words": "circle", "threshold": 0.5}, {"words": "circle", "mask": mask})
        )
        outside = (mask == 0)[:, None].expand_as(samples)
        assert not by_mask[outside].any() and by_mask[~outside].any() and not by_both[outside].any(), kind
        changed, grid = by_words.any(1), torch.nn.functional.adaptive_avg_pool2d(true, (h, w)) > 0.5
        assert 0.02 < float(changed.float().mean()) < 0.75, (kind, float(changed.float().mean()))
        assert float((changed & grid).sum() / grid.sum()) > 0.6, (kind, float((changed & grid).sum() / grid.sum()))
    # The short form is the LocalBlend node with its defaults.
    _, target, short, _ = prompts(pack, blend_words="circle, green")
    long = blended(pack, prompts(pack)[2], words="circle, green")
    assert torch.equal(*(repainted(pack, "eps", target, each) for each in (short, long)))


def check_word_nodes_refuse_in_a_sentence(pack):
    """Words that are not there, weights that are none, plans without prompts, layers that match nothing."""
    refuses_each(
        lambda **changes: prompts(pack, **changes),
        ({"weights": "dog:2"}, "word 'dog' must be in the prompt 'a big green circle"),
        ({"schedule": "green#2:0.5"}, "must occur 2 times", "got 1"),
        ({"weights": "green"}, "weights must read like"),
        ({"blend_words": "bird"}, "word 'bird' must be in the prompt"),
        ({"mode": "reweight"}, "weights must name a word for mode reweight, got none"),
        ({"clip": None}, "clip must be connected"),
        ({"layers": "everything"}, "layers must be like"),
    )
    node = pack.node("PromptToPrompt")
    assert node.validate_inputs(weights="green") != node.validate_inputs(weights="green:2") is True
    assert "must name a word" in node.validate_inputs(weights="", mode="reweight")
    assert node.validate_inputs(weights="", mode="replace") is True and node.validate_inputs(mode="reweight") is True
    blank = pack.module("attention").AttentionPlan()
    refuses(lambda: blended(pack, blank, words="circle"), "must come with a plan that knows its prompts")
    refuses(lambda: blended(pack, blank), "must have words or a mask")
    refuses_each(
        lambda **changes: _word_mask(pack, "eps", _scenes(pack, 1)[0], 0, **changes),
        ({"words": "dog"}, "word 'dog' must be in the prompt"),
        ({"latent": None}, "latent or an inversion, got neither"),
        ({"layers": "output:9"}, "layers of words must match"),
    )
    _, target, plan, _ = prompts(pack, layers="output:9")
    refuses(lambda: repainted(pack, "eps", target, plan), "must match an attention layer", "'output:9'")


def _iou(mask, true):
    one, other = mask > 0.5, true > 0.5
    return float((one & other).sum() / (one | other).sum())


def _word_mask(pack, kind, scene, seed, batch=1, **changes):
    """WordMask's heat and mask of the shape of a scene, and the true mask."""
    model, clip, vae = shapes(pack, kind)
    latent, image, true = rendered(pack, vae, [scene] * batch, seed)
    inputs = {"model": model, "clip": clip, "text": scene.caption, "words": scene.shape, "latent": latent}
    heat, mask = pack.call("WordMask", **{**inputs, "image": image, "evaluations": 3, "seed": seed, **changes})
    return heat, mask, true


def check_word_masks_lie_on_the_object(pack):
    """Mean IoU with the true mask of the shape over 50 pictures, on both demo models."""
    for kind, wanted in (("eps", 0.6), ("flow", 0.5)):
        shares = []
        for seed, scene in enumerate(_scenes(pack, 50)):
            heat, mask, true = _word_mask(pack, kind, scene, seed)
            assert heat.shape == (1, 64, 64, 3) and mask.shape == (1, 64, 64)
            shares.append(_iou(mask, true))
        assert sum(shares) / len(shares) >= wanted, (kind, sum(shares) / len(shares))


def check_word_mask_reads_inversions_and_batches(pack):
    """An inversion in place of a latent; a batch has a mask each; the MODEL stays as it was; one forward a level."""
    model = shapes(pack, "eps")[0]
    before, scene = snapshot(model), pack.module("demo.world").parse(SOURCE)
    (inversion, *_), _, true = pictured(pack, "eps", 2)
    heat, mask, _ = _word_mask(pack, "eps", scene, 0, latent=None, image=None, inversion=inversion)
    # A cell of the demo's latent stands for 4 pixels.
    assert heat.shape == (2, 64, 64, 3) and mask.shape == (2, 64, 64)
    assert all(_iou(one, other) > 0.4 for one, other in zip(mask, true, strict=True))
    assert not torch.equal(mask[0], mask[1])
    counter = Counter(model)
    _, first, _ = _word_mask(pack, "eps", scene, 0, batch=2, model=counter.model, evaluations=4)
    assert counter.calls == 4 and torch.equal(first, _word_mask(pack, "eps", scene, 0, batch=2, evaluations=4)[1])
    narrow, wide, soft = (_word_mask(pack, "eps", scene, 0, **how)[1] for how in ({}, {"grow": 3}, {"blur": 2.0}))
    assert bool((wide >= narrow).all()) and wide.sum() > narrow.sum() and bool(((soft > 0) & (soft < 1)).any())
    for how in ("absolute", "mean", "quantile"):
        other = _word_mask(pack, "eps", scene, 0, threshold_by=how)[1]
        assert 0.0 < float(other.mean()) < 0.9, (how, float(other.mean()))
    interrupted(lambda model: _word_mask(pack, "eps", scene, 0, model=model), model, 1)
    assert torch.equal(_word_mask(pack, "eps", scene, 0)[1], narrow)
    same_snapshot(model, before)


def check_word_maps_of_every_architecture(pack):
    """Non-square pictures and clips, two at a time: one map a picture and frame, a share of attention each."""
    maps = pack.module("nodes.attending.word_maps")
    words = pack.module("attention.word_list").parse_words("red cat, mat")
    for kind in tiny_dits.KINDS:
        model = tiny_dits.model(kind)
        before, (prompt, conditioning) = snapshot(model), by_table(pack, kind, "a red cat on a mat")
        samples = latent_of(kind, batch=2)["samples"]
        sigmas, states = maps.sigmas_of(model, 0.3, 0.7, 2), maps.latent_states(model, samples, 0)
        with torch.inference_mode():
            heat = maps.read_words(model, prompt, conditioning, words, samples, sigmas, states, "all")
        frames = samples.shape[2] if samples.ndim == 5 else 1
        assert heat.shape[:3] == (2, 2, frames) and heat.shape[3] * 3 == heat.shape[4] * 2, (kind, heat.shape)
        assert bool((heat > 0).all()) and float(heat.sum(1).max()) <= 1.0, kind
        assert not torch.equal(heat[0], heat[1]) and not torch.equal(heat[:, 0], heat[:, 1]), kind
        same_snapshot(model, before)


def check_the_picture_has_the_size_of_the_latent_format(pack):
    """Pixels of a cell as the host's formats have them, on hosts that say so and on those that do not."""
    pixels_of_a_cell, formats = pack.module("nodes.host.compat").pixels_of_a_cell, comfy.latent_formats
    for kind in tiny_dits.KINDS:
        assert pixels_of_a_cell(tiny_dits.model(kind)) == tiny_dits.TINY[kind].pixels, kind
    assert pixels_of_a_cell(shapes(pack, "eps")[0]) == 4

    class Silent(formats.Wan22):
        """A format of a host that does not say it, in a class of another pack."""

        spacial_downscale_ratio = None

    known = {"Wan22": 16, "HunyuanImage21": 32, "Flux": 8, "Mochi": 8, "SC_B": 4, "ChromaRadiance": 1}
    for shape, pixels in (*((getattr(formats, name), pixels) for name, pixels in known.items()), (Silent, 16)):
        other = tiny_dits.model("wan").clone()
        other.add_object_patch("latent_format", shape())
        assert pixels_of_a_cell(other) == pixels, shape


def check_prompts_of_another_node_are_told(pack):
    """A plan that meets other conditionings than those that its words were found in says so, in the log; else not."""
    model, clip, _ = shapes(pack, "eps")
    _, samples, _ = pictured(pack, "eps")
    source, target, plan, _ = prompts(pack)
    same, other = (encode(clip, text) for text in (SOURCE, "a small white star at the top of a green background"))

    def told(call):
        with logged() as records:
            call()
        about = "must be that of the node which found the words"
        return [each.args[0] for each in records if about in each.getMessage()]

    for positive, attention, wanted in ((target, plan, []), (other, plan, ["target"]), (other, None, [])):
        assert told(lambda p=positive, a=attention: repainted(pack, "eps", p, a)) == wanted
    given = {"model": model, "latent": {"samples": samples}, "steps": 2, "scheduler": "normal"}
    for prompt, wanted in ((same, []), (other, ["source"])):
        made = pack.call("Invert", source=prompt, method="euler", keep_path=True, **given)[0]
        assert told(lambda i=made: play(pack, model, i, positive=target, attention=plan)) == wanted
    for prompt, wanted in ((source, []), (other, ["source"])):
        inputs = {"source": prompt, "target": target, "attention": plan, **given}
        assert told(lambda i=inputs: pack.call("InfEdit", **i)) == wanted
