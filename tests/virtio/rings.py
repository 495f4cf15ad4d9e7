# SPDX-License-Identifier: BSD-3-Clause
"""Both sides of one ring in one process, without an event loop."""

from typing import NamedTuple

from vof.errors import RingError
from vof.memory import Region
from vof.virtio.layout import PackedLayout, SplitLayout
from vof.virtio.packed import PackedVirtqueue
from vof.virtio.packed_vringh import PackedVringh
from vof.virtio.split import SplitVirtqueue
from vof.virtio.split_vringh import SplitVringh


class Kind(NamedTuple):
    """The classes of one layout."""

    name: str
    driver: type
    layout: type
    device: type


SPLIT = Kind("split", SplitVirtqueue, SplitLayout, SplitVringh)
PACKED = Kind("packed", PackedVirtqueue, PackedLayout, PackedVringh)
KINDS = (SPLIT, PACKED)


class Bell:
    """Counts; ``wait`` runs what stands for the rest of the world."""

    def __init__(self, world=lambda: None):
        self.rings = self.wakes = self.waits = self.checkpoints = 0
        self.look = None
        self.world = world

    def ring(self):
        self.rings += 1

    def wake(self):
        self.wakes += 1

    async def wait(self):
        self.waits += 1
        self.world()

    async def checkpoint(self):
        self.checkpoints += 1

    def attend(self, look):
        self.look = look


class Ring:
    """A driver and a device on one ring.

    Attributes:
        vq: the driver's side.
        device: the device's side.
    """

    def __init__(
        self, kind, num=8, *, size=1 << 16, event_idx=False, base=0, restart=None, **options
    ):
        self.kind, self.event_idx = kind, event_idx
        self.region, self.bell = Region(size), Bell()
        self.vq = kind.driver(
            0,
            "it",
            num,
            options.pop("num_max", 32),
            self.region,
            self.bell,
            event_idx=event_idx,
            base=base,
            restart=restart and self.restart,
            **options,
        )
        self.layout = kind.layout(num, self.vq.memory)
        self.device = kind.device(self.layout, self.translate, event_idx, base)

    async def restart(self, num):
        """Be a ``Restart``."""
        memory = self.region.alloc(self.vq.bytes_of(num))
        self.layout = self.kind.layout(num, memory)
        self.device = self.kind.device(self.layout, self.translate, self.event_idx)
        return memory

    def translate(self, address, length):
        """Be a ``Translate``."""
        offset = address - self.region.address
        if not 0 <= offset <= self.region.size - length:
            raise RingError(f"{length} bytes at 0x{address:x}: outside the memory")
        return self.region.view[offset : offset + length]

    def filled(self, data):
        """Return a buffer with ``data`` in the region."""
        view = self.region.alloc(len(data))
        view[:] = data
        return view

    def taken(self, count=1):
        """Kick, and return the chains that are there."""
        self.vq.kick()
        chains = self.device.receive()
        assert len(chains) == count
        return chains

    def use(self, chain, answer=b""):
        """Write an answer and give a chain back."""
        left = memoryview(answer)
        for segment in chain.writable:
            part = left[: len(segment)]
            segment[: len(part)] = part
            left = left[len(part) :]
        self.device.push(chain, len(answer))
        return self.device.flush()
