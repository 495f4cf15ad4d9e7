# SPDX-License-Identifier: BSD-3-Clause
"""Each code block of the README runs as it stands there."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)
PYTHON = [text for kind, text in BLOCKS if kind == "python"]
SHELL = [text for kind, text in BLOCKS if kind == "sh"]
PATH = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}


def test_every_block_is_run_here():
    assert len(BLOCKS) == len(PYTHON) + len(SHELL)
    assert len(SHELL) == 4


@pytest.mark.parametrize("number", range(len(PYTHON)))
def test_python(number: int, tmp_path: Path):
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", PYTHON[number]],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout


def test_main_job(tmp_path: Path):
    """The first command, in a copy of what is committed and changed here."""
    tree = tmp_path / "tree"
    names = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split("\n")
    for name in filter(None, names):
        if (ROOT / name).is_file():
            (tree / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, tree / name)
    done = subprocess.run(
        ["bash", "-e", "-c", SHELL[0]], cwd=tree, capture_output=True, text=True, timeout=110
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "IOPS" in done.stdout


def test_tests_command():
    """The second command is the one that runs this."""
    command = ROOT / SHELL[1].strip()
    assert command.is_file()
    assert os.access(command, os.X_OK)


def test_target_and_client(tmp_path: Path):
    target = subprocess.Popen(
        ["bash", "-e", "-c", SHELL[2].replace("vof target", "exec vof target")],
        cwd=tmp_path,
        env=PATH,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert target.stdout is not None
        assert "disk0" in target.stdout.readline()
        assert "rng0" in target.stdout.readline()
        done = subprocess.run(
            ["bash", "-e", "-o", "pipefail", "-c", SHELL[3]],
            cwd=tmp_path,
            env=PATH,
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        assert "hello, disk" in done.stdout
        assert re.search(r"[0-9a-f]{32}$", done.stdout, re.MULTILINE)
    finally:
        target.terminate()
        code = target.wait(15)
        target.stdout.close()
    assert code == 0
