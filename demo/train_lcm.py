"""Distil the LCM-LoRA of the eps demo model: `python -m retrace.demo.train_lcm`.

Consistency distillation: at a level n of the teacher's path, n one of 50, the student's clean prediction is pulled to
its own prediction at a level m below, which the guided teacher reaches by one DDIM step:

    x_n = sqrt(a_n) x0 + sqrt(1 - a_n) noise
    D, e: the teacher's guided clean prediction and noise at x_n
    y = sqrt(a_m) D + sqrt(1 - a_m) e, m = n - 5
    loss = mean(sqrt((student(x_n, n) - student(y, m))^2 + c^2) - c), no gradient through the second

Below the lowest level the student is the identity. Luo et al. 2023, arXiv:2310.04378 and arXiv:2311.05556.
The run is seeded, resumed when the command is given again, and logs a curve as CSV, like `retrace.demo.train`.
"""

from __future__ import annotations

import argparse
import json
import math
import os
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from . import lcm, models, train

# The scale of the teacher. At 4 the student's first guess is too vivid, and this world is well drawn at 1.
GUIDANCE = 2.0
JUMP = 5  # levels of one step of the teacher, 100 timesteps: what is learnt at low noise spreads up in ten steps
HUBER = 1e-3  # c of the loss, as the authors' own training
SIGMA_DATA, TIMESTEP_SCALING = 0.5, 10.0  # of the boundary weights, as the authors' and ComfyUI's


class Factors(nn.Module):
    """The two factors of each layer's change; at the start the change is zero."""

    def __init__(self, weights: dict[str, Tensor]) -> None:
        super().__init__()
        self.shapes = {name: weight.shape for name, weight in weights.items()}
        self.up, self.down = nn.ParameterDict(), nn.ParameterDict()
        for name, weight in weights.items():
            rest = weight.shape[2:]
            down = torch.empty(lcm.RANK, *weight.shape[1:])
            nn.init.kaiming_uniform_(down, a=math.sqrt(5))
            self.down[lcm.key(name)] = nn.Parameter(down)
            self.up[lcm.key(name)] = nn.Parameter(torch.zeros(weight.shape[0], lcm.RANK, *(1 for _ in rest)))

    def added(self, weights: dict[str, Tensor]) -> dict[str, Tensor]:
        """The weights with their changes, under the names of the network's parameters."""
        return {
            f"{name}.weight": weight + lcm.change(self.up[lcm.key(name)], self.down[lcm.key(name)], weight.shape)
            for name, weight in weights.items()
        }

    def pairs(self) -> dict[str, tuple[Tensor, Tensor]]:
        """(up, down) of each layer."""
        return {name: (self.up[lcm.key(name)], self.down[lcm.key(name)]) for name in self.shapes}


def boundary(timestep: Tensor) -> tuple[Tensor, Tensor]:
    """Weights of the state and of the clean prediction: (1, 0) at timestep 0, (0, 1) from the lowest level on."""
    scaled = TIMESTEP_SCALING * timestep.float().view(-1, 1, 1, 1)
    norm = scaled.square() + SIGMA_DATA**2
    return SIGMA_DATA**2 / norm, scaled / norm.sqrt()


def train_lcm(folder: Path, steps: int, batch: int, seed: int, path: Path = models.LCM_LORA) -> None:
    """Distil; the target is the student itself, and the averaged factors are what is written."""
    torch.manual_seed(seed)
    network: Any = models.load("eps").denoiser
    network.set_attn_processor(train.PlainAttention())
    weights = lcm.layers(network)
    factors = Factors(weights)
    run = train.Run("lcm", factors, folder, steps, 5e-4, autocast=True)
    draw = train.batches(folder, seed, batch)
    empty = train.empty_caption(folder, seed)
    # Below the lowest level lies the first trained timestep, as in the authors' solver.
    asked = torch.cat([torch.zeros(1, dtype=torch.long), torch.arange(lcm.SKIP, lcm.TRAINED_STEPS + 1, lcm.SKIP) - 1])
    shares = lcm.kept()[asked].view(-1, 1, 1, 1)

    def student(changed: dict[str, Tensor], x: Tensor, level: Tensor, states: Tensor) -> Tensor:
        noise = functional_call(network, changed, (x, asked[level], states)).sample.float()
        share = shares[level]
        skip, out = boundary(asked[level])
        return out * (x - (1 - share).sqrt() * noise) / share.sqrt() + skip * x / share.sqrt()

    @torch.no_grad()
    def below(x: Tensor, level: Tensor, lower: Tensor, states: Tensor) -> Tensor:
        twice = torch.cat([states, empty.expand_as(states)])
        wanted, plain = network(x.repeat(2, 1, 1, 1), asked[level].repeat(2), twice).sample.float().chunk(2)
        noise = plain + GUIDANCE * (wanted - plain)
        clean = (x - (1 - shares[level]).sqrt() * noise) / shares[level].sqrt()
        return shares[lower].sqrt() * clean + (1 - shares[lower]).sqrt() * noise

    def loss(step: int) -> Tensor:
        x0, states, _, noise, place = draw(step)
        level = 1 + (place * lcm.SOLVER_STEPS).long()
        x = shares[level].sqrt() * x0 + (1 - shares[level]).sqrt() * noise
        lower = (level - JUMP).clamp(min=0)
        y = below(x, level, lower, states)
        changed = factors.added(weights)
        with torch.no_grad():
            target = student(changed, y, lower, states)
        error = student(changed, x, level, states) - target
        return ((error.square() + HUBER**2).sqrt() - HUBER).mean()

    run.fit(loss, lambda: lcm.save(factors.pairs(), path), every=100)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=600, help="steps in all, resumed ones counted in")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--work", type=Path, default=Path("shapes-training"), help="folder of checkpoints and curves")
    parser.add_argument("--file", type=Path, default=models.LCM_LORA, help="where the LoRA is written")
    chosen = parser.parse_args()
    torch.set_num_threads(chosen.threads)
    chosen.work.mkdir(parents=True, exist_ok=True)
    (chosen.work / "lcm.json").write_text(
        json.dumps({"steps": chosen.steps, "batch": chosen.batch, "seed": chosen.seed, "torch": torch.__version__})
    )
    train_lcm(chosen.work, chosen.steps, chosen.batch, chosen.seed, chosen.file)


if __name__ == "__main__":
    main()
