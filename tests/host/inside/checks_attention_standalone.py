"""An edit under rules in the host is that of the standalone command, on the demo models."""

import itertools

import nodes
import torch
from attending import edited
from helpers import relative

SOURCE = "a big red circle on the left of a blue background"
TARGET = "a big green circle on the left of a blue background"
RULES = {"eps": ("masactrl", "structure"), "flow": ("rf_edit", "masactrl")}
TOLERANCE = 2e-3


def _latent(pack, vae):
    world = pack.module("demo.world")
    pixels = torch.from_numpy(world.render(list(itertools.islice(world.scenes(), 3, 4)), 7)[0]) / 255
    with torch.inference_mode():
        return {"samples": vae.encode(pixels)}


def check_rules_are_those_of_diffusers(pack):
    """The same record, prompts and plan give the same clean state through the host and through diffusers."""
    attention, inversion = pack.module("attention"), pack.module("inversion")
    standalone = pack.module("backends.diffusers_attention")
    for kind, rules in RULES.items():
        model, clip, vae = pack.call("LoadShapesModel", kind=kind)
        source, target = (nodes.CLIPTextEncode().encode(clip, text)[0] for text in (SOURCE, TARGET))
        (linked,) = pack.call(
            "Invert",
            model=model,
            source=source,
            latent=_latent(pack, vae),
            steps=4,
            scheduler="simple",
            method="euler",
            cfg=1.0,
            strength=1.0,
            keep_path=True,
        )[:1]
        other = pack.module("backends.shapes").shapes_model(kind)
        free = edited(pack, model, linked, kind, attention.AttentionPlan(), None, target=target)
        for preset in rules:
            settings = attention.Settings(layers="all", start=0.0, end=0.75)
            plan = attention.get_preset(preset).build(settings, standalone.family_of(other.network))
            mine = edited(pack, model, linked, kind, plan, None, target=target)
            with torch.inference_mode():
                prompts = standalone.Prompts(other.prompt(SOURCE), other.prompt(TARGET))
                denoiser = standalone.attended_denoiser(other, linked, plan, prompts)
                theirs = inversion.replay(linked, denoiser, denoiser)
            apart = relative(mine, theirs)
            assert apart < TOLERANCE < relative(free, theirs) / 2, (kind, preset, apart, relative(free, theirs))
        sites = pack.module("nodes.attending.resolvers").resolver_for(model.model.diffusion_model).sites((1, 4, 16, 16))
        theirs = standalone.slots_of(other.network).values()
        assert [(s.stack, s.index, s.inner, s.kind, s.number, s.depth) for s in sites] == [
            (s.stack, s.index, s.inner, s.kind, s.number, s.depth) for s in theirs
        ], kind
