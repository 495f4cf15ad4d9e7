# SPDX-License-Identifier: BSD-3-Clause
"""The units: what systemd says of them, and that the target can live in the cage they make."""

import configparser
import json
import os
import re
import shlex
import signal
import socket
import subprocess
import sys

import pytest
import trio

import vof
from tests.daemon import LONGEST_S, PASS_FDS, ROOT, Manager
from vof import cli
from vof.initiator.drivers.blk import Blk
from vof.target import config, daemon, files, systemd
from vof.transport import Url

PROGRAM = "/opt/vof/bin/vof"
UNITS = "usr/local/lib/systemd/system"


@pytest.fixture
def run(tmp_path):
    def run(program=PROGRAM):
        assert cli.main(["install", "--destdir", str(tmp_path), "--program", program]) == 0

    return run


@pytest.fixture
def unit(run, tmp_path):
    """The service's unit, by section and key; a key that is there twice has its last value."""
    run()
    parser = configparser.RawConfigParser(strict=False)
    parser.optionxform = str
    parser.read(tmp_path / UNITS / "vof-target.service")
    return parser


@pytest.fixture
def manager(tmp_path):
    manager = Manager(str(tmp_path / "notify"))
    yield manager
    manager.close()


def test_systemd_understands_the_units(run, tmp_path, require):
    analyze = require("systemd-analyze", "systemd")
    run("/bin/true")
    units = [str(tmp_path / UNITS / f"vof-target.{kind}") for kind in ("service", "socket")]
    done = subprocess.run(
        [analyze, "verify", "--man=no", *units], capture_output=True, text=True, timeout=60
    )
    ours = [line for line in done.stderr.splitlines() if "vof-target" in line]
    assert (done.returncode, ours) == (0, [])


def test_systemd_calls_the_cage_safe(unit, tmp_path, require):
    analyze = require("systemd-analyze", "systemd")
    path = tmp_path / UNITS / "vof-target.service"
    done = subprocess.run(
        [analyze, "security", "--offline=true", "--threshold=20", "--no-pager", str(path)],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stdout
    assert re.search(r"exposure level for vof-target.service: [\d.]+ OK", done.stdout)


def test_a_stop_has_the_time_that_it_needs(unit):
    least = config.LIMITS["drain_seconds"].default + systemd.STOP_MARGIN_S
    assert int(unit["Service"]["TimeoutStopSec"]) > least


def test_only_what_another_start_cannot_mend_ends_it(unit):
    assert unit["Service"]["Restart"] == "on-failure"
    assert unit["Service"]["RestartPreventExitStatus"] == str(daemon.EXIT_CONFIG)


def test_the_first_configuration_is_right(run, tmp_path):
    run()
    found = files.load(str(tmp_path / "etc/vof/target.toml"))
    assert [one.tvqn for one in found.devices] == ["rng0"]
    text = (tmp_path / "etc/vof/target.toml").read_text()
    (tmp_path / "more.toml").write_text(re.sub(r"^# (\[|\w+ =)", r"\1", text, flags=re.MULTILINE))
    found = files.load(str(tmp_path / "more.toml"))
    assert [one.tvqn for one in found.devices] == ["rng0", "disk0"]


def until(manager, key):
    """Wait for a message of the target."""
    while key not in manager.read():
        pass


# -- the target in its cage -----------------------------------------------------------------------


def allowed(analyze: str, names: list[str]) -> set[str]:
    """Return the system calls of filter sets."""
    done = subprocess.run(
        [analyze, "syscall-filter", *names], capture_output=True, text=True, timeout=60, check=True
    )
    calls = {line.strip() for line in done.stdout.splitlines() if line.startswith("    ")}
    nested = [name for name in calls if name.startswith("@")]
    plain = {name for name in calls if re.fullmatch(r"\w+", name)}
    return plain | (allowed(analyze, nested) if nested else set())


async def test_the_target_asks_for_nothing_that_the_unit_forbids(
    unit, manager, tmp_path, require, capsys
):
    """The unit's command line, as a service manager would run it, under the eyes of strace."""
    strace, analyze = require("strace", "strace"), require("systemd-analyze", "systemd")
    image, settings, log = tmp_path / "disk.img", tmp_path / "etc/vof/target.toml", tmp_path / "log"
    image.write_bytes(bytes(1 << 20))
    capsys.readouterr()
    path = tmp_path / "s"
    settings.write_text(
        f'[[device]]\ntype = "blk"\npath = "{image}"\ntvqn = "disk"\n[[device]]\ntype = "rng"\n'
    )
    words = shlex.split(unit["Service"]["ExecStart"])
    assert words == [PROGRAM, "target", "--config", "/etc/vof/target.toml"]
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(path))
        listening.listen()
        fd = listening.fileno()
        target = await trio.to_thread.run_sync(
            lambda: subprocess.Popen(
                [strace, "-f", "-qq", "-s", "0", "-o", str(log), sys.executable]
                + ["-c", PASS_FDS, str(fd), *words[1:3], str(settings)],
                cwd=ROOT,
                pass_fds=[fd],
                env=os.environ
                | manager.env
                | {"WATCHDOG_USEC": "100000", "RUNTIME_DIRECTORY": str(tmp_path)},
                stdout=subprocess.DEVNULL,
            )
        )
        try:
            assert manager.read() == {"READY": "1"}
            assert manager.read() == {"WATCHDOG": "1"}
            url = str(Url("vof+unix", path=str(path), tvqn="disk"))
            with trio.fail_after(LONGEST_S):
                async with vof.connect(url) as device, Blk(device) as disk:
                    await disk.write(0, b"x" * 8192)
                    await disk.flush()
                    await disk.write_zeroes(0, 4096)
                    await disk.discard(4096, 4096)
                    await disk.read(0, 1 << 16)
            pid = int(log.read_text().split()[0])
            settings.write_text(settings.read_text() + '[[device]]\ntype = "mem"\nsize = "1M"\n')
            os.kill(pid, signal.SIGHUP)
            until(manager, "RELOADING")
            until(manager, "READY")
            words = ["status", "--json", "--socket", f"{tmp_path}/target.sock"]
            assert await trio.to_thread.run_sync(cli.main, words) == 0
            served = json.loads(capsys.readouterr().out)["devices"]
            assert {one["tvqn"] for one in served} == {"disk", "rng", "mem"}
            os.kill(pid, signal.SIGTERM)
            until(manager, "STOPPING")
            assert await trio.to_thread.run_sync(target.wait, LONGEST_S) == daemon.EXIT_OK
        finally:
            if target.poll() is None:
                target.kill()
                target.wait()

    text = log.read_text()
    text = text[text.rindex(" execve(") + 1 :]  # without what passed the socket
    service = unit["Service"]
    assert service["SystemCallFilter"].startswith("~")
    good = allowed(analyze, ["@system-service"]) - allowed(
        analyze, service["SystemCallFilter"].removeprefix("~").split()
    )
    assert set(re.findall(r"^\d+ +(\w+)\(", text, re.MULTILINE)) <= good
    families = set(re.findall(r" socket\((\w+)", text))
    assert families <= set(service["RestrictAddressFamilies"].split())
    assert families
    assert service["MemoryDenyWriteExecute"] == "yes"
    assert not re.search(r" mmap\([^)]*PROT_WRITE\|PROT_EXEC", text)
    assert not re.search(r" mprotect\([^)]*PROT_EXEC", text)
