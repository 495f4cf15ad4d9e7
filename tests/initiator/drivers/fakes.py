# SPDX-License-Identifier: BSD-3-Clause
"""A device without a medium, for tests of drivers: what is added, it takes on the spot."""

from collections import deque

import trio

from vof.errors import InvalidArgument, NotSupported, QueueBroken, QueueFull
from vof.memory import HEAP
from vof.virtio import VirtioDevice, Virtqueue
from vof.virtio.blk import (
    REQUEST,
    SECTOR,
    VIRTIO_BLK_ID_BYTES,
    VIRTIO_BLK_T_GET_ID,
    VIRTIO_BLK_T_IN,
    VIRTIO_BLK_T_OUT,
    BlkConfig,
)
from vof.virtio.constants import VIRTIO_F_VERSION_1, VIRTIO_ID_BLOCK, VIRTIO_ID_RNG, bit


class FakeQueue(Virtqueue):
    """The device sees what is added before the kick; where it holds that back, see ``release``."""

    callback = None

    def __init__(self, device, index, info):
        self.device = device
        self.index = index
        self.name = info.name
        self.num_max = device.queue_size
        self.size = info.size or self.num_max
        self.inside = {}
        self.used = deque()
        self.cause = None
        self.broken = False
        self.most = 0
        self.progress = trio.Event()

    @property
    def num_free(self):
        return self.size - len(self.inside)

    def add_sgs(self, sgs, out_sgs, in_sgs, data, ctx=None):
        self.check_usable()
        if not self.num_free:
            raise QueueFull(self.name)
        assert out_sgs + in_sgs == len(sgs)
        self.inside[data] = sgs
        self.most = max(self.most, len(self.inside))
        self.device.take(self, data, sgs[:out_sgs], [memoryview(part) for part in sgs[out_sgs:]])

    def kick_prepare(self):
        return False

    def notify(self):
        return not self.broken

    def use(self, token, written):
        self.used.append((token, written))
        self.wake()

    def wake(self):
        self.progress.set()
        self.progress = trio.Event()

    def get_buf_ctx(self):
        if self.broken or not self.used:
            return None
        token, written = self.used.popleft()
        del self.inside[token]
        return token, written, None

    async def wait_used(self):
        await trio.lowlevel.checkpoint()
        while not self.used and not self.broken:
            await self.progress.wait()

    def break_(self, cause=None):
        if not self.broken:
            self.broken, self.cause = True, cause
            self.wake()

    def unbreak(self):
        self.broken, self.cause = False, None

    @property
    def is_broken(self):
        return self.broken

    @property
    def broken_by(self):
        return self.cause

    def get_vring_size(self):
        return self.size

    def detach_unused_buf(self):
        return self.inside.popitem()[0] if self.inside else None

    async def resize(self, num, recycle):
        raise NotSupported("no resize")

    def poll(self, last_used_idx):
        return bool(self.used)

    def enable_cb_prepare(self):
        return 0

    def enable_cb_delayed(self):
        return True

    def disable_cb(self):
        pass


class FakeDevice(VirtioDevice):
    """Answers by ``answer(readable, writable) -> written``.

    ``requests`` notes what came, as ``(queue index, [sizes of readable], [of writable])``.
    """

    vendor_id = 0

    def __init__(self, device_id, offered=0, config=b"", queues=1, queue_size=16):
        self.device_id = device_id
        self.offered = offered | bit(VIRTIO_F_VERSION_1)
        self.space = config
        self.queues = queues
        self.queue_size = queue_size
        self.features = 0
        self.status = 0
        self.vqs = []
        self.pool = HEAP
        self.config_changed = None
        self.resets = 0
        self.reads_of_config = 0
        self.unreachable = None
        self.holding = False
        self.held = []
        self.requests = []

    def take(self, vq, token, readable, writable):
        self.requests.append((vq.index, [*map(len, readable)], [*map(len, writable)]))
        self.held.append((vq, token, readable, writable))
        if not self.holding:
            self.release()

    def release(self, count=None):
        """Answer requests that were held back, oldest first."""
        for vq, token, readable, writable in self.held[:count]:
            vq.use(token, self.answer(b"".join(readable), writable))
        del self.held[:count]

    async def holds(self, count):
        """Wait until so many requests are held back."""
        with trio.fail_after(5):
            while len(self.held) < count:
                await trio.lowlevel.checkpoint()

    def change(self, config):
        self.space = config
        self.config_changed(self)

    async def _reach(self):
        await trio.lowlevel.checkpoint()
        if self.unreachable is not None:
            raise self.unreachable

    async def get(self, offset, length):
        await self._reach()
        self.reads_of_config += 1
        return self.space[offset : offset + length]

    async def set(self, offset, value):
        raise InvalidArgument("read-only")

    async def generation(self):
        await self._reach()
        return 0

    async def get_status(self):
        await self._reach()
        return self.status

    async def set_status(self, status):
        await self._reach()
        self.status = status

    async def reset(self):
        await self._reach()
        self.resets += 1
        self.status = 0
        await self.del_vqs()

    async def get_features(self):
        await self._reach()
        return self.offered

    async def finalize_features(self, features):
        assert not features & ~self.offered
        self.features = features

    async def get_vq_size(self, index):
        return self.queue_size if index < self.queues else 0

    async def find_vqs(self, infos):
        if len(infos) > self.queues:
            raise NotSupported(f"{self.queues} queues")
        self.vqs = [FakeQueue(self, number, info) for number, info in enumerate(infos)]
        return self.vqs

    async def del_vqs(self):
        for vq in self.vqs:
            vq.break_(QueueBroken("the device was reset"))


class FakeDisk(FakeDevice):
    """A disk in memory. ``fail`` maps request types to a status byte; None leaves it unwritten."""

    def __init__(self, sectors=64, offered=0, queues=1, queue_size=16, **config):
        self.values = BlkConfig(capacity=sectors, **config)
        super().__init__(VIRTIO_ID_BLOCK, offered, self.values.pack(), queues, queue_size)
        self.data = bytearray(sectors * SECTOR)
        self.serial = b"fake"
        self.fail = {}
        self.seen = []

    def resize(self, sectors):
        self.data = self.data[: sectors * SECTOR].ljust(sectors * SECTOR, b"\0")
        self.change(self.values._replace(capacity=sectors).pack())

    def answer(self, readable, writable):
        kind, _, sector = REQUEST.unpack_from(readable)
        body = readable[REQUEST.size :]
        self.seen.append((kind, sector, body))
        total = sum(map(len, writable))
        status = self.fail.get(kind, 0)
        if status is None:
            return total - 1
        start = sector * SECTOR
        if kind == VIRTIO_BLK_T_IN and not status:
            answer = self.data[start : start + total - 1]
        elif kind == VIRTIO_BLK_T_GET_ID:
            answer = self.serial.ljust(VIRTIO_BLK_ID_BYTES, b"\0")
        else:
            answer = bytes(total - 1)
        if kind == VIRTIO_BLK_T_OUT and not status:
            self.data[start : start + len(body)] = body
        answer = memoryview(bytes(answer) + bytes([status]))
        assert len(answer) == total
        for segment in writable:
            segment[:], answer = answer[: len(segment)], answer[len(segment) :]
        return total


class FakeEntropy(FakeDevice):
    """Counts up, at most ``piece`` bytes at a time; the first ``dry`` requests get none."""

    def __init__(self, piece=1 << 20, dry=0):
        super().__init__(VIRTIO_ID_RNG)
        self.piece = piece
        self.dry = dry
        self.given = 0

    def answer(self, readable, writable):
        assert not readable
        (segment,) = writable
        if self.dry:
            self.dry -= 1
            return 0
        count = min(len(segment), self.piece)
        segment[:count] = bytes((self.given + number) & 0xFF for number in range(count))
        self.given += count
        return count
