"""Tiny diffusers models of the real classes, with seeded random weights."""

import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    FlowMatchEulerDiscreteScheduler,
    FluxTransformer2DModel,
    SD3Transformer2DModel,
    StableDiffusionPipeline,
    UNet2DConditionModel,
)
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from retrace.backends.diffusers import Cond, DiffusersModel
from retrace.demo.models import WEIGHTS
from retrace.inversion import invert

TEXT = 16
POOLED = 24
STEPS = 4


def seeded(build):
    """Build a module with weights that depend on nothing but this line."""
    with torch.random.fork_rng():
        torch.manual_seed(1)
        return build().eval().requires_grad_(False)


def vae(channels=4, shift=None):
    return seeded(
        lambda: AutoencoderKL(
            block_out_channels=(8, 16, 16),
            down_block_types=("DownEncoderBlock2D",) * 3,
            up_block_types=("UpDecoderBlock2D",) * 3,
            layers_per_block=1,
            latent_channels=channels,
            norm_num_groups=4,
            scaling_factor=0.4,
            shift_factor=shift,
        )
    )


def unet(**config):
    return seeded(
        lambda: UNet2DConditionModel(
            **{
                "sample_size": 8,
                "block_out_channels": (16, 32),
                "layers_per_block": 1,
                "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
                "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
                "cross_attention_dim": TEXT,
                "attention_head_dim": 8,
                "norm_num_groups": 8,
                **config,
            }
        )
    )


def unet_sdxl():
    return unet(
        addition_embed_type="text_time", addition_time_embed_dim=8, projection_class_embeddings_input_dim=POOLED + 6 * 8
    )


def sd3():
    return seeded(
        lambda: SD3Transformer2DModel(
            sample_size=16,
            patch_size=2,
            in_channels=4,
            out_channels=4,
            num_layers=2,
            attention_head_dim=8,
            num_attention_heads=4,
            joint_attention_dim=TEXT,
            caption_projection_dim=32,
            pooled_projection_dim=POOLED,
            pos_embed_max_size=16,
        )
    )


def flux(guidance_embeds=True):
    return seeded(
        lambda: FluxTransformer2DModel(
            in_channels=16,
            num_layers=1,
            num_single_layers=1,
            attention_head_dim=16,
            num_attention_heads=2,
            joint_attention_dim=TEXT,
            pooled_projection_dim=POOLED,
            guidance_embeds=guidance_embeds,
            axes_dims_rope=(4, 6, 6),
        )
    )


def ddim(prediction="epsilon", **config):
    return DDIMScheduler(
        beta_schedule="scaled_linear",
        beta_start=0.00085,
        beta_end=0.012,
        clip_sample=False,
        set_alpha_to_one=True,
        prediction_type=prediction,
        **config,
    )


def flow(**config):
    return FlowMatchEulerDiscreteScheduler(**{"shift": 3.0, **config})


def cond(seed=0, rows=1, tokens=5, pooled=True):
    """A made-up prompt."""
    generator = torch.Generator().manual_seed(seed)
    return Cond(
        torch.randn(rows, tokens, TEXT, generator=generator),
        torch.randn(rows, POOLED, generator=generator) if pooled else None,
    )


def encode_text(texts):
    """A text encoder for tests: a fixed random prompt a text."""
    parts = [cond(seed=sum(map(ord, text))) for text in texts]
    return Cond(torch.cat([p.tokens for p in parts]), torch.cat([p.pooled for p in parts]))


FAMILIES = {
    "sd15": (unet, ddim),
    "sd15-v": (unet, lambda: ddim("v_prediction")),
    "sdxl": (unet_sdxl, ddim),
    "sd3": (sd3, flow),
    "flux": (flux, lambda: flow(shift=1.0, use_dynamic_shifting=True)),
}


def model(family, other=None):
    """A whole tiny model of one family, or of another network of it."""
    network, scheduler = FAMILIES[family]
    shift = 0.1 if family in ("sd3", "flux") else None
    return DiffusersModel(other or network(), vae(shift=shift), encode_text, scheduler(), family)


def save_pipeline(folder):
    """Write an SD1.5-type pipeline to a folder, with the tokenizer of the demo models."""
    tokenizer = CLIPTokenizer.from_pretrained(WEIGHTS / "tokenizer")
    config = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=TEXT,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=tokenizer.model_max_length,
        eos_token_id=tokenizer.eos_token_id,
    )
    text = seeded(lambda: CLIPTextModel(config))
    StableDiffusionPipeline(
        vae(), text, tokenizer, unet(), ddim(), None, None, requires_safety_checker=False
    ).save_pretrained(folder, safe_serialization=True)


def latent(batch=2, height=8, width=12, seed=3, channels=4):
    """A made-up latent, not square."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(batch, channels, height, width, generator=generator, dtype=torch.float64)


def inverted(model, cond):
    """A latent's inversion by Euler, with its path."""
    x0 = latent()
    return invert(model.denoiser(x0, cond), x0, model.schedule(8, 12).grid(STEPS), STEPS, "euler", keep_path=True)
