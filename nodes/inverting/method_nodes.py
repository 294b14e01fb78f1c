"""Methods as nodes of their own, where users look for them by name; texts and settings are those of the method."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from comfy_api.latest import io

from ...inversion import METHODS
from ..host.schedule import falling_tensor
from .invert import Inverting
from .invert_inputs import (
    GUIDANCE,
    inversion_output,
    invert_inputs,
    latent_output,
    noise_output,
    sigmas_output,
    single_state_outputs,
)
from .link import LinkedInversion
from .measure import describe_residuals
from .method_inputs import own_inputs, settings_of


class MethodNode(Inverting):
    """Inverts by one method, whose settings are its own inputs.

    Attributes:
        METHOD: Name in the registry.
        ALIASES: Further words that a search finds it by.
        GUIDANCE: What cfg means to the method.
        PATH: Whether the path is kept on demand; not where the method keeps it anyway.
        STOCK: Whether its state fits a LATENT and a NOISE; else it travels in the INVERSION alone.
        FIGURE: A number in the meta of its inversions, and what it tells; comes out before the report of its residuals.
    """

    ABSTRACT = True
    METHOD: ClassVar[str]
    ALIASES: ClassVar[Sequence[str]] = ()
    GUIDANCE: ClassVar[str] = GUIDANCE
    PATH: ClassVar[bool] = True
    STOCK: ClassVar[bool] = False
    FIGURE: ClassVar[tuple[str, str] | None] = None

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Describe the node to the host."""
        method = METHODS[cls.METHOD]
        outputs = [inversion_output(), *([latent_output(), noise_output()] if cls.STOCK else []), sigmas_output()]
        if cls.FIGURE is not None:
            name, told = cls.FIGURE
            outputs += [
                io.Float.Output(display_name=name, tooltip=told),
                io.String.Output(display_name="report", tooltip="The same of each step, in words."),
            ]
        return cls.schema(
            method.label,
            f"{method.description} Play it back with Resample. {method.reference}.",
            aliases=["exact inversion", *cls.ALIASES] if method.reversible else cls.ALIASES,
            inputs=invert_inputs([], own_inputs(cls.METHOD), cls.GUIDANCE, path=cls.PATH),
            outputs=outputs,
        )

    @classmethod
    def chosen(cls, values: Mapping[str, Any]) -> tuple[str | None, dict[str, Any]]:
        """The node's method and its settings, which stand under their own names."""
        return cls.METHOD, settings_of(cls.METHOD, values)

    @classmethod
    def results(cls, model: Any, inversion: LinkedInversion) -> tuple[Any, ...]:
        """The values of the outputs."""
        values = single_state_outputs(model, inversion) if cls.STOCK else (inversion, falling_tensor(inversion))
        if cls.FIGURE is None:
            return values
        return *values, float(inversion.meta[cls.FIGURE[0]]), "\n".join(describe_residuals(inversion))


class EDICTCouple(MethodNode):
    """Two coupled states that step in turn, each with the model's answer at the other."""

    METHOD, ALIASES = "edict", ("coupled transformations", "EDICT Couple")


class BDIAInvert(MethodNode):
    """The two latest states, damped by gamma."""

    METHOD, ALIASES = "bdia", ("bi-directional integration approximation",)


class BELMInvert(MethodNode):
    """The two latest states, weighted for the smallest local error."""

    METHOD, ALIASES = "belm", ("BELM", "bidirectional explicit linear multi-step")


class FixedPointInvert(MethodNode):
    """Each step up is solved so that Euler's step down undoes it, by iteration."""

    METHOD, ALIASES, STOCK = "fixed_point", ("Uni-Inv", "fixed point inversion", "Anderson acceleration"), True
    FIGURE = ("residual", "Largest relative residual that a step was left with; 0 is a fixed point.")


class SPDInvert(MethodNode):
    """Each step up is solved so that Euler's step down undoes it, by gradients."""

    METHOD, ALIASES, STOCK = "spd", ("source prompt disentangled inversion",), True
    FIGURE = ("loss", "Largest mean squared residual that a step was left with; 0 is a fixed point.")


class RFInversion(MethodNode):
    """Up towards a drawn noise, down with a pull towards the picture."""

    METHOD, ALIASES, STOCK = "rf_inversion", ("rectified flow inversion", "semantic image inversion"), True
    GUIDANCE = "Guidance while climbing, 1 in the paper, which also leaves the source prompt empty."


class DirectInversion(MethodNode):
    """Up by DDIM inversion, with a record of how to stay on that path under guidance."""

    METHOD, ALIASES, PATH = "direct", ("Direct Inversion", "PnP inversion", "PnPInversion"), False
    GUIDANCE = (
        "Guidance that the edit will have in Resample; the correction is recorded for it. The climb itself is never "
        "guided. Needs a negative unless it is 1."
    )


class NoiseMapInvert(MethodNode):
    """The picture noised to each sigma anew, with a record of what each sampling step misses of it."""

    METHOD, ALIASES = "noise_map", ("DDPM inversion", "LEDITS++", "noise maps", "Noise Map Invert")
    GUIDANCE = (
        "Guidance of the source while its noise maps are recorded; the paper takes 3.5. Needs a negative unless it is "
        "1."
    )
