# SPDX-License-Identifier: BSD-3-Clause
"""SIGKILL of the target under verified writes."""

import hashlib
import signal
import subprocess
import sys
from contextlib import contextmanager

import pytest
import trio

import vof
from vof.errors import ConnectionLost, QueueBroken, VofError
from vof.initiator.drivers import Blk

LIVES = 3
WRITERS = 16
BLOCKS = 640
BLOCK = 4096


@contextmanager
def target(image):
    """A target process and the URL of its disk; killed at the end."""
    process = subprocess.Popen(
        [sys.executable, "-m", "vof", "target", "--listen", "vof+tcp://127.0.0.1:0"]
        + ["--admin", "none"]
        + ["--blk", f"{image},tvqn=disk,queues=2"],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    try:
        yield process, process.stdout.readline().strip()
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def content(block: int, number: int) -> bytes:
    """What write ``number`` puts there; write 0 is the fresh disk."""
    if not number:
        return bytes(BLOCK)
    return hashlib.shake_128(f"{block}/{number}".encode()).digest(BLOCK)


class Record:
    """What each block may hold: what was acknowledged last, or what was in flight at a kill."""

    def __init__(self) -> None:
        self.number = 0
        self.acknowledged: dict[int, int] = {}
        self.maybe: dict[int, int] = {}
        self.ends: list[VofError] = []

    def check(self, block: int, data: bytes) -> None:
        """What is there now is there to stay."""
        possible = {self.acknowledged[block], self.maybe.pop(block, self.acknowledged[block])}
        (found,) = (number for number in possible if data == content(block, number))
        self.acknowledged[block] = found

    async def write(self, disk: Blk, first: int, enough: trio.Event) -> None:
        """Write blocks of its own until the connection ends."""
        while True:
            for block in range(first, BLOCKS, WRITERS):
                self.number += 1
                number = self.number
                try:
                    await disk.write(block * BLOCK, content(block, number))
                except VofError as error:
                    self.ends.append(error)
                    if error.maybe_executed:
                        self.maybe[block] = number
                    return
                self.acknowledged[block] = number
            enough.set()


async def test_killed_under_verified_writes(tmp_path):
    image = tmp_path / "disk.img"
    with image.open("wb") as file:
        file.truncate(BLOCKS * BLOCK)
    record = Record()
    record.acknowledged = dict.fromkeys(range(BLOCKS), 0)
    in_flight = 0
    for life in range(LIVES):
        with target(image) as (process, url):
            async with vof.connect(url) as device, Blk(device, queues=2) as disk:
                if life:
                    for block in range(BLOCKS):
                        record.check(block, await disk.read(block * BLOCK, BLOCK))
                with trio.fail_after(30):
                    async with trio.open_nursery() as nursery:
                        enough = trio.Event()
                        for first in range(WRITERS):
                            nursery.start_soon(record.write, disk, first, enough)
                        await enough.wait()
                        process.send_signal(signal.SIGKILL)
                assert len(record.ends) == WRITERS
                for error in record.ends:
                    if isinstance(error, QueueBroken):  # it came after the end: nothing was sent
                        assert not error.maybe_executed
                        error = error.cause
                    else:
                        assert error.maybe_executed
                    assert isinstance(error, ConnectionLost)
                record.ends.clear()
                in_flight += len(record.maybe)
                with trio.fail_after(5), pytest.raises(ConnectionLost):
                    await device.get_status()
    assert in_flight
    data = image.read_bytes()
    for block in range(BLOCKS):
        record.check(block, data[block * BLOCK :][:BLOCK])
