"""PromptToPrompt, LocalBlend and WordMask in the host."""

import functools
import itertools
import random

import tiny_dits
import torch
from helpers import refuses, relative, same_snapshot, snapshot

STEPS = 8


@functools.cache
def _shapes(pack, kind):
    return pack.call("LoadShapesModel", kind=kind)


def _encoded(pack, kind, scenes, seed):
    """Latent, pictures and true masks of some scenes."""
    vae = _shapes(pack, kind)[2]
    pixels, masks = pack.module("demo.world").render(scenes, seed)
    image = torch.from_numpy(pixels) / 255
    with torch.inference_mode():
        return {"samples": vae.encode(image)}, image, torch.from_numpy(masks)


@functools.cache
def _scenes(pack, count):
    found = list(pack.module("demo.world").scenes())
    random.Random(5).shuffle(found)
    return found[:count]


def _iou(mask, true):
    one, other = mask > 0.5, true > 0.5
    return float((one & other).sum() / (one | other).sum())


def _word_mask(pack, kind, scene, seed, **changes):
    model, clip, _ = _shapes(pack, kind)
    latent, image, true = _encoded(pack, kind, [scene], seed)
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
    for kind, wanted in (("eps", 0.5), ("flow", 0.5)):
        found = []
        for seed, scene in enumerate(_scenes(pack, 50)):
            heat, mask, true = _word_mask(pack, kind, scene, seed)
            assert heat.shape == (1, 64, 64, 3) and mask.shape == (1, 64, 64)
            found.append(_iou(mask, true))
        mean = sum(found) / len(found)
        print(f"{kind}: mean IoU {mean:.3f}, least {min(found):.3f}")  # noqa: T201
        assert mean >= wanted, (kind, mean)
