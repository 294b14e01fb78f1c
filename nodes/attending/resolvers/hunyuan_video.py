"""HunyuanVideo and HunyuanImage."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ....attention.sites import Grid, Kind, Span
from ...host.compat import text_is_first
from ..blocks import DOUBLE_SINGLE, Blocks


class HunyuanVideo(Blocks):
    """Text first, the clip last; a reference stands between them."""

    family = "hunyuan_video"
    label = "HunyuanVideo"
    networks = ("hunyuan_video.model.HunyuanVideo",)
    preset_layers = {
        "masactrl": "single:21-39",
        "stable_flow": "single:21-39",
        "free_flux": "single:21-39",
        "p2p": "double; single:0-25",
    }
    stacks = DOUBLE_SINGLE

    @classmethod
    def of_family(cls, network: Any) -> bool:
        return len(network.single_blocks) > 0

    @classmethod
    def may_share(cls, model_conds: Sequence[Mapping[str, Any]]) -> bool:
        # The network makes one mask for all rows, and writes into ids of a reference that all rows share.
        return not {"attention_mask", "ref_latent"} & model_conds[0].keys()

    def patch(self) -> Grid:
        patch = tuple(self.network.patch_size)
        return (1, *patch) if len(patch) == 2 else patch

    def parts(self, kind: Kind, queries: int, keys: int, tokens: int) -> tuple[Span, Span | None]:
        if text_is_first(self.network.double_blocks[0]):
            return (queries - tokens, queries), (0, self._text)
        end = queries - self._text
        return (end - tokens, end), (keys - self._text, keys)
