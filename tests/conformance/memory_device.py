# SPDX-License-Identifier: BSD-3-Clause
"""A device whose medium is plain Python objects: the reference that the suite is tried on.

It is as simple as the interfaces allow, and nothing in it is fast. Two things vary: what a chain
costs (one place, or one for each buffer, as in a ring) and whether the other end sees things at
once or some passes of the event loop later, as over a connection.
"""

from collections import deque
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import trio

from vof.errors import (
    CommandError,
    InvalidArgument,
    LocalProtocolError,
    NotSupported,
    QueueBroken,
    QueueBusy,
    QueueFull,
)
from vof.memory import HEAP
from vof.virtio import Chain, DeviceModel, VirtioDevice, Virtqueue
from vof.virtio.constants import VIRTIO_CONFIG_S_DRIVER_OK, VIRTIO_CONFIG_S_FEATURES_OK
from vof.virtio.status import next_status


class Bell:
    """An event that many rings wake and none of them uses up."""

    def __init__(self):
        self._event = trio.Event()

    def ring(self):
        self._event.set()
        self._event = trio.Event()

    async def wait(self):
        await self._event.wait()


class Entry:
    """What the driver knows of one chain."""

    def __init__(self, token, ctx, readable, writable, cost):
        self.token, self.ctx, self.cost = token, ctx, cost
        self.written, self.pushed = 0, False
        self.chain = Chain(readable, writable, self)


class MemoryQueue(Virtqueue):
    def __init__(self, device, index, info, num_max):
        self.device, self.index, self.name, self.callback = device, index, info.name, info.callback
        self.num_max, self.size = num_max, info.size or num_max
        self.dead = False
        self._broken, self._cause = False, None
        self.bell = Bell()
        self.clear()

    def clear(self):
        self.free = self.size
        self.entries = []  # all that the driver did not get back, in order of adding
        self.added = []  # not visible to the device yet
        self.used = deque()
        self.used_idx = self.last_used_idx = 0
        self.callbacks, self.used_event = self.callback is not None, 0

    num_free = property(lambda self: self.free)
    is_broken = property(lambda self: self._broken)
    broken_by = property(lambda self: self._cause)

    def add_sgs(self, sgs, out_sgs, in_sgs, data, ctx=None):
        if not sgs or min(out_sgs, in_sgs) < 0 or out_sgs + in_sgs != len(sgs) or data is None:
            raise InvalidArgument("not a chain")
        self.check_usable()
        cost = len(sgs) if self.device.count_buffers else 1
        if cost > self.free:
            raise QueueFull("full")
        readable = [memoryview(buffer).toreadonly() for buffer in sgs[:out_sgs]]
        entry = Entry(data, ctx, readable, [memoryview(buffer) for buffer in sgs[out_sgs:]], cost)
        self.free -= cost
        self.entries.append(entry)
        self.added.append(entry)

    def kick_prepare(self):
        return bool(self.added) and not self._broken

    def notify(self):
        if self._broken:
            return False
        batch, self.added = self.added, []
        end = self.device.ends[self.index]
        self.device.carry(lambda: end.arrive(batch))
        return True

    def complete(self, end, batch):
        """The device's used buffers are here."""
        if self.device.ends.get(self.index) is not end:
            return
        for entry, written in batch:
            entry.written = written
            self.used.append(entry)
            self.used_idx += 1
        self.bell.ring()
        if self.callbacks and self.used_idx > self.used_event and not self._broken:
            self.callback(self)

    def enable_cb_prepare(self):
        self.callbacks, self.used_event = self.callback is not None, self.last_used_idx
        return self.last_used_idx

    def poll(self, last_used_idx):
        return not self._broken and self.used_idx != last_used_idx

    def enable_cb_delayed(self):
        self.enable_cb_prepare()
        most = len(self.entries) * 3 // 4
        self.used_event = self.last_used_idx + most
        return self.used_idx <= self.used_event

    def disable_cb(self):
        self.callbacks = False

    def get_buf_ctx(self):
        if self._broken or not self.used:
            return None
        entry = self.used.popleft()
        self.last_used_idx += 1
        self.forget(entry)
        return entry.token, entry.written, entry.ctx

    def forget(self, entry):
        self.entries.remove(entry)
        self.free += entry.cost

    def detach_unused_buf(self):
        if not self._broken:
            raise QueueBusy("the device may use the buffers")
        if not self.entries:
            return None
        entry = self.entries[-1]
        self.forget(entry)
        self.dead = True  # the device still has it
        return entry.token

    def get_vring_size(self):
        return self.size

    async def resize(self, num, recycle):
        if not 0 < num <= self.num_max:
            raise InvalidArgument(f"{num} is no size of this queue")
        if not self.device.can_resize:
            raise NotSupported("resize")
        await self.device.stop(self.index)
        for entry in self.entries:
            recycle(self, entry.token)
        self.size = num
        self.clear()
        self.device.start(self.index)

    def break_(self, cause=None):
        if not self._broken:
            self._broken, self._cause = True, cause
            self.bell.ring()

    def unbreak(self):
        if not self.dead:
            self._broken, self._cause = False, None

    def die(self):
        self.dead = True
        self.break_(QueueBroken("the queue is gone"))

    async def wait_used(self):
        await trio.lowlevel.checkpoint()
        while not self.used and not self._broken:
            await self.bell.wait()


class MemoryEnd:
    """The device's end of one queue, from its start to its stop."""

    def __init__(self, vq):
        self.vq, self.available, self.pushed, self.bell = vq, [], [], Bell()
        self.scope, self.ended = trio.CancelScope(), trio.Event()

    def arrive(self, batch):
        self.available += batch
        self.bell.ring()

    async def receive(self):
        self.flush()
        await trio.lowlevel.checkpoint()
        while not self.available:
            await self.bell.wait()
        batch, self.available = self.available, []
        return [entry.chain for entry in batch]

    def push(self, chain, written, filled=None):
        if chain.token.pushed:
            raise LocalProtocolError("a chain is used once")
        chain.token.pushed = True
        self.pushed.append((chain.token, written))

    def flush(self):
        batch, self.pushed = self.pushed, []
        if batch:
            self.vq.device.carry(lambda: self.vq.complete(self, batch))

    async def run(self, model):
        with self.scope:
            await model.serve(self.vq.index, self)
        self.ended.set()


class MemoryDevice(VirtioDevice):
    """Options: ``queue`` is the class of its queues; the others are described above."""

    pool = HEAP
    queue = MemoryQueue
    end = MemoryEnd
    count_buffers = False
    can_resize = True
    late = 0

    def __init__(self, model: DeviceModel, nursery: trio.Nursery) -> None:
        self.model, self.nursery = model, nursery
        self.device_id, self.vendor_id = model.device_id, model.vendor_id
        self.features = self.status = self.config_generation = 0
        self.vqs: Sequence[Virtqueue] = []
        self.ends: dict[int, MemoryEnd] = {}
        self.config_changed = None
        self.wire = deque()
        model.config_changed = self.config_change

    def carry(self, job):
        """Do ``job`` at the other end: now or late, always in order."""
        if not self.late:
            return job()
        self.wire.append(job)
        self.nursery.start_soon(self.deliver)

    async def deliver(self):
        for _ in range(self.late):
            await trio.lowlevel.checkpoint()
        self.wire.popleft()()

    def config_change(self):
        self.config_generation += 1
        self.carry(lambda: self.config_changed and self.config_changed(self))

    async def get(self, offset, length):
        await trio.lowlevel.checkpoint()
        return self.model.config()[offset : offset + length]

    async def set(self, offset, value):
        await trio.lowlevel.checkpoint()
        try:
            self.model.write_config(offset, value)
        except InvalidArgument as error:
            raise CommandError(str(error)) from error

    async def generation(self):
        await trio.lowlevel.checkpoint()
        return self.config_generation

    async def get_status(self):
        await trio.lowlevel.checkpoint()
        return self.status

    async def set_status(self, status):
        await trio.lowlevel.checkpoint()
        self.status = next_status(self.status, status)
        self.model.status_changed(self.status)
        if status & VIRTIO_CONFIG_S_DRIVER_OK:
            for vq in self.vqs:
                self.start(vq.index)

    async def reset(self):
        await self.del_vqs()
        self.status = self.features = self.model.features = 0
        self.model.status_changed(0)

    async def get_features(self):
        await trio.lowlevel.checkpoint()
        return self.model.device_features

    async def finalize_features(self, features):
        await trio.lowlevel.checkpoint()
        if features & ~self.model.device_features or self.status & VIRTIO_CONFIG_S_FEATURES_OK:
            raise LocalProtocolError("not now, or not offered")
        self.features = self.model.features = features

    async def get_vq_size(self, index):
        await trio.lowlevel.checkpoint()
        sizes = self.model.queue_sizes
        return sizes[index] if index < len(sizes) else 0

    async def find_vqs(self, infos):
        await trio.lowlevel.checkpoint()
        if len(infos) > len(self.model.queue_sizes):
            raise NotSupported("so many queues")
        sizes = self.model.queue_sizes
        self.vqs = [self.queue(self, i, info, sizes[i]) for i, info in enumerate(infos)]
        return self.vqs

    async def del_vqs(self):
        for vq in self.vqs:
            await self.stop(vq.index)
            vq.die()
        self.vqs = []

    def start(self, index):
        end = self.ends[index] = self.end(self.vqs[index])
        self.nursery.start_soon(end.run, self.model)

    async def stop(self, index):
        await trio.lowlevel.checkpoint()
        if end := self.ends.pop(index, None):
            end.scope.cancel()
            await end.ended.wait()


def maker(device_class: type[MemoryDevice] = MemoryDevice, **options):
    """Return the ``make`` of a device class with these class attributes changed."""
    variant = type(device_class.__name__, (device_class,), options)

    @asynccontextmanager
    async def make(model: DeviceModel) -> AsyncIterator[VirtioDevice]:
        async with trio.open_nursery() as nursery:
            device = variant(model, nursery)
            yield device
            await device.del_vqs()
            nursery.cancel_scope.cancel()
        model.close()

    return make
