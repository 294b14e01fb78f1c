"""Plug-and-play: structure q, k and the residual feature of one UNet block."""

from __future__ import annotations

from ..plan import AttentionPlan
from ..preset import OTHERS, Preset, Where
from ..rules import FeatureRule, Take, Term
from ..timing import Window

# Block of the decoder whose residual branch is taken: 16 x 16 of a 512 px picture. SDXL has no official one; 1 is the
# middle block of its 32 x 32 stage.
FEATURES = {"sdxl": 1, OTHERS: 4}
# The feature stays for 0.8 of the steps where q and k stay for 0.5.
LONGER = 1.6


class PlugAndPlay(Preset):
    """SDPA(q_s, k_s, v_t) in the first half of the steps and the residual feature of the source in the first 0.8.

    Official: SD1.5 self-attention of output blocks 4 to 11 and the feature of output block 4. The choice for SDXL is
    our own. A given end stretches the feature's window by the official ratio 0.8 / 0.5. UNets of other depths need
    another block for the feature.
    """

    name = "pnp"
    label = "Plug-and-Play"
    description = "Structure q, k with the source's residual feature: the strongest hold on layout. UNets only."
    reference = "Tumanyan et al. 2022, Plug-and-Play, arXiv:2211.12572"
    added = (0, 1, 0)
    layers = {"sd15": "output:4-11", "sdxl": "output:0-5"}
    windows = {"*": (0.0, 0.5)}
    takes_feature = True
    mask_note = "Attention follows the source where the mask is white; the feature is taken everywhere."

    def plan(self, where: Where) -> AttentionPlan:
        """One rule and one feature rule."""
        rule, chosen = where.rule(Term(q=Take(), k=Take())), where.settings.feature
        block = FEATURES.get(where.family, FEATURES[OTHERS]) if chosen is None else chosen
        longer = Window(where.window.start, min(1.0, LONGER * where.window.end))
        feature = FeatureRule(f"{self.name} feature", "output", block, window=longer, strength=rule.strength)
        return where.plan(rule, features=(feature,))
