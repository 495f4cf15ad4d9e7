# SPDX-License-Identifier: BSD-3-Clause
"""Files of a real virtiofsd, through a bridge and TCP, checked by the host's own file system."""

import json
import os
import random
import re
import signal
import stat
import sys
from contextlib import asynccontextmanager

import pytest
import trio

import vof
from tests.daemon import ANY, Daemon
from vof.errors import VofError
from vof.initiator.drivers import Fs

MIB = 1 << 20
LONGEST_S = 60


class Share:
    """A directory that virtiofsd serves.

    Attributes:
        path: of the directory.
        url: where it is to be had over the fabric.
        target: the process in front of it.
    """

    def __init__(self, path, target):
        self.path = path
        self.target = target
        self.url = target.line()

    @property
    def pid(self):
        """Of virtiofsd, which the target runs."""
        (pid,) = self.target.children()
        return pid

    def fds(self):
        return len(os.listdir(f"/proc/{self.pid}/fd"))


@asynccontextmanager
async def served(require, tmp_path):
    """A target that runs virtiofsd; yields a ``Share``."""
    program = require("/usr/lib/qemu/virtiofsd", "qemu-system-common")
    if os.geteuid():
        pytest.skip("virtiofsd is for root")
    path, socket, config = tmp_path / "share", tmp_path / "s", tmp_path / "vof.toml"
    path.mkdir()
    command = [program, f"--socket-path={socket}", "-f", "-o", "sandbox=chroot"]
    command += ["-o", f"source={path}"]
    bridge = {"type": "vhost-user", "socket": str(socket), "device": "fs", "tag": "shared"}
    bridge["command"] = command
    inner = ", ".join(f"{key} = {json.dumps(value)}" for key, value in bridge.items())
    config.write_text(f'listen = ["{ANY[1]}"]\n[[device]]\ntvqn = "fs"\nbridge = {{ {inner} }}\n')
    target = Daemon(["--config", str(config)])
    try:
        with trio.fail_after(LONGEST_S):
            yield Share(path, target)
    finally:
        target.signal()
        code, _, log = target.end()
    assert code == 0, log
    assert not re.search(r"\b([Ee]rror|[Aa]ssert)", log.replace(str(tmp_path), "")), log


@asynccontextmanager
async def mounted(url, **options):
    async with vof.connect(url) as device, Fs(device, **options) as fs:
        yield fs


@pytest.mark.parametrize("dialect", ["v5", "v0"])
async def test_both_sides_see_the_same_files(require, tmp_path, dialect):
    async with served(require, tmp_path) as share:
        for turn in range(2):  # one initiator after the other
            async with mounted(f"{share.url}?dialect={dialect}") as fs:
                assert (fs.tag, fs.version, fs.num_queues) == ("shared", "7.31", 1)
                await verified(fs, share.path, turn)


async def verified(fs, there, turn):
    """Write and read files at once, and compare with what the host sees."""
    chance = random.Random(turn)
    sizes = [0, 1, 4095, 4096, 4097, MIB, MIB + 1, 9 * MIB + 7, *range(10_000, 20_000, 500)]

    async def one(number, size):
        name, data = f"{turn}/{number}", chance.randbytes(size)
        await fs.write(name, data)
        assert (there / name).read_bytes() == data
        assert await fs.read(name) == data
        (there / name).write_bytes(data := data[::-1])
        assert await fs.read(name) == data

    await fs.mkdir(str(turn), 0o700)
    assert stat.S_IMODE((there / str(turn)).stat().st_mode) == 0o700
    async with trio.open_nursery() as nursery:
        for number, size in enumerate(sizes):
            nursery.start_soon(one, number, size)
    entries = {os.fsdecode(one.name): one.ino for one in await fs.scandir(str(turn))}
    assert entries == {one.name: one.inode() for one in os.scandir(there / str(turn))}
    for number, size in enumerate(sizes):
        assert (await fs.stat(f"{turn}/{number}")).size == size
    assert (await fs.statfs()).blocks == os.statvfs(there).f_blocks


async def test_names_and_errors(require, tmp_path):
    async with served(require, tmp_path) as share, mounted(share.url) as fs:
        there = share.path
        await fs.mkdir("d")
        await fs.create("d/one", 0o640)
        assert stat.S_IMODE((there / "d" / "one").stat().st_mode) == 0o640
        with pytest.raises(FileExistsError):
            await fs.create("d/one")
        with pytest.raises(OSError, match="not empty"):
            await fs.rmdir("d")
        await fs.rename("d/one", "two")
        assert sorted(await fs.listdir()) == ["d", "two"]
        await fs.rmdir("d")
        await fs.remove("two")
        assert os.listdir(there) == []
        for call in (fs.stat, fs.read, fs.listdir, fs.remove, fs.rmdir):
            with pytest.raises(FileNotFoundError):
                await call("gone")
        (there / "long").mkdir()
        names = {f"{number:0200}" for number in range(1000)}
        for name in names:
            (there / "long" / name).touch()
        assert set(await fs.listdir("long")) == names
        async with await fs.open("file", "w+") as file:
            await file.write(5 * MIB, b"end")
            await file.truncate(5 * MIB + 2)
            await file.sync()
        assert (there / "file").read_bytes() == bytes(5 * MIB) + b"en"


async def test_links_never_lead_out(require, tmp_path):
    (tmp_path / "secret").write_text("secret")
    async with served(require, tmp_path) as share:
        (share.path / "secret").write_text("inside")
        (share.path / "up").symlink_to("../../secret")
        (share.path / "absolute").symlink_to("/secret")
        async with mounted(share.url) as fs:
            assert await fs.readlink("up") == "../../secret"
            with pytest.raises(OSError, match="symbolic links"):
                await fs.read("up")
        async with mounted(share.url, follow=True) as fs:
            assert await fs.read("up") == await fs.read("absolute") == b"inside"


async def test_nothing_stays_open_whoever_is_cancelled(require, tmp_path):
    async with served(require, tmp_path) as share, mounted(share.url) as fs:
        chance = random.Random(1)
        await fs.statfs()
        before = share.fds()

        async def work(number):
            name, data = f"file{number}", bytes(100_000)
            for _ in range(30):
                with trio.move_on_after(chance.random() / 300):
                    await fs.write(name, data)
                    await fs.listdir()
                    await fs.read(name)
                    await fs.rename(name, f"{name}-")
                    await fs.remove(f"{name}-")

        async with trio.open_nursery() as nursery:
            for number in range(8):
                nursery.start_soon(work, number)
        while share.fds() > before:
            await fs.statfs()


async def test_the_command(require, tmp_path):
    async def run(action, *words, stdin=b""):
        command = [sys.executable, "-W", "error", "-m", "vof", "fs", action, share.url, *words]
        done = await trio.run_process(command, stdin=stdin, capture_stdout=True)
        return done.stdout

    data = random.Random(2).randbytes(5 * MIB + 3)
    async with served(require, tmp_path) as share:
        await run("mkdir", "-p", "a/b")
        await run("put", "a/b/data", stdin=data)
        assert (share.path / "a" / "b" / "data").read_bytes() == data
        assert await run("cat", "a/b/data") == data
        await run("get", "a/b/data", str(tmp_path / "copy"))
        assert (tmp_path / "copy").read_bytes() == data
        assert await run("ls", "a/b") == b"data\n"
        (entry,) = json.loads(await run("stat", "a/b/data", "--json"))["entries"]
        assert entry["ino"] == (share.path / "a" / "b" / "data").stat().st_ino
        await run("mv", "a/b/data", "data")
        await run("rm", "data")
        await run("rm", "-d", "a/b")
        assert os.listdir(share.path) == ["a"]


async def reading(fs):
    while True:
        await fs.read("file")


async def test_a_share_whose_program_ended_is_there_again(require, tmp_path):
    async with served(require, tmp_path) as share:
        (share.path / "file").write_text("it")
        for _ in range(2):
            async with mounted(share.url) as fs:
                assert await fs.read("file") == b"it"
                os.kill(share.pid, signal.SIGKILL)
                with pytest.raises(VofError):  # what it knew of open files is gone
                    await reading(fs)
        async with mounted(share.url) as fs:
            assert await fs.read("file") == b"it"
