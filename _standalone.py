"""Load this checkout as the package `retrace`, whatever its folder is called and without an install."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

NAME = "retrace"
ROOT = Path(__file__).resolve().parent


def load_package() -> ModuleType:
    """Import the folder of this file under the name `retrace` and return the module.

    ComfyUI loads node packs the same way: a module made from the folder, with the folder as its search path.
    `sys.path` is never touched, so the folders `nodes` and `tests` cannot hide a module of the same name.

    Raises:
        ImportError: If another copy of the package was imported before.
    """
    loaded = sys.modules.get(NAME)
    if loaded is not None:
        if loaded.__file__ is None or Path(loaded.__file__).resolve().parent != ROOT:
            raise ImportError(
                f"{NAME} must be this checkout, {ROOT}, but was imported from {loaded.__file__}; "
                "run one copy per process."
            )
        return loaded
    spec = importlib.util.spec_from_file_location(NAME, ROOT / "__init__.py", submodule_search_locations=[str(ROOT)])
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[NAME] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[NAME]
        raise
    return module
