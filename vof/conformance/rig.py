# SPDX-License-Identifier: BSD-3-Clause
"""One queue set up for a check: both of its ends, and what checks do again and again."""

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import TypeAlias

import trio

from vof.conformance.rules import Failed, expect, same, soon
from vof.conformance.script import FEATURES, Lane, ScriptModel
from vof.virtio import Chain, DeviceModel, VirtioDevice, Virtqueue, VirtqueueInfo
from vof.virtio.constants import RESERVED_FEATURES, bit

Make: TypeAlias = Callable[[DeviceModel], AbstractAsyncContextManager[VirtioDevice]]
"""What an implementation supplies: present this model, and yield a driver's view of it.

The model must run in the trio loop of the caller. The device comes as it is after connecting, not
initialised. At the end of the context everything is gone, also after a check has failed.
"""

WANTED = FEATURES | bit(*RESERVED_FEATURES)
FILL = 0xA5
"""What writable buffers hold before the device writes."""

POLLS = 100_000
"""How often ``polled`` looks, one pass of the event loop each."""


class Calls:
    """A queue's callback that counts.

    Attributes:
        count: how often it was called.
    """

    def __init__(self) -> None:
        self.count = 0
        self._news = trio.Event()

    def __call__(self, vq: Virtqueue) -> None:
        """Be a ``Virtqueue.callback``."""
        self.count += 1
        self._news.set()
        self._news = trio.Event()

    async def beyond(self, count: int) -> None:
        """Wait until there were more than ``count`` calls.

        Raises:
            Failed: there were not.
        """
        with soon("the callback comes"):
            while self.count <= count:
                await self._news.wait()


class Rig:
    """A started device with one queue.

    Attributes:
        device: the driver's view of the device.
        model: the device itself.
        vq: the driver's view of the queue.
        lane: the device's view of the queue.
        calls: the queue's callback, if it has one.
    """

    def __init__(
        self, device: VirtioDevice, model: ScriptModel, vq: Virtqueue, lane: Lane, calls: Calls
    ) -> None:
        self.device = device
        self.model = model
        self.vq = vq
        self.lane = lane
        self.calls = calls

    def filled(self, data: bytes) -> memoryview:
        """Return a buffer with ``data``, where this device can reach it."""
        buffer = self.device.pool.alloc(len(data))
        buffer[:] = data
        return buffer

    def space(self, size: int) -> memoryview:
        """Return a buffer of ``size`` bytes FILL, where this device can reach it."""
        return self.filled(bytes([FILL]) * size)

    def add(self, token: object, mark: int = 0) -> memoryview:
        """Add a chain of one writable buffer of 4 + ``mark`` bytes and return the buffer.

        Its length is its mark: ``mark_of`` tells the chain from others at the device.
        """
        buffer = self.space(4 + mark)
        self.vq.add_inbuf([buffer], token)
        return buffer

    async def used(self) -> tuple[object, int, object]:
        """Wait for the next used buffer and take it. For a queue without callback.

        Raises:
            Failed: none came, or ``wait_used`` returned for nothing.
        """
        taken = self.vq.get_buf_ctx()
        if taken is None:
            with soon("wait_used returns when a buffer was used"):
                await self.vq.wait_used()
            taken = self.vq.get_buf_ctx()
        if taken is None:
            raise Failed("wait_used returned, get_buf_ctx has nothing and the queue is not broken")
        return taken

    async def arrived(self) -> None:
        """Wait until a used buffer can be taken, and leave it. For a queue without callback."""
        with soon("wait_used returns when a buffer was used"):
            await self.vq.wait_used()

    async def works(self) -> None:
        """Demand that one request goes through the idle queue and leaves it idle."""
        token = object()
        free = self.vq.num_free
        question, answer = self.filled(b"works?"), self.space(5)
        self.vq.add_sgs([question, answer], 1, 1, token)
        expect(self.vq.kick(), "kick on a queue that is not broken returns True")
        chain = (await self.lane.take())[0]
        same(joined(chain.readable), b"works?", "readable bytes at the device")
        self.lane.use(chain, b"works")
        data, written, _ = await self.used()
        expect(data is token, "the token comes back")
        same((written, bytes(answer)), (5, b"works"), "the answer")
        same(self.vq.num_free, free, "num_free after one request")


@asynccontextmanager
async def opened(make: Make, size: int = 64, *, callback: bool = False) -> AsyncIterator[Rig]:
    """Start a device with one queue of ``size``, with or without callback."""
    model = ScriptModel([size])
    calls = Calls()
    async with make(model) as device:
        (vq,), (lane,) = await start(
            device, model, [VirtqueueInfo("check", calls if callback else None)]
        )
        yield Rig(device, model, vq, lane, calls)


async def start(
    device: VirtioDevice, model: ScriptModel, infos: Sequence[VirtqueueInfo]
) -> tuple[list[Virtqueue], list[Lane]]:
    """Initialise the device up to DRIVER_OK; return both ends of its queues."""
    with soon("the device starts"):
        await device.initialize(WANTED)
        vqs = await device.find_vqs(infos)
        await device.ready()
    return vqs, [await model.lane(index) for index in range(len(infos))]


async def on_call(rig: Rig, calls: int) -> tuple[object, int]:
    """Take the next used buffer after a callback beyond the first ``calls``."""
    while True:
        await rig.calls.beyond(calls)
        calls = rig.calls.count
        if used := rig.vq.get_buf():
            return used


async def polled(condition: Callable[[], object], what: str) -> None:
    """Demand that ``condition`` becomes true while nobody waits for it, as in polling mode.

    Raises:
        Failed: it did not.
    """
    for _ in range(POLLS):
        if condition():
            return
        await trio.lowlevel.checkpoint()
    raise Failed(what)


def joined(segments: Sequence[memoryview]) -> bytes:
    """Return the bytes of all segments."""
    return b"".join(segments)


def mark_of(chain: Chain) -> int:
    """Return the mark that ``Rig.add`` gave a chain."""
    return sum(map(len, chain.writable)) - 4


def exactly_once(returned: Sequence[object], given: Sequence[object], where: str) -> None:
    """Demand that each of the tokens ``given``, and no other, came back exactly once.

    Raises:
        Failed: they did not.
    """
    same(sorted(map(id, returned)), sorted(map(id, given)), f"{where}: every token comes back once")
