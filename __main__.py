"""`python -m retrace …` when installed, `python <folder> …` when not."""

import sys

if __package__:
    from .cli import main
else:
    from _standalone import load_package

    # Python put this folder first on sys.path to run it. Left there, `nodes`, `cli` and `demo` would be
    # importable as top-level names.
    sys.path.pop(0)
    load_package()
    from retrace.cli import main

if __name__ == "__main__":
    sys.exit(main())
