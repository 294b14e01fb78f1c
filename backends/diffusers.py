"""A Denoiser for the denoising networks of diffusers, and what surrounds them: text encoders and VAE.

diffusers is imported inside the functions that need it, so that importing this module needs torch alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..core.denoiser import Denoise
from ..inversion import Denoiser, Space, fingerprint, work_dtype
from .schedule import Schedule, flow_shift

# Guidance of a distilled Flux model when inverting: 1 leaves the picture's own content alone
# (Wang et al. 2024, arXiv:2411.04746, section 4).
DISTILLED_GUIDANCE = 1.0


@dataclass(frozen=True)
class Cond:
    """What a prompt becomes: the encoded tokens and, for the models that take one, a pooled vector.

    Attributes:
        tokens: Shape (B, tokens, width); B is 1 or the batch of the latent.
        pooled: Shape (B, width), or None.
    """

    tokens: Tensor
    pooled: Tensor | None = None

    def rows(self, batch: int, device: torch.device, dtype: torch.dtype) -> Cond:
        """Return the same conditioning with `batch` rows on a device.

        Raises:
            ValueError: If there are neither one nor `batch` rows.
        """

        def fit(value: Tensor) -> Tensor:
            if value.shape[0] not in (1, batch):
                raise ValueError(
                    f"conditioning must have 1 or {batch} rows, got {value.shape[0]}; "
                    "give one prompt, or one a picture."
                )
            return value.to(device, dtype).expand(batch, *value.shape[1:])

        return Cond(fit(self.tokens), None if self.pooled is None else fit(self.pooled))


class _Network:
    """One family of denoising networks: from a state and its sigma to the denoised latent.

    Attributes:
        net: The diffusers module.
        channels: Channels of the latent.
        patch: Height and width of a latent must be multiples of it.
        pooled: Whether it takes a pooled vector beside the tokens.
    """

    patch = 1
    pooled = True

    def __init__(self, net: Any, channels: int) -> None:
        self.net = net
        self.channels = channels

    def denoise(self, x: Tensor, sigma: float, cond: Cond, schedule: Schedule, guidance: float) -> Tensor:
        """Return E[x0 | x] in the dtype of x, shape (B, C, H, W)."""
        raise NotImplementedError

    def check(self, x: Tensor, cond: Cond) -> None:
        """Refuse a latent or a conditioning that the network cannot take."""
        if self.pooled and cond.pooled is None:
            raise ValueError(
                "conditioning must have a pooled vector for this model, got none; use the model's own text encoders."
            )
        if x.ndim != 4 or x.shape[1] != self.channels:
            raise ValueError(
                f"latent must have shape (batch, {self.channels}, height, width), got {tuple(x.shape)}; "
                "encode the picture with this model's own VAE."
            )
        if x.shape[2] % self.patch or x.shape[3] % self.patch:
            raise ValueError(
                f"latent height and width must be multiples of {self.patch}, got {x.shape[2]} and {x.shape[3]}; "
                "crop the picture."
            )


class _UNet(_Network):
    """SD1.5- and SDXL-type UNets, predicting eps, v or the clean latent.

        x_in = x / sqrt(1 + s^2)
        eps:  D = x - s out
        v:    D = x / (1 + s^2) - s out / sqrt(1 + s^2)
        x0:   D = out

    x_in is the variance-preserving state; the rest is the definition of each prediction rewritten for
    x = x0 + s n (Karras et al. 2022, arXiv:2206.00364, table 1; Salimans and Ho 2022, arXiv:2202.00512).
    """

    def __init__(self, net: Any, prediction: str) -> None:
        super().__init__(net, net.config.in_channels)
        if prediction not in ("epsilon", "v_prediction", "sample"):
            raise ValueError(
                f"prediction_type must be epsilon, v_prediction or sample, got {prediction!r}; correct the scheduler."
            )
        if net.config.time_cond_proj_dim is not None:
            raise ValueError(
                "unet must take its guidance from outside, got one distilled for a guidance input "
                f"(time_cond_proj_dim={net.config.time_cond_proj_dim}); use the model that it was distilled from."
            )
        if net.config.in_channels != net.config.out_channels:
            raise ValueError(
                f"unet must have as many input as output channels, got {net.config.in_channels} and "
                f"{net.config.out_channels}; use a text-to-image model instead of an inpainting one."
            )
        if net.config.addition_embed_type not in (None, "text_time"):
            raise ValueError(
                "unet must be of SD1.5 or SDXL type, got one with addition_embed_type="
                f"{net.config.addition_embed_type!r}; use another model."
            )
        self.prediction = prediction
        self.pooled = net.config.addition_embed_type == "text_time"
        # Pixels per latent cell, in which SDXL's size conditioning counts; the VAE in use sets it.
        self.pixels = 8

    def denoise(self, x: Tensor, sigma: float, cond: Cond, schedule: Schedule, guidance: float) -> Tensor:
        scale = math.sqrt(1.0 + sigma * sigma)
        timestep = torch.full((x.shape[0],), schedule.timestep(sigma), device=x.device)
        added = {}
        if self.pooled:
            added["added_cond_kwargs"] = {"text_embeds": cond.pooled, "time_ids": self._time_ids(x)}
        out: Tensor = self.net(
            (x / scale).to(self.net.dtype), timestep, encoder_hidden_states=cond.tokens, return_dict=False, **added
        )[0]
        out = out.to(x.dtype)
        if self.prediction == "epsilon":
            return x - sigma * out
        if self.prediction == "v_prediction":
            return x / scale**2 - out * (sigma / scale)
        return out

    def _time_ids(self, x: Tensor) -> Tensor:
        """SDXL's size conditioning for an uncropped picture: original size, crop corner, target size, in pixels."""
        size = (x.shape[2] * self.pixels, x.shape[3] * self.pixels)
        return torch.tensor([(*size, 0, 0, *size)], device=x.device, dtype=self.net.dtype).expand(x.shape[0], 6)


class _SD3(_Network):
    """SD3-type MMDiT, predicting the velocity n - x0:  D = x - s out."""

    def __init__(self, net: Any) -> None:
        super().__init__(net, net.config.in_channels)
        self.patch = net.config.patch_size

    def denoise(self, x: Tensor, sigma: float, cond: Cond, schedule: Schedule, guidance: float) -> Tensor:
        timestep = torch.full((x.shape[0],), sigma * 1000.0, device=x.device, dtype=torch.float32)
        out: Tensor = self.net(
            x.to(self.net.dtype),
            encoder_hidden_states=cond.tokens,
            pooled_projections=cond.pooled,
            timestep=timestep,
            return_dict=False,
        )[0]
        return x - sigma * out.to(x.dtype)


class _Flux(_Network):
    """Flux-type transformer on 2 by 2 packed latents, predicting the velocity n - x0:  D = x - s out."""

    patch = 2

    def __init__(self, net: Any) -> None:
        super().__init__(net, net.config.in_channels // 4)
        if net.config.out_channels not in (None, net.config.in_channels):
            raise ValueError(
                f"transformer must have as many input as output channels, got {net.config.in_channels} and "
                f"{net.config.out_channels}; use a text-to-image model instead of an inpainting one."
            )

    def denoise(self, x: Tensor, sigma: float, cond: Cond, schedule: Schedule, guidance: float) -> Tensor:
        batch, _, height, width = x.shape
        full = torch.full((batch,), sigma, device=x.device, dtype=torch.float32)
        out: Tensor = self.net(
            pack(x).to(self.net.dtype),
            encoder_hidden_states=cond.tokens,
            pooled_projections=cond.pooled,
            timestep=full,
            guidance=torch.full_like(full, guidance) if self.net.config.guidance_embeds else None,
            img_ids=picture_ids(height // 2, width // 2).to(x.device, self.net.dtype),
            txt_ids=torch.zeros(cond.tokens.shape[1], 3, device=x.device, dtype=self.net.dtype),
            return_dict=False,
        )[0]
        return x - sigma * unpack(out.to(x.dtype), height, width)


def pack(x: Tensor) -> Tensor:
    """Put each 2 by 2 cell of a latent into one token: (B, C, H, W) to (B, H/2 W/2, 4 C)."""
    batch, channels, height, width = x.shape
    cells = x.reshape(batch, channels, height // 2, 2, width // 2, 2)
    return cells.permute(0, 2, 4, 1, 3, 5).reshape(batch, (height // 2) * (width // 2), channels * 4)


def unpack(tokens: Tensor, height: int, width: int) -> Tensor:
    """Undo `pack` for a latent of this height and width."""
    batch, _, packed = tokens.shape
    cells = tokens.reshape(batch, height // 2, width // 2, packed // 4, 2, 2)
    return cells.permute(0, 3, 1, 4, 2, 5).reshape(batch, packed // 4, height, width)


def picture_ids(rows: int, columns: int) -> Tensor:
    """Position of each token as Flux counts it, (0, row, column), shape (rows * columns, 3)."""
    row, column = torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij")
    return torch.stack([torch.zeros_like(row), row, column], dim=-1).reshape(rows * columns, 3)


class DiffusersModel:
    """A diffusers network with its VAE, its text encoding and its noise schedule.

    Attributes:
        vae: The AutoencoderKL.
        scale: Pixels per latent cell.
        name: What to call the model.
    """

    def __init__(
        self,
        network: Any,
        vae: Any,
        encode_text: Callable[[Sequence[str]], Cond],
        scheduler: Any,
        name: str = "",
    ) -> None:
        """Join the parts of a pipeline.

        Args:
            network: UNet2DConditionModel, SD3Transformer2DModel or FluxTransformer2DModel.
            vae: AutoencoderKL.
            encode_text: From prompts to their conditioning, one row a prompt.
            scheduler: Any diffusers scheduler of the model; its configuration says which sigmas and which
                prediction the network was trained with. It is not used to sample.
            name: What to call the model.

        Raises:
            TypeError: If the network is of another class.
            ValueError: If the network cannot be inverted from outside, such as an inpainting one.
        """
        from diffusers import FluxTransformer2DModel, SD3Transformer2DModel, UNet2DConditionModel

        self._network: _Network
        if isinstance(network, UNet2DConditionModel):
            self._network = _UNet(network, scheduler.config.get("prediction_type", "epsilon"))
        elif isinstance(network, SD3Transformer2DModel):
            self._network = _SD3(network)
        elif isinstance(network, FluxTransformer2DModel):
            self._network = _Flux(network)
        else:
            raise TypeError(
                "network must be a UNet2DConditionModel, SD3Transformer2DModel or FluxTransformer2DModel, got "
                f"{type(network).__name__}; use an SD1.5, SDXL, SD3 or Flux model."
            )
        if isinstance(self._network, _UNet) != hasattr(scheduler, "alphas_cumprod"):
            raise ValueError(
                f"scheduler must fit the network, got {type(scheduler).__name__} for {type(network).__name__}; "
                "use the one that came with the model."
            )
        self.vae = vae
        self._encode_text = encode_text
        self._scheduler = scheduler
        self.name = name
        # Pixels per latent cell: each but the last block of the VAE halves the picture.
        self.scale = 2 ** (len(vae.config.block_out_channels) - 1)
        if isinstance(self._network, _UNet):
            self._network.pixels = self.scale

    @classmethod
    def from_pipeline(cls, pipe: Any) -> DiffusersModel:
        """Take the parts of a StableDiffusion, StableDiffusionXL, StableDiffusion3 or Flux pipeline."""
        network = getattr(pipe, "transformer", None) or getattr(pipe, "unet", None)
        if network is None:
            raise TypeError(
                f"pipeline must have a unet or a transformer, got {type(pipe).__name__}; "
                "use an SD1.5, SDXL, SD3 or Flux pipeline."
            )
        return cls(network, pipe.vae, _pipeline_text(pipe, network), pipe.scheduler, type(pipe).__name__)

    @classmethod
    def from_folder(cls, folder: str | Path, dtype: torch.dtype = torch.float32, device: str = "cpu") -> DiffusersModel:
        """Load a pipeline saved by diffusers from a folder; nothing is ever downloaded and only safetensors is read.

        Raises:
            ValueError: If the folder holds no such pipeline.
        """
        from diffusers import DiffusionPipeline
        from safetensors import SafetensorError

        path = Path(folder)
        if not (path / "model_index.json").is_file():
            raise ValueError(
                f"model must be a folder in the diffusers layout, got {folder} without model_index.json; "
                "give such a folder, or demo-eps or demo-flow."
            )
        try:
            pipe: Any = DiffusionPipeline.from_pretrained(
                path, dtype=dtype, local_files_only=True, use_safetensors=True, low_cpu_mem_usage=False
            )
        except (OSError, KeyError, AttributeError, RuntimeError, SafetensorError) as error:
            reason = str(error).strip().partition("\n")[0].rstrip(".") or type(error).__name__
            raise ValueError(f"model must be a complete pipeline, got {folder}; repair it: {reason}.") from error
        return cls.from_pipeline(pipe.to(device))

    @property
    def space(self) -> Space:
        """How noise and latent mix: "ve" or "flow"."""
        return "ve" if isinstance(self._network, _UNet) else "flow"

    @property
    def network(self) -> Any:
        """The diffusers module that denoises."""
        return self._network.net

    @property
    def device(self) -> torch.device:
        """Where the network is."""
        return self._network.net.device  # type: ignore[no-any-return]

    @property
    def multiple(self) -> int:
        """Height and width of a picture in pixels must be multiples of this."""
        return int(self.scale * self._network.patch)

    def schedule(self, height: int, width: int) -> Schedule:
        """Return the sigmas for a latent of this height and width."""
        config = self._scheduler.config
        if self.space == "ve":
            return Schedule.discrete(self._scheduler.alphas_cumprod.tolist())
        if config.get("use_dynamic_shifting"):
            tokens = (height // self._network.patch) * (width // self._network.patch)
            return Schedule.flow(
                flow_shift(
                    tokens,
                    config.get("base_shift", 0.5),
                    config.get("max_shift", 1.15),
                    config.get("base_image_seq_len", 256),
                    config.get("max_image_seq_len", 4096),
                )
            )
        return Schedule.flow(config.get("shift", 1.0))

    def fingerprint(self) -> str:
        """Return a hash of the network: its class, configuration, prediction and a sample of every weight.

        64 values spread over each weight are enough to tell a merged LoRA or a fine-tune, which touch whole
        matrices, and stay cheap on the largest models. The dtype counts: float16 does not reconstruct exactly
        what float32 inverted.
        """
        net = self._network.net
        sample = {
            name: weight.detach().flatten()[:: max(1, weight.numel() // 64)][:64].float().cpu()
            for name, weight in net.state_dict().items()
        }
        config = {key: repr(value) for key, value in net.config.items() if not key.startswith("_")}
        prediction = str(self._scheduler.config.get("prediction_type"))
        return fingerprint(type(net).__name__, config, prediction, str(net.dtype), sample)

    def prompt(self, texts: str | Sequence[str]) -> Cond:
        """Encode prompts, one row each."""
        return self._encode_text([texts] if isinstance(texts, str) else list(texts))

    def denoiser(
        self,
        latent: Tensor,
        cond: Cond,
        uncond: Cond | None = None,
        cfg: float = 1.0,
        guidance: float = DISTILLED_GUIDANCE,
    ) -> Denoiser:
        """Return the model as a method sees it.

            D = D_uncond + cfg (D_cond - D_uncond)          (Ho and Salimans 2022, arXiv:2207.12598)

        cond and uncond are evaluated one after the other, never in one batch: a batch of two is not bit-equal to
        two calls, and both directions of an exact method must round alike.

        Args:
            latent: Any latent of the shape to come; the sigmas of some models depend on its size.
            cond: The prompt.
            uncond: The negative prompt; may be left out at cfg 1.
            cfg: Guidance strength; at 1 the negative prompt is not evaluated.
            guidance: Guidance input of a distilled Flux model; other models ignore it.

        Raises:
            ValueError: If the latent does not fit the network, or cfg needs a negative prompt.
        """
        if not math.isfinite(cfg):
            raise ValueError(f"cfg must be a finite number, got {cfg}; 1 switches guidance off.")
        if cfg != 1.0 and uncond is None:
            raise ValueError(f"cfg must be 1 without a negative prompt, got {cfg}; give one, an empty one will do.")
        network = self._network
        schedule = self.schedule(*latent.shape[2:])

        def rows(cond: Cond) -> Cond:
            network.check(latent, cond)
            return cond.rows(latent.shape[0], self.device, network.net.dtype)

        positive = rows(cond)

        def denoiser(negative: Cond | None) -> Denoise:
            def denoise(x: Tensor, sigma: float) -> Tensor:
                denoised = network.denoise(x, sigma, positive, schedule, guidance)
                if negative is None:
                    return denoised
                base = network.denoise(x, sigma, negative, schedule, guidance)
                return base + cfg * (denoised - base)

            return denoise

        if uncond is None or cfg == 1.0:
            return Denoiser(denoiser(None), self.space, schedule.floor)
        pooled = uncond.pooled
        return Denoiser(
            denoiser(rows(uncond)),
            self.space,
            schedule.floor,
            lambda tokens: denoiser(rows(Cond(tokens, pooled))),
            denoiser(None),
        )

    def encode(self, picture: Tensor) -> Tensor:
        """Encode a picture to the latent x0: the mean of the VAE's distribution, never a sample of it.

            x0 = (mean - shift_factor) scaling_factor

        Args:
            picture: RGB between 0 and 1, shape (B, 3, H, W).

        Returns:
            Latent, shape (B, C, H / scale, W / scale), float64 where the device has it.
        """
        if picture.ndim != 4 or picture.shape[1] != 3 or any(side % self.multiple for side in picture.shape[2:]):
            raise ValueError(
                f"picture must have shape (batch, 3, height, width) with sides that are multiples of {self.multiple}, "
                f"got {tuple(picture.shape)}; crop it."
            )
        vae = self.vae
        pixels = picture.to(vae.device, vae.dtype) * 2.0 - 1.0
        mean: Tensor = vae.encode(pixels).latent_dist.mode()
        clean = mean.to(self.device, work_dtype(self.device)) - self._vae_shift
        return clean * float(vae.config.scaling_factor)

    def decode(self, latent: Tensor) -> Tensor:
        """Decode a latent to a picture, RGB between 0 and 1, float32, shape (B, 3, H, W)."""
        vae = self.vae
        raw = latent / vae.config.scaling_factor + self._vae_shift
        picture: Tensor = vae.decode(raw.to(vae.device, vae.dtype), return_dict=False)[0]
        return ((picture.float() + 1.0) / 2.0).clamp(0.0, 1.0)

    @property
    def _vae_shift(self) -> float:
        return getattr(self.vae.config, "shift_factor", None) or 0.0


def _pipeline_text(pipe: Any, network: Any) -> Callable[[Sequence[str]], Cond]:
    """Wrap a pipeline's own text encoding, whose answer differs from class to class."""
    from diffusers import FluxTransformer2DModel, SD3Transformer2DModel

    def encode(texts: Sequence[str]) -> Cond:
        prompts, device = list(texts), pipe.device
        if isinstance(network, FluxTransformer2DModel):
            tokens, pooled, _ = pipe.encode_prompt(prompts, None, device=device)
            return Cond(tokens, pooled)
        if isinstance(network, SD3Transformer2DModel):
            tokens, _, pooled, _ = pipe.encode_prompt(
                prompts, None, None, device=device, do_classifier_free_guidance=False
            )
            return Cond(tokens, pooled)
        if getattr(network.config, "addition_embed_type", None) == "text_time":
            tokens, _, pooled, _ = pipe.encode_prompt(prompts, device=device, do_classifier_free_guidance=False)
            return Cond(tokens, pooled)
        tokens, _ = pipe.encode_prompt(prompts, device, 1, False)
        return Cond(tokens)

    return encode
