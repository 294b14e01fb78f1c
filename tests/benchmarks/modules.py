"""The benchmarks' modules, which import each other by name from their own folder."""

import sys
from importlib import import_module


def load(root, *names):
    """Modules of the checkout's benchmarks."""
    folder = str(root / "benchmarks")
    sys.path.insert(0, folder)
    try:
        return tuple(map(import_module, names))
    finally:
        sys.path.remove(folder)
