"""Train the demo models of the Shapes world: `python -m retrace.demo.train PART`.

The order is vae, text, eps, flow; after vae `python -m retrace.demo.preview` fits the colours of previews again.
Every part is seeded, keeps a checkpoint (resumed when the command is given again), logs a curve as CSV and ends by
writing fp16 weights into demo/weights. Raising or lowering --steps of an unfinished run moves its cool-down.
"""

from __future__ import annotations

import argparse
import csv
import json
import math
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as functional
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from . import models, tokenizer, world

PICTURES = 16384  # rendered for the denoisers, about five of each trained scene
QUARTER_STEPS = 2600  # of the autoencoder, see train_vae


def _sources(seed: int, count: int) -> list[world.Scene]:
    known = list(world.scenes(held_out=False))
    rng = np.random.default_rng(seed)
    return [known[i] for i in rng.integers(len(known), size=count)]


def _pixels(pictures: np.ndarray) -> Tensor:
    """uint8 (B, H, W, 3) to floats in -1..1, shape (B, 3, H, W)."""
    return torch.from_numpy(pictures).permute(0, 3, 1, 2).float() / 127.5 - 1.0


class Run:
    """One training run: model, AdamW, averaged weights, checkpoint and curve.

    The learning rate warms up over 200 steps, stays, and falls linearly to zero over the last 30 % of
    the steps. Averaged weights (decay 0.999, shorter at the start) are what is exported.
    """

    def __init__(self, name: str, model: nn.Module, folder: Path, steps: int, rate: float, autocast: bool) -> None:
        self.name, self.model, self.steps, self.rate, self.autocast = name, model, steps, rate, autocast
        self.checkpoint = folder / f"{name}.safetensors"
        self.curve = folder / f"{name}.csv"
        self.names = [n for n, p in model.named_parameters() if p.requires_grad]
        self.parameters: list[Tensor] = [p for p in model.parameters() if p.requires_grad]
        self.average = [p.detach().clone() for p in self.parameters]
        self.optimizer = torch.optim.AdamW(self.parameters, lr=rate, betas=(0.9, 0.999), weight_decay=0.01)
        self.step = 0
        if self.checkpoint.exists():
            self._resume()

    def _resume(self) -> None:
        with safe_open(self.checkpoint, "pt") as file:
            self.step = int((file.metadata() or {})["step"])
        state = load_file(self.checkpoint)
        with torch.no_grad():
            for i, name in enumerate(self.names):
                self.parameters[i].copy_(state[f"weights.{name}"])
                self.average[i].copy_(state[f"average.{name}"])
                self.optimizer.state[self.parameters[i]] = {
                    "step": torch.tensor(float(self.step)),
                    "exp_avg": state[f"first.{name}"],
                    "exp_avg_sq": state[f"second.{name}"],
                }
        print(f"{self.name}: resumed at step {self.step}", flush=True)

    def save(self) -> None:
        """Write the checkpoint: weights, their average and the optimiser's moments."""
        state: dict[str, Tensor] = {}
        for i, name in enumerate(self.names):
            moments = self.optimizer.state[self.parameters[i]]
            state[f"weights.{name}"] = self.parameters[i].detach().contiguous()
            state[f"average.{name}"] = self.average[i].contiguous()
            state[f"first.{name}"] = moments["exp_avg"].contiguous()
            state[f"second.{name}"] = moments["exp_avg_sq"].contiguous()
        unfinished = self.checkpoint.with_suffix(".tmp")
        save_file(state, unfinished, {"step": str(self.step)})
        os.replace(unfinished, self.checkpoint)

    def _scale(self) -> float:
        return min(1.0, (self.step + 1) / 200, max(0.0, (self.steps - self.step) / (0.3 * self.steps)))

    def fit(self, loss: Callable[[int], Tensor], export: Callable[[], None], every: int = 500) -> None:
        """Take the remaining steps; `loss` gets the step number, which seeds its batch."""
        began, total, counted = time.time(), 0.0, 0
        while self.step < self.steps:
            for group in self.optimizer.param_groups:
                group["lr"] = self.rate * self._scale()
            with torch.autocast("cpu", torch.bfloat16, enabled=self.autocast):
                value = loss(self.step)
            self.optimizer.zero_grad(set_to_none=True)
            value.backward()
            nn.utils.clip_grad_norm_(self.parameters, 1.0)
            self.optimizer.step()
            decay = min(0.999, (1 + self.step) / (10 + self.step))
            with torch.no_grad():
                torch._foreach_lerp_(self.average, self.parameters, 1 - decay)
            self.step += 1
            total, counted = total + value.item(), counted + 1
            if self.step % 100 == 0 or self.step == self.steps:
                new = not self.curve.exists()
                with self.curve.open("a", newline="") as file:
                    writer = csv.writer(file)
                    if new:
                        writer.writerow(["step", "loss", "seconds"])
                    writer.writerow([self.step, f"{total / counted:.5f}", f"{time.time() - began:.0f}"])
                seconds = time.time() - began
                print(f"{self.name} {self.step}/{self.steps} {total / counted:.5f} {seconds:.0f}s", flush=True)
                total, counted = 0.0, 0
            if self.step % every == 0 or self.step == self.steps:
                self.save()
                self.averaged(export)

    def averaged(self, use: Callable[[], None]) -> None:
        """Call `use` while the model holds the averaged weights."""
        kept = [p.detach().clone() for p in self.parameters]
        with torch.no_grad():
            torch._foreach_copy_(self.parameters, self.average)
            use()
            torch._foreach_copy_(self.parameters, kept)


def export(network: Any, part: str) -> None:
    """Write a copy of a network as fp16 safetensors with its configuration."""
    build_again: Any = models.build(part)
    build_again.load_state_dict(network.state_dict())
    build_again.half().save_pretrained(models.WEIGHTS / {"eps": "unet", "flow": "transformer"}.get(part, part))


def _wholes(batch: int, seed: int) -> tuple[Tensor, torch.Generator]:
    """Whole pictures, (B, 3, 64, 64), and a generator of the same seed."""
    pictures, _ = world.render(_sources(seed, batch), seed)
    return _pixels(pictures), torch.Generator().manual_seed(seed)


def _quarters(batch: int, seed: int) -> tuple[Tensor, torch.Generator]:
    """A quarter of each of some pictures, (B, 3, 32, 32), and the generator that chose them."""
    wholes, generator = _wholes(batch, seed)
    half = world.SIZE // 2
    places = torch.randint(half + 1, (batch, 2), generator=generator).tolist()
    cut = [p[:, i : i + half, j : j + half] for p, (i, j) in zip(wholes, places, strict=True)]
    return torch.stack(cut), generator


def train_vae(folder: Path, steps: int, batch: int, seed: int) -> None:
    """Autoencoder: squared and absolute error, with a little noise on the latent and a weak pull to zero.

    The noise makes neighbouring latents decode alike; the spread that the networks of SD learn is not needed. The
    first steps see quarters of pictures, four times as many for the same work; the norms, which average over
    the whole denoiser, then need steps on whole pictures.
    """
    torch.manual_seed(seed)
    vae: Any = models.build("vae")
    run = Run("vae", vae, folder, steps, 2e-3, autocast=True)

    def loss(step: int) -> Tensor:
        small = step < QUARTER_STEPS
        x, generator = _quarters(batch, seed + step) if small else _wholes(batch // 2, seed + step)
        mean = vae.encode(x).latent_dist.mean
        noise = torch.randn(mean.shape, generator=generator)
        error = (vae.decode(mean + 0.1 * noise).sample - x).float()
        return error.square().mean() + 0.1 * error.abs().mean() + 1e-4 * mean.float().square().mean()

    def finish() -> None:
        vae.eval()
        pictures, _ = world.render(_sources(seed + 10**6, 256), seed + 10**6)
        with torch.no_grad():
            latents = torch.cat([vae.encode(part).latent_dist.mean for part in _pixels(pictures).split(32)])
        vae.train()
        # Unit variance of the latents is what both noise schedules assume.
        vae.register_to_config(scaling_factor=round(1.0 / float(latents.std()), 5), shift_factor=0.0)
        models.VAE_CONFIG["scaling_factor"] = vae.config.scaling_factor
        export(vae, "vae")

    run.fit(loss, finish)


def train_text(folder: Path, steps: int, batch: int, seed: int) -> None:
    """Text encoder: contrastive against a small image network, as CLIP (Radford et al. 2021, arXiv:2103.00020)."""
    torch.manual_seed(seed)
    size = tokenizer.write(models.WEIGHTS / "tokenizer", models.MAX_TOKENS)
    text: Any = models.build("text_encoder", size)
    eye = nn.Sequential(
        nn.Conv2d(3, 32, 5, 2, 2), nn.GELU(), nn.Conv2d(32, 64, 3, 2, 1), nn.GELU(),
        nn.Conv2d(64, 96, 3, 2, 1), nn.GELU(), nn.Conv2d(96, 96, 3, 2, 1), nn.GELU(),
        nn.Flatten(), nn.Linear(96 * 16, models.TEXT_WIDTH),
    )  # fmt: skip
    both = nn.ModuleDict({"text": text, "eye": eye})
    both.register_parameter("scale", nn.Parameter(torch.tensor(math.log(1 / 0.07))))
    run = Run("text", both, folder, steps, 1e-3, autocast=False)
    read = _tokens()

    def loss(step: int) -> Tensor:
        chosen = _sources(seed + step, batch)
        pictures, _ = world.render(chosen, seed + step)
        captions = [_reworded(scene, np.random.default_rng((seed, step, i))) for i, scene in enumerate(chosen)]
        a = functional.normalize(text(read(captions)).text_embeds, dim=-1)
        b = functional.normalize(eye(_pixels(pictures)), dim=-1)
        logits = both.get_parameter("scale").exp().clamp(max=100) * a @ b.T
        # The same scene twice in a batch is right both times.
        same = torch.tensor([[s == other for other in chosen] for s in chosen]).float()
        target = same / same.sum(1, keepdim=True)
        return 0.5 * (functional.cross_entropy(logits, target) + functional.cross_entropy(logits.T, target))

    run.fit(loss, lambda: export(text, "text_encoder"))


def _tokens() -> Callable[[list[str]], Tensor]:
    from transformers import CLIPTokenizer

    read = CLIPTokenizer.from_pretrained(models.WEIGHTS / "tokenizer")
    return lambda captions: torch.tensor(
        read(captions, padding="max_length", truncation=True, max_length=models.MAX_TOKENS).input_ids
    )


def _reworded(scene: world.Scene, rng: np.random.Generator) -> str:
    """The caption, sometimes without its size or with "in the middle of": people do not type templates."""
    caption = scene.caption
    if rng.random() < 0.1:
        caption = caption.replace(f"{scene.size} ", "", 1)
    if scene.position == "middle" and rng.random() < 0.15:
        caption = caption.replace(" on a ", " in the middle of a ")
    return caption


def _pairs(folder: Path, seed: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Scaled latents (M, 4, 16, 16), index of each picture's caption, token states and pooled of all captions.

    Caption 0 is the empty one.
    """
    cache = folder / "latents.safetensors"
    if not cache.exists():
        shown = _sources(seed, PICTURES)
        captions = [_reworded(scene, np.random.default_rng((seed, i))) for i, scene in enumerate(shown)]
        distinct = ["", *sorted(set(captions))]
        place = {caption: i for i, caption in enumerate(distinct)}
        model = models.ShapesModel("eps", None, *_encoders())
        latents, states, pooled = [], [], []
        with torch.no_grad():
            for i in range(0, PICTURES, 64):
                pictures, _ = world.render(shown[i : i + 64], seed + 1 + i)
                with torch.autocast("cpu", torch.bfloat16):
                    mean = model.vae.encode(_pixels(pictures)).latent_dist.mean
                latents.append(mean.float() * model.vae.config.scaling_factor)
            for i in range(0, len(distinct), 64):
                state, pool = models.encode_text(model, distinct[i : i + 64])
                states.append(state)
                pooled.append(pool)
        index = torch.tensor([place[caption] for caption in captions])
        save_file(
            {
                "latents": torch.cat(latents).contiguous(),
                "index": index,
                "states": torch.cat(states),
                "pooled": torch.cat(pooled),
            },
            cache,
        )
    stored = load_file(cache)
    return stored["latents"], stored["index"], stored["states"], stored["pooled"]


def _encoders() -> tuple[Any, Any, Any]:
    import diffusers
    import transformers

    weights = models.WEIGHTS
    text = transformers.CLIPTextModelWithProjection.from_pretrained(weights / "text_encoder", dtype=torch.float32)
    read = transformers.CLIPTokenizer.from_pretrained(weights / "tokenizer")
    vae = diffusers.AutoencoderKL.from_pretrained(weights / "vae", torch_dtype=torch.float32)
    return text.eval(), read, vae.eval()


def batches(folder: Path, seed: int, batch: int) -> Callable[[int], Iterator[Tensor]]:
    """A function that gives the batch of a step: clean latents, token states, pooled, noise, a place in 0 .. 1."""
    latents, index, states, pooled = _pairs(folder, seed)

    def draw(step: int) -> Iterator[Tensor]:
        generator = torch.Generator().manual_seed(seed * 1_000_003 + step)
        rows = torch.randint(len(latents), (batch,), generator=generator)
        captions = index[rows]
        # One caption in ten is empty, so that classifier-free guidance has an unconditional branch.
        captions = torch.where(torch.rand(batch, generator=generator) < 0.1, 0, captions)
        noise = torch.randn(latents[rows].shape, generator=generator)
        yield from (latents[rows], states[captions], pooled[captions], noise, torch.rand(batch, generator=generator))

    return draw


def empty_caption(folder: Path, seed: int) -> Tensor:
    """Token states of the empty caption, shape (1, 32, 128)."""
    return _pairs(folder, seed)[2][:1]


class PlainAttention:
    """Attention by two matrix products in bfloat16: on CPUs its backward is twice as fast as the fused one's."""

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
    ) -> Tensor:
        """Attend; called by diffusers."""
        assert attention_mask is None
        source = hidden_states if encoder_hidden_states is None else encoder_hidden_states

        def heads(x: Tensor) -> Tensor:
            return x.unflatten(-1, (attn.heads, -1)).transpose(1, 2).flatten(0, 1).bfloat16()

        q, k, v = heads(attn.to_q(hidden_states)), heads(attn.to_k(source)), heads(attn.to_v(source))
        with torch.autocast("cpu", enabled=False):
            x = torch.bmm(torch.bmm(q * attn.scale, k.transpose(1, 2)).softmax(-1), v)
        return attn.to_out[0](x.unflatten(0, (-1, attn.heads)).transpose(1, 2).flatten(2))


def train_eps(folder: Path, steps: int, batch: int, seed: int) -> None:
    """Noise-predicting UNet on SD1.5's schedule.

    The loss weighs the error of the noise by (1 + sigma^2) / (1 + sigma^2 / 25): the plain loss hardly
    sees the flat colour of a picture, which is decided where sigma is large.
    """
    torch.manual_seed(seed)
    network: Any = models.build("eps")
    network.set_attn_processor(PlainAttention())
    run = Run("eps", network, folder, steps, 1e-3, autocast=True)
    draw = batches(folder, seed, batch)
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
    kept = torch.cumprod(1 - betas, 0).float()

    def loss(step: int) -> Tensor:
        x0, states, _, noise, place = draw(step)
        timestep = (place * 1000).long()
        share = kept[timestep].view(-1, 1, 1, 1)
        x = share.sqrt() * x0 + (1 - share).sqrt() * noise
        error = (network(x, timestep, states).sample - noise).float()
        variance = (1 - share) / share
        weight = (1 + variance) / (1 + variance / 25)
        return (weight * error.square()).mean()

    run.fit(loss, lambda: export(network, "eps"))


def train_flow(folder: Path, steps: int, batch: int, seed: int) -> None:
    """Velocity-predicting transformer on the rectified flow x = (1 - sigma) x0 + sigma n, sigma shifted by 3."""
    torch.manual_seed(seed)
    network: Any = models.build("flow")
    # Every block starts as the identity (adaLN-Zero, Peebles & Xie 2022, arXiv:2212.09748); diffusers leaves that out.
    with torch.no_grad():
        for name, weights in network.named_parameters():
            if name.endswith((".norm1.linear.weight", ".norm1_context.linear.weight", ".norm1.linear.bias",
                              ".norm1_context.linear.bias")) or name.startswith("proj_out"):  # fmt: skip
                weights.zero_()
    run = Run("flow", network, folder, steps, 8e-4, autocast=True)
    draw = batches(folder, seed, batch)
    shift = models.FLOW_SHIFT

    def loss(step: int) -> Tensor:
        x0, states, pooled, noise, place = draw(step)
        sigma = (shift * place / (1 + (shift - 1) * place)).view(-1, 1, 1, 1)
        x = (1 - sigma) * x0 + sigma * noise
        velocity = network(x, states, pooled, sigma.flatten() * 1000).sample
        return (velocity - (noise - x0)).float().square().mean()

    run.fit(loss, lambda: export(network, "flow"))


def main() -> None:
    """Command line."""
    defaults = {"vae": (3300, 16), "text": (1200, 128), "eps": (4500, 32), "flow": (6500, 64)}
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=list(defaults))
    parser.add_argument("--steps", type=int, help="steps in all, resumed ones counted in")
    parser.add_argument("--batch", type=int)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--work", type=Path, default=Path("shapes-training"), help="folder of checkpoints and curves")
    chosen = parser.parse_args()
    torch.set_num_threads(chosen.threads)
    chosen.work.mkdir(parents=True, exist_ok=True)
    steps, batch = chosen.steps or defaults[chosen.part][0], chosen.batch or defaults[chosen.part][1]
    (chosen.work / f"{chosen.part}.json").write_text(
        json.dumps({"steps": steps, "batch": batch, "seed": chosen.seed, "torch": torch.__version__})
    )
    if chosen.part == "vae":
        train_vae(chosen.work, steps, batch, chosen.seed)
    elif chosen.part == "text":
        train_text(chosen.work, steps, batch, chosen.seed)
    elif chosen.part == "eps":
        train_eps(chosen.work, steps, batch, chosen.seed)
    else:
        train_flow(chosen.work, steps, batch, chosen.seed)


if __name__ == "__main__":
    main()
