"""Random calls of attention, and what they should give, from explicit probabilities in float64."""

import torch

from retrace.attention import Rows, Site, Step

STEP = Step(0, 10, 1.0)


def attend(q, k, v, mask=None):
    """The ordinary call, with shared key heads."""
    shared = q.shape[1] // k.shape[1]
    return torch.nn.functional.scaled_dot_product_attention(
        q, k.repeat_interleave(shared, 1), v.repeat_interleave(shared, 1), attn_mask=mask
    )


class Counted:
    """The ordinary call, with a record of what it was asked for."""

    def __init__(self):
        self.calls = []

    def __call__(self, q, k, v, mask):
        self.calls.append((q, k, v, mask))
        return attend(q, k, v, mask)


def probabilities(q, k):
    """softmax(q k^T / sqrt(d)) in float64."""
    q, k = q.double(), k.double()
    return (q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5).softmax(-1)


def self_site(grid=(1, 4, 4), latent=None, **changes):
    tokens = grid[0] * grid[1] * grid[2]
    about = {"stack": "output", "index": 4, "inner": 0, "kind": "self", "number": 10, "depth": 0.6}
    return Site(**{**about, **changes}, image=(0, tokens), text=None, grid=grid, latent=latent or grid)


def cross_site(text=7, grid=(1, 4, 4), latent=None, **changes):
    tokens = grid[0] * grid[1] * grid[2]
    about = {"stack": "output", "index": 4, "inner": 0, "kind": "cross", "number": 10, "depth": 0.6}
    return Site(**{**about, **changes}, image=(0, tokens), text=(0, text), grid=grid, latent=latent or grid)


def joint_site(text=5, grid=(1, 4, 4), text_first=True, latent=None, **changes):
    tokens = grid[0] * grid[1] * grid[2]
    about = {"stack": "double", "index": 1, "inner": 0, "kind": "joint", "number": 1, "depth": 0.5}
    image, words = ((text, text + tokens), (0, text)) if text_first else ((0, tokens), (tokens, tokens + text))
    return Site(**{**about, **changes}, image=image, text=words, grid=grid, latent=latent or grid)


def pair(items=1, chunk="cond"):
    """Source rows, then target rows."""
    return Rows(("source",) * items + ("target",) * items, (chunk,) * 2 * items, (*range(items), *range(items)))


def tensors(site, rows=2, heads=3, d=8, key_heads=None, seed=0, dtype=torch.float32, extra=0):
    """q, k and v of a site, unit normals; extra tokens (references) at the end of a joint sequence."""
    generator = torch.Generator().manual_seed(seed)
    images = site.image[1] - site.image[0]
    words = 0 if site.text is None else site.text[1] - site.text[0]
    queries = images + (words if site.kind == "joint" else 0) + extra
    keys = words if site.kind == "cross" else queries

    def normal(count, length):
        return torch.randn(rows, count, length, d, generator=generator).to(dtype)

    key_heads = key_heads or heads
    return normal(heads, queries), normal(key_heads, keys), normal(key_heads, keys)
