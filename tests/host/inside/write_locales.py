"""Writes locales/en/nodeDefs.json from the schemas; run it like run.py after a node has changed.

cd HOST && PYTHONPATH=HOST python write_locales.py PACK_FOLDER
"""

import asyncio
import json
import sys
import tempfile
from pathlib import Path

import run


def main():
    folder = Path(sys.argv[1]).resolve()
    with tempfile.TemporaryDirectory() as scratch:
        host_nodes = run.start_host(Path(scratch))
        asyncio.run(host_nodes.load_custom_node(str(folder), set(host_nodes.NODE_CLASS_MAPPINGS)))
        pack = run.Pack(folder, host_nodes, Path(scratch))
        target = folder / "locales" / "en" / "nodeDefs.json"
        target.parent.mkdir(parents=True, exist_ok=True)
        text = json.dumps(pack.node_definitions(), indent=2, ensure_ascii=False)
        target.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
