# SPDX-License-Identifier: BSD-3-Clause
"""Each code block of the README runs as it stands there; that of the lab in ``tests/lab``."""

import os
import re
import shutil
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)
FILES = {
    match[1]: text
    for kind, text in BLOCKS
    if kind == "python" and (match := re.match(r"# (\w+\.py)\n", text))
}
"""Blocks that are files, and belong to each other."""
PYTHON = [text for kind, text in BLOCKS if kind == "python" and text not in FILES.values()]
TOML = [text for kind, text in BLOCKS if kind == "toml"]
SHELL = [text for kind, text in BLOCKS if kind == "sh"]
PATH = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}


def test_every_block_is_run_here():
    assert len(BLOCKS) == len(PYTHON) + len(FILES) + len(SHELL) + len(TOML)
    assert FILES.keys() == {"upper.py", "ask.py"}
    assert (len(SHELL), len(TOML)) == (12, 3)


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


@contextmanager
def running(command: str, names: list[str], where: Path):
    """A target while it serves devices of these names; it ends as asked."""
    target = subprocess.Popen(
        ["bash", "-e", "-c", command.replace("vof target", "exec vof target")],
        cwd=where,
        env=PATH | {"XDG_RUNTIME_DIR": str(where)},
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert target.stdout is not None
        for name in names:
            assert name in target.stdout.readline()
        yield
    finally:
        target.terminate()
        code = target.wait(15)
        target.stdout.close()
    assert code == 0


def client(command: str, where: Path) -> str:
    """What a command prints."""
    done = subprocess.run(
        ["bash", "-e", "-o", "pipefail", "-c", command],
        cwd=where,
        env=PATH | {"XDG_RUNTIME_DIR": str(where)},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_target_and_client(tmp_path: Path):
    with running(SHELL[2], ["disk0", "rng0", "net0", "console0"], tmp_path):
        printed = client(SHELL[3], tmp_path)
    assert "hello, disk" in printed
    assert "1000 back whole, 0 lost" in printed
    assert re.search(r"[0-9a-f]{32}$", printed, re.MULTILINE)


def test_console(tmp_path: Path):
    with running(SHELL[2], ["disk0", "rng0", "net0", "console0"], tmp_path):
        assert client(SHELL[4], tmp_path) == "hello from the target's side\n"
        assert (tmp_path / "console.tty").is_symlink()
    assert not (tmp_path / "console.tty").exists()


def test_looking_after_it(tmp_path: Path):
    with running(SHELL[2], ["disk0", "rng0", "net0", "console0"], tmp_path):
        printed = client(SHELL[9], tmp_path)
    assert re.search(r"^disk0 +blk +serving +0 +disk.img$", printed, re.MULTILINE)


def test_a_device_of_your_own(tmp_path: Path):
    for name, text in FILES.items():
        (tmp_path / name).write_text(text)
    with running(SHELL[5], ["upper0"], tmp_path):
        assert client(SHELL[6], tmp_path) == "HELLO, DEVICE!\n"
    listen = f'listen = ["vof+unix://{tmp_path}/own.sock"]\n'
    (tmp_path / "target.toml").write_text(listen + TOML[0])
    with running("vof target --config target.toml", ["upper0"], tmp_path):
        assert client(SHELL[6], tmp_path) == "HELLO, DEVICE!\n"


def test_a_device_of_your_own_is_short():
    assert len(FILES["upper.py"].splitlines()) <= 22


def test_the_device_of_another_program(tmp_path: Path, require):
    require("qemu-storage-daemon", "qemu-system-common")
    daemon, target = SHELL[7].rsplit("vof target", 1)
    backend = subprocess.Popen(
        ["bash", "-e", "-c", daemon.replace("qemu-", "exec qemu-").rstrip(" &\n")], cwd=tmp_path
    )
    try:
        with running("vof target" + target, ["vhost0"], tmp_path):
            printed = client(SHELL[8], tmp_path)
    finally:
        backend.terminate()
        backend.wait(15)
    assert "capacity                  64 MiB" in printed
    assert "IOPS" in printed


def test_a_program_that_the_target_runs(tmp_path: Path, require):
    require("/usr/lib/qemu/virtiofsd", "qemu-system-common")
    if os.geteuid():
        pytest.skip("virtiofsd is for root")
    (tmp_path / "file").write_text("it")
    listen = f'listen = ["vof+unix://{tmp_path}/share"]\n'
    (tmp_path / "target.toml").write_text(listen + TOML[1].replace("/srv/share", str(tmp_path)))
    with running("vof target --config target.toml", ["share0"], tmp_path):
        assert (
            client(f"vof fs cat 'vof+unix://{tmp_path}/share?tvqn=share0' file", tmp_path) == "it"
        )


def test_a_switch(tmp_path: Path, require):
    require("dpdk-testpmd", "dpdk-dev")
    listen = f'listen = ["vof+unix://{tmp_path}/switch"]\n'
    (tmp_path / "target.toml").write_text(listen + TOML[2])
    with running("vof target --config target.toml", ["switch0"], tmp_path):
        printed = client(
            f"vof net 'vof+unix://{tmp_path}/switch?tvqn=switch0' --ping 1000 --wait 10", tmp_path
        )
    assert "02:00:00:00:00:07" in printed
    assert "1000 back whole, 0 lost, 0 reordered" in printed


def test_the_service(tmp_path: Path):
    """Without root and systemd: what is installed is what is started then."""
    *making, installing, reloading, enabling = SHELL[10].splitlines()
    assert [line.split()[-1] for line in making] == ["/opt/vof", "."]
    assert reloading == "sudo systemctl daemon-reload"
    command = installing.replace("sudo /opt/vof/bin/vof", "vof")
    client(f"{command} --destdir . --program /opt/vof/bin/vof", tmp_path)
    assert list(tmp_path.rglob(enabling.split()[-1]))
    for place in re.findall(r"`(/etc/vof/[^`]+)`", README):
        assert Path(f"{tmp_path}{place}").is_file()
    client("vof doctor --path .", tmp_path)
