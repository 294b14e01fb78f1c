"""Every damage there is, found by the files of operators/."""

from ..core.registry import all_classes
from . import operators
from .operators.damage import Damage

DAMAGES: dict[str, type[Damage]] = {cls.__name__: cls for cls in all_classes(operators, Damage)}
