"""Round trips of the exact pairs at the numbers of steps that people use; checks_exact.py has the trained models."""

import torch
from helpers import relative

PAIRS = {"EDICTCouple": {}, "BDIAInvert": {}, "BELMInvert": {}}
# Of the source latent, with float32 networks, at cfg 1.
BOUND = 1e-5


def _record(pack, node_id, kind, steps, **changes):
    """Run a pair node with its defaults on a tiny model; returns (model, latent, INVERSION)."""
    model, latent = pack.tiny.model(kind), pack.tiny.latent(kind)
    inputs = {
        "model": model,
        "source": pack.tiny.conditioning(kind),
        "latent": latent,
        "steps": steps,
        "scheduler": "normal",
        "cfg": 1.0,
        "strength": 1.0,
        **PAIRS[node_id],
        **changes,
    }
    return model, latent, pack.call(node_id, **inputs)[0]


def check_pairs_come_back_at_twenty_and_fifty_steps(pack):
    """On SD3 and Wan: a picture and a clip, to 1e-5 and to the last digits of the float32 latent."""
    for kind in ("sd3", "wan"):
        for node_id in PAIRS:
            for steps in (20, 50):
                model, latent, linked = _record(pack, node_id, kind, steps)
                assert linked.steps == steps and linked.x.dtype == torch.float64
                (back,) = pack.call("Resample", model=model, inversion=linked, cfg=1.0)
                error = relative(back["samples"], latent["samples"])
                assert error <= BOUND, (kind, node_id, steps, error)
