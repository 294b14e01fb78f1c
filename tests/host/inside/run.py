"""Runs inside a host: loads the pack as the host does, runs every check, prints one JSON line for each.

    cd HOST && PYTHONPATH=HOST python run.py PACK_FOLDER [check or file of checks ...]

It is a process of its own because the module name `nodes` belongs to the host here.
"""

import asyncio
import importlib
import importlib.util
import json
import sys
import tempfile
import time
import traceback
import unittest
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))  # checks share helpers.py; nothing in this folder is called like a module of the host
PREFIX = "RETRACE-CHECK "
# What a check means that does not name a widget, where the node's own default is for models of full size.
USUAL = dict(steps=4, scheduler="simple", cfg=1.0, source_cfg=1.0, target_cfg=1.0, n_max=4)


def start_host(workspace):
    """Import the host with its folders in a scratch directory."""
    (workspace / "custom_nodes").mkdir()
    sys.argv = ["main.py", "--cpu", "--disable-api-nodes", "--base-directory", str(workspace)]
    import comfy.options

    comfy.options.enable_args_parsing()
    import torch

    torch.set_num_threads(1)
    import nodes

    return nodes


def load_module(name, path):
    """Import a file under a name, for checks that stand outside any package."""
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


class Pack:
    """The loaded pack and the host around it, as checks get them."""

    def __init__(self, folder, host_nodes, workspace):
        self.name = str(folder).replace(".", "_x_")
        self.host_nodes = host_nodes
        self.workspace = workspace
        self.tiny = load_module("tiny", HERE / "tiny.py")

    def module(self, dotted):
        """A module of the pack, for example "nodes.host.runs"."""
        return importlib.import_module(f"{self.name}.{dotted}")

    def node(self, node_id):
        """A node class as the host has it registered."""
        return self.host_nodes.NODE_CLASS_MAPPINGS[node_id]

    def call(self, node_id, **inputs):
        """Run a node as the host does: under inference_mode, with every widget; returns the tuple of its outputs."""
        import torch

        node = self.node(node_id)
        usual = {each.id: USUAL.get(each.id, each.default) for each in node.widgets() if not each.optional}
        with torch.inference_mode():
            return node.EXECUTE_NORMALIZED(**{**usual, **inputs}).result


def main():
    folder, wanted = Path(sys.argv[1]), set(sys.argv[2:])
    with tempfile.TemporaryDirectory() as scratch:
        workspace = Path(scratch)
        host_nodes = start_host(workspace)
        loaded = asyncio.run(host_nodes.load_custom_node(str(folder), set(host_nodes.NODE_CLASS_MAPPINGS)))
        pack = Pack(folder, host_nodes, workspace)
        report("pack_loads", 0.0, None if loaded else "load_custom_node returned False, see the log above")
        for path in sorted(HERE.glob("checks_*.py")):
            module = load_module(path.stem, path)
            for name, check in list(vars(module).items()):
                if name.startswith("check_") and callable(check) and (not wanted or {name, path.stem} & wanted):
                    run(name, check, pack)


def run(name, check, pack):
    """Run one check and report it, with the seconds of CPU that it took."""
    started = time.process_time()
    try:
        check(pack)
    except unittest.SkipTest as reason:
        report(name, time.process_time() - started, None, str(reason))
    except Exception:
        report(name, time.process_time() - started, traceback.format_exc(limit=-4))
    else:
        report(name, time.process_time() - started, None)
    finally:
        # What was loaded through a copy that is gone would be taken for a leak, and looked for at every load to come.
        management = sys.modules["comfy.model_management"]
        management.unload_all_models()
        management.current_loaded_models.clear()


def report(name, seconds, failure, skipped=None):
    """Print the result of one check as a line that the test reads."""
    line = {"name": name, "seconds": round(seconds, 3), "failure": failure, "skipped": skipped}
    print(PREFIX + json.dumps(line), flush=True)  # noqa: T201


if __name__ == "__main__":
    main()
