# SPDX-License-Identifier: BSD-3-Clause
"""A backend process, the device, bridge and server in front of it, and who uses them."""

import os
import random
import signal
import subprocess
import sys
from contextlib import asynccontextmanager
from pathlib import Path

import trio

from vof.bridge import Bridge
from vof.memory import Region
from vof.target.bridges.vhost_user import VhostUserDevice
from vof.target.server import Export, Server
from vof.transport import listen, parse_url
from vof.virtio.constants import VIRTIO_ID_BLOCK

ROOT = Path(__file__).parents[3]
MIB = 1 << 20
SIZE = 2 * MIB
BLOCK, WORKERS = 4096, 16


class Process:
    """``tests.vhost_backend`` with its own socket, image and log in a folder."""

    def __init__(self, folder, *words, name="disk"):
        self.path = str(folder / f"{name}.sock")
        self.image, self.log = folder / f"{name}.img", folder / f"{name}.log"
        self.words = words
        self.start()

    def start(self):
        """Run it, again if it was ended. It is there after ``ready``."""
        files = "--socket", self.path, "--image", self.image, "--log", self.log
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.vhost_backend", *files, "--size", str(SIZE), *self.words],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            start_new_session=True,
        )

    def ready(self):
        """Wait until it listens, with all the processes that it is."""
        for _ in range(max(1, self.words.count("--misbehave"))):
            assert self.process.stdout.readline() == b"ready\n"
        return self

    def again(self, *words):
        """Wait until it is dead, then run another in its place."""
        self.process.communicate()
        self.words = words
        self.log.unlink(missing_ok=True)
        self.start()
        self.ready()

    def kill(self):
        """Kill it, whatever it does."""
        os.killpg(self.process.pid, signal.SIGKILL)

    def end(self):
        """See that it is dead. Idempotent."""
        if self.process.returncode is None:
            self.kill()
            self.process.communicate()

    def grow(self, size):
        """Make the disk larger, and let it tell."""
        os.truncate(self.image, size)
        self.process.send_signal(signal.SIGUSR1)

    def heard(self):
        """What its log says, line by line."""
        return self.log.read_text().splitlines() if self.log.exists() else []


@asynccontextmanager
async def opened(path, size=32 * MIB, **options):
    """The device behind a socket, open."""
    region = Region(size)
    try:
        async with trio.open_nursery() as nursery:
            device = VhostUserDevice(path, VIRTIO_ID_BLOCK, region, nursery, **options)
            await device.open()
            try:
                yield device, nursery
            finally:
                device.close()
                nursery.cancel_scope.cancel()
    finally:
        region.close()


@asynccontextmanager
async def serving(**exports):
    """A server of models, by name; yields it and a function from a name to a URL."""
    async with trio.open_nursery() as nursery:
        (listener,) = await listen(parse_url("vof+tcp://127.0.0.1:0"))
        server = Server({name: Export(name, make) for name, make in exports.items()})
        await nursery.start(server.serve, [listener])
        yield server, lambda name: str(listener.url.with_tvqn(name))
        nursery.cancel_scope.cancel()


@asynccontextmanager
async def bridged(path, **options):
    """A server of the device behind a socket; yields the bridge and its URL."""
    async with opened(path, **options) as (device, nursery):
        bridge = await Bridge.open(device, nursery)
        async with serving(it=lambda: bridge) as (_, url):
            yield bridge, url("it")


async def verified(disk, size=MIB, seed=1):
    """Write, read back and compare at many places at once; return what is there now."""
    rng = random.Random(seed)
    content = bytearray(await disk.read(0, size))

    async def one(at, length):
        content[at : at + length] = data = rng.randbytes(length)
        await disk.write(at, data)
        assert await disk.read(at, length) == data

    async with trio.open_nursery() as nursery:
        for at in range(0, size, 32768):
            nursery.start_soon(one, at, rng.choice((512, 4096, 32768)))
    await disk.flush()
    assert await disk.read(0, size) == content
    return content


async def load(disk, over, task_status=trio.TASK_STATUS_IGNORED):
    """Write blocks and read them back until ``over``; return what stands where then."""
    written = {}

    async def worker(number):
        rng = random.Random(number)
        while not over.is_set():
            at = BLOCK * (WORKERS * rng.randrange(SIZE // BLOCK // WORKERS) + number)
            data = rng.randbytes(BLOCK)
            await disk.write(at, data)
            written[at] = data
            assert await disk.read(at, BLOCK) == data

    async with trio.open_nursery() as nursery:
        for number in range(WORKERS):
            nursery.start_soon(worker, number)
        task_status.started(written)
