# SPDX-License-Identifier: BSD-3-Clause
"""SIGKILL of the target under verified writes."""

import hashlib
import signal
import subprocess
import sys

import pytest
import trio

import vof
from vof.errors import ConnectionLost
from vof.initiator.drivers import Blk

SIZE = 4 << 20
BLOCK = 4096


def start(image) -> tuple[subprocess.Popen, str]:
    target = subprocess.Popen(
        [sys.executable, "-m", "vof", "target", "--listen", "vof+tcp://127.0.0.1:0"]
        + ["--blk", f"{image},tvqn=disk,queues=2"],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    return target, target.stdout.readline().strip()


def content(block: int, round_: int) -> bytes:
    return hashlib.shake_128(f"{block}/{round_}".encode()).digest(BLOCK)


async def test_killed_under_verified_writes(tmp_path):
    image = tmp_path / "disk.img"
    with image.open("wb") as file:
        file.truncate(SIZE)
    acknowledged: dict[int, int] = {}
    attempted: dict[int, int] = {}
    for life in range(3):
        target, url = start(image)
        try:
            lost: list[bool] = []
            enough = trio.Event()
            async with vof.connect(url) as device, Blk(device, queues=2) as disk:
                for block in acknowledged:
                    data = await disk.read(block * BLOCK, BLOCK)
                    # In flight at the end: either is right, and one of them it is from now on.
                    for round_ in (acknowledged[block], attempted[block]):
                        if data == content(block, round_):
                            acknowledged[block] = round_
                            break
                    else:
                        raise AssertionError(f"block {block} lost a write")

                async def writer(first: int, life=life, disk=disk, lost=lost, enough=enough):
                    try:
                        for number in range(100_000):
                            block = first + 16 * (number % 40)
                            attempted[block] = life * 100_000 + number
                            await disk.write(block * BLOCK, content(block, attempted[block]))
                            acknowledged[block] = attempted[block]
                            if number == 30:
                                enough.set()
                    except ConnectionLost as error:
                        lost.append(error.maybe_executed)

                with trio.fail_after(30):
                    async with trio.open_nursery() as nursery:
                        for first in range(16):
                            nursery.start_soon(writer, first)
                        await enough.wait()
                        target.send_signal(signal.SIGKILL)
                assert len(lost) == 16
                assert any(lost)
                with trio.fail_after(5), pytest.raises(ConnectionLost):
                    await device.get_status()
        finally:
            target.kill()
            target.wait()
            target.stdout.close()
