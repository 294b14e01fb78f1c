"""The four small networks of the Shapes world, in diffusers and transformers layout.

`load` reads the trained weights that lie in `demo/weights`; `build` makes the same networks untrained.
diffusers and transformers are imported only when a network is asked for.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

WEIGHTS = Path(__file__).parent / "weights"
# The change that makes the eps model one of few steps; see lcm.py.
LCM_LORA = WEIGHTS / "lcm_lora" / "pytorch_lora_weights.safetensors"
KINDS = ("eps", "flow")
MAX_TOKENS = 32  # captions of this world need 11; longer prompts are cut
TEXT_WIDTH = 128

VAE_CONFIG: dict[str, Any] = {
    "in_channels": 3,
    "out_channels": 3,
    "down_block_types": ("DownEncoderBlock2D",) * 3,
    "up_block_types": ("UpDecoderBlock2D",) * 3,
    "block_out_channels": (32, 32, 64),
    "layers_per_block": 1,
    "latent_channels": 4,
    "norm_num_groups": 32,
    "sample_size": 64,
    "scaling_factor": 1.0,
    "shift_factor": 0.0,
}
TEXT_CONFIG: dict[str, Any] = {
    "hidden_size": TEXT_WIDTH,
    "intermediate_size": 256,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "max_position_embeddings": MAX_TOKENS,
    "projection_dim": TEXT_WIDTH,
    "hidden_act": "quick_gelu",
}
UNET_CONFIG: dict[str, Any] = {
    "sample_size": 16,
    "in_channels": 4,
    "out_channels": 4,
    "down_block_types": ("CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
    "block_out_channels": (64, 96),
    "layers_per_block": 1,
    "cross_attention_dim": TEXT_WIDTH,
    # diffusers reads this as the number of heads on SD1.x UNets.
    "attention_head_dim": 2,
    "norm_num_groups": 32,
}
MMDIT_CONFIG: dict[str, Any] = {
    "sample_size": 16,
    "patch_size": 2,
    "in_channels": 4,
    "out_channels": 4,
    "num_layers": 3,
    "attention_head_dim": 64,
    # hidden = 64 * depth is how ComfyUI recognises the depth of an SD3 model.
    "num_attention_heads": 3,
    "joint_attention_dim": TEXT_WIDTH,
    "caption_projection_dim": 192,
    "pooled_projection_dim": TEXT_WIDTH,
    "pos_embed_max_size": 16,
}
# SD1.5's own schedule (scaled linear) and SD3's own shift: any tool that knows those models fits.
EPS_SCHEDULE: dict[str, Any] = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "num_train_timesteps": 1000,
    "prediction_type": "epsilon",
}
FLOW_SHIFT = 3.0


@dataclass(frozen=True)
class ShapesModel:
    """A trained demo model: `denoiser` is a UNet2DConditionModel (eps) or an SD3Transformer2DModel (flow)."""

    kind: str
    denoiser: Any
    text_encoder: Any
    tokenizer: Any
    vae: Any


def build(part: str, vocab_size: int | None = None) -> torch.nn.Module:
    """An untrained network: part is "vae", "text_encoder", "eps" or "flow"."""
    if part == "text_encoder":
        from transformers import CLIPTextConfig, CLIPTextModelWithProjection

        if vocab_size is None:
            vocab_size = len(json.loads((WEIGHTS / "tokenizer" / "vocab.json").read_text(encoding="utf-8")))
        # CLIP's tokenizer puts <|startoftext|> and <|endoftext|> last; its end token also pads.
        config = CLIPTextConfig(
            vocab_size=vocab_size,
            bos_token_id=vocab_size - 2,
            eos_token_id=vocab_size - 1,
            pad_token_id=vocab_size - 1,
            **TEXT_CONFIG,
        )
        return CLIPTextModelWithProjection(config)
    import diffusers

    classes = {
        "vae": (diffusers.AutoencoderKL, VAE_CONFIG),
        "eps": (diffusers.UNet2DConditionModel, UNET_CONFIG),
        "flow": (diffusers.SD3Transformer2DModel, MMDIT_CONFIG),
    }
    if part not in classes:
        raise ValueError(f"part must be vae, text_encoder, eps or flow, got {part!r}; choose one of these.")
    network, config = classes[part]
    return network(**config)


def _folder(part: str) -> Path:
    return WEIGHTS / {"eps": "unet", "flow": "transformer"}.get(part, part)


def load(kind: str, dtype: torch.dtype = torch.float32) -> ShapesModel:
    """Load a trained demo model.

    Args:
        kind: "eps" (SD1.5 type UNet) or "flow" (SD3 type transformer).
        dtype: Type of the weights.

    Raises:
        ValueError: If the kind is unknown.
        ModuleNotFoundError: If diffusers or transformers is missing.
    """
    if kind not in KINDS:
        raise ValueError(f"kind must be one of {', '.join(KINDS)}, got {kind!r}; choose one of these.")
    import diffusers
    import transformers

    denoiser = diffusers.UNet2DConditionModel if kind == "eps" else diffusers.SD3Transformer2DModel
    parts = {
        # Networks this small need no loading in pieces; asking for it without accelerate prints a warning.
        "denoiser": denoiser.from_pretrained(_folder(kind), torch_dtype=dtype, low_cpu_mem_usage=False),
        "text_encoder": transformers.CLIPTextModelWithProjection.from_pretrained(_folder("text_encoder"), dtype=dtype),
        "vae": load_vae(dtype),
    }
    for network in parts.values():
        network.eval().requires_grad_(False)
    tokenizer = transformers.CLIPTokenizer.from_pretrained(_folder("tokenizer"))
    return ShapesModel(kind, parts["denoiser"], parts["text_encoder"], tokenizer, parts["vae"])


def load_vae(dtype: torch.dtype = torch.float32) -> Any:
    """Load the trained autoencoder alone."""
    import diffusers

    vae = diffusers.AutoencoderKL.from_pretrained(_folder("vae"), torch_dtype=dtype, low_cpu_mem_usage=False)
    return vae.eval().requires_grad_(False)


def encode_text(model: ShapesModel, prompts: list[str]) -> tuple[torch.Tensor, torch.Tensor]:
    """Token states (B, 32, 128) after the final norm, and pooled projections (B, 128), of prompts."""
    ids = model.tokenizer(
        prompts, padding="max_length", truncation=True, max_length=MAX_TOKENS, return_tensors="pt"
    ).input_ids
    out = model.text_encoder(ids.to(model.text_encoder.device))
    return out.last_hidden_state, out.text_embeds
