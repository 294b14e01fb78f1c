"""Borders of the code, held on the source text: no import of ours runs here, and no host is needed."""

import ast
import re
import subprocess
import sys
import warnings
from collections import defaultdict
from functools import cache

import pytest

from retrace_tests.checkout import ROOT, copy_to, name_of, pytest_in, tracked
from retrace_tests.hosts import FLOOR

# Standard library from Python 3.11 on; ours runs on 3.10 too.
try:
    import tomllib
except ModuleNotFoundError:
    tomllib = None

SKIPPED = {"build", "dist", "venv", "__pycache__", "node_modules"}
HOST = {
    "comfy",
    "comfy_api",
    "comfy_extras",
    "comfy_execution",
    "comfy_kitchen",
    "comfyui_version",
    "folder_paths",
    "node_helpers",
    "latent_preview",
    "server",
    "execution",
}
# What may be imported by the code of each part beyond the standard library. In-package borders are below.
ALLOWED = {
    "core": {"torch"},
    "inversion": {"torch", "safetensors"},
    "attention": {"torch"},
    "restoration": {"torch"},
    "demo": {"torch", "numpy", "PIL", "safetensors", "diffusers", "transformers"},
    "backends": {"torch", "numpy", "PIL", "safetensors", "diffusers"},
    "nodes": {"torch", "numpy", "PIL", "safetensors", "einops", "nodes", *HOST},
    "": {"torch", "PIL", "diffusers", "transformers"},
}
# Which parts each part may reach with a relative import; "" is the root itself.
REACHES = {
    "core": set(),
    "inversion": {"core"},
    "attention": {"core"},
    "restoration": {"core"},
    "demo": set(),
    "backends": {"core", "inversion", "attention", "demo"},
    "nodes": {"core", "inversion", "attention", "restoration", "demo", ""},
    "": {"core", "inversion", "attention", "restoration", "demo", "backends", "nodes", ""},
}
# Slow to import or only in an extra: to be imported where they are used, never at the top of a module.
LAZY = {"diffusers", "transformers"}
# Parameters of a function at most; beyond, settings travel as one dataclass. A node's and a sampler's are the host's.
PARAMETERS, OF_THE_HOST = 8, {"execute", "sample"}
# Programs of their own.
PROGRAMS = {"demo/train.py", "demo/train_lcm.py", "demo/measure.py"}


def sources(*parts):
    """Python files below the given folders of the checkout, or all of them."""
    for top in parts or (".",):
        for path in sorted((ROOT / top).rglob("*.py")):
            folders = path.relative_to(ROOT).parts[:-1]
            if not any(part in SKIPPED or part.startswith(".") for part in folders):
                yield path


def package_files():
    """Python files that belong to the package."""
    return [p for p in sources() if part_of(p) not in ("tests", "benchmarks", "docs")]


def part_of(path):
    """Folder of the root that a file lies in, "" for the root itself."""
    parts = path.relative_to(ROOT).parts
    return parts[0] if len(parts) > 1 else ""


@cache
def parsed(path):
    """Syntax tree of a file."""
    return ast.parse(path.read_text(encoding="utf-8"))


def imports(path, module_level=False):
    """Yield (relative level, dotted name, line) of each import; with module_level only those run at import."""

    def visit(node):
        for child in ast.iter_child_nodes(node):
            if module_level and isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)):
                continue
            if module_level and isinstance(child, ast.If) and ast.unparse(child.test) == "TYPE_CHECKING":
                continue
            if isinstance(child, ast.Import):
                for alias in child.names:
                    yield 0, alias.name, child.lineno
            elif isinstance(child, ast.ImportFrom):
                if child.module:
                    yield child.level, child.module, child.lineno
                else:
                    for alias in child.names:
                        yield child.level, alias.name, child.lineno
            yield from visit(child)

    yield from visit(parsed(path))


def reached(path, level, module):
    """Folders of the package that a relative import from a file names, () for the root."""
    parts = path.relative_to(ROOT).parts[:-1]
    assert level - 1 <= len(parts), f"{name_of(path)} must stay inside the package, got {'.' * level}{module}"
    whole = (*parts[: len(parts) - (level - 1)], *module.split("."))
    return whole if (ROOT / whole[0]).is_dir() else ()


def test_the_package_was_found():
    parts = {"", "core", "inversion", "attention", "restoration", "demo", "backends", "nodes"}
    assert {part_of(p) for p in package_files()} >= parts


def test_root_imports_nothing_at_module_level():
    assert list(imports(ROOT / "__init__.py", module_level=True)) == []


def test_root_offers_the_v3_entry_only():
    tree = parsed(ROOT / "__init__.py")
    names = {n.name for n in tree.body if isinstance(n, (ast.FunctionDef, ast.AsyncFunctionDef))}
    names |= {t.id for n in tree.body if isinstance(n, ast.Assign) for t in n.targets}
    # A module that has NODE_CLASS_MAPPINGS is never asked for its comfy_entrypoint.
    assert names == {"WEB_DIRECTORY", "comfy_entrypoint"}


def test_imports_stay_inside_their_borders():
    for path in package_files():
        part = part_of(path)
        for level, module, line in imports(path):
            where = f"{name_of(path)}:{line}"
            if level:
                to = reached(path, level, module)
                top = to[0] if to else ""
                assert top == part or top in REACHES[part], f"{where} must not import from {top or 'the root'}/"
                if name_of(path).startswith("nodes/host/"):
                    assert top != part or to[1] == "host", (
                        f"{where} must not import from {'/'.join(to[:2])}: host first"
                    )
                continue
            top = module.partition(".")[0]
            if name_of(path) == "__main__.py" and top in ("_standalone", "retrace"):
                continue
            assert top != "retrace", f"{where} must import the package relatively, got {module}"
            assert top in sys.stdlib_module_names or top in ALLOWED[part], f"{where} must not import {module}"
            if part == "nodes":
                assert top not in LAZY, f"{where} must do without {module} inside ComfyUI"


def test_slow_packages_are_imported_where_they_are_used():
    for path in package_files():
        tops = {module.partition(".")[0] for level, module, _ in imports(path, module_level=True) if not level}
        assert not tops & LAZY or name_of(path) in PROGRAMS, name_of(path)
        if name_of(path) in ("cli.py", "__main__.py", "__init__.py", "_standalone.py", "version.py"):
            assert tops <= set(sys.stdlib_module_names) | {"_standalone", "retrace"}, name_of(path)


def test_nothing_dangerous_is_called():
    forbidden = {"pickle", "marshal", "shelve", "socket", "urllib", "http", "requests", "httpx"}
    for path in package_files():
        for node in ast.walk(parsed(path)):
            where = f"{name_of(path)}:{getattr(node, 'lineno', 0)}"
            if isinstance(node, ast.Call):
                called = ast.unparse(node.func)
                assert called not in ("eval", "exec", "compile", "__import__"), where
                assert called not in ("torch.load", "torch.save") or name_of(path) in PROGRAMS, where
            if isinstance(node, (ast.Assign, ast.AugAssign)):
                for target in node.targets if isinstance(node, ast.Assign) else [node.target]:
                    if isinstance(target, ast.Attribute):
                        assert target.attr not in ("__class__", "forward"), f"{where} patches a module"
        for _, module, line in imports(path):
            assert module.partition(".")[0] not in forbidden, f"{name_of(path)}:{line}"


def test_no_function_takes_more_parameters_than_one_can_tell_apart():
    wide = []
    for path in package_files():
        for node in ast.walk(parsed(path)):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)) and node.name not in OF_THE_HOST:
                taken = node.args
                names = [each.arg for each in (*taken.posonlyargs, *taken.args, *taken.kwonlyargs)]
                if len([name for name in names if name not in ("self", "cls")]) > PARAMETERS:
                    wide.append(f"{name_of(path)}:{node.lineno} {node.name}")
    assert wide == []


def test_no_file_of_the_nodes_is_called_like_one_of_another_room():
    folders = defaultdict(list)
    for path in sources("nodes"):
        folders[path.stem].append(name_of(path.parent))
    del folders["__init__"]
    assert {stem: rooms for stem, rooms in folders.items() if len(rooms) > 1} == {}


def packages_on_disk():
    found = {"retrace"}
    for path in ROOT.rglob("__init__.py"):
        parts = path.parent.relative_to(ROOT).parts
        if parts and not any(p in SKIPPED or p.startswith(".") for p in parts):
            found.add(".".join(("retrace", *parts)))
    return found


@pytest.fixture(scope="module")
def project():
    if tomllib is None:
        pytest.skip("tomllib comes with Python 3.11")
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def test_every_package_is_listed_for_pip(project):
    assert set(project["tool"]["setuptools"]["packages"]) == packages_on_disk()
    assert not any(name.startswith("retrace.tests") for name in packages_on_disk())


def test_nothing_is_installed_inside_comfyui(project):
    assert project["project"]["dependencies"] == []
    assert not (ROOT / "requirements.txt").exists()


def test_version_is_the_same_everywhere(project):
    from retrace.version import VERSION

    assert project["project"]["version"] == VERSION


def test_registry_fields_are_complete(project):
    assert "comfyui" not in project["project"]["name"].lower()
    assert re.fullmatch(r"\d+\.\d+\.\d+", project["project"]["version"])
    assert project["tool"]["comfy"]["requires-comfyui"] == ">=" + ".".join(map(str, FLOOR))
    assert project["tool"]["comfy"]["PublisherId"] and project["tool"]["comfy"]["DisplayName"]


def test_registry_archive_holds_the_pack_and_nothing_else():
    """What .comfyignore leaves of the checkout; its lines are read as git reads ignore lines."""
    ignored = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--ignored", "--exclude-from=.comfyignore", "-z"],
        cwd=ROOT,
        capture_output=True,
    )
    left_out = {ROOT / name for name in ignored.stdout.decode().split("\0")}
    archive = {name_of(p) for p in tracked() if p not in left_out}
    needed = {name_of(p) for p in package_files()} - PROGRAMS
    assert not needed - archive
    assert {"LICENSE", "README.md", "pyproject.toml"} <= archive
    assert not {name for name in archive if name.startswith(("tests/", "benchmarks/", ".ci/", ".github/"))}


def test_no_path_of_a_machine_stands_in_the_project():
    # Written in pieces, so that this file does not name what it looks for.
    home = re.compile("/(?:" + "|".join(("home/[a-z]", "Users/[A-Za-z]", "root/", "work/")) + ")")
    for path in tracked():
        for number, line in enumerate(path.read_text(encoding="utf-8", errors="replace").splitlines(), 1):
            assert not home.search(line), f"{name_of(path)}:{number} names a path of one machine: {line.strip()}"


@pytest.mark.filterwarnings("default:.* has .* lines")
def test_large_files_are_named():
    """A file is cut by idea; that one this long holds several is a guess, and so it is said and no failure."""
    for path in sources():
        lines = len(path.read_text(encoding="utf-8").splitlines())
        if lines > 600:
            warnings.warn(f"{name_of(path)} has {lines} lines; does it hold more than one idea?", stacklevel=1)


@pytest.mark.parametrize("name", ["my.pack v2", "nodes"])
def test_a_copy_works_under_any_folder_name(tmp_path, name):
    """Command line and tests of a copy: what a clone into custom_nodes looks like."""
    copy = copy_to(tmp_path / name)
    done = subprocess.run(
        [sys.executable, str(copy), "--version"], cwd=tmp_path, capture_output=True, text=True, timeout=120
    )
    assert (done.returncode, done.stderr) == (0, "") and done.stdout.startswith("retrace ")
    pytest_in(copy, "-k", "root_ or listed_for_pip or version", "tests/test_architecture.py")


def test_running_the_folder_leaves_it_off_the_path():
    # -i reads on from stdin once the command has ended.
    done = subprocess.run(
        [sys.executable, "-i", str(ROOT), "--version"],
        input="import sys; print('path:', sys.path); print('package:', sys.modules['retrace'].__path__)\n",
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert "path: [" in done.stdout and f"package: [{str(ROOT)!r}]" in done.stdout
    assert repr(str(ROOT)) not in done.stdout.partition("path: ")[2].partition("]")[0]
