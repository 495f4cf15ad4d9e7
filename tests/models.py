# SPDX-License-Identifier: BSD-3-Clause
"""Small device models for tests."""

import trio

from vof.errors import InvalidArgument
from vof.virtio.model import DeviceModel


class Echo(DeviceModel):
    """Gives back what it was given, over and over, until the writable part is full."""

    device_id = 42

    def __init__(self, queue_sizes=(64, 64), config: bytes = b"") -> None:
        super().__init__()
        self.queue_sizes = queue_sizes
        self.space = bytearray(config)
        self.served = 0
        self.closed = False

    def config(self) -> bytes:
        return bytes(self.space)

    def write_config(self, offset: int, value: bytes) -> None:
        if offset >= 8:
            raise InvalidArgument("only the first eight bytes are writable")
        self.space[offset : offset + len(value)] = value

    def change(self, value: bytes) -> None:
        self.space[: len(value)] = value
        self.config_changed()

    def close(self) -> None:
        self.closed = True

    async def serve(self, index, queue) -> None:
        while True:
            for chain in await queue.receive():
                self.served += 1
                data = b"".join(chain.readable)
                room = sum(map(len, chain.writable))
                answer = (data * (room // max(len(data), 1) + 1))[:room].ljust(room, b"\0")
                for segment in chain.writable:
                    segment[:], answer = answer[: len(segment)], answer[len(segment) :]
                queue.push(chain, room)
            queue.flush()


class Hoard(Echo):
    """Keeps every chain until told to use one."""

    def __init__(self, **more) -> None:
        super().__init__(**more)
        self.chains = []
        self.queue = None
        self.ending = None

    async def serve(self, index, queue) -> None:
        self.queue = queue
        try:
            while True:
                self.chains += await queue.receive()
        finally:
            if self.ending is not None:
                with trio.CancelScope(shield=True):
                    await self.ending.wait()

    async def holds(self, count: int) -> None:
        with trio.fail_after(5):
            while len(self.chains) < count:
                await trio.lowlevel.checkpoint()

    def use(self, number: int = 0, written: int = 0) -> None:
        self.queue.push(self.chains.pop(number), written)
        self.queue.flush()


class Faulty(Echo):
    """Has a bug."""

    async def serve(self, index, queue) -> None:
        await queue.receive()
        raise RuntimeError("a bug of the model")
