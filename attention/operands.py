"""q, k and v of one row as a rule wants them: taken, mixed, added, joined or gathered."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .cached_operand import CachedOperand
from .rules import OWN, Add, Gather, Group, Join, Mix, Name, Operand, Own, Take
from .sites import Span

Fetch = Callable[[str, Name], CachedOperand]
Chosen = Callable[[Gather], Tensor]


@dataclass(frozen=True, eq=False)
class Share:
    """How much of an edit each token gets.

    Attributes:
        strength: 0 .. 1.
        weights: (image tokens,) float32, or None for 1.
    """

    strength: float = 1.0
    weights: Tensor | None = None

    @property
    def full(self) -> bool:
        """Whether every token gets all of it."""
        return self.strength == 1.0 and self.weights is None

    def over(self, own: CachedOperand, span: Span) -> float | Tensor:
        """Weight of the tokens of a span, a number or (tokens, 1).

        Tokens that are no image tokens take the largest weight, so that a mask of zeros is the identity.
        """
        if self.weights is None:
            return self.strength
        weights = self.weights.to(own.tensor.device) * self.strength
        whole = weights.max().expand(own.length).clone()
        if own.image is not None:
            start, stop = own.image
            if stop - start != weights.numel():
                raise ValueError(
                    f"mask must have one weight an image token, got {weights.numel()} for {stop - start}; it is of "
                    "another size."
                )
            whole[start:stop] = weights
        return whole[span[0] : span[1]].unsqueeze(-1)


def lerp(own: Tensor, new: Tensor, weight: float | Tensor) -> Tensor:
    """Own + weight * (new - own), exact where the weight is 0 or 1, in float32 at least."""
    if isinstance(weight, float) and weight == 1.0:
        return new
    work = torch.promote_types(own.dtype, torch.float32)
    there = torch.lerp(own.to(work), new.to(work), torch.as_tensor(weight, dtype=work, device=own.device))
    return there.to(own.dtype)


def span_of(operand: CachedOperand, group: Group) -> Span | None:
    """Tokens of a group; text keys belong to every group, and None means that there are none."""
    if group == "all" or (group == "image" and operand.image is None):
        return 0, operand.length
    return operand.image if group == "image" else operand.text


def apply(
    name: Name,
    operand: Operand,
    own: CachedOperand,
    fetch: Fetch,
    group: Group,
    share: Share,
    chosen: Chosen | None = None,
) -> CachedOperand:
    """The operand that a term asks for.

    Args:
        name: "q", "k" or "v".
        operand: What is asked for.
        own: The row's own operand.
        fetch: Gives the operand of another branch.
        group: Tokens that are replaced.
        share: How much of it; Join and Gather change the number of keys and take it as 1.
        chosen: Indices of the image tokens that a Gather takes.

    Raises:
        ValueError: If the token counts of the branches do not fit.
    """
    if isinstance(operand, Own):
        return own
    if isinstance(operand, Join):
        return _join(operand.branches, name, own, fetch, group)
    other = fetch(operand.branch, name)
    if isinstance(operand, Gather):
        assert chosen is not None
        return _gathered(own, other, group, chosen(operand))
    return _replaced(name, operand, own, other, group, share)


def _replaced(
    name: Name, operand: Take | Mix | Add, own: CachedOperand, other: CachedOperand, group: Group, share: Share
) -> CachedOperand:
    here, there = span_of(own, group), span_of(other, group)
    if here is None or there is None:
        return own
    whole = here == (0, own.length) and there == (0, other.length)
    if whole and isinstance(operand, Take) and share.full and (name != "q" or own.length == other.length):
        return other.holding(other.tensor.to(own.tensor))
    if here[1] - here[0] != there[1] - there[0]:
        what = "image" if group == "image" and own.image is not None else "text"
        raise ValueError(
            f"{what} tokens of both branches must be equally many to mix or take {name}, got {there[1] - there[0]} and "
            f"{here[1] - here[0]}; use the same picture size and prompts of one token length, or the image tokens only."
        )
    mine = own.tensor[:, here[0] : here[1]]
    theirs = other.tensor[:, there[0] : there[1]].to(mine)
    weight = share.over(own, here)
    if isinstance(operand, Add):
        new = _added(mine, theirs, weight, operand.scale)
    else:
        new = lerp(mine, theirs, weight if isinstance(operand, Take) else weight * operand.weight)
    tensor = new if whole else _around(own.tensor, new, here)
    # A mask belongs to the keys; a mixed key keeps its own column.
    taken = isinstance(operand, Take) and share.full
    mask = own.mask
    if taken and not (own.mask is other.mask and here == there):
        before, after = own.part((0, here[0])), own.part((here[1], own.length))
        mask = _columns([before, other.part(there), after])
    return CachedOperand(tensor, own.image, own.text, mask)


def _added(mine: Tensor, theirs: Tensor, weight: float | Tensor, scale: float) -> Tensor:
    work = torch.promote_types(mine.dtype, torch.float32)
    return (mine.to(work) + scale * weight * theirs.to(work)).to(mine.dtype)


def _around(whole: Tensor, new: Tensor, span: Span) -> list[Tensor]:
    parts = (whole[:, : span[0]], new, whole[:, span[1] :])
    return [part for part in parts if part.shape[1]]


def _join(branches: Sequence[str], name: Name, own: CachedOperand, fetch: Fetch, group: Group) -> CachedOperand:
    here = span_of(own, group)
    if here is None:
        return own
    before, after = own.part((0, here[0])), own.part((here[1], own.length))
    parts: list[CachedOperand] = []
    for branch in branches:
        if branch == OWN:
            parts.append(own)
            continue
        other = fetch(branch, name)
        there = span_of(other, group)
        if there is not None:
            parts += [before, other.part(there), after]
    return _concatenated(parts, own)


def _gathered(own: CachedOperand, other: CachedOperand, group: Group, indices: Tensor) -> CachedOperand:
    """The chosen image tokens of another branch in place of the own; with the group "all", its other tokens too."""
    frame = other if group == "all" else own
    if frame.image is None or other.image is None:
        raise ValueError("Gather must act on image keys, got text keys; restrict the rule to self and joint sites.")
    before, after = frame.part((0, frame.image[0])), frame.part((frame.image[1], frame.length))
    image = other.part(other.image)
    columns = None if image.mask is None else image.mask[..., indices.to(image.mask.device)]
    chosen = CachedOperand(image.tensor[:, indices.to(image.tensor.device)], None, None, columns)
    return _concatenated([before, chosen, after], own)


def _concatenated(parts: Sequence[CachedOperand], own: CachedOperand) -> CachedOperand:
    tensors = [part.tensor.to(own.tensor) for part in parts if part.length]
    return CachedOperand(tensors, None, None, _columns(parts))


def _columns(parts: Sequence[CachedOperand]) -> Tensor | None:
    """Columns of the host's mask for keys from several rows; no mask attends to all."""
    masks = [part.mask for part in parts if part.length]
    some = next((mask for mask in masks if mask is not None), None)
    if some is None:
        return None
    wanted = [part for part in parts if part.length]
    boolean = all(mask is None or mask.dtype == torch.bool for mask in masks)
    dtype = torch.bool if boolean else next(m.dtype for m in masks if m is not None and m.dtype != torch.bool)
    heads = max(mask.shape[0] for mask in masks if mask is not None)
    queries = max(mask.shape[1] for mask in masks if mask is not None)
    blocks = []
    for part in wanted:
        if part.mask is None:
            open_ = torch.ones if boolean else torch.zeros
            blocks.append(open_(heads, queries, part.length, dtype=dtype, device=some.device))
            continue
        mask = part.mask.to(some.device)
        blocks.append((mask if boolean else additive(mask, dtype)).expand(heads, queries, -1))
    return torch.cat(blocks, -1)


def additive(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """A mask as a term of the scores: a boolean one says where to attend."""
    if mask.dtype != torch.bool:
        return mask.to(dtype)
    return torch.zeros(mask.shape, dtype=dtype, device=mask.device).masked_fill(~mask, float("-inf"))
