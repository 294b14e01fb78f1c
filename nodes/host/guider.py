"""A guider that answers the same question with the same bits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

import comfy.model_patcher
import comfy.samplers
import torch

from .misfits import explained

# The option of the host through which a guider's conditionings are evaluated.
EVALUATE = "sampler_calc_cond_batch_function"


class SteadyGuider(comfy.samplers.CFGGuider):
    """Classifier-free guidance with every conditioning in a forward of its own.

    The stock guider puts conditional and unconditional rows into one forward when there is memory for it, so that
    the same call gives other bits on a fuller card. An inversion that is to come back needs the same denoiser in both
    directions.

    Attributes:
        called: The user's names of conditionings that have another one here, for errors.
    """

    called: Mapping[str, str] = MappingProxyType({})

    def __init__(
        self, model: Any, positive: Any, negative: Any = None, cfg: float = 1.0, called: str = "positive"
    ) -> None:
        """Set up one branch.

        Args:
            model: The MODEL; it is not changed.
            positive: CONDITIONING.
            negative: CONDITIONING, may be None at cfg 1.
            cfg: Guidance scale; 1 leaves the negative out.
            called: The user's name of the positive, for errors.
        """
        super().__init__(model)
        conds = {"positive": positive}
        if negative is not None:
            conds["negative"] = negative
        self.inner_set_conds(conds)
        self.set_cfg(cfg)
        self.called = {"positive": called}

    def sample(self, noise: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        """Sample; called by nodes and by the host's, arguments as there.

        Raises:
            ValueError: If a conditioning is empty, where the host would answer zeros in its place, or one of another
                model.
        """
        for name, conds in self.original_conds.items():
            if not conds:
                called = self.called.get(name, name)
                raise ValueError(f"{called} must hold a conditioning, got an empty list; connect a text encoder.")
        with explained(self):
            return super().sample(noise, *args, **kwargs)

    def predict_noise(
        self,
        x: torch.Tensor,
        timestep: torch.Tensor,
        model_options: dict[str, Any] | None = None,
        seed: int | None = None,
    ) -> torch.Tensor:
        """Return the guided denoised for x, as the host's guider does."""
        options = comfy.model_patcher.create_model_options_clone(model_options or {})
        # A patch that is there already decides for itself how conditionings are evaluated.
        options.setdefault(EVALUATE, _one_by_one)
        return super().predict_noise(x, timestep, options, seed)

    def predict_branch(
        self, branch: str, x: torch.Tensor, timestep: torch.Tensor, model_options: dict[str, Any]
    ) -> torch.Tensor:
        """Return the unguided denoised for x under one branch, "positive" or "negative".

        Only during a run, as predict_noise.
        """
        (answer,) = comfy.samplers.calc_cond_batch(self.inner_model, [self.conds[branch]], x, timestep, model_options)
        return answer


def completed(positive: Sequence[dict[str, Any]], negative: Any) -> Any:
    """Return a negative with what the host lets a positive bring into it.

    A ControlNet of the node that knows of no negative acts on both sides, and so does GLIGEN, unless the negative has
    one of its own. The host does this for conditionings called positive and negative; here it is done for those of
    each branch of a run.

    Args:
        positive: Conditioning of a running guider.
        negative: As positive; None or empty comes back as it is.
    """
    # The host looks for entries for the whole picture to put it on, and divides by their number.
    if not negative or all("area" in entry for entry in negative):
        return negative
    found = list(negative)
    asking = [entry for entry in positive if entry.get("control_apply_to_uncond", False)]
    for conds, name in ((asking, "control"), (positive, "gligen")):
        comfy.samplers.apply_empty_x_to_equal_area(conds, found, name, lambda given, i: given[i])
    return found


def _one_by_one(args: dict[str, Any]) -> list[torch.Tensor]:
    outputs: list[torch.Tensor] = []
    for cond in args["conds"]:
        outputs += comfy.samplers.calc_cond_batch(
            args["model"], [cond], args["input"], args["sigma"], args["model_options"]
        )
    return outputs
