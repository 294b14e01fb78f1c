"""Which attention call is which: every architecture, on sizes that are odd, and what its file says of it."""

import importlib
import math

import comfy.ops
import comfy.samplers
import tiny_dits
import torch
from attending import ROUNDING, edited, inverted, plan, resolver, target_of
from comfy.patcher_extension import WrappersMP
from helpers import refuses, relative
from running import advanced
from tiny_dits import TINY


class _Watch:
    """Asks a resolver for the site of every attention call of a forward, and keeps the values of each."""

    def __init__(self, pack, model):
        self.resolver = resolver(pack, model)
        self.seen, self.calls = [], 0

    def wrap(self, executor, x, t, concat, text, control, options, **kwargs):
        self.resolver.begin(x.shape, {**kwargs, "c_crossattn": text})
        marked = {**self.resolver.mark(dict(options)), "optimized_attention_override": self.override}
        try:
            return executor(x, t, concat, text, control, marked, **kwargs)
        finally:
            self.resolver.end()

    def override(self, func, q, k, v, heads, *args, **kwargs):
        self.calls += 1
        site = self.resolver.site(q.shape[-2], k.shape[-2], kwargs["transformer_options"])
        if site is not None:
            values = v.movedim(1, 2).flatten(2) if kwargs.get("skip_reshape") else v.flatten(2)
            self.seen.append((site, q.shape[-2], values.clone()))
        return func(q, k, v, heads, *args, **kwargs)


def _once(model, x, sigmas, extra_args=None, **_):
    return model(x, sigmas[:1].expand(len(x)), **extra_args)


def _forward(model, kind, latent, watch=None, conditioning=None):
    if watch is not None:
        model = model.clone()
        model.add_wrapper_with_key(WrappersMP.APPLY_MODEL, "watch", watch.wrap)
    conditioning = tiny_dits.conditioning(kind) if conditioning is None else conditioning
    return advanced(model, conditioning, comfy.samplers.KSAMPLER(_once), torch.tensor([0.5, 0.0]), latent)


def check_every_resolver_has_a_tiny_model(pack):
    """Each file of resolvers/ is tried on a network of the host's own that it alone serves; all it names exists."""
    attention, resolvers = pack.module("attention"), pack.module("nodes.attending.resolvers").RESOLVERS
    for kind in tiny_dits.KINDS:
        network = tiny_dits.model(kind).model.diffusion_model
        serving = [name for name, each in resolvers.items() if each.serves(network)]
        assert serving == [TINY[kind].family], (kind, serving)
    for name, knows in resolvers.items():
        since = [about.since for about in TINY.values() if about.family == name]
        assert since, f"resolvers/{name}.py must have a tiny model in tiny_dits.py, got none"
        assert knows.label and knows.since == min(since), name
        for network in knows.networks if knows.since <= tiny_dits.HOST else ():
            module, _, network = network.rpartition(".")
            assert hasattr(importlib.import_module(f"comfy.ldm.{module}"), network), (name, network)
        for preset in knows.preset_layers:
            known, _, variant = preset.partition(" ")
            assert variant in ("", *attention.get_preset(known).variants), (name, preset)
        for layers in (knows.word_layers, *knows.preset_layers.values()):
            attention.Layers.parse(layers)


def check_every_site_is_found_once_and_nothing_changes(pack):
    """Each forward meets each slot once, in order; image tokens fill the grid; the output keeps its bits."""
    for kind, about in ((kind, TINY[kind]) for kind in tiny_dits.KINDS):
        for size in ((8, 12), (12, 8), (8, 10) if about.whole else (7, 9)):
            model, latent = tiny_dits.model(kind), tiny_dits.latent(kind, batch=2, size=size)
            watch = _Watch(pack, model)
            watched = _forward(model, kind, latent, watch)
            assert torch.equal(_forward(model, kind, latent), watched), kind
            slots = watch.resolver.slots
            assert [(*slot.block, slot.kind) for slot in slots] == [site.key[:4] for site, *_ in watch.seen], kind
            assert watch.calls == len(slots) + about.unreached, (kind, watch.calls)
            assert not watch.resolver.bypassed and len({site.key for site, *_ in watch.seen}) == len(slots), kind
            grids = [site.grid for site, *_ in watch.seen]
            assert [site.grid for site in watch.resolver.sites(latent["samples"].shape)] == grids, kind
            for site, queries, values in watch.seen:
                image, keys = math.prod(site.grid), values.shape[1]
                assert image > 0 and site.image[1] - site.image[0] == image, (kind, site)
                assert 0 <= site.image[0] and site.image[1] <= queries, (kind, site)
                assert site.latent == (3 if kind in tiny_dits.VIDEO else 1, *size), (kind, site)
                if site.kind == "joint":
                    filled = sum(tiny_dits.filling(kind, tokens) for tokens in (about.text, image))
                    assert site.text[1] - site.text[0] == about.text, (kind, site)
                    assert queries == keys == about.front + about.text + image + filled, (kind, site)
                elif site.kind == "cross":
                    assert site.text == (0, keys) == (0, about.text), (kind, site)
                else:
                    assert site.text is None and queries == keys, (kind, site)


def check_a_replaced_block_is_told(pack):
    """Sites of a block that another pack replaced, attention and all, are known as bypassed."""
    for kind in tiny_dits.DITS:
        model = tiny_dits.model(kind)
        model.set_model_patch_replace(lambda args, extra: args, "dit", "double_block", 0)
        watch = _Watch(pack, model)
        _forward(model, kind, tiny_dits.latent(kind), watch)
        first = watch.resolver.slots[0].block
        # The host lets no block of some be replaced.
        replaced = {slot for slot in watch.resolver.slots if slot.block == first and watch.resolver.mark({})}
        assert watch.resolver.bypassed == replaced, (kind, watch.resolver.bypassed)


def _changed(pack, model, kind, one, other):
    """Sites of the first block, each with the tokens whose values two forwards of (latent, conditioning) differ in."""
    watches = []
    for latent, conditioning in (one, other):
        watches.append(_Watch(pack, model))
        _forward(model, kind, latent, watches[-1], conditioning)
    pairs = zip(*(watch.seen for watch in watches))
    return [
        (site, (a != b).any(-1)[0].nonzero().flatten().tolist()) for (site, _, a), (*_, b) in pairs if site.number == 0
    ]


def check_image_tokens_are_the_picture(pack):
    """Where the resolver says that the image lies, values follow the picture, and no others do."""
    for kind in tiny_dits.DITS:
        first, text = tiny_dits.latent(kind), tiny_dits.conditioning(kind)
        other = {"samples": first["samples"].clone()}
        other["samples"][..., -1, -1] += 3.0
        for site, changed in _changed(pack, tiny_dits.model(kind), kind, (first, text), (other, text)):
            frames, rows, columns = site.grid
            start, stop = site.image
            if site.kind == "cross":
                wanted = []
            elif "image" in TINY[kind].mixed:  # and with them those that fill up their number
                wanted = list(range(start, stop + tiny_dits.filling(kind, stop - start)))
            else:
                wanted = [start + (frame + 1) * rows * columns - 1 for frame in range(frames)]
            assert changed == wanted, (kind, site, changed, wanted)


def check_text_tokens_are_the_prompt(pack):
    """Where the resolver says that the text lies, keys follow the prompt, token by token where no refiner mixes."""
    for kind in tiny_dits.KINDS:
        model, latent, first = tiny_dits.model(kind), tiny_dits.latent(kind), tiny_dits.conditioning(kind)
        for token in (0, 5):
            other = [[first[0][0].clone(), first[0][1]]]
            other[0][0][:, token] += 1.0
            seen = _changed(pack, model, kind, (latent, first), (latent, other))
            seen = [(site, changed) for site, changed in seen if site.text is not None]
            assert seen, kind
            for site, changed in seen:
                start, stop = site.text
                mixed = range(start, stop + tiny_dits.filling(kind, stop - start))
                wanted = list(mixed) if "text" in TINY[kind].mixed else [start + token]
                assert changed == wanted, (kind, token, site, changed)


def check_depths_are_those_of_blocks(pack):
    """Every attention of a block stands as deep as the block; SD3.5-medium's second ones are in its first half."""
    for kind in tiny_dits.KINDS:
        sites = resolver(pack, tiny_dits.model(kind)).sites(tiny_dits.latent(kind)["samples"].shape)
        places = {(site.key[:3], site.depth) for site in sites}
        assert len(places) == len({block for block, _ in places}), kind
        depths = [site.depth for site in sites]
        assert depths == sorted(depths) and (depths[0], depths[-1]) == (0.0, 1.0), (kind, depths)
    sites = resolver(pack, tiny_dits.model("sd35")).sites((1, 16, 8, 12))
    late = pack.module("attention").Layers.parse("0.5-1.0")
    assert [site.label for site in sites if late.matches(site)] == ["block:2 (joint#2)", "block:3 (joint#3)"]


def check_references_of_wan_stay_out_of_the_clip(pack):
    """A reference frame stands in front of the clip and subjects behind it: neither is taken for the clip."""
    model = tiny_dits.model("wan")
    knows, tokens = resolver(pack, model), 3 * 4 * 6

    def image(queries, **extra):
        knows.begin((1, 16, 3, 8, 12), extra)
        return knows.parts("self", queries, queries, tokens)[0]

    assert image(tokens) == image(tokens + 24, time_dim_concat=torch.zeros(1, 16, 1, 8, 12)) == (0, tokens)
    assert image(tokens + 24, context_latents=[torch.zeros(1, 16, 1, 8, 12)]) == (0, tokens)
    # A network without a convolution for the reference leaves it alone.
    reference = torch.zeros(1, 16, 8, 12)
    assert image(tokens, reference_latent=reference) == (0, tokens)
    with torch.inference_mode():
        model.model.diffusion_model.ref_conv = comfy.ops.disable_weight_init.Conv2d(16, 32, (2, 2), (2, 2))
    assert image(tokens + 24, reference_latent=reference) == (24, 24 + tokens)


def check_rows_with_masks(pack):
    """Prompts whose ends are masked, at one place or at two, are edited in one forward as in two."""
    for kind, ends in ((kind, ends) for kind in tiny_dits.DITS for ends in ((3, 3), (1, 3))):
        if TINY[kind].filled > 1:
            continue  # the host's own Z-Image takes no mask
        source, target = tiny_dits.conditioning(kind), target_of(kind)
        for end, ((text, extras),) in zip(ends, (source, target)):
            extras["attention_mask"] = torch.ones(1, text.shape[1], dtype=torch.long)
            extras["attention_mask"][:, -end:] = 0
        model, inversion = inverted(pack, kind, source=source)
        one, two = (edited(pack, model, inversion, kind, plan(pack), way, target=target) for way in (True, False))
        assert relative(one, two) < ROUNDING, (kind, relative(one, two))


def check_text_of_other_lengths(pack):
    """Prompts of two lengths in a joint sequence are told apart, also where the host makes them equally long."""
    for kind in tiny_dits.DITS:
        model, inversion = inverted(pack, kind)
        if any(slot.kind == "joint" for slot in resolver(pack, model).slots):
            rules, target = plan(pack, group="text", kinds=("joint",)), target_of(kind, tokens=5)
            run = (model, inversion, kind, rules, True, 1.0, target)
            refuses(lambda run=run: edited(pack, *run), f"got {TINY[kind].text} and 5")


def check_defaults_meet_layers_of_published_models(pack):
    """What every preset and every reading of words takes by itself exists in the models that people have."""
    attention, listing = pack.module("attention"), pack.module("nodes.attending.listing")
    mask = attention.Mask(torch.ones(1, 4, 4))
    for kind, network in ((each, network) for each in tiny_dits.KINDS for network in tiny_dits.published(each)):
        knows = pack.module("nodes.attending.resolvers").resolver_for(network)
        shape = tiny_dits.latent(kind, size=(96, 64))["samples"].shape
        for preset in listing.offered():
            if preset.layers_of(knows.family) is None:
                assert preset.name == "pnp" and kind not in tiny_dits.UNETS, (kind, preset.name)
                continue
            for variant in preset.variants or ("",):
                settings = attention.Settings(variant=variant, mask=mask)
                plan = preset().build(settings, knows.family, knows.preset_layers)
                assert listing.check_layers(plan, knows, shape), (kind, preset.name, variant)
        layers = attention.Layers.parse(knows.word_layers)
        assert any(layers.matches(site) for site in knows.sites(shape) if site.kind != "self"), kind
