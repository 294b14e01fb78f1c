"""Operands of a whole run, for a later run: a cache with a budget on the device and one in memory."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from .cached_operand import CachedOperand
from .executor import Executor
from .rows import Who
from .rules import Name
from .sites import Site
from .timing import Step

Key = tuple[object, ...]
GIGABYTE = 2**30


class RunCache:
    """Operands by step, evaluation, site, branch, chunk and picture.

    The first tensors stay where they are up to `on_device` bytes; all later ones go to main memory. One run fills a
    cache and others read it; what does not fit its grid or its steps is not found, which the executor reports.

    Args:
        limit: Largest total in bytes.
        on_device: Bytes that may stay on the device where they were made.
    """

    def __init__(self, limit: int, on_device: int = 0):
        self.limit = limit
        self.on_device = on_device
        self._operands: dict[Key, CachedOperand] = {}
        self._bytes = 0
        self._stayed = 0
        self._frozen = False

    @property
    def size(self) -> int:
        """Bytes held."""
        return self._bytes

    def __len__(self) -> int:
        return len(self._operands)

    def freeze(self) -> None:
        """Take nothing more: the run that fills it is over."""
        self._frozen = True

    def put(self, site: Site, step: Step, who: Who, name: Name, operand: CachedOperand) -> None:
        """Keep an operand.

        Raises:
            ValueError: If it does not fit the limit any more; the cache is left as it was.
        """
        if self._frozen:
            return
        key, size = _key(site, step, who, name), bytes_of(operand)
        before = self._operands.get(key)
        total = self._bytes + size - (0 if before is None else bytes_of(before))
        if total > self.limit:
            raise ValueError(
                f"The attention cache must stay within {self.limit / GIGABYTE:.2f} GB, got more at step {step.index}, "
                f"{site.label}; choose fewer layers or steps, or raise the limit."
            )
        if before is not None and _on_device(before):
            self._stayed -= bytes_of(before)
        tensor, mask = operand.tensor.detach(), operand.mask
        if _on_device(operand):
            if self._stayed + size <= self.on_device:
                self._stayed += size
            else:
                tensor, mask = tensor.cpu(), None if mask is None else mask.cpu()
        self._bytes = total
        self._operands[key] = CachedOperand(tensor, operand.image, operand.text, mask)

    def get(self, site: Site, step: Step, who: Who, name: Name) -> CachedOperand | None:
        """What was kept, None if nothing was."""
        return self._operands.get(_key(site, step, who, name))

    def clear(self) -> None:
        """Forget everything and be open again."""
        self._operands.clear()
        self._bytes = self._stayed = 0
        self._frozen = False


def _key(site: Site, step: Step, who: Who, name: Name) -> Key:
    return step.index, step.evaluation, site.key, site.grid, who, name


def bytes_of(operand: CachedOperand) -> int:
    """Bytes of an operand with its columns of the mask."""
    tensors = (operand.tensor,) if operand.mask is None else (operand.tensor, operand.mask)
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def _on_device(operand: CachedOperand) -> bool:
    return operand.tensor.device.type != "cpu"


def estimate(
    executor: Executor,
    sites: Iterable[Site],
    steps: Iterable[Step],
    channels: int | Mapping[str, int],
    itemsize: int = 2,
    rows: int = 1,
) -> int:
    """Bytes that the rules' branches will ask a cache for, without columns of masks.

    Args:
        executor: The rules.
        sites: Sites of the network.
        steps: Evaluations of the run, each once.
        channels: heads * d of an operand, one number or one by stack.
        itemsize: Bytes a number: 2 in half precision.
        rows: Batch rows of each branch that is read, over all its chunks.
    """
    total = 0
    places = list(sites)
    for step in steps:
        for site in places:
            wide = channels if isinstance(channels, int) else channels[site.stack]
            for _, name, whole in executor.wanted(site, step):
                total += rows * _tokens(site, name, whole) * wide * itemsize
    return total


def _tokens(site: Site, name: Name, whole: bool) -> int:
    images = site.image[1] - site.image[0]
    words = 0 if site.text is None else site.text[1] - site.text[0]
    if site.kind == "cross":
        return images if name == "q" else words
    return images + words if whole else images
