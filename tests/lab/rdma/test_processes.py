# SPDX-License-Identifier: BSD-3-Clause
"""Target and initiator as processes of their own, over RDMA."""

import hashlib
import random
import signal
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest
import trio

import vof
from tests.daemon import ROOT
from tests.e2e.test_bridge import backend
from tests.lab.conftest import ADDRESSES
from tests.lab.rdma.conftest import resources
from tests.lab.rdma.forked import load
from vof.errors import ConnectionLost, VofError
from vof.initiator.drivers import Blk, Rng
from vof.initiator.requests import RequestQueue
from vof.protocol.dialects import DIALECTS
from vof.virtio.blk import REQUEST, VIRTIO_BLK_T_IN, VIRTIO_BLK_T_OUT
from vof.virtio.device import VirtqueueInfo

KIB, MIB = 1 << 10, 1 << 20
LIMIT = 200
V6 = next(f"[{one}]" for one in ADDRESSES if ":" in one)


def content(place: int, turn: int, size: int) -> bytes:
    """What a write puts at a place."""
    return hashlib.shake_128(b"%d/%d" % (place, turn)).digest(512) * (size // 512)


async def verify(disk: Blk, size: int, depth: int, turns: int) -> None:
    """Write and read back, ``depth`` places at a time, each over and over."""

    async def one(place: int) -> None:
        for turn in range(turns):
            data = content(place, turn, size)
            await disk.write(place * size, data)
            assert await disk.read(place * size, size) == data

    with trio.fail_after(LIMIT):
        async with trio.open_nursery() as nursery:
            for place in range(depth):
                nursery.start_soon(one, place)


# -- disks ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("dialect", DIALECTS)
async def test_verified_io_at_many_sizes_and_depths(start, tmp_path: Path, dialect: str):
    image = tmp_path / "disk.img"
    with image.open("wb") as file:
        file.truncate(64 * MIB)
    _, url = start("--blk", f"{image},tvqn=disk,queues=4")
    async with vof.connect(f"{url}?dialect={dialect}") as device, Blk(device, queues=4) as disk:
        assert disk.num_queues == 4
        for size, depth, turns in (
            (512, 1, 5),
            (4 * KIB, 1, 5),
            (4 * KIB, 128, 2),
            (16 * KIB, 32, 2),
            (64 * KIB, 8, 2),
            (MIB, 2, 1),
            (4 * MIB, 2, 1),
        ):
            await verify(disk, size, depth, turns)
        await disk.flush()
    data = image.read_bytes()
    for place in range(2):
        assert data[place * 4 * MIB :][: 4 * MIB] == content(place, 0, 4 * MIB)


@pytest.mark.parametrize("dialect", DIALECTS)
async def test_many_segments_where_they_lie_and_elsewhere(start, dialect: str):
    _, url = start("--mem", "16M,tvqn=disk")
    async with vof.connect(f"{url}?dialect={dialect}") as device:
        await device.initialize(0)
        [vq] = await device.find_vqs([VirtqueueInfo("requests")])
        await device.ready()
        requests = RequestQueue(vq)
        pool = device.pool
        data = random.Random(1).randbytes(4 * MIB)
        cuts = [0, 512, 513, 5000, 70_000, MIB, MIB + 1, 3 * MIB, 4 * MIB]
        pieces = [data[a:b] for a, b in pairwise(cuts)]
        readable = []
        for number, piece in enumerate(pieces):  # in the pool, and not
            view = pool.alloc(len(piece)) if number % 2 else bytearray(len(piece))
            view[:] = piece
            readable.append(view)
        header, status = REQUEST.pack(VIRTIO_BLK_T_OUT, 0, 8), bytearray(1)
        with trio.fail_after(LIMIT):
            await requests.request([header, *readable, status], 1 + len(readable), 1)
        assert status[0] == 0
        writable = [
            bytearray(len(piece)) if number % 2 else pool.alloc(len(piece))
            for number, piece in enumerate(pieces)
        ]
        header = REQUEST.pack(VIRTIO_BLK_T_IN, 0, 8)
        with trio.fail_after(LIMIT):
            written = await requests.request([header, *writable, status], 1, len(writable) + 1)
        assert written == len(data) + 1
        assert b"".join(writable) == data


async def test_a_random_source_over_ipv6(start):
    _, url = start("--rng", "tvqn=rng", host=V6)
    async with vof.connect(url) as device, Rng(device) as rng:
        with trio.fail_after(LIMIT):
            got = [await rng.read(1000) for _ in range(3)]
    assert len({bytes(one) for one in got}) == 3


def test_a_program(start, tmp_path: Path):
    (tmp_path / "disk.img").write_bytes(b"hello, disk".ljust(MIB, b"\0"))
    _, url = start("--blk", f"{tmp_path}/disk.img,tvqn=disk")
    done = subprocess.run(
        [sys.executable, "-m", "vof", "blk", "read", url, "-", "--length", "512"],
        cwd=ROOT,
        capture_output=True,
        timeout=LIMIT,
    )
    assert done.returncode == 0, done.stderr
    assert b"hello, disk" in done.stdout


@pytest.mark.parametrize("dialect", DIALECTS)
async def test_the_disk_of_qemu_storage_daemon(start, require, tmp_path: Path, dialect: str):
    with backend(require, tmp_path) as (path, image):
        _, url = start("--vhost-user", f"{path},device=blk,tvqn=disk")
        async with vof.connect(f"{url}?dialect={dialect}") as device, Blk(device) as disk:
            await verify(disk, 4 * KIB, 16, 2)
            await verify(disk, 256 * KIB, 4, 1)
            await disk.flush()
        assert image.read_bytes()[: 256 * KIB] == content(0, 0, 256 * KIB)


# -- ends -----------------------------------------------------------------------------------------


async def settle(before: dict[str, int]) -> None:
    """Wait until the system has taken everything back; it is quick about it."""
    with trio.fail_after(LIMIT):
        while resources() != before:  # noqa: ASYNC110 - the kernel tells nobody
            await trio.sleep(0.05)


async def test_a_killed_target_under_load(start, flat):
    target, url = start("--mem", "16M,tvqn=disk,queues=2")
    ends: list[VofError] = []
    async with vof.connect(url) as device, Blk(device, queues=2) as disk:

        async def load(place: int, begun: trio.Event) -> None:
            try:
                while True:
                    await disk.write(place * 64 * KIB, bytes(64 * KIB))
                    begun.set()
            except VofError as error:
                ends.append(error)

        with trio.fail_after(LIMIT):
            async with trio.open_nursery() as nursery:
                begun = [trio.Event() for _ in range(16)]
                for place in range(16):
                    nursery.start_soon(load, place, begun[place])
                for event in begun:
                    await event.wait()
                target.signal(signal.SIGKILL)
        assert len(ends) == 16
        with trio.fail_after(LIMIT), pytest.raises(ConnectionLost):
            await device.get_status()
    assert target.end() == -signal.SIGKILL


async def test_a_killed_initiator_under_load(start, run):
    before = resources()
    target, url = start("--mem", "16M,tvqn=disk,queues=2")
    listening = resources()
    initiator = run(load, url)
    assert await trio.to_thread.run_sync(initiator.line) == "loading"
    initiator.signal(signal.SIGKILL)
    await settle(listening)
    async with vof.connect(url) as device, Blk(device) as disk:
        await verify(disk, 4 * KIB, 4, 1)
    target.signal()
    assert target.end() == 0
    await settle(before)


async def test_connecting_two_hundred_times_leaves_nothing(start, flat):
    target, url = start("--rng", "tvqn=rng")
    counts = []
    for number in range(200):
        async with vof.connect(url) as device:
            if number % 20 == 0:
                async with Rng(device) as rng:
                    with trio.fail_after(LIMIT):
                        assert len(await rng.read(16)) == 16
        if number in (50, 199):
            await settle(counts[0]) if counts else counts.append(resources())
            counts.append(memory(target))
    assert counts[2] < counts[1] + 4 * MIB
    target.signal()
    assert target.end() == 0


def memory(target) -> int:
    """Return the resident bytes of a target."""
    pages = Path(f"/proc/{target.pid}/statm").read_text().split()[1]
    return int(pages) * 4096
