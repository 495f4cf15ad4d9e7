# SPDX-License-Identifier: BSD-3-Clause
"""A device behind rings in shared memory: both sides of each ring in one process."""

import trio

from tests.conformance.memory_device import MemoryDevice
from vof.errors import QueueBroken, RingError
from vof.memory import Region
from vof.virtio.layout import PackedLayout, SplitLayout
from vof.virtio.packed import PackedVirtqueue
from vof.virtio.packed_vringh import PackedVringh
from vof.virtio.split import SplitVirtqueue
from vof.virtio.split_vringh import SplitVringh

MIB = 1 << 20


class Bell:
    """One side's end of a pair of bells."""

    def __init__(self):
        self._event = trio.Event()
        self.other = self

    def ring(self):
        self.other.wake()

    def wake(self):
        self._event.set()

    async def wait(self):
        await self._event.wait()
        self._event = trio.Event()

    async def checkpoint(self):
        await trio.lowlevel.checkpoint()

    def attend(self, look):
        """Nobody polls here."""


class VringEnd:
    """The device's end of one ring: ``DeviceQueue`` on a vringh."""

    def __init__(self, vq):
        self.vq, self.bell = vq, vq.far
        self.vringh = vq.device.vringh(vq)
        self.scope, self.ended = trio.CancelScope(), trio.Event()
        self.push = self.vringh.push

    async def receive(self):
        self.flush()
        await trio.lowlevel.checkpoint()
        while True:
            chains = self.vringh.receive()
            self.flush()  # heads of chains that were wrong
            if chains:
                self.vringh.notify_disable()
                return chains
            if self.vringh.notify_enable():
                await self.bell.wait()

    def flush(self):
        if self.vringh.flush():
            vq = self.vq
            self.bell.ring()
            vq.device.carry(lambda: vq.device.ends.get(vq.index) is self and vq.interrupt())

    async def run(self, model):
        with self.scope:
            try:
                await model.serve(self.vq.index, self)
            except RingError as error:
                self.vq.break_(error)
        self.ended.set()


class Split:
    """The classes of a split ring."""

    driver, layout, device = SplitVirtqueue, SplitLayout, SplitVringh


class Packed:
    """The classes of a packed ring."""

    driver, layout, device = PackedVirtqueue, PackedLayout, PackedVringh


class VringDevice(MemoryDevice):
    """Options: ``kind`` of ring, ``indirect``, ``event_idx``, ``base``: where rings begin."""

    end = VringEnd
    kind = Split
    indirect = event_idx = False
    base = 0

    def __init__(self, model, nursery):
        super().__init__(model, nursery)
        self.pool = self.region = Region(64 * MIB)

    def queue(self, _device, index, info, num_max):
        near, far = Bell(), Bell()
        near.other, far.other = far, near

        async def restart(num):
            await self.stop(index)
            vq.base = 0
            nursery.start_soon(self.begin, index)
            return self.region.alloc(vq.bytes_of(num))

        nursery = self.nursery
        vq = self.kind.driver(
            index,
            info.name,
            info.size or num_max,
            num_max,
            self.region,
            near,
            info.callback,
            indirect=self.indirect,
            event_idx=self.event_idx,
            base=self.base,
            restart=restart,
        )
        vq.device, vq.far, vq.base = self, far, self.base
        vq.die = lambda: vq.stop(QueueBroken("the queue is gone"))
        return vq

    async def begin(self, index):
        self.start(index)

    def vringh(self, vq):
        return self.kind.device(
            self.kind.layout(vq.get_vring_size(), vq.memory),
            self.translate,
            self.event_idx,
            vq.base,
        )

    def translate(self, address, length):
        offset = address - self.region.address
        if not 0 <= offset <= self.region.size - length:
            raise RingError(f"{length} bytes at 0x{address:x}: outside the memory")
        return self.region.view[offset : offset + length]
