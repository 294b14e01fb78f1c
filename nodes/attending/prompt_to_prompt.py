"""PromptToPrompt: two prompts, and what the words of one take from the other."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, cast

from comfy_api.latest import io

from ...attention import AttentionPlan, Layers, Settings, get_preset
from ...attention.local_blend import LocalBlend, with_local_blend
from ...attention.plan import Origin
from ...attention.token_map import MODES, Mode, token_map
from ...attention.word_list import parse_weights, parse_windows, parse_words
from ..host.compiled import refuse_compiled_model
from ..host.inputs import prompt_inputs
from ..host.node import Node
from ..host.prompts import alignment_text, cosines, encode, encodings
from .plan_link import attention_input, attention_output
from .resolvers import resolver_for

REWEIGHT = "reweight"


def check_weights(mode: str, weights: str) -> None:
    """Refuse a reweighting of no word, which would change nothing.

    Raises:
        ValueError: If the mode is "reweight" and no word has a weight.
    """
    if mode == REWEIGHT and not parse_weights(weights):
        raise ValueError("weights must name a word for mode reweight, got none; write one like red:2.")


class PromptToPrompt(Node):
    """Encodes a source and a target prompt and plans how attention is shared between them."""

    RULES = (
        check_weights,
        lambda weights: parse_weights(weights),
        lambda schedule: parse_windows(schedule),
        lambda blend_words: parse_words(blend_words),
    )

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Describe the node to the host."""
        return cls.schema(
            "Prompt to Prompt",
            "Edits a picture by editing its prompt: words that stay keep the attention of the source, so "
            "that the layout stays. Swap words, add words, make words count more or less. Hertz et al. 2022, "
            "arXiv:2208.01626.",
            aliases=["P2P", "prompt2prompt", "cross attention control", "attention reweight", "word swap"],
            inputs=[
                *prompt_inputs(),
                io.Combo.Input(
                    "mode",
                    options=[*MODES, REWEIGHT],
                    default="replace",
                    tooltip="replace: a new word takes the place of the old one. refine: new words keep their own "
                    "attention, for added details and styles. similarity: as refine, and the most similar words of "
                    "a changed stretch are joined. reweight: only the weights act, the source is not read.",
                ),
                io.Float.Input(
                    "cross_end",
                    default=0.8,
                    min=0.0,
                    max=1.0,
                    step=0.01,
                    tooltip="Share of the steps in which words take the source's attention. Lower lets new words "
                    "change more of the shape.",
                ),
                io.Float.Input(
                    "self_end",
                    default=0.4,
                    min=0.0,
                    max=1.0,
                    step=0.01,
                    tooltip="Share of the steps in which self-attention has the source's layout. 0.4 suits UNets, 0.2 "
                    "transformers, 0 leaves it free.",
                ),
                io.String.Input(
                    "weights",
                    default="",
                    tooltip="Words of the target that count more or less, such as red:2, blue sky:0.5, cat#2:-1. They "
                    "act on attention; parentheses in the prompts act on the text encoding.",
                ),
                io.String.Input(
                    "schedule",
                    default="",
                    tooltip="Other ends of cross_end for some words of the target, such as lion:0.4, red car:0.1-0.6.",
                ),
                io.String.Input(
                    "blend_words",
                    default="",
                    tooltip="Words of either prompt, such as cat, dog: what does not belong to them stays as in the "
                    "source. The LocalBlend node has its settings and takes a mask.",
                ),
                io.String.Input(
                    "layers",
                    default="",
                    tooltip="Empty for all layers that suit the model. Else output:4-11, double:0,17-18, self#10-15, "
                    "a depth range 0.35-1.0, or all.",
                ),
                io.Combo.Input(
                    "source",
                    options=["pinned", "free"],
                    default="pinned",
                    tooltip="pinned: the source stands at the inverted state of every step, cheap and faithful. free: "
                    "it is reconstructed beside the edit.",
                ),
                attention_input("Rules to add these to."),
            ],
            outputs=[
                io.Conditioning.Output(display_name="source", tooltip="The source prompt, for Invert."),
                io.Conditioning.Output(
                    display_name="target", tooltip="The target prompt, for the positive of Resample."
                ),
                attention_output(),
                io.String.Output(
                    display_name="summary", tooltip="Which words of the target take from which of the source."
                ),
            ],
            shows_text=True,
        )

    @classmethod
    def execute(
        cls,
        model: Any,
        clip: Any,
        source_text: str,
        target_text: str,
        mode: str,
        cross_end: float,
        self_end: float,
        weights: str,
        schedule: str,
        blend_words: str,
        layers: str,
        source: Origin,
        attention: AttentionPlan | None = None,
    ) -> io.NodeOutput:
        """Encode both prompts and make the plan."""
        refuse_compiled_model(model)
        resolver = resolver_for(model.model.diffusion_model, words=True)
        before, before_cond = encode(clip, source_text)
        after, after_cond = encode(clip, target_text)
        text = token_map(
            before,
            after,
            "refine" if mode == REWEIGHT else cast(Mode, mode),
            parse_weights(weights),
            (0.0, cross_end),
            parse_windows(schedule),
            cosines(before_cond, after_cond) if mode == "similarity" else None,
        )
        text = replace(text, encoded=encodings(source=before_cond, target=after_cond))
        settings = Settings(
            layers=layers, start=0.0, end=self_end, variant=REWEIGHT if mode == REWEIGHT else "", text=text
        )
        plan = replace(get_preset("p2p").build(settings, resolver.family, resolver.preset_layers), source=source)
        if blend_words.strip():
            plan = with_local_blend(plan, LocalBlend(), parse_words(blend_words), Layers.parse(resolver.word_layers))
        summary = alignment_text(text)
        cls.show(summary)
        whole = plan if attention is None else attention.plus(plan)
        return io.NodeOutput(before_cond, after_cond, whole, summary)
