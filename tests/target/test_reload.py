# SPDX-License-Identifier: BSD-3-Clause
"""From one configuration to another while it is used."""

import os
import signal
import socket
import subprocess
import sys

import pytest
import trio
import trio.lowlevel

import vof
from tests.daemon import LONGEST_S, ROOT
from vof.cli.admin import Admin
from vof.errors import CommandError, ConnectionLost, VofError
from vof.initiator.drivers.blk import Blk
from vof.initiator.drivers.rng import Rng
from vof.target import daemon
from vof.target.config import Config, Device
from vof.target.limits import Limits
from vof.target.reload import Difference, difference
from vof.transport import parse_url


def device(tvqn, kind="mem", where="device[0]", **values):
    return Device(kind, tvqn, {"size": 1, **values}, ("target.toml", where))


A, B = parse_url("vof+unix:///a"), parse_url("vof+unix:///b")


@pytest.mark.parametrize(
    ("devices", "urls", "expected"),
    [
        ((device("x"),), (A,), Difference((), (), (), (), ())),
        ((device("x", where="device[9]"),), (A,), Difference((), (), (), (), ())),
        (
            (device("x"), device("y")),
            (A, B),
            Difference((device("y"),), (), (), (B,), ()),
        ),
        ((device("y"),), (B,), Difference((device("y"),), (), ("x",), (B,), (A,))),
        ((device("x", size=2),), (A,), Difference((), (device("x", size=2),), (), (), ())),
        ((device("x", "rng"),), (A,), Difference((), (device("x", "rng"),), (), (), ())),
    ],
)
def test_the_difference(devices, urls, expected):
    config = Config(urls, devices, Limits(), 0)
    assert difference({"x": device("x")}, (A,), config) == expected


# -- a real target ----------------------------------------------------------------------------


class World:
    """A target process, its file, and its admin socket."""

    def __init__(self, tmp_path, start):
        self.file = tmp_path / "target.toml"
        self.path = tmp_path / "s"
        self.admin_path = str(tmp_path / "admin")
        self.image = tmp_path / "disk.img"
        self.image.write_bytes(bytes(1 << 20))
        self.disk = f'[[device]]\ntype = "blk"\npath = "{self.image}"\ntvqn = "disk"\n'
        self.start = start

    def write(self, *devices, listen=(), more="", limits=""):
        urls = [f"vof+unix://{self.path}", *listen]
        self.file.write_text(f"listen = {urls}\n{more}\n[limits]\n{limits}\n" + "\n".join(devices))

    def run(self, **options):
        words = ("--config", str(self.file), "--admin", self.admin_path)
        self.target = self.start(*words, **options)
        self.target.line()

    def ask(self, verb, **fields):
        with Admin(self.admin_path) as target:
            return target.ask(verb, **fields)

    def url(self, tvqn):
        return f"vof+unix://{self.path}?tvqn={tvqn}"

    async def logged(self, words):
        """Wait until the log says something."""
        while words not in (line := await trio.to_thread.run_sync(self.target.line, "stderr")):
            pass
        return line


@pytest.fixture
def world(tmp_path, start):
    return World(tmp_path, start)


async def ended(used):
    """Wait until a device is not connected any more."""
    try:
        while True:
            await used.get_features()
    except VofError:
        pass


def mem(tvqn, size="64K"):
    return f'[[device]]\ntype = "mem"\nsize = "{size}"\ntvqn = "{tvqn}"\n'


async def use(world, counts, stop):
    """Write and read back until told to stop; every byte is checked."""
    async with vof.connect(world.url("disk")) as used, Blk(used) as disk:
        counts["id"] = used.instance_id
        while not stop.is_set():
            counts["turns"] += 1
            data = os.urandom(512) * 4
            offset = counts["turns"] % 100 * 2048
            await disk.write(offset, data)
            assert await disk.read(offset, 2048) == data


@pytest.mark.parametrize("how", ["verb", "signal"])
async def test_a_reload_during_load_is_not_noticed_by_what_stays(world, how):
    world.write(world.disk, mem("small"), mem("old"))
    world.run()
    counts, stop = {"turns": 0, "id": 0}, trio.Event()

    async def further(count):
        aim = counts["turns"] + count
        while counts["turns"] < aim:
            await trio.lowlevel.checkpoint()

    with trio.fail_after(LONGEST_S):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(use, world, counts, stop)
            await further(5)
            async with vof.connect(world.url("small")) as leaving:
                await leaving.get_features()
                world.write(world.disk, mem("small", "128K"), mem("new"), limits="connections = 77")
                if how == "verb":
                    done = await trio.to_thread.run_sync(world.ask, "reload")
                    assert done == {
                        "added": ["new"],
                        "changed": ["small"],
                        "removed": ["old"],
                        "unchanged": ["disk"],
                        "allowed": [],
                        "listening": [],
                        "closed": [],
                        "limits": ["connections"],
                        "cut": [],
                        "failed": {},
                    }
                else:
                    world.target.signal(signal.SIGHUP)
                    await world.logged("reloaded: ")
                await ended(leaving)
            await further(5)
            status = world.ask("status")
            stop.set()
        assert [one["id"] for one in status["associations"]] == [counts["id"]]
        assert [one["tvqn"] for one in status["devices"]] == ["disk", "new", "small"]
        assert status["limits"]["connections"] == 77
        assert status["totals"]["errors"] == 0
        async with vof.connect(world.url("small")) as again, Blk(again) as disk:
            assert disk.capacity == 128 << 10


BAD = [
    ('zzz = 1\n[[device]]\ntype = "rng"', "unknown key"),
    ("[[device]\n", "target.toml"),
    (mem("x") + mem("x"), "is taken"),
    ('[[device]]\ntype = "blk"\npath = "/none/such"', "does not exist"),
    (f'listen = ["vof+unix:///none/such/s"]\n{mem("disk")}', "cannot listen"),
    ("", "nothing to serve"),
]


async def test_a_bad_file_changes_nothing_and_says_why(world):
    world.write(world.disk, mem("other"))
    world.run()
    with trio.fail_after(LONGEST_S):
        async with vof.connect(world.url("disk")) as used, Blk(used) as disk:
            before = world.ask("status")
            for text, words in BAD:
                world.file.write_text(text)
                with pytest.raises(CommandError, match=words):
                    world.ask("reload")
                assert words in await world.logged("nothing has changed")
                world.target.signal(signal.SIGHUP)
                assert words in await world.logged("nothing has changed")
            world.file.unlink()
            with pytest.raises(CommandError, match="No such file"):
                world.ask("reload")
            await disk.write(0, bytes(512))
            after = world.ask("status")
        for key in ("devices", "listeners", "limits"):
            assert before[key] == after[key]


async def test_listeners_come_and_go(world, tmp_path):
    new = f"vof+unix://{tmp_path}/new"
    world.write(world.disk, listen=[f"vof+unix://{tmp_path}/old"])
    world.run()
    with trio.fail_after(LONGEST_S):
        async with vof.connect(f"vof+unix://{tmp_path}/old?tvqn=disk") as used:
            world.write(world.disk, listen=[new])
            done = world.ask("reload")
            assert (done["listening"], done["closed"]) == ([new], [f"vof+unix://{tmp_path}/old"])
            assert not (tmp_path / "old").exists()
            await used.get_features()
            async with vof.connect(f"{new}?tvqn=disk") as other:
                await other.get_features()


async def test_a_device_is_drained_alone_and_a_reload_brings_it_back(world):
    world.write(world.disk, mem("other"))
    world.run()
    with trio.fail_after(LONGEST_S):
        async with vof.connect(world.url("other")) as used, Blk(used) as disk:
            assert world.ask("drain", tvqn="disk") == {"in_time": True}
            with pytest.raises(VofError, match="ENOTGT"):
                async with vof.connect(world.url("disk")):
                    pass
            with pytest.raises(CommandError, match="no device 'disk' is served; there are: other"):
                world.ask("drain", tvqn="disk")
            assert world.ask("reload")["added"] == ["disk"]
            async with vof.connect(world.url("disk")):
                await disk.write(0, bytes(512))


async def test_a_file_that_was_drained_is_closed(world):
    world.write(world.disk, mem("other"))
    world.run()
    folder = f"/proc/{world.target.process.pid}/fd"

    def leads(fd):
        try:
            return os.readlink(f"{folder}/{fd}")
        except FileNotFoundError:
            return ""  # closed meanwhile, by a process that lives on

    def images():
        return [fd for fd in os.listdir(folder) if leads(fd).endswith(".img")]

    assert len(images()) == 1
    world.ask("drain", tvqn="disk")
    assert not images()


async def test_disconnect(world):
    world.write(world.disk)
    world.run()
    with trio.fail_after(LONGEST_S):
        async with vof.connect(world.url("disk")) as used:
            assert world.ask("disconnect", id=used.instance_id) == {"ids": [used.instance_id]}
            await ended(used)
    for fields in ({}, {"id": 1, "ivqn": "x"}):
        with pytest.raises(CommandError, match="expected an id or an ivqn"):
            world.ask("disconnect", **fields)
    with pytest.raises(CommandError, match="no association of 'nobody'"):
        world.ask("disconnect", ivqn="nobody")


def test_drain_ends_the_target_and_is_answered(world):
    world.write(world.disk)
    world.run()
    for seconds in (-1.0, float("nan"), float("inf")):
        with pytest.raises(CommandError, match="expected 0 or more"):
            world.ask("drain", seconds=seconds)
    assert world.ask("drain") == {"in_time": True}
    assert world.target.end()[0] == daemon.EXIT_OK
    assert not os.path.exists(world.admin_path)


STUCK = """
import sys
import trio
from vof.cli import main
from vof.target import exports
from vof.target.devices import RngModel

class Stuck(RngModel):
    async def serve(self, index, queue):
        await queue.receive()
        await trio.sleep_forever()

exports.FACTORIES["rng"] = lambda values: exports.Made(Stuck)
sys.exit(main(sys.argv[1:]))
"""
"""A target whose source of random bytes takes a request and never answers."""


async def test_a_request_that_hangs_is_seen_and_cut(world):
    world.write('[[device]]\ntype = "rng"\ntvqn = "rng"', mem("other"))
    world.run(program=("-c", STUCK))
    with trio.fail_after(LONGEST_S):
        async with trio.open_nursery() as nursery:

            async def ask():
                async with vof.connect(world.url("rng")) as device, Rng(device) as rng:
                    with pytest.raises(VofError) as caught:
                        await rng.read(8)
                    assert caught.value.maybe_executed

            nursery.start_soon(ask)
            queue = {"in_flight": 0}
            while not queue["in_flight"]:
                await trio.sleep(0.01)
                for one in world.ask("status")["associations"]:
                    queue = one["queues"][0] if one["queues"] else queue
            first = queue["oldest_seconds"]
            assert queue["waits"] == "device"
            await trio.sleep(0.05)
            [one] = world.ask("status")["associations"]
            assert one["queues"][0]["oldest_seconds"] >= first + 0.05
            assert world.ask("drain", tvqn="rng", seconds=0.05) == {"in_time": False}
    assert [one["tvqn"] for one in world.ask("status")["devices"]] == ["other"]


def test_the_service_manager_is_told_of_a_reload(world, tmp_path):
    world.write(world.disk)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(tmp_path / "notify"))
        manager.settimeout(LONGEST_S)
        world.run(env={"NOTIFY_SOCKET": str(tmp_path / "notify")})
        assert manager.recv(200) == b"READY=1"
        for text in (world.file.read_text(), "zzz = 1"):
            world.file.write_text(text)
            world.target.signal(signal.SIGHUP)
            told, _, time = manager.recv(200).partition(b"\n")
            assert told == b"RELOADING=1"
            assert time.startswith(b"MONOTONIC_USEC=")
            assert manager.recv(200) == b"READY=1"


def test_without_a_file_there_is_nothing_to_reload(start, tmp_path):
    path = str(tmp_path / "admin")
    target = start("--listen", f"vof+unix://{tmp_path}/s", "--rng", "--admin", path)
    target.line()
    with Admin(path) as asking, pytest.raises(CommandError, match="started without --config"):
        asking.ask("reload")
    target.signal(signal.SIGHUP)
    for _ in range(2):
        assert "started without --config" in target.line("stderr")
    target.signal()
    assert target.end()[0] == daemon.EXIT_OK


# -- where the socket is, and the commands ------------------------------------------------------


def command(*words, env=None, **options):
    return subprocess.run(
        [sys.executable, "-m", "vof", *words],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=LONGEST_S,
        env=os.environ | (env or {}),
        **options,
    )


def test_the_usual_place(start, tmp_path):
    env = {"XDG_RUNTIME_DIR": str(tmp_path)}
    absent = command("status", env=env)
    assert (absent.returncode, absent.stdout) == (2, "")
    assert "no target has its admin socket there" in absent.stderr
    words = ("--listen", "vof+tcp://127.0.0.1:0", "--rng", "--admin", "")
    first = start(*words, env=env)
    first.line()
    done = command("status", env=env)
    assert (done.returncode, done.stderr) == (0, "")
    assert f"process {first.process.pid}, serving" in done.stdout
    second = start(*words, env=env)
    second.line()
    assert "this target goes on without" in second.line("stderr")
    own = str(tmp_path / "second")
    refused = start(*words[:-1], f"{tmp_path}/vof/target.sock", env=env)
    code, _, err = refused.end()
    assert code == daemon.EXIT_LISTEN
    assert "in use" in err
    third = start(*words[:-1], own)
    third.line()
    assert f"process {third.process.pid}" in command("status", "--socket", own).stdout
    first.process.kill()
    first.process.wait()
    assert command("status", env=env).returncode == 2
    fourth = start(*words, env=env)
    fourth.line()
    assert f"process {fourth.process.pid}" in command("status", env=env).stdout


@pytest.mark.parametrize("more", [[], ["--json"]])
def test_watching_ends_cleanly(world, more):
    world.write(world.disk)
    world.run()
    words = ["status", "--watch", "--interval", "0.05", "--socket", world.admin_path, *more]
    with subprocess.Popen(
        [sys.executable, "-m", "vof", *words],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as watching:
        seen = 0
        while seen < 3:
            line = watching.stdout.readline()
            assert line
            seen += "process" in line or '"pid"' in line
        watching.send_signal(signal.SIGINT)
        _, err = watching.communicate(timeout=LONGEST_S)
        assert (watching.returncode, err) == (0, "")


def test_watching_a_target_that_ends(world):
    world.write(world.disk)
    world.run()
    with Admin(world.admin_path) as target:
        target.ask("status")
        world.target.signal()
        world.target.end()
        with pytest.raises(ConnectionLost):
            target.ask("status")


def test_what_is_no_target(tmp_path):
    path = str(tmp_path / "s")
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(path)
        done = command("status", "--socket", path)
        assert done.returncode == 2
        assert "no target answers here" in done.stderr


def test_a_wrong_interval():
    done = command("status", "--watch", "--interval", "nan")
    assert done.returncode == 2
    assert "expected 0.05 to 86400" in done.stderr
