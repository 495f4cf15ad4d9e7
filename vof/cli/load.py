# SPDX-License-Identifier: BSD-3-Clause
"""The load generator behind ``vof bench`` and ``vof demo``.

It drives virtqueues by their operations: everything used is taken and offered again before one
kick; then it waits. Buffers and headers are made once. Requests taken together were mostly sent
together, so their latency is counted once for all of them.
"""

import random
import resource
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import AsyncExitStack
from functools import partial
from itertools import chain, cycle, repeat
from time import perf_counter, perf_counter_ns
from typing import TYPE_CHECKING, NamedTuple, Self

import trio

import vof
from vof.cli.histogram import Histogram
from vof.errors import DeviceError, InvalidArgument, NotSupported, VofError
from vof.initiator import RequestQueue
from vof.initiator.drivers import Blk, Rng
from vof.memory import Pool
from vof.transport import polling
from vof.virtio.blk import REQUEST, SECTOR, VIRTIO_BLK_T_IN, VIRTIO_BLK_T_OUT
from vof.virtio.constants import VIRTIO_F_VERSION_1, VIRTIO_ID_BLOCK, VIRTIO_ID_RNG, bit
from vof.virtio.device import VirtioDevice, VirtqueueInfo
from vof.virtio.virtqueue import Virtqueue

if TYPE_CHECKING:
    from vof.memory import Buffer

PLACES = 10007
"""Random places before they repeat; a prime, so that no pattern of the queues fits it."""
RAW = bytes(16)
"""What the device reads of a raw request."""
GRACE_S = 30.0
"""How long requests may be unanswered after the end."""


class Job(NamedTuple):
    """What to do.

    Attributes:
        size: bytes of a request.
        depth: requests in flight on each queue.
        queues: how many on each device.
        seconds: how long at most.
        requests: how many at most, in all.
        reads: percentage of reads.
        random: places at random, else front to back.
        awaited: by tasks that await the driver.
        connections: how many times the device is connected to.
        raw: requests that mean nothing, to a device of any type.
    """

    size: int
    depth: int
    queues: int
    seconds: float
    requests: int
    reads: int
    random: bool
    awaited: bool
    connections: int = 1
    raw: bool = False


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


_FREE = bit(VIRTIO_F_VERSION_1)
"""With this feature, how a request is cut into buffers carries no meaning."""


class _Tally:
    """Counts of all queues, and when to stop; made when everything is set up."""

    def __init__(self, job: Job) -> None:
        self.usage = resource.getrusage(resource.RUSAGE_SELF)
        self.start = perf_counter()
        self.latency = Histogram()
        self.requests = self.bytes = self.errors = 0
        self.left = job.requests
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


Headers = Iterator[bytes]
"""Request headers of a disk, without end."""


class _Raw:
    """A started device of any type, which is asked things without a meaning."""

    def __init__(self, device: VirtioDevice, queues: int) -> None:
        self.device = device
        self._queues = queues

    async def __aenter__(self) -> Self:
        await self.device.initialize(0)
        infos = [VirtqueueInfo(f"queue {number}") for number in range(self._queues)]
        try:
            vqs = await self.device.find_vqs(infos)
        except NotSupported as error:
            raise InvalidArgument(str(error)) from None
        self._requests = cycle(map(RequestQueue, vqs))
        await self.device.ready()
        return self

    async def __aexit__(self, *_: object) -> None:
        try:
            await self.device.reset()
        except VofError:
            pass  # a device out of reach needs none

    async def read(self, length: int) -> int:
        """Await one request."""
        return await next(self._requests).request([RAW, bytearray(length)], 1, 1)


class _Slot:
    """One request in the making: its buffers, and when it was sent.

    Attributes:
        read: buffers of a read, as ``add_sgs`` takes them: header if there is one, answer, which
            is in one piece unless framing carries meaning to the device.
        write: buffers of a write: header, data, status.
        status: the last byte of the answer, for both.
        sent: nanoseconds.
    """

    __slots__ = ("read", "sent", "status", "write")

    def __init__(self, size: int, data: memoryview | None, framed: bool, pool: Pool) -> None:
        answer = pool.alloc(size + (data is not None))
        self.status = answer[-1:]
        self.read: list[Buffer] = [answer] if data is None else [b"", answer]
        if framed:
            self.read[1:] = [answer[:-1], self.status]
        self.write: list[Buffer] = [b"", data or b"", self.status]
        self.sent = 0


def _headers(job: Job, capacity: int) -> Headers:
    """Return the headers of all requests to a disk."""
    step = job.size // SECTOR
    steps = capacity // job.size
    if not steps:
        raise InvalidArgument(f"the disk has {capacity} bytes, less than one request")
    reads = round(PLACES * job.reads / 100)
    kinds = [VIRTIO_BLK_T_IN] * reads + [VIRTIO_BLK_T_OUT] * (PLACES - reads)
    random.shuffle(kinds)
    if job.random:
        places = [random.randrange(steps) * step for _ in kinds]
        return cycle([*map(REQUEST.pack, kinds, repeat(0), places)])
    front_to_back = chain.from_iterable(repeat(range(0, steps * step, step)))
    return map(REQUEST.pack, cycle(kinds), repeat(0), front_to_back)


async def _drive(
    vq: Virtqueue, pool: Pool, job: Job, headers: Headers | None, framed: bool, tally: _Tally
) -> None:
    """Keep ``depth`` requests in flight on one queue until it is time to stop.

    Buffers are of the device's ``pool``. Without headers, a request is raw, or for random bytes.
    See ``_Slot`` for ``framed``.
    """
    add, get_buf, latency = vq.add_sgs, vq.get_buf, tally.latency.add
    header = None if headers is None else headers.__next__
    data = None
    if headers is not None:
        data = pool.alloc(job.size if job.reads < 100 else 0)
        data[:] = random.randbytes(len(data))
    slots = [_Slot(job.size, data, framed, pool) for _ in range(min(job.depth, tally.left))]
    outs = int(job.raw)
    for slot in slots:
        slot.read[:0] = [RAW] * outs
    inflight = 0
    while True:
        now = perf_counter_ns()
        for slot in slots:
            slot.sent = now
            if header is None:
                add(slot.read, outs, 1, slot)
            elif (head := header())[0] == VIRTIO_BLK_T_IN:
                slot.read[0] = head
                add(slot.read, 1, 1 + framed, slot)
            else:
                slot.write[0] = head
                add(slot.write, 2, 1, slot)
        tally.left -= len(slots)
        inflight += len(slots)
        if not inflight:
            return
        vq.kick()
        await vq.wait_used()
        vq.check_usable()
        used: list[tuple[_Slot, int]] = list(iter(get_buf, None))  # type: ignore[arg-type]
        now = perf_counter_ns()
        slots = []
        together = sent = 0
        for slot, written in used:
            slots.append(slot)
            if slot.sent == sent:
                together += 1
            else:
                if together:
                    latency(now - sent, together)
                sent, together = slot.sent, 1
            if header is None:
                tally.bytes += written
            elif slot.status[0] or not written:
                tally.errors += 1
        if together:
            latency(now - sent, together)
        inflight -= len(slots)
        tally.requests += len(slots)
        if header is not None:
            tally.bytes += len(slots) * job.size
        del slots[tally.left if perf_counter() < tally.deadline else 0 :]


async def _await(driver: Blk | Rng | _Raw, job: Job, headers: Headers, tally: _Tally) -> None:
    """Await one request after the other until it is time to stop."""
    size, data, unpack = job.size, random.randbytes(job.size), REQUEST.unpack
    while tally.left > 0 and perf_counter() < tally.deadline:
        tally.left -= 1
        start = perf_counter_ns()
        try:
            if not isinstance(driver, Blk):
                await driver.read(size)
            else:
                kind, _, sector = unpack(next(headers))
                if kind == VIRTIO_BLK_T_IN:
                    await driver.read(sector * SECTOR, size)
                else:
                    await driver.write(sector * SECTOR, data)
        except DeviceError:
            tally.errors += 1
        tally.latency.add(perf_counter_ns() - start)
        tally.requests += 1
        tally.bytes += size


async def _start(stack: AsyncExitStack, url: str, job: Job) -> Blk | Rng | _Raw:
    """Connect once more, and start the device. Raises InvalidArgument if the job does not fit."""
    device = await stack.enter_async_context(vof.connect(url))
    driver: Blk | Rng | _Raw
    if job.raw:
        driver = await stack.enter_async_context(_Raw(device, job.queues))
    elif device.device_id == VIRTIO_ID_BLOCK:
        driver = await stack.enter_async_context(Blk(device, job.queues))
        if job.size % SECTOR:
            raise InvalidArgument(f"requests to a disk are multiples of {SECTOR} bytes")
        if job.reads < 100 and driver.read_only:
            raise InvalidArgument("the disk is read-only")
    elif device.device_id == VIRTIO_ID_RNG:
        driver = await stack.enter_async_context(Rng(device))
    else:
        raise InvalidArgument(
            f"no load for devices of type {device.device_id}; "
            "--raw sends requests that mean nothing, whatever that does"
        )
    if job.reads < 100 and not isinstance(driver, Blk):
        raise InvalidArgument("only a disk is written; others are only read")
    if len(device.vqs) < job.queues:
        raise InvalidArgument(f"the device has {len(device.vqs)} queues, not {job.queues}")
    size = min(vq.get_vring_size() for vq in device.vqs)
    if size < job.depth and not job.awaited:
        raise InvalidArgument(f"a queue of the device holds {size} requests, not {job.depth}")
    return driver


async def _together(loads: Sequence[Callable[[], Awaitable[None]]], seconds: float) -> None:
    """Run loads at once. The first error ends all, and so does a device that does not answer."""
    errors: list[VofError] = []

    async def guarded(load: Callable[[], Awaitable[None]], scope: trio.CancelScope) -> None:
        try:
            await load()
        except VofError as error:
            errors.append(error)
            scope.cancel()

    with trio.move_on_after(seconds + GRACE_S) as patience:
        async with trio.open_nursery() as nursery:
            for load in loads:
                nursery.start_soon(guarded, load, nursery.cancel_scope)
    if errors:
        raise errors[0]
    if patience.cancelled_caught:
        raise VofError(f"requests are unanswered {GRACE_S:g} s after the end")


async def measure(url: str, job: Job) -> Result:
    """Run a job on the device at a URL. Suspends. Raises VofError."""
    async with AsyncExitStack() as stack:
        drivers = [await _start(stack, url, job) for _ in range(job.connections)]
        first = drivers[0]
        headers = _headers(job, first.capacity) if isinstance(first, Blk) else None
        tally = _Tally(job)
        loads: list[Callable[[], Awaitable[None]]] = []
        for driver in drivers:
            if job.awaited:
                task = partial(_await, driver, job, headers or iter(()), tally)
                loads += [task] * (job.depth * job.queues)
            else:
                framed = headers is not None and not driver.device.features & _FREE
                vqs = driver.device.vqs
                pool = driver.device.pool
                loads += [partial(_drive, vq, pool, job, headers, framed, tally) for vq in vqs]
        await _together(loads, job.seconds)
        return tally.result()
