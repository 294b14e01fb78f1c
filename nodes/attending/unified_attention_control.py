"""UnifiedAttentionControl: the attention control that belongs to InfEdit."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from comfy_api.latest import io

from ...attention import ALL, AttentionPlan, Layers, Settings, get_preset
from ...attention.token_map import MODES, token_map
from ...attention.unified_blend import UnifiedBlend, with_unified_blend
from ...attention.word_list import parse_weights, parse_words
from ..host.compiled import refuse_compiled_model
from ..host.inputs import prompt_inputs
from ..host.node import Node
from ..host.parametrisation import model_sampling_of, space_of
from ..host.prompts import alignment_text, cosines, encode, encodings
from .plan_link import attention_input, attention_output
from .resolvers import resolver_for

# Official: words are mapped as in refine, and similar ones are joined.
_MODE = "similarity"


class UnifiedAttentionControl(Node):
    """Encodes a source and a target prompt and plans InfEdit's three branches."""

    RULES = (
        lambda weights: parse_weights(weights),
        lambda target_words: parse_words(target_words),
        lambda source_words: parse_words(source_words),
    )

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Describe the node to the host."""
        return cls.schema(
            "Unified Attention Control",
            "The attention control of InfEdit: a third branch with the source's prompt carries the "
            "source's look in the target's layout, words and shapes stay for a share of the steps, and words say what "
            "may change. Goes into InfEdit. Xu et al. 2023, arXiv:2312.04965.",
            aliases=["UAC", "InfEdit", "mutual attention", "three branch", "cross attention control"],
            inputs=[
                *prompt_inputs(),
                io.Float.Input(
                    "cross_end",
                    default=0.7,
                    min=0.0,
                    max=1.0,
                    step=0.01,
                    tooltip="Share of the steps in which words that stay take the source's attention. 1 for colours, "
                    "0.7 for objects and styles, 0.3 for shapes and poses, 0 to add or remove.",
                ),
                io.Float.Input(
                    "self_end",
                    default=0.3,
                    min=0.0,
                    max=1.0,
                    step=0.01,
                    tooltip="Share of the steps in which the target has the source's layout; chosen like cross_end. "
                    "After it the third branch follows the target's layout.",
                ),
                io.Combo.Input(
                    "base",
                    options=["source", "mutual"],
                    default="source",
                    tooltip="Whose attention words take. source: the source's. mutual: the third branch's, which moves "
                    "with the target; all three must then share one forward.",
                ),
                io.Combo.Input(
                    "mode",
                    options=list(MODES),
                    default=_MODE,
                    tooltip="How words are matched. similarity: equal words, and the most similar pair of a changed "
                    "stretch. refine: equal words only. replace: new words take the place of the old ones.",
                ),
                io.String.Input(
                    "weights",
                    default="",
                    tooltip="Words of the target that count more or less, such as red:2, blue sky:0.5.",
                ),
                io.String.Input(
                    "target_words",
                    default="",
                    tooltip="Words of the target that the edit is about, such as dog: elsewhere the third branch is "
                    "taken, which looks like the source. Empty: everything may change.",
                ),
                io.String.Input(
                    "source_words",
                    default="",
                    tooltip="Words of the target that must stay as in the source, such as girl. A word in both lists "
                    "may move but keeps its look.",
                ),
                io.Float.Input(
                    "target_threshold",
                    default=0.6,
                    min=0.0,
                    max=0.99,
                    step=0.01,
                    tooltip="How much attention target_words need: lower lets more of the picture change. Early steps "
                    "need more by themselves.",
                ),
                io.Float.Input(
                    "source_threshold",
                    default=0.6,
                    min=0.0,
                    max=0.99,
                    step=0.01,
                    tooltip="How much attention source_words need: lower keeps more of the picture.",
                ),
                io.String.Input(
                    "layers",
                    default="",
                    tooltip="Empty for all layers, as the paper has it. Else output:4-11, double:0,17-18, self#10-15, "
                    "or a depth range 0.35-1.0.",
                ),
                attention_input("Rules to add these to."),
            ],
            outputs=[
                io.Conditioning.Output(display_name="source", tooltip="The source prompt, for InfEdit."),
                io.Conditioning.Output(display_name="target", tooltip="The target prompt, for InfEdit."),
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
        cross_end: float,
        self_end: float,
        base: str,
        mode: Any,
        weights: str,
        target_words: str,
        source_words: str,
        target_threshold: float,
        source_threshold: float,
        layers: str,
        attention: AttentionPlan | None = None,
    ) -> io.NodeOutput:
        """Encode both prompts and make the plan."""
        refuse_compiled_model(model)
        resolver = resolver_for(model.model.diffusion_model, words=True)
        before, before_cond = encode(clip, source_text)
        after, after_cond = encode(clip, target_text)
        near = cosines(before_cond, after_cond) if mode == _MODE else None
        text = token_map(before, after, mode, parse_weights(weights), (0.0, cross_end), cosine=near)
        text = replace(text, encoded=encodings(source=before_cond, target=after_cond))
        settings = Settings(layers=layers, start=0.0, end=self_end, variant=base, text=text)
        plan = get_preset("unified").build(settings, resolver.family, resolver.preset_layers)
        flow = space_of(model_sampling_of(model)) == "flow"
        blend = UnifiedBlend(edited_threshold=target_threshold, kept_threshold=source_threshold, flow=flow)
        where = Layers.parse(layers) if layers.strip() else ALL
        plan = with_unified_blend(plan, blend, parse_words(target_words), parse_words(source_words), where)
        summary = alignment_text(text)
        cls.show(summary)
        return io.NodeOutput(before_cond, after_cond, plan if attention is None else attention.plus(plan), summary)
