"""A run of the pack inside the host: one guider of branches, one sampler that runs a script, and what that is given.

The host loads the model, prepares the conditionings and calls the sampler; the sampler calls a script, a plain function
of a `Session`, which asks the guider for the denoised of one branch or of several at once.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import math
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol, TypeVar

import comfy.model_management
import comfy.model_patcher
import comfy.samplers
import comfy.utils
import latent_preview
import node_helpers
import torch

from ...core.denoiser import CLEAN_FLOOR, Denoise, Denoiser, work_dtype
from ...core.walk import StepReport
from .gradients import differentiable_run
from .misfits import explained
from .negative import exchanged
from .parametrisation import noise_scale, refuse_clean_prediction, showing, sigma_floor, space_of

Callback = Callable[[int, torch.Tensor, torch.Tensor, int], None]
State = Callable[[float, torch.device], torch.Tensor]
Result = TypeVar("Result")

# Names under which a guider holds conditionings. The host takes the second for the negative, also of its own making.
POSITIVE, NEGATIVE = "positive", "negative"
CHUNKS = ("cond", "uncond")
# The option of the host through which a guider's conditionings are evaluated.
EVALUATE = "sampler_calc_cond_batch_function"
# Patches see it beside the host's own entries, so it carries the pack's name.
_CALL = "retrace_call"


@dataclass(frozen=True, eq=False)
class Branch:
    """One trajectory through the network.

    Attributes:
        positive: CONDITIONING.
        negative: CONDITIONING, None where nobody reads it.
        cfg: Guidance scale; 1 leaves the negative out.
        at: Where the branch stands at a sigma, (sigma, device) -> state, for one that is only read from; None where
            calls bring its state.
    """

    positive: Any
    negative: Any = None
    cfg: float = 1.0
    at: State | None = None


@dataclass(frozen=True)
class Call:
    """What a call of a guider asks for.

    Attributes:
        branches: Branches in the order of the rows.
        chunk: "cond" or "uncond" for the bare answer of that side of a single branch, "" for the guided one.
        guided: Whether guidance acts.
    """

    branches: tuple[str, ...]
    chunk: str = ""
    guided: bool = True


@dataclass
class Forward:
    """A forward of the network that rules ask for.

    Attributes:
        conds: Prepared conditionings as the host numbers them: positive side, negative side.
        x: States of all rows.
        sigmas: Sigma of each row.
        options: model_options.
        answer: The denoised, once it was made.
    """

    conds: list[Any]
    x: torch.Tensor
    sigmas: torch.Tensor
    options: dict[str, Any]
    answer: torch.Tensor | None = None


class Attention(Protocol):
    """Rules by which branches read from each other inside the network."""

    def begin(self, shape: torch.Size) -> None:
        """A run begins, of a latent of this shape a branch."""

    def end(self) -> None:
        """The run is over."""

    def acts(self, options: dict[str, Any], sigma: float) -> bool:
        """Whether a rule acts at a sigma; ``options`` are the transformer_options."""

    def reads(self, branch: str) -> bool:
        """Whether a branch has to be evaluated to be read from, because nothing was kept of it."""

    def forwards(
        self,
        guider: Guider,
        call: Call,
        states: Mapping[str, torch.Tensor],
        sigmas: torch.Tensor,
        options: dict[str, Any],
        answers: dict[tuple[str, str], torch.Tensor],
    ) -> Generator[Forward, None, None]:
        """Yield the forwards of a call one after the other; ``answers`` by branch and chunk is filled from theirs."""


class Guider(comfy.samplers.CFGGuider):
    """Named branches in one run, each with its own conditioning and guidance.

    Every conditioning has a forward of its own, unless rules put several into one: the stock guider puts conditional
    and unconditional rows together when there is memory for it, so that the same call gives other bits on a fuller
    card, and an inversion that is to come back needs the same denoiser in both directions. Each forward is announced as
    the host would: the positive side is 0 in ``cond_or_uncond``, the negative side 1.

    Args:
        model: The MODEL; it is not changed.
        branches: Branches by name. The guidance that patches see is that of "target", or of the first.
        attention: What the branches do to each other, or None.

    Attributes:
        holds: Branches that the noise of a run holds, row after row.
        expects: What a call asks for that does not say so: all branches whose states calls bring.
        called: The user's names of conditionings that have another one here, for errors.
    """

    holds = 1

    def __init__(self, model: Any, branches: Mapping[str, Branch], attention: Attention | None = None) -> None:
        super().__init__(model)
        self.branches = dict(branches)
        self.attention = attention
        first = next(iter(branches))
        # A single branch has the host's own names. Several have theirs, between which the host copies nothing.
        self._positives = {name: POSITIVE if len(branches) == 1 else name for name in branches}
        self.called = {POSITIVE: first} if len(branches) == 1 else {}
        self._negatives: dict[str, str] = {}
        self._declare()
        self.set_cfg(branches.get("target", branches[first]).cfg)
        self.expects = Call(tuple(name for name, branch in branches.items() if branch.at is None))

    def _declare(self) -> None:
        """Give the host every conditioning under a name."""
        conds = {self._positives[name]: branch.positive for name, branch in self.branches.items()}
        target = self.branches.get("target")
        names: list[tuple[Any, str]] = []
        # The target's negative is the one that fitted embeddings replace.
        for name in sorted(self.branches, key=lambda each: each != "target"):
            branch = self.branches[name]
            negative = branch.negative
            if negative is None and target is not None:
                negative = target.negative
            # Without rules nobody reads it at cfg 1.
            if negative is None or (self.attention is None and branch.cfg == 1.0):
                continue
            known = next((key for other, key in names if other is negative), None)
            if known is None:
                known = NEGATIVE if not names else f"{NEGATIVE} of {name}"
                conds[known] = node_helpers.conditioning_set_values(negative, {"prompt_type": NEGATIVE})
                names.append((negative, known))
            self._negatives[name] = known
        self.inner_set_conds(conds)

    def has_negative(self, branch: str) -> bool:
        """Whether a branch has a negative."""
        return branch in self._negatives

    def positive(self, branch: str) -> Any:
        """Prepared positive of a branch, during a run."""
        return self.conds[self._positives[branch]]

    def negative(self, branch: str) -> Any:
        """Prepared negative of a branch with what the host lets the positive bring into it, None where it has none."""
        negative = self.conds.get(self._negatives.get(branch, ""))
        return negative if len(self.branches) == 1 else completed(self.positive(branch), negative)

    def sample(self, noise: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        """Sample; called by nodes of the host, arguments as there.

        Raises:
            ValueError: If a conditioning is empty, where the host would answer zeros in its place, or one of another
                model.
        """
        with self._running(noise.shape):
            samples: torch.Tensor = super().sample(noise, *args, **kwargs)
        return samples

    def run(
        self,
        samples: torch.Tensor,
        sigmas: Sequence[float],
        script: Callable[[Session], Result],
        gradients: bool = False,
    ) -> Result:
        """Run a script, with the host's progress bar, preview and interrupt.

        Args:
            samples: Samples of a LATENT in the model's channels, for shape and device.
            sigmas: Sigmas of the run. The host shows them to the network and to patches, so they fall in both
                directions: both ask the same denoiser.
            script: Called once, when the model is loaded.
            gradients: Whether gradients are to pass through the denoisers.

        Returns:
            What the script returns, in full precision.

        Raises:
            ValueError: As ``sample``.
        """
        sampler = ScriptSampler(script, standing_in=True, gradients=gradients)
        with self._running(samples.shape):
            super().sample(
                torch.zeros_like(samples),
                samples,
                sampler,
                torch.tensor(sigmas, dtype=torch.float32),
                callback=latent_preview.prepare_callback(self.model_patcher, len(sigmas) - 1),
                disable_pbar=not comfy.utils.PROGRESS_BAR_ENABLED,
                seed=0,
            )
        result: Result = sampler.result
        return result

    @contextlib.contextmanager
    def _running(self, shape: torch.Size) -> Iterator[None]:
        for name, conds in self.original_conds.items():
            if not conds:
                called = self.called.get(name, name)
                raise ValueError(f"{called} must hold a conditioning, got an empty list; connect a text encoder.")
        with contextlib.ExitStack() as stack:
            stack.enter_context(explained(self))
            if self.attention is not None:
                self.attention.begin(torch.Size((shape[0] // self.holds, *shape[1:])))
                stack.callback(self.attention.end)
            yield

    def predict_noise(
        self,
        x: torch.Tensor,
        timestep: torch.Tensor,
        model_options: dict[str, Any] | None = None,
        seed: int | None = None,
    ) -> torch.Tensor:
        """Return the denoised of every branch that the options ask for, rows in their order.

        Args:
            x: States of the branches, one after the other.
            timestep: Sigma of each row.
            model_options: The host's; see `asking`.
            seed: The host's.
        """
        options: dict[str, Any] = comfy.model_patcher.create_model_options_clone(model_options or {})
        inner = options.setdefault("transformer_options", {})
        call: Call = inner.pop(_CALL, self.expects)
        # A view would make gradients add up in another order.
        parts = x.chunk(len(call.branches)) if len(call.branches) > 1 else (x,)
        states = dict(zip(call.branches, parts, strict=True))
        sigmas = timestep[: x.shape[0] // len(call.branches)]
        if call.chunk:
            (branch,) = call.branches
            conds = [self.positive(branch)] if call.chunk == CHUNKS[0] else [None, self.negative(branch)]
            answer: torch.Tensor = comfy.samplers.calc_cond_batch(self.inner_model, conds, x, timestep, options)[-1]
            return answer
        answers: dict[tuple[str, str], torch.Tensor] = {}
        attention, sigma = self.attention, float(timestep[0])
        if attention is not None and attention.acts(inner, sigma):
            if options.get(EVALUATE) is not None:
                raise ValueError(
                    "model must let the pack evaluate its conditionings to control attention, got a patch of "
                    f"{EVALUATE}; connect the MODEL from before that node."
                )
            # Threads of several cards would meet in one resolver.
            options.pop("multigpu_clones", None)
            still = {name: branch.at for name, branch in self.branches.items() if branch.at and attention.reads(name)}
            show = showing(self.inner_model.model_sampling)
            rows = {name: show(at(sigma, x.device).to(x), sigma) for name, at in still.items()} | states
            with contextlib.closing(attention.forwards(self, call, rows, sigmas, options, answers)) as forwards:
                for forward in forwards:
                    forward.answer = comfy.samplers.calc_cond_batch(
                        self.inner_model, forward.conds, forward.x, forward.sigmas, forward.options
                    )[-1]
        guided = []
        for name in call.branches:
            cfg = self.branches[name].cfg if call.guided else 1.0
            negative, own = self.negative(name), options
            if answers:
                own = {**options, EVALUATE: functools.partial(_known, answers, name)}
            elif negative is not None and not (math.isclose(cfg, 1.0) and not options.get("disable_cfg1_optimization")):
                # A patch that is there already decides for itself how conditionings are evaluated.
                own = {EVALUATE: _one_by_one, **options}
            # The host's own function guides, so that patches of guidance act.
            guided.append(
                comfy.samplers.sampling_function(
                    self.inner_model, states[name], sigmas, negative, self.positive(name), cfg, own, seed
                )
            )
        return torch.cat(guided) if len(guided) > 1 else guided[0]


def asking(model_options: dict[str, Any] | None, call: Call) -> dict[str, Any]:
    """Return model_options under which a guider answers a call."""
    options: dict[str, Any] = comfy.model_patcher.create_model_options_clone(model_options or {})
    options.setdefault("transformer_options", {})[_CALL] = call
    return options


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
    entries = list(negative)
    asking_both = [entry for entry in positive if entry.get("control_apply_to_uncond", False)]
    for conds, name in ((asking_both, "control"), (positive, "gligen")):
        comfy.samplers.apply_empty_x_to_equal_area(conds, entries, name, lambda theirs, i: theirs[i])
    return entries


def _one_by_one(args: dict[str, Any]) -> list[torch.Tensor]:
    """Each side in a forward of its own, at the place that the host gives it."""
    answers = []
    for place, cond in enumerate(args["conds"]):
        alone = [None] * place + [cond]
        answers.append(
            comfy.samplers.calc_cond_batch(args["model"], alone, args["input"], args["sigma"], args["model_options"])[
                -1
            ]
        )
    return answers


def _known(answers: Mapping[tuple[str, str], torch.Tensor], branch: str, args: dict[str, Any]) -> list[torch.Tensor]:
    """Both sides of a branch whose answers are there already."""
    cond = answers[branch, CHUNKS[0]]
    return [cond, answers.get((branch, CHUNKS[1]), torch.zeros_like(cond))]


@dataclass(frozen=True, eq=False)
class Session:
    """What a script is given: the host's arguments of a sampler, and the denoisers of the run.

    Attributes:
        guider: The guider of the run, of the host or of the pack.
        sigmas: The host's SIGMAS.
        extra_args: The host's extra arguments of the run.
        callback: The host's progress and preview, or None.
        noise: The noise of the run.
        latent_image: The latent of the run in the model's space, None without one.
        denoise_mask: 1 where the model acts, None without one.
        disable_pbar: Whether a stock sampler shows no progress of its own.
        model: What is asked in the place of the guider, or None.
    """

    guider: Any
    sigmas: torch.Tensor
    extra_args: dict[str, Any]
    callback: Callback | None
    noise: torch.Tensor
    latent_image: torch.Tensor | None = None
    denoise_mask: torch.Tensor | None = None
    disable_pbar: bool = False
    model: Any = None

    @property
    def device(self) -> torch.device:
        """Device of the run."""
        return self.noise.device

    @property
    def dtype(self) -> torch.dtype:
        """Precision of states."""
        return work_dtype(self.device)

    @property
    def model_sampling(self) -> Any:
        """The model_sampling object of the loaded model."""
        return self.guider.inner_model.model_sampling

    def denoiser(self, *branches: str, chunk: str = "", dtype: torch.dtype | None = None) -> Denoiser:
        """The denoiser of the run, or of some of its branches.

        An interrupt by the user is raised before each model call, so that no run outlives it by more than one call.

        Args:
            branches: Branches of a `Guider`, whose rows follow each other; none for all that it expects.
            chunk: As in `Call`.
            dtype: Precision of the states, None for the session's.

        Returns:
            The denoiser, in the model's space. Under a guider its negative's embedding can be exchanged, and where
            nothing stands before that, guidance be left out.

        Raises:
            ValueError: If the model is neither a diffusion nor a flow model.
        """
        guider, sampling = self.guider, self.model_sampling
        cfg = getattr(guider, "cfg", None)
        space, show = space_of(sampling), showing(sampling)

        def answering(model: Any, call: Call | None) -> Denoise:
            arguments = self.extra_args
            if call is not None:
                arguments = {**arguments, "model_options": asking(arguments.get("model_options"), call)}

            def denoise(x: torch.Tensor, sigma: float) -> torch.Tensor:
                comfy.model_management.throw_exception_if_processing_interrupted()
                rows = torch.full((x.shape[0],), sigma, dtype=x.dtype, device=x.device)
                denoised: torch.Tensor = model(show(x, sigma), rows, **arguments)
                if space == "flow" and sigma < CLEAN_FLOOR:
                    refuse_clean_prediction(x, denoised, sigma)
                return denoised

            return denoise

        denoise = answering(self.model or guider, Call(branches, chunk) if branches else None)

        def rebind(embedding: torch.Tensor) -> Denoise:
            def denoise_under(x: torch.Tensor, sigma: float) -> torch.Tensor:
                with exchanged(guider, embedding):
                    return denoise(x, sigma)

            # At cfg 1 the host leaves the negative out, and its embedding acts on nothing.
            return denoise if cfg == 1.0 and not chunk else denoise_under

        plain = None
        if self.model is None and cfg not in (None, 1.0) and not chunk:
            if isinstance(guider, Guider):
                plain = answering(guider, Call(branches or guider.expects.branches, guided=False))
            else:
                # A view of this run as a guider at cfg 1, where the host leaves the negative out.
                alone = copy.copy(guider)
                alone.cfg = 1.0
                plain = answering(alone, None)
        floor = sigma_floor(guider.model_patcher, space, self.dtype if dtype is None else dtype)
        return Denoiser(denoise, space, floor, rebind, plain, noise_scale(sampling))

    def tell(self, report: StepReport) -> None:
        """Drive the host's progress bar and preview with the predicted clean latent, and end on an interrupt."""
        comfy.model_management.throw_exception_if_processing_interrupted()
        if self.callback is not None:
            # float32: the previewers of the host multiply by float32 matrices.
            self.callback(report.index, report.denoised.detach().float(), report.x.detach().float(), report.total)


class ScriptSampler(comfy.samplers.Sampler):
    """Runs a script: the one sampler of the pack.

    The stock KSAMPLER multiplies the latent by the weights of a sigma on entry and divides on exit, in float32; at flow
    sigma 1 that is 0 and infinity. A plain Sampler is called with everything in place and left alone.

    Args:
        script: Called once with the session.
        standing_in: Whether what the script returns leaves by ``result``, in full precision. The host maps and rounds
            what ``sample`` returns, so that is only a finite stand-in then.
        gradients: Whether gradients are to pass through the denoisers.
    """

    def __init__(self, script: Callable[[Session], Any], standing_in: bool = False, gradients: bool = False) -> None:
        self._script = script
        self._standing_in = standing_in
        self._gradients = gradients
        self.result: Any = None

    def sample(
        self,
        guider: Any,
        sigmas: torch.Tensor,
        extra_args: dict[str, Any],
        callback: Callback | None,
        noise: torch.Tensor,
        latent_image: torch.Tensor | None = None,
        denoise_mask: torch.Tensor | None = None,
        disable_pbar: bool = False,
    ) -> torch.Tensor:
        """Run the script; called by the host."""
        session = Session(guider, sigmas, extra_args, callback, noise, latent_image, denoise_mask, disable_pbar)
        with contextlib.ExitStack() as stack:
            stack.enter_context(explained(guider, noise.shape[1]))
            if self._gradients:
                session = replace(session, extra_args=stack.enter_context(differentiable_run(guider, extra_args)))
            result: torch.Tensor = self._script(session)
        if not self._standing_in:
            return result
        self.result = result
        return torch.zeros_like(noise)


def refusing(like: Denoiser, reason: str) -> Denoiser:
    """Return a denoiser of the same space that raises ValueError(reason) when it is asked."""

    def denoise(x: torch.Tensor, sigma: float) -> torch.Tensor:
        raise ValueError(reason)

    return like.answering(denoise)
