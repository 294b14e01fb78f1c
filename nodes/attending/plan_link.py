"""What travels on an ATTENTION link."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

# The value is an AttentionPlan.
AttentionType = io.Custom("RETRACE_ATTENTION")


def attention_input(tooltip: str, name: str = "attention", optional: bool = True) -> Any:
    """Return the input of a node that takes a plan."""
    return AttentionType.Input(name, optional=optional, tooltip=f"{tooltip} From AttentionInject.")


def attention_output() -> Any:
    """Return the output of a node that makes a plan."""
    return AttentionType.Output(
        display_name="attention",
        tooltip="For Resample, RFSolverSample, InversionSampler, InfEdit, FlowEdit and AttentionGuider, or for another "
        "node that adds to it.",
    )
