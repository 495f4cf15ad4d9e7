# SPDX-License-Identifier: BSD-3-Clause
"""The load generator behind ``vof bench`` and ``vof demo``.

It drives virtqueues by their operations: everything used is taken and offered again before one
kick; then it waits. Buffers are made once. Requests taken together were mostly sent together, so
their latency is counted once for all of them.
"""

import random
import resource
from collections.abc import Callable
from itertools import count
from time import perf_counter, perf_counter_ns
from typing import NamedTuple

import trio

import vof
from vof.cli.histogram import Histogram
from vof.errors import InvalidArgument
from vof.initiator.drivers.blk import Blk
from vof.transport import polling
from vof.virtio.blk import REQUEST, SECTOR, VIRTIO_BLK_T_IN, VIRTIO_BLK_T_OUT
from vof.virtio.constants import VIRTIO_ID_BLOCK, VIRTIO_ID_RNG
from vof.virtio.device import VirtioDevice, VirtqueueInfo
from vof.virtio.virtqueue import Virtqueue

PLACES = 10007


class Job(NamedTuple):
    """What to do.

    Attributes:
        size: bytes of a request.
        depth: requests in flight on each queue.
        queues: how many.
        seconds: how long at most.
        requests: how many at most, in all.
        reads: percentage of reads.
        random: places at random, else front to back.
        awaited: by tasks that await the driver.
    """

    size: int
    depth: int
    queues: int
    seconds: float
    requests: int
    reads: int
    random: bool
    awaited: bool


class Result(NamedTuple):
    """What was measured.

    Attributes:
        requests: how many completed.
        bytes: payload moved.
        errors: requests that the device failed.
        seconds: how long it took.
        cpu_us: CPU time of this process for each request, in microseconds.
        latency: in nanoseconds.
        polling: statistics of the spin.
    """

    requests: int
    bytes: int
    errors: int
    seconds: float
    cpu_us: float
    latency: Histogram
    polling: dict[str, int]

    @property
    def rate(self) -> float:
        """Requests a second."""
        return self.requests / self.seconds


class _Tally:
    """Counts of all queues, and when to stop; made when everything is set up."""

    def __init__(self, job: Job) -> None:
        self.usage = resource.getrusage(resource.RUSAGE_SELF)
        self.start = perf_counter()
        self.latency = Histogram()
        self.requests = self.bytes = self.errors = 0
        self.most = job.requests
        self.deadline = self.start + job.seconds

    def result(self) -> Result:
        """Return what was measured up to now."""
        seconds, after = perf_counter() - self.start, resource.getrusage(resource.RUSAGE_SELF)
        cpu = after.ru_utime + after.ru_stime - self.usage.ru_utime - self.usage.ru_stime
        return Result(
            self.requests,
            self.bytes,
            self.errors,
            seconds,
            1e6 * cpu / max(self.requests, 1),
            self.latency,
            polling.statistics(),
        )


class _Slot:
    """One request in the making: its buffers, and when it was sent.

    Attributes:
        sgs: as ``add_sgs`` takes them.
        out_sgs: how many of them are readable.
        header: where the request header is written, or None.
        answer: the writable buffer; ends with the status byte where there is a header.
        sent: nanoseconds.
    """

    __slots__ = ("answer", "header", "out_sgs", "sent", "sgs")

    def __init__(self, size: int, read: bool, block: bool) -> None:
        self.sent = 0
        self.header: memoryview | None = None
        self.answer = memoryview(bytearray((size if read else 0) + block))
        self.out_sgs = int(block)
        self.sgs: list[memoryview] = [self.answer]
        if block:
            self.header = memoryview(bytearray(REQUEST.size + (0 if read else size)))
            self.sgs = [self.header, self.answer]


def _places(job: Job, capacity: int) -> Callable[[], int]:
    """Return a function that gives the first sector of the next request."""
    step = job.size // SECTOR
    steps = capacity // job.size
    if not steps:
        raise InvalidArgument(f"the disk has {capacity} bytes, less than one request")
    if job.random:
        chosen = [random.randrange(steps) * step for _ in range(PLACES)]
    else:
        chosen = [number * step for number in range(min(steps, 1 << 20))]
    number = count().__next__
    total = len(chosen)
    return lambda: chosen[number() % total]


async def _drive(vq: Virtqueue, job: Job, tally: _Tally, place: Callable[[], int] | None) -> None:
    """Keep ``depth`` requests in flight on one queue until it is time to stop."""
    add, get_buf, pack = vq.add_sgs, vq.get_buf, REQUEST.pack_into
    latency = tally.latency.add
    depth = min(job.depth, vq.get_vring_size())
    reads = (
        round(depth * job.reads / 100) if job.reads not in (0, 100) else depth * job.reads // 100
    )
    now = perf_counter_ns()
    for number in range(depth):
        slot = _Slot(job.size, number < reads or place is None, place is not None)
        if slot.header is not None and place is not None:
            kind = VIRTIO_BLK_T_IN if number < reads else VIRTIO_BLK_T_OUT
            pack(slot.header, 0, kind, 0, place())
        slot.sent = now
        add(slot.sgs, slot.out_sgs, 1, slot)
    inflight = depth
    size, block = job.size, place is not None
    while inflight and not vq.is_broken:
        vq.kick()
        await vq.wait_used()
        stop = perf_counter() >= tally.deadline or tally.requests >= tally.most
        now = perf_counter_ns()
        taken = together = sent = 0
        while (used := get_buf()) is not None:
            slot = used[0]  # type: ignore[assignment]  # nobody else adds
            taken += 1
            if slot.sent == sent:
                together += 1
            else:
                if together:
                    latency(now - sent, together)
                sent, together = slot.sent, 1
            if block and slot.answer[-1]:
                tally.errors += 1
            if stop:
                inflight -= 1
                continue
            if place is not None:
                slot.header[8:16] = place().to_bytes(8, "little")  # type: ignore[index]  # it has one
            slot.sent = now
            add(slot.sgs, slot.out_sgs, 1, slot)
        if together:
            latency(now - sent, together)
        tally.requests += taken
        tally.bytes += taken * size
    vq.check_usable()


async def _await(disk: Blk, job: Job, tally: _Tally, place: Callable[[], int], read: bool) -> None:
    """Await one request after the other until it is time to stop."""
    size, data = job.size, bytes(job.size)
    while perf_counter() < tally.deadline and tally.requests < tally.most:
        start = perf_counter_ns()
        if read:
            await disk.read(place() * SECTOR, size)
        else:
            await disk.write(place() * SECTOR, data)
        tally.latency.add(perf_counter_ns() - start)
        tally.requests += 1
        tally.bytes += size


async def _block(device: VirtioDevice, job: Job) -> Result:
    if job.size % SECTOR:
        raise InvalidArgument(f"requests to a disk are multiples of {SECTOR} bytes")
    async with Blk(device, job.queues) as disk:
        if disk.num_queues < job.queues:
            raise InvalidArgument(f"the device has {disk.num_queues} queues, not {job.queues}")
        if job.reads < 100 and disk.read_only:
            raise InvalidArgument("the disk is read-only")
        place = _places(job, disk.capacity)
        tally = _Tally(job)
        async with trio.open_nursery() as nursery:
            if not job.awaited:
                for vq in device.vqs:
                    nursery.start_soon(_drive, vq, job, tally, place)
            else:
                tasks = job.depth * job.queues
                reads = tasks * job.reads // 100
                for number in range(tasks):
                    nursery.start_soon(_await, disk, job, tally, place, number < reads)
        return tally.result()


async def _entropy(device: VirtioDevice, job: Job) -> Result:
    await device.initialize(0)
    (vq,) = await device.find_vqs([VirtqueueInfo("requestq")])
    await device.ready()
    tally = _Tally(job)
    await _drive(vq, job, tally, None)
    return tally.result()


async def measure(url: str, job: Job) -> Result:
    """Run a job on the device at a URL. Suspends. Raises VofError."""
    kinds = {VIRTIO_ID_BLOCK: _block, VIRTIO_ID_RNG: _entropy}
    async with vof.connect(url) as device:
        if device.device_id not in kinds:
            raise InvalidArgument(f"no load for devices of type {device.device_id}")
        return await kinds[device.device_id](device, job)
