# SPDX-License-Identifier: BSD-3-Clause
"""The shape of the project: what stands where, how long, and what an import costs."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
TOP = {
    ".ci",
    ".gitignore",
    "LICENSE",
    "README.md",
    "pyproject.toml",
    "specs",
    "tests",
    "vof",
}
LONGEST = 450
SPDX = "SPDX-License-Identifier: BSD-3-Clause"
SOURCES = sorted(
    path
    for top in ("vof", "tests", ".ci")
    for path in (ROOT / top).rglob("*")
    if path.is_file() and "__pycache__" not in path.parts
)
PROGRAMS = [p for p in SOURCES if p.suffix in {".py", ".sh"} or p.read_bytes().startswith(b"#!")]
MODULES = [p for p in SOURCES if p.suffix == ".py" and p.is_relative_to(ROOT / "vof")]


def name(path: Path) -> str:
    return str(path.relative_to(ROOT))


def test_the_top_level_is_fixed():
    tracked = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split("\n")
    assert {line.partition("/")[0] for line in tracked if line} <= TOP


def test_a_module_is_short():
    lengths = {name(path): len(path.read_text().splitlines()) for path in MODULES}
    assert not {path: length for path, length in lengths.items() if length > LONGEST}


def test_a_program_names_its_license():
    beginnings = {}
    for path in PROGRAMS:
        lines = [line for line in path.read_text().splitlines() if not line.startswith("#!")]
        beginnings[name(path)] = lines[0] if lines else f"# {SPDX}"
    assert not {path: line for path, line in beginnings.items() if line != f"# {SPDX}"}


def imported(statement: str) -> set[str]:
    """Return the modules that a fresh interpreter has after ``statement``."""
    code = f"import sys; {statement}; print(*sys.modules)"
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert not run.stderr
    return set(run.stdout.split())


@pytest.mark.parametrize("statement", ["import vof", "import vof.cli"])
def test_an_import_is_cheap(statement):
    assert not imported(statement) & {"trio", "msgpack", "asyncio", "importlib.metadata"}


@pytest.mark.parametrize(
    "module", ["vof.errors", "vof.memory", "vof.virtio", "vof.protocol", "vof.protocol.v5_target"]
)
def test_a_pure_layer_loads_no_loop_and_no_sockets(module):
    assert not imported(f"import {module}") & {"trio", "socket", "msgpack"}


def test_every_package_is_importable():
    packages = {path.parent for path in MODULES}
    assert all((package / "__init__.py").exists() for package in packages)
