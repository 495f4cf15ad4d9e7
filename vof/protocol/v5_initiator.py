# SPDX-License-Identifier: BSD-3-Clause
"""Dialect v5 on a byte stream, as the initiator: commands out, completions in. Pure."""

import struct
from collections.abc import Mapping, Sequence

from vof.errors import CommandError, RemoteProtocolError
from vof.memory import Buffer
from vof.protocol import v5
from vof.protocol.byte_initiator import SMALL_BYTES, ByteInitiator
from vof.protocol.initiator_stream import (
    ABANDONED,
    SENT,
    Answer,
    answered,
    scatter,
)
from vof.protocol.session import Event
from vof.protocol.stream import INLINE_BYTES, Program

HEADER = struct.Struct("<HH4xII")


class V5Initiator(ByteInitiator):
    """See ``InitiatorStream``."""

    # -- out ----------------------------------------------------------------------------------

    def add(self, sgs: Sequence[Buffer], out_sgs: int, data: object, ctx: object) -> None:
        """Append one VQ command. There must be a free id; ``sgs`` is not empty."""
        outbox = self.outbox
        command_id = self.free.pop()
        if len(sgs) == 2 and out_sgs == 1:
            head, tail = sgs
            out_length, in_length = len(head), len(tail)
            writable = (tail if type(tail) is memoryview else memoryview(tail),)
            if out_length <= SMALL_BYTES:
                self._entries[command_id] = (data, ctx, writable, in_length)
                outbox.tail += HEADER.pack(v5.VQ, command_id, out_length, in_length)
                outbox.tail += head
                return
        out_length = sum(map(len, sgs[:out_sgs]))
        spaces = [memoryview(sg) for sg in sgs[out_sgs:]]
        in_length = sum(map(len, spaces))
        self._entries[command_id] = (data, ctx, spaces, in_length)
        outbox.tail += HEADER.pack(v5.VQ, command_id, out_length, in_length)
        for segment in sgs[:out_sgs]:
            if len(segment) <= SMALL_BYTES:
                outbox.tail += segment
            else:
                outbox.append(segment)

    def command(self, opcode: int, fields: Mapping[str, int], body: bytes, data: object) -> None:
        """Append any other command. See ``InitiatorStream``."""
        self.session.sent(SENT.get(opcode, Event.COMMAND))
        command_id = self.free.pop()
        self._entries[command_id] = (data, opcode, None, 0)
        values = {"opcode": opcode, "command_id": command_id, **fields}
        self.outbox.tail += v5.COMMANDS[opcode].command.encode(values) + body

    # -- in -----------------------------------------------------------------------------------

    def _completions(self) -> Program:
        inbox, unpack, entries = self.inbox, HEADER.unpack_from, self._entries
        append, release, size = self.used.append, self.free.append, len(entries)
        while True:
            view, pos, end = inbox.view, inbox.pos, inbox.end
            while end - pos >= 16:
                status, command_id, length, in_length = unpack(view, pos)
                entry = entries[command_id] if command_id < size else None
                if entry is None or status:
                    break
                data, ctx, writable, capacity = entry
                stop = pos + 16 + in_length
                if (
                    writable is None
                    or stop > end
                    or not length <= in_length <= capacity
                    or data is ABANDONED
                ):
                    break
                if in_length:
                    if len(writable) == 1:
                        writable[0][:in_length] = view[pos + 16 : stop]
                    else:
                        scatter(writable, view[pos + 16 : stop])
                entries[command_id] = None
                release(command_id)
                append((data, length, ctx))
                pos = stop
            inbox.pos = pos
            entry = data = ctx = writable = None  # a program that waits holds no memory
            del view
            if end - pos < 16:
                yield 16
                continue
            yield from self._completion(inbox.view[pos : pos + 16])

    def _completion(self, header: memoryview) -> Program:
        """Take one completion, at the front of the inbox, the slow way."""
        inbox = self.inbox
        status, command_id, length, in_length = HEADER.unpack(header)
        entry = self._entries[command_id] if command_id < len(self._entries) else None
        if entry is None:
            self._notice(command_id, header)
            inbox.pos += 16
            return
        data, ctx, writable, capacity = entry
        if writable is None:
            fields = v5.COMMANDS[ctx].completion.decode(header)
            self.session.received(answered(ctx, status))
            self.answers.append(Answer(data, status, fields))
            inbox.pos += 16
        elif status:
            raise CommandError(f"the target refused a request: {v5.status_text(status)}", status)
        elif not length <= in_length <= capacity:
            raise RemoteProtocolError(
                f"a completion claims a used length of {length} and {in_length} bytes, "
                f"for a request with {capacity} writable bytes"
            )
        else:
            del header  # a program that waits holds no memory
            yield from self._payload(command_id, list(writable), in_length)
            data = self._entries[command_id][0]  # it may be abandoned now
            if data is not ABANDONED:
                self.used.append((data, length, ctx))
        self._entries[command_id] = None
        self.free.append(command_id)

    def _payload(self, command_id: int, segments: list[memoryview], length: int) -> Program:
        """Take header and payload of a completion into the segments, large payload directly."""
        inbox = self.inbox
        self._filling = (command_id, segments)  # abandon() may come while this waits
        if length <= INLINE_BYTES:
            while inbox.end - inbox.pos < 16 + length:
                yield 16 + length
        inbox.pos += 16
        yield from self._fill(segments, length)

    def _notice(self, command_id: int, header: memoryview) -> None:
        if not self._control or command_id not in v5.RESERVED_IDS:
            raise RemoteProtocolError(f"a completion for command id {command_id}: none in flight")
        self.session.received(Event.NOTICE)
        self.notices.append((command_id, v5.CONFIG_EVENT.decode(header)))
