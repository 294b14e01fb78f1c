"""Damages one after the other, in the order they happened."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from ...core.settings import link
from .black_white import DamageBlackWhite
from .blur import DamageBlur
from .damage import Damage
from .jpeg import DamageJPEG
from .low_resolution import DamageLowResolution
from .operator import Operator, Shape


class Combine(Operator):
    """y = A_n ... A_1 x.

    Where the last damage quantises (JPEG), the prox takes the nearest values that it would have kept for the
    measurement: a step of majorisation of the squared distance of A_(n-1) ... A_1 x to the cells.
    """

    def __init__(self, operators: Sequence[Operator]) -> None:
        """Set the damages.

        Args:
            operators: At least one, the first that happened first; each takes what the one before leaves.

        Raises:
            ValueError: If there is none, the sizes do not follow, or one before the last quantises.
        """
        if not operators:
            raise ValueError("combination must hold a damage, got none; connect one.")
        for before, after in zip(operators, operators[1:], strict=False):
            if before.out_shape != after.shape:
                raise ValueError(
                    f"damages must follow in size, got {before.out_shape} before {after.shape}; change their order."
                )
            if not before.linear:
                raise ValueError("JPEG must be the last damage, got one before others; change their order.")
        super().__init__(operators[0].shape, operators[-1].out_shape)
        self._operators = tuple(operators)
        self.linear = operators[-1].linear

    def forward(self, x: Tensor) -> Tensor:
        """A_n ... A_1 x."""
        for operator in self._operators:
            x = operator.forward(x)
        return x

    def adjoint(self, y: Tensor) -> Tensor:
        """A_1^T ... A_n^T y."""
        for operator in reversed(self._operators):
            y = operator.adjoint(y)
        return y

    def seen(self, y: Tensor) -> Tensor:
        """As of the last damage."""
        return self._operators[-1].seen(y)

    def row_energy(self) -> Tensor | None:
        """That of the only damage; rows of several may hold many pixels."""
        return self._operators[0].row_energy() if len(self._operators) == 1 else None

    @property
    def measured(self) -> int | Tensor:
        """Values that are left after the last damage."""
        return self._operators[-1].measured

    @property
    def linear_part(self) -> Operator:
        """All damages, without the last where that quantises."""
        if self.linear:
            return self
        before = self._operators[:-1]
        return Combine(before) if before else self._operators[0].linear_part

    def prox(self, x: Tensor, y: Tensor, weight: Tensor | float) -> Tensor | None:
        """That of the only damage; none for several, unless the last one quantises."""
        if len(self._operators) == 1:
            return self._operators[0].prox(x, y, weight)
        if self.linear:
            return None
        before = self.linear_part
        wanted = self._operators[-1].project(before.forward(x), y)
        closed = before.prox(x, wanted, weight)
        return before.solve(x, wanted, weight) if closed is None else closed

    def precondition(self, r: Tensor, weight: Tensor | float) -> Tensor:
        """That of the first damage, which acts on the picture itself."""
        return self._operators[0].precondition(r, weight)

    def initial(self, y: Tensor) -> Tensor:
        """Tikhonov guess, of the linear part where the last damage quantises."""
        if self.linear:
            return super().initial(y)
        return self._operators[0].initial(y) if len(self._operators) == 1 else self.linear_part.initial(y)

    def residual(self, x: Tensor, y: Tensor) -> Tensor:
        """A x - y; where the last damage quantises, the residual of that one."""
        if self.linear:
            return super().residual(x, y)
        for operator in self._operators[:-1]:
            x = operator.forward(x)
        return self._operators[-1].residual(x, y)

    def project(self, x: Tensor, y: Tensor) -> Tensor:
        """That of a single damage; a chain has none."""
        return self._operators[0].project(x, y) if len(self._operators) == 1 else super().project(x, y)

    def _measure_norm(self) -> float:
        if len(self._operators) == 1:
            return self._operators[0].norm
        return super()._measure_norm() if self.linear else self.linear_part.norm


@dataclass(frozen=True, eq=False, kw_only=True)
class DamageCombine(Damage):
    """Several damages, one after the other."""

    title = "Combine"
    description = (
        "Puts damages together in the order in which they happened, for example blur, then low resolution, then JPEG."
    )
    aliases = ("compose operators", "chain damages")

    first: Damage = link("operator", "What happened first.")
    second: Damage = link("operator", "What happened then. JPEG must be the last of all.")
    third: Damage | None = link("operator", "What happened after that.", optional=True)
    fourth: Damage | None = link("operator", "What happened last.", optional=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        counts = {damage.pictures for damage in self.damages} - {1}
        if len(counts) > 1:
            raise ValueError(
                f"masks must be equally many in a combination, got {', '.join(map(str, sorted(counts)))}; "
                "use one mask for all pictures, or one for each."
            )

    @property
    def damages(self) -> list[Damage]:
        """All that are there, in their order."""
        return [each for each in (self.first, self.second, self.third, self.fourth) if each is not None]

    @property
    def label(self) -> str:
        """See Damage."""
        return ", then ".join(damage.label for damage in self.damages)

    @property
    def over_time(self) -> bool:
        """Whether any couples frames."""
        return any(damage.over_time for damage in self.damages)

    @property
    def keeps_size(self) -> bool:
        """Whether all do."""
        return all(damage.keeps_size for damage in self.damages)

    @property
    def pictures(self) -> int:
        """The most."""
        return max(damage.pictures for damage in self.damages)

    def build(self, shape: Shape) -> Operator:
        """See Damage."""
        operators: list[Operator] = []
        for damage in self.damages:
            operators.append(damage.build(shape))
            shape = operators[-1].out_shape
        return Combine(operators)

    @classmethod
    def examples(cls) -> Mapping[str, tuple[Damage, Shape]]:
        """See Damage."""
        small, grey, jpeg = DamageLowResolution(scale=3.0), DamageBlackWhite(), DamageJPEG(quality=50)
        return {
            "blur, small, grey": (cls(first=DamageBlur(radius=1.0), second=small, third=grey), (3, 9, 12)),
            "small, JPEG": (cls(first=small, second=jpeg), (3, 18, 24)),
            "blur, small, JPEG": (cls(first=DamageBlur(radius=1.0), second=small, third=jpeg), (3, 18, 24)),
        }
