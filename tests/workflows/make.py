"""Write workflows/: `python tests/workflows/make.py json pictures`.

json writes every template, pictures runs the templates and writes the picture that each of them saves; --api DIR
writes them as POST /prompt takes them, for scripts; the name of a node writes the strip of its help page, `strips`
those of all. It starts a ComfyUI of its own, the oldest that `COMFYUI_PATH` names or that lies in the home folder.
"""

from __future__ import annotations

import argparse
import io
import sys
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).resolve().parents[2]
if "retrace_tests" not in sys.modules:  # run as a script
    _tests = ModuleType("retrace_tests")
    _tests.__path__ = [str(ROOT / "tests")]
    sys.modules["retrace_tests"] = _tests

from retrace_tests.hosts import find_hosts  # noqa: E402
from retrace_tests.workflows.definitions import workflows  # noqa: E402
from retrace_tests.workflows.graph import dump  # noqa: E402
from retrace_tests.workflows.knobs import STRIPS, write  # noqa: E402
from retrace_tests.workflows.server import Server  # noqa: E402

FOLDER = ROOT / "workflows"
QUALITY = 92
# The host's template browser shows thumbnails a few hundred pixels wide.
MARGIN = 8


def write_json(server: Server) -> None:
    """Write every template as the front end saves it."""
    info = server.object_info()
    for graph in workflows():
        (FOLDER / f"{graph.name}.json").write_text(dump(graph.to_ui(info)), encoding="utf-8")
        print(f"{graph.name}: {len(graph.nodes)} nodes")


def write_api(server: Server, folder: Path) -> None:
    """Write every template as POST /prompt takes it."""
    info = server.object_info()
    folder.mkdir(parents=True, exist_ok=True)
    for graph in workflows():
        (folder / f"{graph.name}.json").write_text(dump(graph.to_api(info)), encoding="utf-8")


def write_pictures(server: Server) -> None:
    """Run every template and write the picture that it saves as its thumbnail."""
    from PIL import Image, ImageOps

    info = server.object_info()
    for graph in workflows():
        outcome = server.run(graph.to_api(info))
        if not outcome.succeeded:
            raise SystemExit(f"{graph.name} must run, got {outcome.error}; see its nodes.")
        node = next(node for node in graph.nodes if node.kind == "SaveImage")
        (file,) = outcome.files(str(node.number))
        picture = Image.open(io.BytesIO(server.view(file))).convert("RGB")
        target = FOLDER / f"{graph.name}.jpg"
        ImageOps.expand(picture, MARGIN, "white").save(target, quality=QUALITY, optimize=True)
        print(f"{target.name}: {picture.width} x {picture.height}, {outcome.seconds:.1f} s")


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", nargs="*", metavar="json, pictures, strips, NODE", help="what to write")
    parser.add_argument("--api", type=Path, metavar="DIR", help="write the API format of every template there")
    arguments = parser.parse_args()
    wanted = arguments.what
    if set(wanted) - {"json", "pictures", "strips", *STRIPS} or not (wanted or arguments.api):
        parser.error(f"name json, pictures, strips, --api DIR or nodes of {', '.join(STRIPS)}.")
    hosts = find_hosts()
    if not hosts:
        raise SystemExit("COMFYUI_PATH must name a ComfyUI checkout, got none; set it and run this again.")
    with Server(hosts[0]) as server:
        if "json" in wanted:
            write_json(server)
        if "pictures" in wanted:
            write_pictures(server)
        info = server.object_info()
        for name in STRIPS if "strips" in wanted else STRIPS.keys() & set(wanted):
            write(server, info, name)
        if arguments.api:
            write_api(server, arguments.api)


if __name__ == "__main__":
    main()
