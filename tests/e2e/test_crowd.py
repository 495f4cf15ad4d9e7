# SPDX-License-Identifier: BSD-3-Clause
"""A target process among many: a thousand idle connections, busy ones, and processes that stop."""

import hashlib
import os
import resource
import signal
import subprocess
import sys
from contextlib import AsyncExitStack, contextmanager

import pytest
import trio
import trio.testing

import vof
from tests.wire import Peer, connect_control, names
from vof.initiator.drivers import Blk
from vof.protocol import v5
from vof.transport import parse_url

BLOCK = 16 << 10
IDLE = 500
"""Devices; each has a control queue and a virtqueue."""
BUSY = 64
ROUNDS = 20
DESCRIPTORS = 4096
IDLE_KIB = 24 * 2 * IDLE
"""How much memory the idle connections may take: 24 KiB each."""
BUSY_KIB = 1024 * BUSY
"""And the busy ones: 512 KiB of buffers, and what is in flight."""


@contextmanager
def target(*words):
    """A target process with a disk in memory, and the URL of the disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, min(DESCRIPTORS, hard)), hard))
    process = subprocess.Popen(
        [sys.executable, "-m", "vof", "target", "--listen", "vof+tcp://127.0.0.1:0"]
        + ["--mem", "64M,tvqn=disk,queues=2", *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    try:
        yield process, process.stdout.readline().strip()
        process.terminate()
        assert process.wait(20) == 0
    finally:
        process.kill()
        process.wait()
        process.stdout.close()
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def resident_kib(process):
    with open(f"/proc/{process.pid}/status") as file:
        (line,) = (line for line in file if line.startswith("VmRSS:"))
    return int(line.split()[1])


def descriptors(process):
    return len(os.listdir(f"/proc/{process.pid}/fd"))


def state(process):
    """A letter: T is stopped."""
    with open(f"/proc/{process.pid}/stat") as file:
        return file.read().rpartition(")")[2].split()[0]


async def becomes(condition):
    with trio.fail_after(20):
        while not condition():
            await trio.lowlevel.checkpoint()


def content(who, number):
    return hashlib.shake_128(b"%d/%d" % (who, number)).digest(BLOCK)


async def work(disk, who, rounds=ROUNDS, progress=None):
    """Write and read back blocks of one's own."""
    for number in range(rounds):
        place = (who * 8 + number % 8) * BLOCK
        await disk.write(place, content(who, number))
        assert await disk.read(place, BLOCK) == content(who, number)
        if progress is not None:
            progress[who] = number


async def disks(stack, url, count):
    """Start disks side by side."""
    started = []
    for _ in range(count):
        device = await stack.enter_async_context(vof.connect(url))
        started.append(await stack.enter_async_context(Blk(device)))
    return started


async def idlers(stack, url, count):
    """Start associations that ask for nothing: a control queue and a virtqueue each."""
    where = parse_url(url)
    for _ in range(count):
        streams = [await trio.open_tcp_stream(where.host, where.port) for _ in range(2)]
        control, vq = [Peer(await stack.enter_async_context(stream)) for stream in streams]
        await control.send(connect_control(body=names(b"idle", b"disk")))
        instance = (await control.answer(v5.CONNECT))["device_instance_id"]
        assert await vq.join(instance) == v5.OK
        await control.start()


@pytest.mark.slow
async def test_all_busy_are_served_among_a_thousand_idle():
    with target() as (process, url), trio.fail_after(60):
        async with AsyncExitStack() as stack:
            await idlers(stack, url, 1)
            before, files = resident_kib(process), descriptors(process) - 2
            await idlers(stack, url, IDLE - 1)
            assert descriptors(process) == files + 2 * IDLE
            idle = resident_kib(process)
            assert idle - before < IDLE_KIB
            async with AsyncExitStack() as more:
                busy = await disks(more, url, BUSY)
                async with trio.open_nursery() as nursery:
                    for who, disk in enumerate(busy):
                        nursery.start_soon(work, disk, who)
                written = 8 * BUSY * BLOCK // 1024  # the disk is memory of the target
                assert resident_kib(process) - idle - written < BUSY_KIB
                assert descriptors(process) == files + 2 * IDLE + 2 * BUSY
        await becomes(lambda: descriptors(process) == files)


async def test_a_target_that_is_stopped_goes_on_where_it_was():
    with target() as (process, url), trio.fail_after(40):
        async with AsyncExitStack() as stack:
            crowd = await disks(stack, url, 8)
            progress = [-1] * 8
            async with trio.open_nursery() as nursery:
                for who, disk in enumerate(crowd):
                    nursery.start_soon(work, disk, who, 200, progress)
                await becomes(lambda: min(progress) >= 5)
                for _ in range(3):
                    process.send_signal(signal.SIGSTOP)
                    await becomes(lambda: state(process) == "T")
                    await trio.testing.wait_all_tasks_blocked(0.1)  # everybody waits for it
                    reached = progress.copy()
                    assert max(reached) < 199
                    process.send_signal(signal.SIGCONT)
                    await becomes(lambda since=reached: progress != since)
            assert progress == [199] * 8


READER = """
import sys
import trio
import vof
from vof.initiator.drivers import Blk

async def read(disk, expected):
    for _ in range(40):
        assert await disk.read(0, len(expected)) == expected
        print("read", flush=True)

async def main(url):
    async with vof.connect(url) as device, Blk(device) as disk:
        expected = bytes(range(256)) * 4096
        await disk.write(0, expected)
        async with trio.open_nursery() as nursery:
            for _ in range(16):
                nursery.start_soon(read, disk, expected)

trio.run(main, sys.argv[1])
"""
"""An initiator that reads a MiB sixteen at a time, and sees that it is right."""


@contextmanager
def reading(url, count):
    """So many processes that read."""
    readers = [
        subprocess.Popen([sys.executable, "-c", READER, url], stdout=subprocess.PIPE)
        for _ in range(count)
    ]
    try:
        yield readers
    finally:
        for reader in readers:
            reader.kill()
            reader.wait()
            reader.stdout.close()


async def test_an_initiator_that_is_stopped_with_full_buffers_disturbs_nobody():
    with target("--limit", "queue_bytes=16M") as (process, url), trio.fail_after(60):
        with reading(url, 2) as readers:
            for reader in readers:
                assert reader.stdout.readline() == b"read\n"
                reader.send_signal(signal.SIGSTOP)
                await becomes(lambda reader=reader: state(reader) == "T")
            before = resident_kib(process)
            async with AsyncExitStack() as stack:
                for who, disk in enumerate(await disks(stack, url, 4)):
                    await work(disk, 64 + who, 100)
            # Two queues of 16 MiB in flight, and as much of unsent answers at the very most.
            assert resident_kib(process) - before < 2 * 2 * 16 * 1024
            for reader in readers:
                reader.send_signal(signal.SIGCONT)
            for reader in readers:
                out, _ = await trio.to_thread.run_sync(reader.communicate)
                assert out.count(b"read") == 16 * 40 - 1
                assert reader.returncode == 0
