# SPDX-License-Identifier: BSD-3-Clause
"""``vof demo``: what it says, and that it leaves nothing behind."""

import os
import re
import select
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from vof.cli import checks, demo, main

ROOT = Path(__file__).parents[2]
LONGEST_S = 20
STEPS = (
    "made a disk image of 8 MiB",
    "started a target",
    "connected: a disk of 8 MiB, 2 queues",
    "get-id answers vof-demo",
    "wrote a pattern",
    "flushed",
    "read it back",
    "the image holds it",
    "write-zeroes and discard",
    "random bytes",
    "depth 1,",
    "depth 32,",
    "depth  IOPS",
)


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """Where the demo keeps its files; a small disk."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(demo, "DISK", 8 << 20)
    return tmp_path


def alive(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def command(*words, folder):
    """Start a demo as a process of its own."""
    return subprocess.Popen(
        [sys.executable, "-m", "vof", "demo", *words],
        cwd=ROOT,
        env=os.environ | {"TMPDIR": str(folder)},
        stdout=subprocess.PIPE,
        text=True,
    )


def target(text):
    return int(re.search(r"process (\d+)", text)[1])


@pytest.mark.parametrize("kind", ["embedded", "vhost-user"])
def test_it_shows_everything_and_cleans_up(capsys, folder, require, kind):
    handler = signal.getsignal(signal.SIGTERM)
    words = ["demo", "--seconds", "0.05"]
    if kind == "vhost-user":
        require("qemu-storage-daemon", "qemu-system-common")
        words.append("--vhost-user")
    assert main(words) == 0
    text = capsys.readouterr().out
    assert ("device of qemu-storage-daemon" in text) == (kind == "vhost-user")
    said = re.sub(" +", " ", text.replace("vhost_user_blk", "vof-demo"))
    places = [said.index(re.sub(" +", " ", step)) for step in STEPS]
    assert places == sorted(places)
    table = [line.split() for line in text.splitlines() if re.match(r" *(1|32) ", line)]
    assert [row[0] for row in table] == ["1", "32"]
    assert all(int(row[1].replace(",", "")) > 0 for row in table)
    assert not alive(target(text))
    assert not [*folder.iterdir()]
    assert signal.getsignal(signal.SIGTERM) is handler


def test_kept_it_serves_until_it_is_told_to_end(folder):
    done = command("--keep", "--seconds", "0.05", folder=folder)
    text = done.communicate(timeout=LONGEST_S)[0]
    assert done.returncode == 0
    lines = [line.strip() for line in text.splitlines()]
    pid = target(text)
    process = os.pidfd_open(pid)
    try:
        disk = next(line for line in lines if line.endswith("/demo/disk"))
        first = lines.index("* the target keeps running; try:") + 1
        shown = lines[first : lines.index("* end it and remove its files with:")]
        assert [re.search("vof ([a-z]+)", line)[1] for line in shown] == [
            "info", "blk", "blk", "rng", "bench"
        ]  # fmt: skip
        shown[-1] += " --requests 10"
        run = subprocess.run(
            ["sh", "-ec", "\n".join(shown)], capture_output=True, text=True, timeout=LONGEST_S
        )
        assert run.returncode == 0, run.stderr
        assert run.stdout.startswith(disk)
        assert re.search(r"hello[0-9a-f]{32}\nIOPS", run.stdout)
        (kept,) = folder.iterdir()
        assert f"kill {pid}; rm -r {kept}" in lines
    finally:
        os.kill(pid, signal.SIGTERM)
        assert select.select([process], [], [], LONGEST_S)[0]
        os.close(process)


def test_a_target_that_does_not_start(capsys, folder, monkeypatch):
    start = demo.start
    missing = folder / "none.img"
    monkeypatch.setattr(
        demo, "start", lambda image, log, disk, url: start(image, log, demo.embedded(missing), url)
    )
    assert main(["demo"]) == 1
    err = capsys.readouterr().err
    assert "the target did not start" in err
    assert "none.img" in err
    assert not [*folder.iterdir()]


def test_without_the_other_program(capsys, folder, monkeypatch):
    monkeypatch.setenv("PATH", str(folder))
    assert main(["demo", "--vhost-user"]) == 1
    assert "qemu-storage-daemon is not installed" in capsys.readouterr().err
    assert not [*folder.iterdir()]


@pytest.mark.parametrize("size", ["7M", "8193K", "x"])
def test_a_disk_that_is_none(capsys, folder, size):
    assert main(["demo", "--size", size]) == 2
    assert "--size" in capsys.readouterr().err
    assert not [*folder.iterdir()]


def test_without_rdma(capsys, folder, monkeypatch):
    monkeypatch.setattr(checks, "rdma_addresses", lambda machine: [])
    assert main(["demo", "--rdma"]) == 1
    err = capsys.readouterr().err
    assert "tests/lab/run vof demo --rdma" in err
    assert err.count("\n") == 1
    assert not [*folder.iterdir()]


def test_an_address_that_has_no_rdma(capsys, folder):
    assert main(["demo", "--rdma", "192.0.2.77"]) == 1
    assert "the target did not start" in capsys.readouterr().err
    assert not [*folder.iterdir()]


def test_where_it_listens_for_rdma(monkeypatch):
    assert demo.rdma("2001:db8::1") == "vof+rdma://[2001:db8::1]"
    monkeypatch.setattr(checks, "rdma_addresses", lambda machine: ["192.0.2.1", "2001:db8::1"])
    assert demo.rdma("") == "vof+rdma://192.0.2.1"


def test_a_wrong_byte_is_found(capsys, folder, monkeypatch):
    pattern, calls = demo.pattern, []

    def wrong(number):
        calls.append(number)
        return pattern(number) if calls.count(2) < 2 else bytes(demo.PIECE)

    monkeypatch.setattr(demo, "pattern", wrong)
    assert main(["demo"]) == 1
    out, err = capsys.readouterr()
    assert "the demo found an error: bytes from 2097152 on" in err
    assert not alive(target(out))
    assert not [*folder.iterdir()]


def test_a_target_that_dies_is_an_error(capsys, folder, monkeypatch):
    check = demo.check

    def kill(right, what):
        check(right, what)
        os.kill(target(capsys.readouterr().out), signal.SIGKILL)

    monkeypatch.setattr(demo, "check", kill)
    assert main(["demo"]) == 1
    err = capsys.readouterr().err
    assert "lost" in err
    assert err.count("\n") == 1
    assert not [*folder.iterdir()]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_leaves_nothing_behind(folder, number):
    with command("--seconds", "100", folder=folder) as process:
        text = ""
        while "connected" not in text:
            line = process.stdout.readline()
            assert line
            text += line
        process.send_signal(number)
        process.communicate(timeout=LONGEST_S)
    assert process.returncode == 130
    assert not alive(target(text))
    assert not [*folder.iterdir()]
