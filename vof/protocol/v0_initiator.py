# SPDX-License-Identifier: BSD-3-Clause
"""Dialect v0 on a byte stream, as the initiator. Pure.

The C target is taken as it is. What ends its life is never sent: transport features, keepalive, an
empty descriptor. What it does not implement it answers with a completion of zeroes, and so a
refused CONNECT: no command of ours has the id 0, and a completion that has it belongs to the oldest
command in flight, for it answers in order. How many bytes follow a completion is known from the
request alone.
"""

from collections.abc import Sequence

from vof.errors import CommandError, InvalidArgument, RemoteProtocolError
from vof.memory import Buffer
from vof.protocol import v0, v5
from vof.protocol.byte_initiator import SMALL_BYTES, ByteInitiator
from vof.protocol.initiator_stream import ABANDONED
from vof.protocol.stream import INLINE_BYTES, Program
from vof.protocol.v0_commands import COMPLETION, V0Commands, common_status

VRING_COMMAND = v0.COMMANDS[v0.VRING].command.codec
DESC = v0.DESC.codec


class V0Initiator(V0Commands, ByteInitiator):
    """See ``InitiatorStream``."""

    oftype = v0.OFTYPE_STREAM

    def __init__(self, size: int, control: bool) -> None:
        super().__init__(size, control)
        self._writable = [0] * (size + 1)  # descriptors, by command id

    # -- out ----------------------------------------------------------------------------------

    def add(self, sgs: Sequence[Buffer], out_sgs: int, data: object, ctx: object) -> None:
        """Append one VRING command; an empty segment is left out.

        Raises:
            InvalidArgument: all segments are empty, or they are too many.
        """
        readable = [sg for sg in sgs[:out_sgs] if len(sg)]
        writable = [memoryview(sg) for sg in sgs[out_sgs:] if len(sg)]
        in_length = sum(map(len, writable))
        if not readable and not writable:
            raise InvalidArgument("dialect v0 carries no buffer without any byte")
        ndesc = len(readable) + len(writable)
        if ndesc > v0.MAX_SEGS:
            raise InvalidArgument(
                f"a buffer of {ndesc} segments; dialect v0 carries at most {v0.MAX_SEGS}"
            )
        first = len(writable)  # writable descriptors are numbered from 0: they come back
        descs, offset = bytearray(), 0
        for number, sg in enumerate(readable, first):
            descs += DESC.pack(offset, len(sg), number, 0, 0)
            offset += len(sg)
        for number, space in enumerate(writable):
            descs += DESC.pack(0, len(space), number, v0.VRING_DESC_F_WRITE, 0)
        command_id = self.free.pop()
        self._entries[command_id] = (data, ctx, writable, in_length)
        self._writable[command_id] = first
        outbox = self.outbox
        outbox.tail += VRING_COMMAND.pack(v0.VRING, command_id, offset & 0xFFFFFFFF, ndesc)
        outbox.tail += descs
        for sg in readable:
            if len(sg) <= SMALL_BYTES:
                outbox.tail += sg
            else:
                outbox.append(sg)

    def _emit(self, command_id: int, command: bytes, body: bytes) -> None:
        self.outbox.tail += command
        if body:
            self.outbox.tail += v0.DESC.encode({"length": len(body)}) + body

    # -- in -----------------------------------------------------------------------------------

    def _completions(self) -> Program:
        inbox = self.inbox
        while True:
            if inbox.end - inbox.pos < 16:
                yield 16
                continue
            status, command_id, _, value = COMPLETION.unpack_from(inbox.view, inbox.pos)
            if self._answers(command_id, status, value):
                inbox.pos += 16
                continue
            entry = self._entries[command_id] if command_id < len(self._entries) else None
            if entry is None:
                raise RemoteProtocolError(
                    f"a completion for command id {command_id}: none in flight"
                )
            if value > entry[3]:
                raise RemoteProtocolError(
                    f"a completion claims a used length of {value}, "
                    f"for a request with {entry[3]} writable bytes"
                )
            del entry  # a program that waits holds no memory
            yield from self._request(command_id, status, value)

    def _request(self, command_id: int, status: int, length: int) -> Program:
        """Take one completion of VRING, at the front of the inbox, with all that follows it."""
        inbox = self.inbox
        head = 16 + DESC.size * self._writable[command_id]
        while inbox.end - inbox.pos < head:
            yield head
        sizes, total = self._returned(command_id, inbox.view[inbox.pos + 16 : inbox.pos + head])
        if total <= INLINE_BYTES:
            while inbox.end - inbox.pos < head + total:
                yield head + total
        inbox.pos += head
        entry = self._entries[command_id]
        assert entry is not None
        spaces = entry[2]
        pieces = [spaces[number][:size] for number, size in sizes.items()] if spaces else []
        del entry, spaces
        self._filling = (command_id, pieces)  # abandon() may come while this waits
        yield from self._fill(pieces, total)
        entry = self._entries[command_id]
        assert entry is not None
        self._entries[command_id] = None
        self.free.append(command_id)
        if status:
            code = common_status(v0.VRING, {}, status)
            raise CommandError(f"the target refused a request: {v5.status_text(code)}", code)
        if entry[0] is not ABANDONED:
            self.used.append((entry[0], length, entry[1]))

    def _returned(self, command_id: int, table: memoryview) -> tuple[dict[int, int], int]:
        """Return which descriptors bring how many bytes, in their order, and how many in all."""
        sizes: dict[int, int] = {}
        entry = self._entries[command_id]
        assert entry is not None
        spaces = entry[2]
        for _, length, number, _, _ in DESC.iter_unpack(table):
            if number in sizes or number >= self._writable[command_id]:
                raise RemoteProtocolError(
                    f"descriptor {number} in a completion: not asked for, or there twice"
                )
            if spaces and length > len(spaces[number]):
                raise RemoteProtocolError(
                    f"descriptor {number} of {len(spaces[number])} bytes comes back with {length}"
                )
            sizes[number] = length
        return sizes, sum(sizes.values())
