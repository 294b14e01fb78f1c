"""Short prompts in API format, for what the templates do not show."""

from __future__ import annotations

from typing import Any


def node(kind: str, /, **inputs: Any) -> dict[str, Any]:
    """A node; an input that is a list is a link [id, slot]."""
    return {"class_type": kind, "inputs": inputs}


def start(kind: str = "eps", batch_size: int = 1) -> dict[str, Any]:
    """Model, picture, prompts and latent under the ids model, picture, source, target, negative, latent."""
    words = {"size": "big", "colour": "red", "shape": "circle", "position": "left", "background": "blue"}
    return {
        "model": node("LoadShapesModel", kind=kind),
        "picture": node("ShapesPicture", **words, seed=1, batch_size=batch_size),
        "source": node("CLIPTextEncode", clip=["model", 1], text=["picture", 2]),
        "target": node("CLIPTextEncode", clip=["model", 1], text="a big green circle on the left of a blue background"),
        "negative": node("CLIPTextEncode", clip=["model", 1], text=""),
        "latent": node("VAEEncode", pixels=["picture", 0], vae=["model", 2]),
    }


def invert(**changed: Any) -> dict[str, Any]:
    """An Invert of 4 euler steps, with some inputs changed."""
    links = {"model": ["model", 0], "source": ["source", 0], "latent": ["latent", 0]}
    settings = dict(steps=4, scheduler="normal", method="euler", cfg=1.0, strength=1.0, keep_path=False)
    return node("Invert", **{**links, **settings, **changed})


def edit(inversion: list[Any], **changed: Any) -> dict[str, Any]:
    """A Resample towards the target."""
    links = {"model": ["model", 0], "inversion": inversion, "positive": ["target", 0], "negative": ["negative", 0]}
    return node("Resample", **{**links, "cfg": 2.0, **changed})


def keep(samples: list[Any], name: str) -> dict[str, Any]:
    """A SaveLatent."""
    return node("SaveLatent", samples=samples, filename_prefix=name)


def round_trip(name: str, kind: str = "eps", **changed: Any) -> dict[str, Any]:
    """Invert and edit, with the latent saved."""
    prompt = start(kind)
    prompt["inversion"] = invert(**changed)
    prompt["edit"] = edit(["inversion", 0])
    prompt["keep"] = keep(["edit", 0], name)
    return prompt
