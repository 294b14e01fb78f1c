"""Invert: a picture or clip into a model's noise."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from comfy_api.latest import io

from ...inversion import METHODS, get_method
from ..host.node import Node
from ..host.session import Branch
from .invert_inputs import (
    inversion_output,
    invert_inputs,
    latent_output,
    noise_output,
    sigmas_output,
    single_state_outputs,
)
from .link import LinkedInversion
from .method_inputs import parameter_inputs, settings_of
from .runs import climb_of, run_invert


class Inverting(Node):
    """What nodes that invert have in common: their method, its settings and their run.

    The host keeps what it has read of a node on its class, so that no node may derive from another.
    """

    ABSTRACT = True

    @classmethod
    def chosen(cls, values: Mapping[str, Any]) -> tuple[str | None, dict[str, Any]]:
        """Return the method that values of the inputs name, None if that is not known yet, and its settings."""
        name = values.get("method")
        return name, {} if name is None else settings_of(name, values, f"{name}_")

    @classmethod
    def complaint(cls, values: Mapping[str, Any]) -> str | None:
        """See Node; the settings of the method are looked at together once all of them are known."""
        complaint = super().complaint(values)
        name, settings = cls.chosen(values)
        if complaint is None and name is not None and None not in settings.values():
            try:
                get_method(name, settings)
            except (TypeError, ValueError) as error:
                return str(error)
        return complaint

    @classmethod
    def execute(
        cls,
        model: Any,
        source: Any,
        latent: dict[str, Any],
        steps: int,
        scheduler: str,
        cfg: float,
        strength: float,
        negative: Any = None,
        sigmas: torch.Tensor | None = None,
        keep_path: bool = False,
        **settings: Any,
    ) -> io.NodeOutput:
        """Invert; ``settings`` are the inputs that name the method and those made from its own parameters."""
        name, own = cls.chosen(settings)
        assert name is not None
        climb = climb_of(model, steps, scheduler, strength, get_method(name, own), sigmas, keep_path)
        inversion = run_invert(model, Branch(source, negative, cfg), latent, climb)
        return io.NodeOutput(*cls.results(model, inversion))

    @classmethod
    def results(cls, model: Any, inversion: LinkedInversion) -> tuple[Any, ...]:
        """The values of the outputs."""
        return single_state_outputs(model, inversion)


class Invert(Inverting):
    """Carries a latent up the model's sigmas, so that sampling from there comes back to it."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Describe the node to the host."""
        choice = io.Combo.Input(
            "method",
            options=list(METHODS),
            default="midpoint",
            tooltip="How to climb. midpoint (RF-Solver) is accurate at two model calls a step, fireflow at one; euler "
            "and ddim are the plain first-order ways; edict, bdia and belm come back exactly.",
        )
        return cls.schema(
            "Invert",
            "Takes a picture or clip into the model's noise, to be reconstructed and edited from there.",
            aliases=["inversion", "unsampler", "DDIM inversion", "RF inversion", "noise a real image"],
            inputs=invert_inputs([choice], parameter_inputs()),
            outputs=[inversion_output(), latent_output(), noise_output(), sigmas_output()],
        )
