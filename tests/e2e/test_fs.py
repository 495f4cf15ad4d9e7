# SPDX-License-Identifier: BSD-3-Clause
"""Files of a real virtiofsd, through a bridge and TCP, checked by the host's own file system."""

import json
import os
import random
import stat
import subprocess
import sys
from contextlib import asynccontextmanager, contextmanager

import pytest
import trio

import vof
from vof.bridge import Bridge
from vof.errors import ConnectionLost
from vof.initiator.drivers import Fs
from vof.memory import Region
from vof.target.bridges.vhost_user import VhostUserDevice
from vof.target.server import Export, Server
from vof.transport import listen, parse_url
from vof.virtio.constants import VIRTIO_ID_FS
from vof.virtio.fs import FsConfig

MIB = 1 << 20
LONGEST_S = 60


class Share:
    """A directory that virtiofsd serves.

    Attributes:
        path: of the directory.
        url: where it is to be had over the fabric.
    """

    def __init__(self, path, process):
        self.path = path
        self._process = process

    def fds(self):
        return len(os.listdir(f"/proc/{self._process.pid}/fd"))


@contextmanager
def virtiofsd(require, tmp_path):
    program = require("/usr/lib/qemu/virtiofsd", "qemu-system-common")
    if os.geteuid():
        pytest.skip("virtiofsd is for root")
    path, socket = tmp_path / "share", tmp_path / "s"
    path.mkdir()
    process = subprocess.Popen(
        [program, f"--socket-path={socket}", "-f", "-o", "sandbox=chroot", "-o", f"source={path}"],
        stderr=subprocess.PIPE,
    )
    try:
        yield Share(path, process), str(socket)
    finally:
        process.kill()
        log = process.communicate()[1]
    assert b"rror" not in log
    assert b"ssert" not in log


async def opened(device):
    while True:
        try:
            return await device.open()
        except ConnectionLost:
            await trio.sleep(0.02)  # it is not there yet


@asynccontextmanager
async def served(require, tmp_path):
    """virtiofsd behind a bridge behind a target; yields a ``Share``."""
    with virtiofsd(require, tmp_path) as (share, socket), trio.fail_after(LONGEST_S):
        async with trio.open_nursery() as nursery:
            region = Region(64 * MIB)
            config = FsConfig("shared", 1).pack()
            device = VhostUserDevice(
                socket, VIRTIO_ID_FS, region, nursery, queues=2, queue_size=128, config=config
            )
            try:
                await opened(device)
                bridge = await Bridge.open(device, nursery)
                listeners = await listen(parse_url("vof+tcp://127.0.0.1:0"))
                await nursery.start(Server({"fs": Export("fs", lambda: bridge)}).serve, listeners)
                share.url = str(listeners[0].url.with_tvqn("fs"))
                yield share
            finally:
                device.close()
            nursery.cancel_scope.cancel()
        region.close()


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
