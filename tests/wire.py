# SPDX-License-Identifier: BSD-3-Clause
"""A peer that speaks v5 byte by byte: no library code between a test and the wire."""

from contextlib import asynccontextmanager

import trio

from vof.protocol import v5
from vof.target.access import THIS_MACHINE
from vof.target.limits import Limits
from vof.target.server import Export, Server
from vof.transport import listen, parse_url
from vof.virtio.constants import VIRTIO_F_VERSION_1, bit

READY = (1, 3, 11, 15)


def command(opcode: int, ident: int = 1, **fields: int) -> bytes:
    """The 16 bytes of a command, made by the layout table alone."""
    return v5.COMMANDS[opcode].command.encode({"opcode": opcode, "command_id": ident, **fields})


def names(ivqn: bytes = b"me", tvqn: bytes = b"it") -> bytes:
    return ivqn.ljust(256, b"\0") + tvqn.ljust(256, b"\0") + bytes(512)


def connect_control(ident: int = 1, body: bytes | None = None, **fields: int) -> bytes:
    body = names() if body is None else body
    values = {"device_instance_id": v5.NEW_INSTANCE, "length": len(body), "queue_size": 32}
    return command(v5.CONNECT, ident, **(values | fields)) + body


def request(ident: int, readable: bytes, in_length: int) -> bytes:
    return command(v5.VQ, ident, out_length=len(readable), in_length=in_length) + readable


class Peer:
    """One connection; every wait is bounded."""

    def __init__(self, stream: trio.SocketStream) -> None:
        self.stream = stream
        self.rest = b""

    async def send(self, data: bytes) -> None:
        await self.stream.send_all(data)

    async def take(self, count: int) -> bytes:
        """Exactly so many bytes; fewer at the end of the connection."""
        with trio.fail_after(5):
            while len(self.rest) < count:
                try:
                    more = await self.stream.receive_some(65536)
                except trio.BrokenResourceError:
                    more = b""
                if not more:
                    break
                self.rest += more
        data, self.rest = self.rest[:count], self.rest[count:]
        return data

    async def ended(self) -> bool:
        """Whether the other side closes, with nothing more to say."""
        return await self.take(1) == b""

    async def ask(self, opcode: int, ident: int = 1, **fields: int) -> dict[str, int]:
        """Send a command and decode its completion."""
        await self.send(command(opcode, ident, **fields))
        return await self.answer(opcode)

    async def answer(self, opcode: int) -> dict[str, int]:
        return v5.COMMANDS[opcode].completion.decode(await self.take(16))

    async def status(self, data: bytes) -> int:
        """Send bytes; return the status of what comes back."""
        await self.send(data)
        return v5.COMPLETION.decode(await self.take(16))["status"]

    async def used(self) -> tuple[int, int, bytes]:
        """The next completion of a virtqueue: id, used length, bytes."""
        fields = await self.answer(v5.VQ)
        assert fields["status"] == 0
        return fields["command_id"], fields["length"], await self.take(fields["in_length"])

    async def control(self) -> int:
        """Become a control queue; return the instance id."""
        await self.send(connect_control())
        fields = await self.answer(v5.CONNECT)
        assert fields["status"] == 0
        return fields["device_instance_id"]

    async def join(self, instance: int, index: int = 0, size: int = 0) -> int:
        """Try to become a virtqueue; return the status."""
        return await self.status(
            command(v5.CONNECT, 9, device_instance_id=instance, vq_index=index, queue_size=size)
        )

    async def start(self, upto: int = 15) -> None:
        """Walk the status byte, with VERSION_1 negotiated."""
        for status in READY:
            if status == 11:
                await self.ask(v5.SET_DRIVER_FEATURE, select=0, feature=bit(VIRTIO_F_VERSION_1))
            assert (await self.ask(v5.SET_STATUS, device_status=status))["status"] == 0
            if status == upto:
                return


class Target:
    """A server on loopback TCP, and how to reach it."""

    def __init__(self, server: Server, url, nursery: trio.Nursery) -> None:
        self.server = server
        self.url = url
        self.nursery = nursery
        self.peers: list[Peer] = []

    async def peer(self) -> Peer:
        """Connect; closed at the end of the test."""
        self.peers.append(Peer(await trio.open_tcp_stream(self.url.host, self.url.port)))
        return self.peers[-1]

    async def queue(self, index: int = 0, size: int = 0) -> tuple[Peer, Peer]:
        """A control queue and a virtqueue, ready."""
        control, vq = await self.peer(), await self.peer()
        assert await vq.join(await control.control(), index, size) == v5.OK
        await control.start()
        return control, vq

    async def gone(self, but: int = 0) -> None:
        """Wait until no association is left, or so many."""
        with trio.fail_after(5):
            while len(self.server.associations) > but:
                await trio.lowlevel.checkpoint()


@asynccontextmanager
async def serving(
    make, limits: Limits | None = None, url: str = "vof+tcp://127.0.0.1:0", allow=THIS_MACHINE
):
    """Serve one model, ``make()``, as "it"."""
    async with trio.open_nursery() as nursery:
        listeners = await listen(parse_url(url))
        server = Server({"it": Export("it", make, allow)}, limits)
        await nursery.start(server.serve, listeners)
        target = Target(server, listeners[0].url.with_tvqn("it"), nursery)
        try:
            yield target
        finally:
            for peer in target.peers:
                peer.stream.socket.close()
            nursery.cancel_scope.cancel()
