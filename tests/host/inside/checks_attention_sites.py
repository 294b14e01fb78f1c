"""Which attention call is which: every architecture, on sizes that are odd, and whatever other packs hook in."""

import math
import unittest

import comfy.ldm.flux.model
import comfy.ldm.hunyuan_video.model
import comfy.ldm.modules.diffusionmodules.openaimodel
import comfy.ops
import comfy.samplers
import comfy.supported_models
import tiny_dits
import torch
from comfy.patcher_extension import WrappersMP, add_wrapper_with_key

META = {"device": "meta", "dtype": torch.float16, "operations": comfy.ops.disable_weight_init}


class _Watch:
    """An override and wrapper that asks a resolver for the site of every attention call of a model."""

    def __init__(self, resolver):
        self.resolver = resolver
        self.seen = []
        self.unknown = 0

    def __deepcopy__(self, memo):
        return self

    def wrap(self, executor, x, *args, **kwargs):
        args = list(args)
        self.resolver.begin(x.shape, {**kwargs, "c_crossattn": args[2]})
        options = self.resolver.mark(dict(args[4]))
        options["optimized_attention_override"] = self.override
        args[4] = options
        try:
            return executor(x, *args, **kwargs)
        finally:
            self.resolver.end()

    def override(self, func, q, k, v, heads, *args, **kwargs):
        site = self.resolver.site(q.shape[-2], k.shape[-2], kwargs["transformer_options"])
        if site is None:
            self.unknown += 1
        else:
            self.seen.append((site, q.shape[-2], k.shape[-2]))
        return func(q, k, v, heads, *args, **kwargs)


def _answer(model, kind, latent, watch=None, conditioning=None):
    guider = comfy.samplers.CFGGuider(model)
    conditioning = tiny_dits.conditioning(kind) if conditioning is None else conditioning
    guider.set_conds(conditioning, conditioning)

    class Once(comfy.samplers.Sampler):
        def sample(self, guider, sigmas, extra_args, callback, noise, latent_image=None, mask=None, pbar=False):
            if watch is not None:
                transformer_options = extra_args["model_options"]["transformer_options"]
                add_wrapper_with_key(WrappersMP.APPLY_MODEL, "watch", watch.wrap, transformer_options)
            return guider(latent_image, torch.full((latent_image.shape[0],), 0.5), **extra_args)

    samples = latent["samples"]
    with torch.inference_mode():
        return guider.sample(torch.zeros_like(samples), samples, Once(), torch.tensor([0.5, 0.0]), seed=0)


def _unet(**config):
    return comfy.ldm.modules.diffusionmodules.openaimodel.UNetModel(
        image_size=32, in_channels=4, out_channels=4, use_spatial_transformer=True, legacy=False, **config, **META
    )


def _flux(depth, singles, **changes):
    fields = comfy.ldm.flux.model.FluxParams.__dataclass_fields__
    config = {"vec_in_dim": 768, "guidance_embed": False, "txt_ids_dims": [], "patch_size": 2, **changes}
    config.update(in_channels=16, out_channels=16, context_in_dim=64, hidden_size=64, mlp_ratio=1.0, num_heads=2)
    config.update(axes_dim=[4, 14, 14], theta=10000, qkv_bias=True, depth=depth, depth_single_blocks=singles)
    return comfy.ldm.flux.model.Flux(**{k: v for k, v in config.items() if k in fields}, **META)


def _hunyuan(depth, singles):
    fields = comfy.ldm.hunyuan_video.model.HunyuanVideoParams.__dataclass_fields__
    config = {"byt5": False, "meanflow": False, "use_cond_type_embedding": False, "vision_in_dim": None}
    config.update(in_channels=16, out_channels=16, vec_in_dim=64, context_in_dim=64, hidden_size=64, mlp_ratio=1.0)
    config.update(num_heads=2, axes_dim=[4, 14, 14], theta=256, patch_size=[1, 2, 2], qkv_bias=True)
    config.update(guidance_embed=False, meanflow_sum=False, depth=depth, depth_single_blocks=singles)
    return comfy.ldm.hunyuan_video.model.HunyuanVideo(**{k: v for k, v in config.items() if k in fields}, **META)


def _published():
    """Networks with the blocks of published models, without their weights: family, network, latent."""
    unet = {"num_res_blocks": [2] * 4, "channel_mult": (1, 2, 4, 4), "num_heads": 8, "context_dim": 768}
    depths = {"transformer_depth": [1] * 6 + [0] * 2, "transformer_depth_output": [1] * 9 + [0] * 3}
    yield "sd15", _unet(model_channels=64, transformer_depth_middle=1, **unet, **depths), (1, 4, 96, 64)
    unet = {"num_res_blocks": [2] * 3, "channel_mult": (1, 2, 4), "num_heads": 8, "context_dim": 64}
    depths = {"transformer_depth": [0, 0, 2, 2, 10, 10], "transformer_depth_output": [0] * 3 + [2] * 3 + [10] * 3}
    unet.update(num_classes="sequential", adm_in_channels=64, use_linear_in_transformer=True)
    yield "sdxl", _unet(model_channels=64, transformer_depth_middle=10, **unet, **depths), (1, 4, 160, 96)
    yield "flux", _flux(19, 38), (1, 16, 128, 96)
    if "global_modulation" in comfy.ldm.flux.model.FluxParams.__dataclass_fields__:
        for depth, singles in ((8, 48), (5, 20)):
            made = _flux(depth, singles, vec_in_dim=None, global_modulation=True, patch_size=1)
            yield "flux2", made, (1, 128, 64, 48)
        # LongCat-Image
        yield "flux2", _flux(10, 20, vec_in_dim=None), (1, 16, 128, 96)
    yield "hunyuan_video", _hunyuan(20, 40), (1, 16, 5, 60, 40)
    yield "hunyuan_video_15", _hunyuan(54, 0), (1, 16, 5, 60, 40)


def check_defaults_meet_layers_of_published_models(pack):
    """What every preset and every reading of words takes by itself exists in the models that people have."""
    attention, layers = pack.module("attention"), pack.module("attention").Layers.parse
    listing = pack.module("nodes.attending.listing")
    mask = attention.Mask(torch.ones(1, 4, 4))
    for family, network, shape in _published():
        resolver = pack.module("nodes.attending.resolvers").resolver_for(network)
        assert resolver.family == family, (family, resolver.family)
        for preset in listing.offered():
            if family not in preset.families():
                assert preset.name == "pnp", (family, preset.name)
                continue
            for variant in preset.variants or ("",):
                made = preset().build(attention.Settings(variant=variant, mask=mask), family)
                assert listing.check_layers(made, resolver, shape), (family, preset.name, variant)
        seen = [site for site in resolver.sites(shape) if site.kind in ("cross", "joint")]
        assert any(layers(resolver.word_layers).matches(site) for site in seen), family


def _resolver(pack, model):
    return pack.module("nodes.attending.resolvers").resolver_for(model.model.diffusion_model)


def check_every_site_is_found_once_and_nothing_changes(pack):
    """Each forward meets each slot once, in order; image tokens fill the grid; the output keeps its bits."""
    for kind in tiny_dits.KINDS:
        for size in ((8, 12), (12, 8), (7, 9)):
            if size == (7, 9) and kind == "hunyuan":
                continue  # the host's own HunyuanVideo takes whole patches only
            model, latent = tiny_dits.model(kind), tiny_dits.latent(kind, batch=2, size=size)
            plain = _answer(model, kind, latent)
            watch = _Watch(_resolver(pack, model))
            watched = _answer(model, kind, latent, watch)
            assert torch.equal(plain, watched), kind
            slots = watch.resolver.slots
            places = [(site.stack, site.index, site.inner, site.kind) for site, *_ in watch.seen]
            assert places == [(s.stack, s.index, s.inner, s.kind) for s in slots], (kind, places)
            assert not watch.resolver.bypassed, kind
            assert len({site.key for site, *_ in watch.seen}) == len(slots), kind
            for (site, queries, keys), slot in zip(watch.seen, slots):
                frames, rows, columns = site.grid
                assert site.image[1] - site.image[0] == math.prod(site.grid), (kind, site)
                assert watch.resolver.grid_of(slot, latent["samples"].shape) == site.grid, (kind, site)
                assert 0 <= site.image[0] and site.image[1] <= queries, (kind, site)
                assert site.latent[1:] == size and site.latent[0] == (3 if kind in tiny_dits.VIDEO else 1)
                if site.kind == "joint":
                    tokens, image = 77 if kind.startswith("sd") else tiny_dits.TEXT, math.prod(site.grid)
                    assert site.text[1] - site.text[0] == tokens, (kind, site)
                    assert queries == keys == image + tokens + sum(tiny_dits.others(kind, image)), (kind, site)
                    assert site.image[1] <= site.text[0] or site.text[1] <= site.image[0], (kind, site)
                elif site.kind == "cross":
                    assert site.text == (0, keys) and keys in (77, tiny_dits.TEXT), (kind, site)
                else:
                    assert site.text is None and queries == keys, (kind, site)
                assert frames * rows * columns > 0


def _first_block(pack, model, kind, latent, conditioning=None):
    """Values of every attention of the first block with its site, as (site, (1, tokens, channels))."""
    watch, kept = _Watch(_resolver(pack, model)), []

    def override(func, q, k, v, heads, *args, **kwargs):
        site = watch.resolver.site(q.shape[-2], k.shape[-2], kwargs["transformer_options"])
        if site is not None and site.number == 0:
            kept.append((site, (v.movedim(1, 2).flatten(2) if kwargs.get("skip_reshape") else v.flatten(2)).clone()))
        return func(q, k, v, heads, *args, **kwargs)

    watch.override = override
    _answer(model, kind, latent, watch, conditioning)
    return kept


def _changed(one, other):
    return (one != other).any(-1)[0].nonzero().flatten().tolist()


def check_image_tokens_are_the_picture(pack):
    """Where the resolver says that the image lies, queries follow the picture and not the text, in any order."""
    for kind in tiny_dits.DITS:
        model = tiny_dits.model(kind)
        first = tiny_dits.latent(kind)
        other = {"samples": first["samples"].clone()}
        other["samples"][..., -1, -1] += 3.0
        seen = [_first_block(pack, model, kind, latent) for latent in (first, other)]
        kinds = {site.kind for site, _ in seen[0]}
        usual = {"self", "cross"} if kind in _CROSSED else {"joint"}
        assert kinds == ({"joint", "self"} if kind == "sd35" else usual), (kind, kinds)
        for (site, a), (_, b) in zip(*seen):
            if site.kind == "cross":
                assert torch.equal(a, b), kind
                continue
            changed = _changed(a, b)
            frames, rows, columns = site.grid
            last = [site.image[0] + (frame + 1) * rows * columns - 1 for frame in range(frames)]
            if kind in _REFINED:  # a refiner has already mixed the image tokens, and those that fill up their number
                end = site.image[1] + tiny_dits.others(kind, rows * columns)[1]
                assert changed == list(range(site.image[0], end)), (kind, changed, site.image)
            else:
                assert changed == last, (kind, site.kind, changed, last)


_CROSSED = ("wan", "wan_i2v", "ltx")
_REFINED = ("lumina", "zimage")


def check_text_tokens_are_the_prompt(pack):
    """Where the resolver says that the text lies, keys follow the prompt, token by token where no refiner mixes."""
    for kind in tiny_dits.KINDS:
        model, latent = tiny_dits.model(kind), tiny_dits.latent(kind)
        first = tiny_dits.conditioning(kind)
        for token in (0, 5):
            other = [[first[0][0].clone(), first[0][1]]]
            other[0][0][:, token] += 1.0
            seen = [_first_block(pack, model, kind, latent, conditioning) for conditioning in (first, other)]
            pairs = [(site, _changed(a, b)) for (site, a), (_, b) in zip(*seen) if site.text is not None]
            assert pairs, kind
            for site, changed in pairs:
                start, stop = site.text
                if kind in (*_REFINED, "hunyuan"):
                    filled = tiny_dits.others(kind, 1)[0] if kind == "zimage" else 0
                    assert changed == list(range(start, stop + filled)), (kind, changed, site.text)
                else:
                    assert changed == [start + token], (kind, token, changed, site.text)


def check_depths_are_those_of_blocks(pack):
    """Every attention of a block stands as deep as the block; SD3.5-medium's second ones are in its first half."""
    for kind in tiny_dits.KINDS:
        sites = _resolver(pack, tiny_dits.model(kind)).sites(tiny_dits.latent(kind)["samples"].shape)
        depths = {}
        for site in sites:
            depths.setdefault((site.stack, site.index, site.inner), set()).add(site.depth)
        assert all(len(found) == 1 for found in depths.values()), kind
        found = [depth for one in depths.values() for depth in one]
        assert found == sorted(found) and (found[0], found[-1]) == (0.0, 1.0), (kind, found)
    sites = _resolver(pack, tiny_dits.model("sd35")).sites((1, 16, 8, 12))
    layers = pack.module("attention").Layers
    late = [site.label for site in sites if layers.parse("0.5-1.0").matches(site)]
    assert late == ["block:2 (joint#2)", "block:3 (joint#3)"], late


def check_references_of_wan_stay_out_of_the_clip(pack):
    """A reference frame stands in front of the clip and subjects behind it: neither is taken for the clip."""
    model = tiny_dits.model("wan")
    network, resolver = model.model.diffusion_model, _resolver(pack, model)
    tokens = 3 * 4 * 6

    def image(queries, **extra):
        resolver.begin((1, 16, 3, 8, 12), extra)
        return resolver.parts("self", queries, queries, tokens)[0]

    assert image(tokens) == image(tokens + 24, time_dim_concat=torch.zeros(1, 16, 1, 8, 12)) == (0, tokens)
    assert image(tokens + 24, context_latents=[torch.zeros(1, 16, 1, 8, 12)]) == (0, tokens)
    # A network without a convolution for the reference leaves it alone.
    reference = torch.zeros(1, 16, 8, 12)
    assert image(tokens, reference_latent=reference) == (0, tokens)
    with torch.inference_mode():
        network.ref_conv = comfy.ops.disable_weight_init.Conv2d(16, 32, (2, 2), (2, 2))
    assert image(tokens + 24, reference_latent=reference) == (24, 24 + tokens)


def check_every_family_has_a_tiny_model(pack):
    """Each resolver is tried on a network of the host's own, but for those that this host has not."""
    module = pack.module("nodes.attending.resolvers")
    tried = {type(_resolver(pack, tiny_dits.model(kind))) for kind in tiny_dits.KINDS}
    assert tried == set(module.RESOLVERS.values()), set(module.RESOLVERS.values()) - tried
    lacking = set() if hasattr(comfy.supported_models, "ZImage") else {"zimage"}
    assert set(tiny_dits.MISSING) == lacking
    if lacking:
        raise unittest.SkipTest(f"this host has no {' and no '.join(tiny_dits.MISSING.values())}: no check tries it")


def check_unknown_architectures_are_named(pack):
    """A network without a resolver and a compiled one are refused, each in one sentence."""
    sites = pack.module("nodes.attending.resolvers")

    class Strange(torch.nn.Module):
        pass

    compiled = Strange()
    compiled._orig_mod = Strange()  # what torch.compile returns is known by this
    for network, part in ((Strange(), "got Strange"), (compiled, "got one of torch.compile")):
        try:
            sites.resolver_for(network)
        except ValueError as error:
            assert part in str(error) and str(error).endswith("."), error
        else:
            raise AssertionError(part)
