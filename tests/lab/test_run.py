# SPDX-License-Identifier: BSD-3-Clause
"""The lab itself: what a command in the virtual machine has, and what reaches the host."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.lab import iwarp, native
from tests.lab.errors import LabError
from tests.lab.initramfs import archive
from tests.lab.kernel import Kernel

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
[BLOCK] = re.findall(r"^```sh\n(tests/lab/run.*?)^```$", README, re.MULTILINE | re.DOTALL)
COMMAND = r"""
python -c 'import vof; print(vof.__file__)'
rdma link
echo mine > tests/lab/made && cat tests/lab/made
echo $VOF_RDMA_ADDRESSES
echo trouble >&2
exit 7
"""


@pytest.fixture(scope="module", autouse=True)
def programs(require):
    require("qemu-system-x86_64", "qemu-system-x86")
    require("rping", "rdmacm-utils")


def lab(*words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "tests.lab", *words]
    return subprocess.run(command, capture_output=True, text=True, timeout=110, cwd=ROOT)


def test_a_command_in_the_lab():
    done = lab(COMMAND)
    assert (done.returncode, done.stderr) == (7, "trouble\n")
    module, *links, made, addresses = done.stdout.splitlines()
    assert module == str(ROOT / "vof/__init__.py")
    assert [line.split()[1:4:2] for line in links] == [["rxe0/1", "ACTIVE"], ["rxe1/1", "ACTIVE"]]
    assert made == "mine"
    assert not (ROOT / "tests/lab/made").exists()
    assert len(addresses.split()) == 4


@pytest.mark.parametrize("line", BLOCK.splitlines())
@pytest.mark.timeout(400)
def test_the_two_commands_of_the_readme(line: str):
    done = subprocess.run(
        ["bash", "-e", "-c", line], cwd=ROOT, capture_output=True, text=True, timeout=390
    )
    assert done.returncode == 0, done.stderr
    assert "rxe0" in done.stdout


def test_time_is_bounded():
    done = lab("--seconds", "0.5", "sleep", "60")
    assert (done.returncode, done.stderr) == (124, "lab: 0.5 seconds are up\n")


@pytest.mark.parametrize(
    ("words", "status", "said"),
    [
        ((), 2, "no command"),
        (("--module", "no_such", "true"), 125, "lab: the lab's kernel has no module 'no_such'"),
    ],
)
def test_what_cannot_be_run(words, status, said):
    done = lab(*words)
    assert done.returncode == status
    assert said in done.stderr


def test_the_first_file_system_is_an_archive_that_others_read(tmp_path: Path):
    (tmp_path / "archive").write_bytes(archive([("init", b"x" * 5), ("modules/m.ko", b"")]))
    with (tmp_path / "archive").open("rb") as file:
        subprocess.run(["busybox", "cpio", "-id"], stdin=file, cwd=tmp_path, check=True)
    assert (tmp_path / "init").read_bytes() == b"x" * 5
    assert (tmp_path / "modules/m.ko").exists()
    assert os.access(tmp_path / "bin/busybox", os.X_OK)


def test_iwarp_says_what_is_missing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setenv("VOF_LAB", str(tmp_path))
    monkeypatch.setattr(iwarp, "COMPILER", "no-such-compiler")
    kernel = Kernel(tmp_path / "vmlinux", tmp_path / "6.0.0-amd64", tmp_path)
    with pytest.raises(LabError, match=r"no-such-compiler is missing .*gcc-12"):
        iwarp.siw(kernel)


def test_native_says_what_is_missing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setattr(native, "DEVICES", tmp_path)
    with pytest.raises(LabError, match="no RDMA device with an address"):
        native.addresses()
