"""The checkout as files, and copies of it."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


def name_of(path):
    return path.relative_to(ROOT).as_posix()


def tracked():
    """Text files of the checkout that git would commit."""
    done = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"], cwd=ROOT, capture_output=True
    )
    if done.returncode:
        pytest.skip("no git checkout")
    paths = (ROOT / name for name in done.stdout.decode().split("\0") if name)
    binary = {".png", ".jpg", ".safetensors", ".webp", ".gif", ".ico"}
    return [p for p in paths if p.suffix not in binary and p.is_file()]


def copy_to(folder):
    """Copy the checkout without weights and history."""
    skipped = shutil.ignore_patterns(".git", "__pycache__", "weights", "*.jpg", "build", "*.egg-info", ".*_cache")
    shutil.copytree(ROOT, folder, ignore=skipped)
    return folder


def pytest_in(copy, *arguments):
    """Run pytest on a copy with the copy's own conftest; some test must be selected, and all must pass.

    -I keeps the working folder off sys.path, as the command `pytest` does: there, `import nodes` would find our
    folder.
    """
    command = [sys.executable, "-I", "-m", "pytest", "-q", "-p", "no:cacheprovider", *arguments]
    done = subprocess.run(command, cwd=copy, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0 and " passed" in done.stdout, done.stdout + done.stderr
