"""RFSolverSample and InversionSampler: the pack's solvers for SamplerCustom and SamplerCustomAdvanced."""

from __future__ import annotations

import functools
from typing import Any

import comfy.samplers
from comfy_api.latest import io

from ...attention import AttentionPlan
from ..attending.beside_sampler import attended_script
from ..attending.plan_link import attention_input
from ..host.node import Node
from ..host.session import ScriptSampler
from .link import InversionType, LinkedInversion
from .sampler_scripts import resume_script, solver_script

SAME = "same as inversion"

# Parts of the names of stock samplers that draw noise on the way, or that walk other levels than the SIGMAS given:
# what was inverted is lost on such a way down.
_UNFAITHFUL = ("ancestral", "sde", "lcm", "ddpm", "seeds", "sa_solver", "dpm_fast", "dpm_adaptive")


def faithful_samplers() -> list[str]:
    """Return the host's samplers that neither draw noise nor leave the given levels."""
    return [name for name in comfy.samplers.SAMPLER_NAMES if not any(part in name for part in _UNFAITHFUL)]


class RFSolverSample(Node):
    """RF-Solver as a SAMPLER, for inversion and for sampling."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Describe the node to the host."""
        return cls.schema(
            "RF-Solver Sampler",
            "RF-Solver, second order, for flow and eps models. With rising sigmas (FlipSigmas) it inverts "
            "a latent, with falling ones it samples. Wang et al. 2024, arXiv:2411.04746; FireFlow arXiv:2412.07517.",
            aliases=["RF-Solver", "FireFlow", "rectified flow inversion", "midpoint"],
            inputs=[
                io.Combo.Input(
                    "solver",
                    options=["midpoint", "fireflow"],
                    default="midpoint",
                    tooltip="midpoint is RF-Solver, two model calls a step. fireflow reuses the last one: one call a "
                    "step at nearly the same accuracy. Use the same one up and down.",
                ),
                attention_input("A plan that reads from the source of the inversion on the way down."),
                InversionType.Input(
                    "inversion",
                    optional=True,
                    tooltip="Where the source of the attention plan stands at each level, best with keep_path. Only "
                    "with attention.",
                ),
                _source_input(),
            ],
            outputs=[
                io.Sampler.Output(
                    display_name="sampler",
                    tooltip="For SamplerCustom and SamplerCustomAdvanced. Invert with DisableNoise and FlipSigmas, "
                    "then sample with DisableNoise from the latent that came out.",
                )
            ],
        )

    @classmethod
    def execute(
        cls,
        solver: str,
        attention: AttentionPlan | None = None,
        inversion: LinkedInversion | None = None,
        source: Any = None,
    ) -> io.NodeOutput:
        """Make the sampler."""
        if attention is None:
            _refuse_without_attention("inversion", inversion)
            _refuse_without_attention("source", source)
            return io.NodeOutput(ScriptSampler(solver_script(solver)))
        if inversion is None:
            raise ValueError(
                "inversion must be connected with attention, which reads from its source, got nothing; "
                "connect Invert, or give the plan to AttentionGuider."
            )
        inversion = inversion.with_conditioning(source, None)
        make = functools.partial(solver_script, solver)
        return io.NodeOutput(ScriptSampler(attended_script(make, attention, inversion)))


class InversionSampler(Node):
    """An inversion as a SAMPLER that starts from the stored state."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Describe the node to the host."""
        return cls.schema(
            "Inversion Sampler",
            "Resumes an inversion inside SamplerCustomAdvanced under any guider, from the stored state "
            "itself. The noise input is ignored; connect DisableNoise.",
            aliases=["resume inversion", "SamplerCustomAdvanced inversion"],
            inputs=[
                InversionType.Input("inversion", tooltip="From Invert or LoadInversion."),
                io.Combo.Input(
                    "sampler_name",
                    options=[SAME, *faithful_samplers()],
                    default=SAME,
                    tooltip="The inversion's own solver in double precision, or a stock sampler. Samplers that draw "
                    "noise on the way are left out: they would lose the inversion.",
                ),
                attention_input("A plan that reads from the source of the inversion."),
                _source_input(),
            ],
            outputs=[
                io.Sampler.Output(
                    display_name="sampler",
                    tooltip="For SamplerCustomAdvanced, with the SIGMAS and the LATENT of Invert.",
                )
            ],
        )

    @classmethod
    def execute(
        cls, inversion: LinkedInversion, sampler_name: str, attention: AttentionPlan | None = None, source: Any = None
    ) -> io.NodeOutput:
        """Make the sampler."""
        make = functools.partial(resume_script, inversion, None if sampler_name == SAME else sampler_name)
        if attention is None:
            _refuse_without_attention("source", source)
            return io.NodeOutput(ScriptSampler(make()))
        if inversion.embeddings:
            raise ValueError(
                "inversion must have no fitted embeddings for a sampler with attention, got one with them; "
                "edit with Resample."
            )
        attended = attended_script(make, attention, inversion.with_conditioning(source, None))
        return io.NodeOutput(ScriptSampler(attended))


def _source_input() -> Any:
    return io.Conditioning.Input(
        "source",
        optional=True,
        tooltip="Prompt of the inversion, only needed with attention for one that was loaded from a file.",
    )


def _refuse_without_attention(what: str, given: Any) -> None:
    if given is not None:
        raise ValueError(
            f"{what} must come with attention, which alone reads it, got it alone; connect attention or leave it out."
        )
