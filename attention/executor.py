"""The one function that carries out rules: it stands where a network calls its attention."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from .cache import Cache
from .cached_operand import CachedOperand
from .calls import Call, Piece
from .compose import Operands, Sum, composed
from .masks import Mask, MaskSource, token_weights
from .operands import Share, apply, span_of
from .probes import masses
from .rows import Rows, Who
from .rules import Gather, Join, Name, Own, Probe, Rule, Term
from .sites import Site, Span
from .timing import Step
from .values import mapped

NAMES: tuple[Name, ...] = ("q", "k", "v")


class Executor:
    """Carries out rules at every attention call.

    Args:
        rules: The rules, in the order in which they compose.
        probes: Read before any edit.
        maps: Accumulators of the probes by name.

    Attributes:
        chunks: Parts of the guided call that an evaluation asks for: what no further one reads is not kept for it.
    """

    def __init__(self, rules: Sequence[Rule], probes: Sequence[Probe] = (), maps: Mapping[str, Any] | None = None):
        self.rules = tuple(rules)
        self.probes = tuple(probes)
        self.maps = dict(maps or {})
        self.chunks: tuple[str, ...] = ("cond", "uncond")

    def needs(self, site: Site, step: Step) -> set[tuple[str, Name]]:
        """Branches and operands that some rule reads at a site in a step."""
        return {entry for rule in self._active(site, step) for entry in rule.reads()}

    def wanted(self, site: Site, step: Step) -> list[tuple[str, Name, bool]]:
        """The same, and for each whether all tokens are read or those of the image only."""
        whole: dict[tuple[str, Name], bool] = {}
        for rule in self._active(site, step):
            for entry in rule.reads():
                whole[entry] = whole.get(entry, False) or rule.group != "image"
        return [(branch, name, flag) for (branch, name), flag in whole.items()]

    def run(self, site: Site, rows: Rows, step: Step, call: Call, cache: Cache | None = None) -> Tensor:
        """One attention call.

        Args:
            site: Where it is.
            rows: What the batch rows are.
            step: When it is.
            call: What the network asks.
            cache: Where operands of other forwards are.

        Returns:
            (B, heads, queries, d).

        Raises:
            ValueError: If a branch that is read is missing, token counts do not fit, or two rules replace the same
                operand of a row.
        """
        cut = _Cut(site, rows, step, call, cache)
        for probe in self.probes:
            if probe.acts(step) and probe.covers(site):
                self._read(probe, cut)
        active = self._active(site, step)
        if cache is not None:
            _record(active, cut, cache, self.chunks)
        edits = [(rule, row) for rule in active for row in range(len(rows)) if _concerns(rule, rows.who(row))]
        if not edits:
            return call.attend(call.q, call.k, call.v, call.mask)
        return self._edited(cut, edits)

    def _active(self, site: Site, step: Step) -> list[Rule]:
        active = []
        for rule in self.rules:
            if not (rule.acts(step) and rule.covers(site)):
                continue
            asked = [rule.mask, *(term.where for term in rule.terms)]
            asked += [
                operand.tokens for term in rule.terms for _, operand in term.operands() if isinstance(operand, Gather)
            ]
            if all(entry is None or self._mask(entry, step) is not None for entry in asked):
                active.append(rule)
        return active

    def _mask(self, mask: Mask | MaskSource, step: Step) -> Mask | None:
        return mask if isinstance(mask, Mask) else mask.at(step, self.maps)

    def _weights(self, mask: Mask | MaskSource | None, cut: _Cut, row: int) -> Tensor | None:
        if mask is None:
            return None
        known = self._mask(mask, cut.step)
        assert known is not None
        return token_weights(known, cut.site.grid, cut.rows.items[row])

    def _read(self, probe: Probe, cut: _Cut) -> None:
        for row in range(len(cut.rows)):
            branch, chunk, item = cut.rows.who(row)
            if branch == probe.branch and chunk.partition(":")[0] in probe.chunks:
                own = cut.own(row)
                reading = masses(probe, cut.site, own["q"], own["k"], cut.call.scale)
                self.maps[probe.name].add(cut.site, cut.step, item, reading)

    def _edited(self, cut: _Cut, edits: Sequence[tuple[Rule, int]]) -> Tensor:
        operands = [dict(cut.own(row)) for row in range(len(cut.rows))]
        claimed: dict[tuple[int, str], str] = {}
        sums: list[list[Sum]] = [[] for _ in operands]
        late = []
        for rule, row in edits:
            share = Share(rule.strength, self._weights(rule.mask, cut, row))
            if _mapped(rule, cut.site, share):
                late.append((rule, row, share))
                if share.full:
                    _claim(claimed, row, "output", rule)
                continue
            for name, operand in rule.terms[0].operands():
                if isinstance(operand, Own):
                    continue
                _claim(claimed, row, name, rule)
                operands[row][name] = self._operand(rule, name, rule.terms[0], operands[row][name], cut, row, share)
        for rule, row, share in late:
            sums[row].append(self._sum(rule, cut, row, operands[row], share))
        own = [cut.own(row) for row in range(len(operands))]
        return composed(cut.call, own, operands, sums)

    def _operand(
        self, rule: Rule, name: Name, term: Term, own: CachedOperand, cut: _Cut, row: int, share: Share
    ) -> CachedOperand:
        def chosen(gather: Gather) -> Tensor:
            weights = self._weights(gather.tokens, cut, row)
            assert weights is not None
            heavy = torch.nonzero(weights >= 0.5).flatten()
            return heavy if heavy.numel() else torch.arange(weights.numel())

        def fetch(branch: str, wanted: Name) -> CachedOperand:
            return cut.fetch(rule, branch, wanted, row)

        return apply(name, getattr(term, name), own, fetch, rule.group, share, chosen)

    def _sum(self, rule: Rule, cut: _Cut, row: int, own: Operands, share: Share) -> Sum:
        queries = span_of(own["q"], rule.queries) or (0, 0)
        pieces: list[tuple[Piece, Tensor | None]] = []
        masses: list[tuple[Piece, Tensor | None]] = []
        for term in rule.terms:
            k, v = (self._operand(rule, name, term, own[name], cut, row, Share()) for name in ("k", "v"))
            where = self._where(term, own["q"], queries, cut, row)
            q = self._queries(rule, term, own["q"], queries, cut, row)
            pair = _valued(term, cut, k, v)
            if pair is None:
                continue
            pieces.append((Piece(row, q, *pair, queries), where))
            if rule.renormalise:
                heavy = _valued(term, cut, k, v.holding(torch.ones_like(v.tensor)))
                assert heavy is not None
                masses.append((Piece(row, q, *heavy, queries), where))
        return Sum(queries, share.over(own["q"], queries), share.full, tuple(pieces), tuple(masses))

    def _queries(self, rule: Rule, term: Term, own: CachedOperand, span: Span, cut: _Cut, row: int) -> CachedOperand:
        if rule.queries == "all" or span == (0, own.length):
            return self._operand(rule, "q", term, own, cut, row, Share())

        # Other tokens of the two branches may differ in number: only those that are asked for are compared.
        def fetch(branch: str, wanted: Name) -> CachedOperand:
            other = cut.fetch(rule, branch, wanted, row)
            return other.part(span_of(other, rule.queries) or (0, 0))

        return apply("q", term.q, own.part(span), fetch, "all", Share())

    def _where(self, term: Term, own: CachedOperand, span: Span, cut: _Cut, row: int) -> Tensor | None:
        weights = self._weights(term.where, cut, row)
        if weights is None:
            return None
        image = own.image or (0, own.length)
        whole = torch.ones(own.length, device=own.tensor.device)
        whole[image[0] : image[1]] = weights.to(whole)
        return whole[span[0] : span[1]].unsqueeze(-1)


class _Cut:
    """One call, cut into rows."""

    def __init__(self, site: Site, rows: Rows, step: Step, call: Call, cache: Cache | None):
        if call.q.shape[0] != len(rows):
            raise ValueError(f"rows must be one a batch row, got {len(rows)} for {call.q.shape[0]}; name each row.")
        self.site, self.rows, self.step, self.call, self.cache = site, rows, step, call, cache
        # One object for all rows of a shared mask, so that it is known to be the same.
        mask = call.mask
        self._masks = None if mask is None else (list(mask) if mask.shape[0] > 1 else [mask[0]] * len(rows))
        self._own: dict[int, Operands] = {}
        self._where = {rows.who(row): row for row in reversed(range(len(rows)))}

    def own(self, row: int) -> Operands:
        """The row's own operands, the same objects every time."""
        if row not in self._own:
            site = self.site
            crossing = site.kind == "cross"
            keys = (None if crossing else site.image), site.text
            columns = None if self._masks is None else self._masks[row]
            self._own[row] = {
                "q": CachedOperand(self.call.q[row], site.image, None if crossing else site.text),
                "k": CachedOperand(self.call.k[row], *keys, columns),
                "v": CachedOperand(self.call.v[row], *keys),
            }
        return self._own[row]

    def fetch(self, rule: Rule, branch: str, name: Name, row: int) -> CachedOperand:
        """An operand of another branch: of this call, else of an earlier one."""
        _, chunk, item = self.rows.who(row)
        kind, *part = chunk.split(":", 1)
        kind = "cond" if rule.source_for == "shared" else kind
        # A branch with one picture serves all of a batch, one with a single prompt all parts of the other's.
        chunks = dict.fromkeys((":".join((kind, *part)), kind))
        for who in ((branch, each, number) for each in chunks for number in (item, 0)):
            if who in self._where:
                return self.own(self._where[who])[name]
            operand = None if self.cache is None else self.cache.get(self.site, self.step, who, name)
            if operand is not None:
                self._check(operand, branch, self.own(row)[name], self.rows.branches[row])
                if operand.mask is None or operand.mask.device == self.call.q.device:
                    return operand
                return CachedOperand(operand.parts, operand.image, operand.text, operand.mask.to(self.call.q.device))
        raise ValueError(
            f"{name} of branch {branch!r} must be known before rule {rule.name} reads it at {self.site.label}, got "
            f"none for {chunk} of picture {item} in step {self.step.index}; run that branch first with the same "
            'guidance, or let both chunks share its "cond".'
        )

    def _check(self, other: CachedOperand, branch: str, own: CachedOperand, reader: str) -> None:
        if other.image is None or own.image is None:
            return
        have, want = other.image[1] - other.image[0], own.image[1] - own.image[0]
        if have != want:
            raise ValueError(
                f"pictures of branches {branch} and {reader} must be of one size to share attention, got {have} and "
                f"{want} image tokens at {self.site.label}; resize one."
            )


def _valued(term: Term, cut: _Cut, k: CachedOperand, v: CachedOperand) -> tuple[CachedOperand, CachedOperand] | None:
    return (k, v) if term.values is None else mapped(term.values, cut.site, cut.step, k, v)


def _concerns(rule: Rule, who: Who) -> bool:
    return who[0] == rule.branch and who[1].partition(":")[0] in rule.chunks


def _mapped(rule: Rule, site: Site, share: Share) -> bool:
    """Whether a rule needs calls of its own, or blends outputs."""
    term = rule.terms[0]
    longer = isinstance(term.k, Join | Gather) and not share.full
    text_keys = site.kind == "cross" and share.weights is not None
    blended = rule.blend == "output" and not share.full
    plain = len(rule.terms) == 1 and term.values is None and term.where is None and rule.queries == "all"
    return longer or text_keys or blended or not plain


def _claim(claimed: dict[tuple[int, str], str], row: int, what: str, rule: Rule) -> None:
    if (row, what) in claimed:
        raise ValueError(
            f"Rules on one row must replace different operands, got {what} from {claimed[(row, what)]} and "
            f"{rule.name}; give them other layers, steps or operands."
        )
    claimed[(row, what)] = rule.name


def _record(active: Sequence[Rule], cut: _Cut, cache: Cache, chunks: Sequence[str]) -> None:
    """Keep what rules read of the rows of this call, unless every reader is in it."""
    whole: dict[tuple[str, Name, str], bool] = {}
    for rule in active:
        pairs = zip(cut.rows.branches, cut.rows.chunks, strict=True)
        present = {chunk for branch, chunk in pairs if branch == rule.branch}
        asked = set(rule.chunks) & set(chunks)
        here = asked <= present if rule.source_for == "shared" else bool(present)
        if not here:
            for branch, name in rule.reads():
                for chunk in ("cond",) if rule.source_for == "shared" else asked:
                    entry = branch, name, chunk
                    whole[entry] = whole.get(entry, False) or rule.group != "image"
    for row in range(len(cut.rows)):
        who = cut.rows.who(row)
        for (branch, name, chunk), every in whole.items():
            if (branch, chunk) == (who[0], who[1].partition(":")[0]):
                operand = cut.own(row)[name]
                if not every and operand.image is not None:
                    operand = operand.part(operand.image)
                # A copy: a view would hold all rows and often q, k and v together.
                cache.put(cut.site, cut.step, who, name, operand.holding(operand.tensor.clone()))
