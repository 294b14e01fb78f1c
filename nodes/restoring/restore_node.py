"""A solver as a SAMPLER whose settings are the node's own inputs: all that such nodes have in common."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from comfy_api.latest import io

from ...core.settings import Settings
from ...restoration.operators import Damage
from ..host.inputs import setting_input
from ..host.node import Node
from ..host.session import ScriptSampler
from .restore_inputs import check_noise, damaged_input, noise_input, operator_input
from .run import Photo, Solver, restore


class RestoreNode(Node):
    """Restores by one solver, whose settings are its own inputs.

    Attributes:
        TITLE: Name on the node.
        ABOUT: What the node does.
        ALIASES: Further words that a search finds it by.
        SETTINGS: The solver's settings.
    """

    ABSTRACT = True
    RULES = (check_noise,)
    TITLE: ClassVar[str]
    ABOUT: ClassVar[str]
    ALIASES: ClassVar[Sequence[str]]
    SETTINGS: ClassVar[type[Settings]]

    @classmethod
    def solver(cls, settings: Any) -> Solver:
        """The solver under its settings."""
        raise NotImplementedError

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Describe the node to the host."""
        vae = io.Vae.Input(
            "vae",
            optional=True,
            tooltip="The VAE of the model. Only models that sample pictures themselves do without.",
        )
        sampler = io.Sampler.Output(
            display_name="sampler",
            tooltip="For SamplerCustom and SamplerCustomAdvanced with noise, SIGMAS down to 0, and an empty latent of "
            "the restored size.",
        )
        settings = [setting_input(setting) for setting in cls.SETTINGS.parameters()]
        return cls.schema(
            cls.TITLE,
            cls.ABOUT,
            aliases=cls.ALIASES,
            inputs=[operator_input(), damaged_input(), noise_input(), *settings, vae],
            outputs=[sampler],
        )

    @classmethod
    def execute(
        cls, operator: Damage, damaged: torch.Tensor, noise: float, vae: Any = None, **settings: Any
    ) -> io.NodeOutput:
        """Make the sampler; ``settings`` are the solver's own."""
        photo, solver = Photo(operator, damaged, noise, vae), cls.solver(cls.SETTINGS(**settings))
        return io.NodeOutput(ScriptSampler(functools.partial(restore, photo, solver)))
