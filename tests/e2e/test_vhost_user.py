# SPDX-License-Identifier: BSD-3-Clause
"""``vof target`` in front of a real qemu-storage-daemon: verified I/O, and every end of either."""

import json
import os
import random
import re
import signal
import subprocess
import sys
from contextlib import contextmanager

import pytest
import trio

import vof
from tests.daemon import ANY, Daemon
from vof.initiator.drivers import Blk

MIB = 1 << 20
SIZE = 16 * MIB
BLOCK = 4096
LONGEST_S = 60


def command(program, image, socket, queues=2):
    export = "type=vhost-user-blk,id=e,node-name=d,writable=on,logical-block-size=512"
    return [
        program,
        *("--blockdev", f"driver=file,node-name=f,filename={image},discard=unmap"),
        *("--blockdev", "driver=raw,node-name=d,file=f,discard=unmap"),
        *("--export", f"{export},addr.type=unix,addr.path={socket},num-queues={queues}"),
    ]


class Storage:
    """A target in front of qemu-storage-daemon.

    Attributes:
        image: the disk's file.
        url: of the disk.
        target: the process.
    """

    def __init__(self, folder, target):
        self.image = folder / "disk.img"
        self.target = target
        self.url = target.line()
        self._admin = folder / "admin"

    def status(self):
        """The device, as ``vof status`` knows it."""
        words = ["status", "--socket", str(self._admin), "--json"]
        done = subprocess.run(
            [sys.executable, "-m", "vof", *words], capture_output=True, check=True, timeout=30
        )
        (device,) = json.loads(done.stdout)["devices"]
        return device

    def kill(self):
        """End the backend by SIGKILL."""
        os.kill(self.status()["bridge"]["pid"], signal.SIGKILL)


@contextmanager
def served(require, folder, *, supervised=True, **bridge):
    """A target whose configuration has one bridge."""
    program = require("qemu-storage-daemon", "qemu-system-common")
    image, socket, config = folder / "disk.img", folder / "vhost.sock", folder / "vof.toml"
    with image.open("wb") as file:
        file.truncate(SIZE)
    values = {"type": "vhost-user", "socket": str(socket), **bridge}
    if supervised:
        values["command"] = command(program, image, socket)
    inner = ", ".join(f"{key} = {json.dumps(value)}" for key, value in values.items())
    config.write_text(f'listen = ["{ANY[1]}"]\n[[device]]\ntvqn = "disk"\nbridge = {{ {inner} }}\n')
    target = Daemon(["--config", str(config), "--admin", str(folder / "admin")])
    try:
        yield Storage(folder, target)
    finally:
        target.signal()
        code, _, said = target.end()
    assert code == 0, said
    assert "Traceback" not in said


async def write_and_check(disk, seconds, seed=1):
    """Write blocks of one's own, and read them back, for some time; return what is there then."""
    written = {}

    async def worker(number):
        chance = random.Random(seed * 100 + number)
        while not over.cancel_called:
            at = BLOCK * (16 * chance.randrange(SIZE // BLOCK // 16) + number)
            data = chance.randbytes(BLOCK)
            await disk.write(at, data)
            written[at] = data
            assert await disk.read(at, BLOCK) == data

    async with trio.open_nursery() as nursery:
        over = trio.CancelScope()
        for number in range(16):
            nursery.start_soon(worker, number)
        await trio.sleep(seconds)
        over.cancel()
    return written


def compare(image, written):
    """Every acknowledged write is in the file."""
    with image.open("rb") as file:
        for at, data in written.items():
            file.seek(at)
            assert file.read(BLOCK) == data


@pytest.mark.parametrize("dialect", ["v5", "v0"])
async def test_verified_and_on_several_queues(require, tmp_path, dialect):
    with served(require, tmp_path) as storage, trio.fail_after(LONGEST_S):
        async with vof.connect(f"{storage.url}?dialect={dialect}") as device:
            async with Blk(device, queues=2) as disk:
                assert (disk.capacity, disk.num_queues) == (SIZE, 2)
                assert await disk.get_id() == "vhost_user_blk"
                written = await write_and_check(disk, 0.3)
                await disk.flush()
                compare(storage.image, written)
                big = random.Random(5).randbytes(3 * MIB)
                await disk.write(8 * MIB, big)
                assert await disk.read(8 * MIB, 3 * MIB) == big
                before = os.stat(storage.image).st_blocks
                await disk.discard(8 * MIB, 3 * MIB)
                assert os.stat(storage.image).st_blocks <= before - 3 * MIB // 512
                await disk.write_zeroes(0, MIB)
                assert not any(await disk.read(0, MIB))


@pytest.mark.parametrize("replay", ["resubmit", "fail", "reset"])
async def test_a_backend_killed_under_load(require, tmp_path, replay):
    kills = 3
    with served(require, tmp_path, replay=replay) as storage, trio.fail_after(LONGEST_S):
        async with vof.connect(storage.url) as device, Blk(device, queues=2) as disk:
            if replay == "resubmit":
                await survives(storage, disk, kills)
            else:
                with pytest.raises(BaseExceptionGroup) as caught:
                    await survives(storage, disk, kills)
                errors = [str(one) for one in leaves(caught.value)]
                assert all(re.search(ERRORS[replay], one) for one in errors), errors
        bridge = storage.status()["bridge"]
        assert bridge["losses"] >= 1
        async with vof.connect(storage.url) as device, Blk(device) as disk:  # as good as new
            compare(storage.image, await write_and_check(disk, 0.1, seed=9))


ERRORS = {"fail": "I/O error|IOERR", "reset": "reset|closed|lost"}


def leaves(group):
    for one in group.exceptions:
        yield from leaves(one) if isinstance(one, BaseExceptionGroup) else [one]


async def later(storage):
    await trio.sleep(0.2)
    await trio.to_thread.run_sync(storage.kill)


async def survives(storage, disk, kills):
    """Kill the backend some times under verified load: nothing is seen but a pause."""
    written = {}
    for turn in range(kills):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(later, storage)
            written |= await write_and_check(disk, 0.8, seed=turn)
    await disk.flush()
    compare(storage.image, written)
    bridge = await trio.to_thread.run_sync(lambda: storage.status()["bridge"])
    assert bridge["state"] == "connected"
    assert (bridge["losses"], bridge["restarts"], bridge["failed"]) == (kills, kills, 0)
    assert bridge["replayed"] > 0


async def test_a_disk_that_grew_is_seen_by_its_driver(require, tmp_path):
    with served(require, tmp_path) as storage, trio.fail_after(LONGEST_S):
        changed = trio.Event()
        async with vof.connect(storage.url) as device:
            async with Blk(device) as disk:
                disk.resized = changed.set
                os.truncate(storage.image, 2 * SIZE)
                storage.kill()  # this daemon looks at the size when it starts
                await changed.wait()
                assert await disk.refresh() == 2 * SIZE
                await disk.write(2 * SIZE - BLOCK, b"z" * BLOCK)
                assert await disk.read(2 * SIZE - BLOCK, BLOCK) == b"z" * BLOCK
