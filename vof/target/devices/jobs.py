# SPDX-License-Identifier: BSD-3-Clause
"""Requests of a block device that were read and checked, and the threads that do them."""

from collections import deque
from collections.abc import Sequence
from typing import NamedTuple

from vof.target.devices.offload import Offload
from vof.virtio.blk import VIRTIO_BLK_S_OK, VIRTIO_BLK_T_GET_ID, VIRTIO_BLK_T_IN
from vof.virtio.model import Chain, DeviceQueue

MERGE = 32
"""Most writes that are done as one."""

Range = tuple[int, int, int]
"""Of a discard or write-zeroes: offset and length in bytes, flags."""


class Job(NamedTuple):
    """A request that was read and checked.

    Attributes:
        chain: where it came from.
        kind: VIRTIO_BLK_T_*.
        status: VIRTIO_BLK_S_OK, or what the check found.
        data: what is written or filled.
        offset: where on the disk, in bytes.
        length: of ``data``, in bytes.
        ranges: of a discard or write-zeroes: offset, length, flags.
    """

    chain: Chain
    kind: int
    status: int = VIRTIO_BLK_S_OK
    data: Sequence[memoryview] = ()
    offset: int = 0
    length: int = 0
    ranges: Sequence[Range] = ()


def cut(segments: Sequence[memoryview], start: int, stop: int) -> list[memoryview]:
    """Return bytes ``start`` to ``stop`` of the segments, without empty pieces."""
    pieces = []
    for segment in segments:
        size = len(segment)
        if size and start < size and stop > 0:
            pieces.append(segment[max(start, 0) : min(stop, size)])
        start -= size
        stop -= size
    return pieces


def answer(job: Job, status: int) -> tuple[Chain, int]:
    """Fill what the request left, set the status byte, return what to push."""
    chain = job.chain
    total = sum(map(len, chain.writable))
    if status or job.kind not in (VIRTIO_BLK_T_IN, VIRTIO_BLK_T_GET_ID):
        for view in cut(chain.writable, 0, total - 1):
            view[:] = bytes(len(view))
    cut(chain.writable, total - 1, total)[0][0] = status
    return chain, total


def adjacent(waiting: deque[Job]) -> list[Job]:
    """Take the first write that waits, and those behind it that go on where it ends."""
    jobs: list[Job] = []
    try:
        while len(jobs) < MERGE:
            job = waiting[0]
            if jobs and job.offset != jobs[-1].offset + jobs[-1].length:
                break
            jobs.append(waiting.popleft())
    except IndexError:
        pass  # there are no more, or the loop took them back
    return jobs


class Lane:
    """The threads of one queue, and the one of them that writes.

    Most file systems let one writer into a file at a time. So one thread takes the writes that
    wait, those that come meanwhile too, and tells the loop as it goes: under load neither waits
    for the other to wake up.
    """

    __slots__ = ("collect", "done", "offload", "open", "queue", "waiting", "writing")

    def __init__(self, queue: DeviceQueue, offload: Offload) -> None:
        self.queue = queue
        self.offload = offload
        self.waiting: deque[Job] = deque()
        self.done: deque[tuple[Chain, int]] = deque()
        self.writing = False
        self.open = True
        self.collect = self._collect  # one object, to be asked for again and again

    def _collect(self) -> None:
        """Give back what was written. In the loop."""
        while self.done:
            chain, written = self.done.popleft()
            if self.open:
                self.queue.push(chain, written)
        if self.open:
            self.queue.flush()

    def close(self) -> None:
        """The queue ended: write no more than what is under way."""
        self.open = False
        self.waiting.clear()
