# SPDX-License-Identifier: BSD-3-Clause
"""A target with bridged devices: how it starts, changes, and what it refuses."""

import json
import os
import re
import signal
import sys
from contextlib import contextmanager

import pytest
import trio

import vof
from tests.daemon import ANY, ROOT, Daemon
from vof.errors import CommandError
from vof.initiator.drivers import Blk

MIB = 1 << 20
LONGEST_S = 30


def backend(folder, *words):
    """The command of a backend of our own."""
    files = ["--socket", str(folder / "s"), "--image", str(folder / "disk.img")]
    return [sys.executable, "-m", "tests.vhost_backend", *files, "--size", str(2 * MIB), *words]


def written(folder, *tables, name="vof.toml"):
    """Write a configuration; each table is a device's, by tvqn."""
    lines = [f'listen = ["{ANY[1]}"]']
    for tvqn, values in tables:
        inner = ", ".join(f"{key} = {json.dumps(value)}" for key, value in values.items())
        lines += ["[[device]]", f'tvqn = "{tvqn}"', f"bridge = {{ {inner} }}"]
    (folder / name).write_text("\n".join(lines) + "\n")
    return str(folder / name)


@contextmanager
def target(folder, *tables):
    """A target with a configuration."""
    config = written(folder, *tables)
    words = ["--config", config, "--admin", str(folder / "admin")]
    daemon = Daemon(words, env={"PYTHONPATH": str(ROOT)})
    try:
        yield daemon
    finally:
        daemon.signal()
        daemon.end()


def bridge(folder, *words, **more):
    """The table of a bridge whose backend the target runs."""
    return {
        "type": "vhost-user",
        "socket": str(folder / "s"),
        "command": backend(folder, *words),
        **more,
    }


def failure(folder, **values):
    """What a target says that does not start."""
    table = {"type": "vhost-user", "socket": str(folder / "s"), "start_seconds": 5, **values}
    daemon = Daemon(["--config", written(folder, ("disk", table))])
    code, out, said = daemon.end()
    assert (code, out) == (3, "")
    assert "Traceback" not in said
    return said


def test_nobody_is_there(tmp_path):
    said = failure(tmp_path, start_seconds=0.1)
    assert re.search(r"/s: cannot connect to \S+/s: No such file or directory", said), said


def test_nobody_comes(tmp_path):
    said = failure(tmp_path, start_seconds=0.1, listen=True)
    assert "no backend connects" in said
    assert not (tmp_path / "s").exists()


def test_a_command_that_cannot_be_run(tmp_path):
    said = failure(tmp_path, command=[str(tmp_path / "none")])
    assert re.search(r"/none: cannot be run: .*No such file", said), said


def test_looking_first_starts_nothing(tmp_path):
    for command, code in (backend(tmp_path), 0), (["/none"], 3):
        table = {**bridge(tmp_path), "command": command}
        ended = Daemon(["--check", "--config", written(tmp_path, ("disk", table))]).end()
        assert ended[0] == code
        assert ("/none: no such program" in ended[2]) == bool(code)
    assert not (tmp_path / "s").exists()


@pytest.mark.parametrize(
    ("device", "what"),
    [
        ("balloon", "a balloon device cannot cross a fabric: a balloon takes memory"),
        ("pmem", "a pmem device cannot cross a fabric: persistent memory is shared memory"),
    ],
)
def test_what_cannot_cross_is_refused_at_the_start(tmp_path, device, what):
    assert what in failure(tmp_path, command=backend(tmp_path), device=device)


SLOW = """
import os, runpy, signal, time

def end(number, frame):
    print("ending", flush=True)
    time.sleep(1)
    os._exit(0)

signal.signal(signal.SIGTERM, end)
runpy.run_module("tests.vhost_backend", run_name="__main__")
"""
"""A backend that takes its time to end."""


def test_nothing_is_left_behind_by_two_signals(tmp_path):
    program, _, _, *options = backend(tmp_path)
    slow = [program, "-c", SLOW, *options]
    with target(tmp_path, ("disk", bridge(tmp_path) | {"command": slow})) as daemon:
        daemon.line()
        (pid,) = daemon.children()
        daemon.signal()
        while daemon.line("stderr") != "ending":
            pass
        daemon.signal()
        daemon.end()
        assert not os.path.exists(f"/proc/{pid}")


def test_a_signal_before_it_serves(tmp_path):
    silent = ["sh", "-c", "echo begun; exec sleep 1000"]
    with target(tmp_path, ("disk", bridge(tmp_path) | {"command": silent})) as daemon:
        while daemon.line("stderr") != "begun":
            pass
        (pid,) = daemon.children()
        daemon.signal()
        code, out, said = daemon.end()
        assert (code, out) == (0, "")
        assert "SIGTERM: ends before it serves" in said
        assert not os.path.exists(f"/proc/{pid}")


async def test_one_driver_at_a_time(tmp_path):
    with target(tmp_path, ("disk", bridge(tmp_path))) as daemon, trio.fail_after(LONGEST_S):
        url = daemon.line()
        async with vof.connect(url) as device, Blk(device) as disk:
            with pytest.raises(CommandError, match="device"):
                async with vof.connect(url):
                    pass
            await disk.write(0, b"mine" * 128)
        async with vof.connect(url) as device, Blk(device) as disk:
            assert await disk.read(0, 512) == b"mine" * 128


async def test_a_backend_that_connects(tmp_path):
    table = bridge(tmp_path, "--connect", listen=True)
    with target(tmp_path, ("disk", table)) as daemon, trio.fail_after(LONGEST_S):
        url = daemon.line()
        async with vof.connect(url) as device, Blk(device) as disk:
            for number in range(3):
                await disk.write(0, bytes([number]) * 512)
                (pid,) = daemon.children()
                os.kill(pid, signal.SIGKILL)
                assert await disk.read(0, 512) == bytes([number]) * 512


async def test_what_was_removed_is_ended_and_what_changed_is_another(tmp_path):
    one, two = tmp_path / "one", tmp_path / "two"
    one.mkdir()
    two.mkdir()
    tables = ("one", bridge(one)), ("two", bridge(two))
    with target(tmp_path, *tables) as daemon, trio.fail_after(LONGEST_S):
        urls = [daemon.line(), daemon.line()]
        before = daemon.children()
        assert len(before) == 2
        async with vof.connect(urls[1]) as device, Blk(device) as disk:
            changed = bridge(one, queue_size=16)
            written(tmp_path, ("one", changed), tables[1])
            await reload(tmp_path)
            async with vof.connect(urls[0]) as first, Blk(first, queues=1) as fresh:
                assert fresh.num_queues == 1
                await fresh.write(0, bytes(512))
            now = daemon.children()
            assert len(now) == 2
            assert len(set(now) & set(before)) == 1
            written(tmp_path, tables[1])
            await reload(tmp_path)
            assert len(daemon.children()) == 1
            await disk.write(0, bytes(512))


async def reload(folder):
    words = ["reload", "--socket", str(folder / "admin")]
    await trio.run_process([sys.executable, "-m", "vof", *words], capture_stdout=True)
