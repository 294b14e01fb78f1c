"""A method of the registry as a node of its own: all that such nodes have in common."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from comfy_api.latest import io

from ...inversion import get_method
from ..host.compat import schema
from ..host.schedule import falling_tensor
from .inputs import GUIDANCE, climb, inversion_output, invert_inputs, sigmas_output
from .link import LinkedInversion
from .method_inputs import own_inputs


class MethodNode(io.ComfyNode):
    """Inverts by one method, whose settings are its own inputs.

    A subclass names itself and its method. The host reads from the signature of `validate_inputs` which inputs it may
    leave unchecked, so that each subclass writes its own.

    Attributes:
        NODE_ID: Id of the node.
        TITLE: Name on the node.
        METHOD: Name in the registry.
        ABOUT: What the node does.
        ALIASES: Further words that a search finds it by.
        GUIDANCE: What cfg means to the method.
        PATH: Whether the path is kept on demand; not where the method keeps it anyway.
    """

    NODE_ID: ClassVar[str]
    TITLE: ClassVar[str]
    METHOD: ClassVar[str]
    ABOUT: ClassVar[str]
    ALIASES: ClassVar[Sequence[str]]
    GUIDANCE: ClassVar[str] = GUIDANCE
    PATH: ClassVar[bool] = True

    @classmethod
    def outputs(cls) -> list[Any]:
        """What comes out: an inversion whose states fit neither a LATENT nor a NOISE travels in the INVERSION alone."""
        return [inversion_output(), sigmas_output()]

    @classmethod
    def results(cls, model: Any, inversion: LinkedInversion) -> tuple[Any, ...]:
        """The values of `outputs`."""
        return inversion, falling_tensor(inversion)

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Describe the node to the host."""
        return schema(
            node_id=cls.NODE_ID,
            display_name=f"{cls.TITLE} (Retrace)",
            category="Retrace/inversion",
            description=cls.ABOUT,
            search_aliases=list(cls.ALIASES),
            inputs=invert_inputs([], own_inputs(cls.METHOD), cls.GUIDANCE, path=cls.PATH),
            outputs=cls.outputs(),
        )

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
        """Invert; ``settings`` are the method's own."""
        method = get_method(cls.METHOD, settings)
        inversion = climb(model, source, latent, steps, scheduler, method, cfg, strength, negative, sigmas, keep_path)
        return io.NodeOutput(*cls.results(model, inversion))
