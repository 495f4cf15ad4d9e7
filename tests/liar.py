# SPDX-License-Identifier: BSD-3-Clause
"""A scripted target that need not tell the truth."""

import struct
from contextlib import asynccontextmanager

import trio

from vof.protocol import v5
from vof.virtio.constants import VIRTIO_F_VERSION_1, bit


class Liar:
    """A scripted target: right on the control queue, ``lie`` on the virtqueue.

    ``lie(stream, command_id)`` gets the first request and misbehaves. ``answers`` says how
    commands are answered: fields, a list of them to be used up one by one, or None for silence.
    """

    def __init__(self, lie, answers=None) -> None:
        self.lie = lie
        self.status = 0
        self.seen: list[int] = []
        self.streams: list[trio.SocketStream] = []
        self.values = {
            v5.CONNECT: {"device_instance_id": 5},
            v5.GET_DEVICE_ID: {"device_id": 42},
            v5.GET_DEVICE_FEATURE: {"feature": bit(VIRTIO_F_VERSION_1)},
            v5.GET_VQ_SIZE: {"size": 16},
        } | (answers or {})

    async def __call__(self, stream: trio.SocketStream) -> None:
        self.streams.append(stream)
        try:
            async with stream:
                await self.serve(stream)
        except (OSError, trio.BrokenResourceError, trio.ClosedResourceError):
            pass

    async def serve(self, stream: trio.SocketStream) -> None:
        data = b""
        requests = 0
        while True:
            more = await stream.receive_some(65536)
            if not more:
                return
            data += more
            while len(data) >= 16:
                opcode, ident, _, out_length = struct.unpack_from("<HHII", data)
                if opcode == v5.VQ:
                    data = data[16 + out_length :]
                    requests += 1
                    if requests == 1:
                        await self.lie(stream, ident)
                    continue
                length = 1024 if opcode == v5.CONNECT else 0
                while len(data) < 16 + length:
                    data += await stream.receive_some(65536)
                fields = v5.COMMANDS[opcode].command.decode(data)
                data = data[16 + length :]
                self.seen.append(opcode)
                answer = self.values.get(opcode, {})
                if isinstance(answer, list):
                    answer = answer.pop(0) if len(answer) > 1 else answer[0]
                if answer is None:
                    continue  # silence
                if opcode == v5.SET_STATUS:
                    self.status = fields["device_status"]
                if opcode == v5.GET_STATUS:
                    answer = {"device_status": self.status} | answer
                layout = v5.COMMANDS[opcode].completion
                await stream.send_all(layout.encode({"command_id": ident, **answer}))


@asynccontextmanager
async def serving(liar: Liar):
    """The URL of a liar."""
    async with trio.open_nursery() as nursery:
        listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
        nursery.start_soon(trio.serve_listeners, liar, listeners)
        yield f"vof+tcp://127.0.0.1:{listeners[0].socket.getsockname()[1]}/it"
        nursery.cancel_scope.cancel()


def lying(lie=None, answers=None):
    return serving(Liar(lie, answers))
