# SPDX-License-Identifier: BSD-3-Clause
"""Threads behind a queue: what ends, what waits, what never begins, who hears of failures."""

import os
import threading
from contextlib import contextmanager
from functools import partial

import pytest
import trio

from tests.target.devices.fakes import FakeQueue, blk, written_data
from vof.errors import QueueBroken
from vof.target.devices import BlkModel, FileBacking, offload
from vof.target.devices.backing import NEVER
from vof.target.devices.offload import Offload, Threads
from vof.virtio.blk import VIRTIO_BLK_T_IN, VIRTIO_BLK_T_OUT


class Gate(FileBacking):
    """A disk that answers reads only when the test says so."""

    def __init__(self, path):
        path.write_bytes(bytes(range(256)) * 256)
        super().__init__(path)
        self.read_flags = NEVER
        self.begun = threading.Semaphore(0)
        self.open = threading.Event()
        self.reads = 0

    def read(self, views, offset):
        self.reads += 1
        self.begun.release()
        assert self.open.wait(10)
        super().read(views, offset)


@pytest.fixture
def disk(tmp_path):
    made = Gate(tmp_path / "disk")
    yield made
    made.open.set()
    made.close()


async def begun(disk):
    assert await trio.to_thread.run_sync(disk.begun.acquire, True, 10)


def make(disk):
    model = BlkModel(disk)
    model.features = model.device_features
    return model


async def test_a_slow_read_delays_nothing(disk, nursery):
    queue = FakeQueue()
    nursery.start_soon(make(disk).serve, 0, queue)
    slow, write = blk(VIRTIO_BLK_T_IN, into=512), blk(VIRTIO_BLK_T_OUT, 9, bytes(512))
    queue.offer(slow)
    await begun(disk)
    assert await queue.run(write) == [1]
    assert slow not in queue.visible
    disk.open.set()
    assert await queue.used(slow) == [513]
    nursery.cancel_scope.cancel()


async def test_cancelling_waits_for_threads_and_starts_no_more(disk):
    disk.threads.limit = 2
    queue, ended = FakeQueue(), trio.Event()
    chains = [blk(VIRTIO_BLK_T_IN, into=512) for _ in range(5)]
    scope = trio.CancelScope()

    async def serve():
        with scope:
            await make(disk).serve(0, queue)
        ended.set()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(serve)
        queue.offer(*chains)
        await begun(disk)
        await begun(disk)
        scope.cancel()
        await trio.testing.wait_all_tasks_blocked()
        assert not ended.is_set()
        assert written_data(chains[0])[1] == 0xEE
        disk.open.set()
        with trio.fail_after(10):
            await ended.wait()
    assert disk.reads == 2
    assert [written_data(chain)[1] for chain in chains] == [0, 0, 0xEE, 0xEE, 0xEE]
    assert disk.threads.running == 0
    assert not disk.threads.waiting


async def test_queues_share_the_threads(disk):
    disk.threads.limit = 1
    first, second = FakeQueue(), FakeQueue()
    async with trio.open_nursery() as nursery:
        for queue in (first, second):
            nursery.start_soon(make(disk).serve, 0, queue)
        chains = [blk(VIRTIO_BLK_T_IN, into=512) for _ in range(4)]
        first.offer(*chains[:2])
        second.offer(*chains[2:])
        await begun(disk)
        await trio.testing.wait_all_tasks_blocked()
        assert (disk.reads, len(disk.threads.waiting)) == (1, 3)
        disk.open.set()
        await first.used(*chains[:2])
        await second.used(*chains[2:])
        nursery.cancel_scope.cancel()
    assert {written_data(chain) for chain in chains} == {(bytes(range(256)) * 2, 0)}


def is_viewed(memory: bytearray):
    try:
        memory.append(0)
    except BufferError:
        return True
    return False


async def test_a_waiting_queue_holds_no_memory(disk, nursery):
    queue = FakeQueue()
    nursery.start_soon(make(disk).serve, 0, queue)
    disk.open.set()
    for flags in (NEVER, os.RWF_NOWAIT):
        disk.read_flags = flags
        chain = blk(VIRTIO_BLK_T_IN, into=512)
        memory = [chain.readable[0].obj, chain.writable[0].obj]
        await queue.run(chain)
        queue.forget()
        del chain
        with trio.fail_after(10):
            while any(map(is_viewed, memory)):  # a thread takes a moment to forget
                await trio.lowlevel.checkpoint()
    nursery.cancel_scope.cancel()


async def test_no_spinning_while_a_thread_works(disk, nursery, monkeypatch):
    states = []

    @contextmanager
    def offloading():
        states.append("threads work")
        yield
        states.append("none")

    monkeypatch.setattr(offload, "offloading", offloading)
    queue = FakeQueue()
    nursery.start_soon(make(disk).serve, 0, queue)
    chains = [blk(VIRTIO_BLK_T_IN, into=512) for _ in range(3)]
    queue.offer(*chains)
    await begun(disk)
    assert states == ["threads work"]
    disk.open.set()
    await queue.used(*chains)
    assert states == ["threads work", "none"]
    nursery.cancel_scope.cancel()


async def test_the_end_of_a_queue_passes_as_it_is(disk):
    queue = FakeQueue()
    queue.offer(blk(VIRTIO_BLK_T_IN, into=512))
    disk.open.set()
    queue.end(QueueBroken("over"))
    with pytest.raises(QueueBroken, match="over"):
        await make(disk).serve(0, queue)
    assert disk.threads.running == 0


async def test_a_bug_in_a_thread_ends_the_queue(disk, monkeypatch):
    def bug(views, offset):
        raise ZeroDivisionError("bug")

    monkeypatch.setattr(disk, "read", bug)
    queue = FakeQueue()
    queue.offer(blk(VIRTIO_BLK_T_IN, into=512), blk(VIRTIO_BLK_T_IN, into=512))
    with pytest.raises(ZeroDivisionError, match="bug"), trio.fail_after(10):
        await make(disk).serve(0, queue)
    assert disk.threads.running == 0


async def test_a_failing_result_ends_the_queue():
    work = Offload(Threads(1))

    def then(result):
        raise LookupError(result)

    async def main():
        work.start(partial(int, "7"), then)
        await trio.sleep_forever()

    with pytest.raises(LookupError, match="7"), trio.fail_after(10):
        await work.run(main())
