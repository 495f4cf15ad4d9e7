# SPDX-License-Identifier: BSD-3-Clause
"""Dialect v0 on a byte stream, as the target. Pure.

What its initiators look at, and what follows for us: Linux ignores the status of a request's
completion, wants every writable descriptor back, each with at least one byte, and stops for good
where one is missing. So a request is never refused for being one too many, it waits; and one that
is refused for good carries the device's own word for failure in its last byte.
"""

import struct

from vof.errors import LocalProtocolError, RemoteProtocolError
from vof.protocol import v0, v5
from vof.protocol.byte_target import ByteTarget
from vof.protocol.stream import INLINE_BYTES, Program
from vof.protocol.target_stream import check_used
from vof.protocol.v0_answers import COMPLETION, V0Answers
from vof.virtio.model import Chain

VRING_COMMAND = v0.COMMANDS[v0.VRING].command.codec
DESC = v0.DESC.codec
LENGTH = struct.Struct("<I")
LENGTH_AT = 8


class V0Target(V0Answers, ByteTarget):
    """See ``TargetStream``."""

    oftype = v0.OFTYPE_STREAM
    most_segs = v0.MAX_SEGS

    # -- in -----------------------------------------------------------------------------------

    def _commands(self) -> Program:
        inbox = self.inbox
        while True:
            if inbox.end - inbox.pos < 16:
                yield 16
                continue
            self.taken += 1
            opcode, command_id, _, ndesc = VRING_COMMAND.unpack_from(inbox.view, inbox.pos)
            if opcode == v0.VRING and self._queue_size >= 0:
                yield from self._request(command_id, ndesc)
            elif opcode == v0.CONNECT and self._queue_size < 0:
                yield from self._connect(command_id)
            else:
                yield from self._other(opcode, command_id)

    def _request(self, command_id: int, ndesc: int) -> Program:
        """Take one VRING command, at the front of the inbox."""
        inbox = self.inbox
        if ndesc > v0.MAX_SEGS:
            yield from self._too_many(command_id, ndesc)
            return
        head = 16 + DESC.size * ndesc
        while inbox.end - inbox.pos < head:
            yield head
        back = bytearray()
        out_length, in_length = _sort(bytes(inbox.view[inbox.pos + 16 : inbox.pos + head]), back)
        refusal = (
            v5.ENOCMD
            if not self._queue_size
            else v5.EOUTVQBUF
            if out_length > self._request_bytes or not ndesc
            else v5.EINVQBUF
            if in_length > self._request_bytes
            else 0
        )
        if refusal:
            inbox.pos += head
            yield from inbox.discard(out_length)
            yield from self._refuse(command_id, v0.ERRNO[refusal], back)
            return
        while self.inflight >= self._queue_size:
            yield from self._pause()
        size = out_length + in_length + head
        yield from self._afford(size)
        self._held += size
        inline = out_length if out_length <= INLINE_BYTES else 0
        while inbox.end - inbox.pos < head + inline:
            yield head + inline
        start = 16 + len(back)
        room = yield from self._room(out_length - inline, start + in_length, inline)
        inbox.pos += head
        if room is None:
            self._held -= size
            yield from inbox.discard(out_length)
            refusal = v5.EINVQBUF if in_length > out_length else v5.EOUTVQBUF
            yield from self._refuse(command_id, v0.ERRNO[refusal], back)
            return
        payload, slab, slot, _ = room
        stop = slot + start + in_length
        readable = yield from self._fetch(room, out_length, stop)
        writable = (slab[slot + start : stop],) if in_length else ()
        token = (command_id, in_length, size, slab, slot, payload, back)
        self.chains.append(Chain(readable, writable, token))
        self.inflight += 1
        inbox.lent += 1

    def _too_many(self, command_id: int, ndesc: int) -> Program:
        """Pass over a request of more descriptors than there may be, piece by piece."""
        inbox, back, out_length, left = self.inbox, bytearray(), 0, ndesc
        inbox.pos += 16
        while left:
            here = min(left, (inbox.end - inbox.pos) // DESC.size)
            if not here:
                yield DESC.size
                continue
            table = bytes(inbox.view[inbox.pos : inbox.pos + DESC.size * here])
            out_length += _sort(table, back)[0]
            inbox.pos += DESC.size * here
            left -= here
        if out_length > self._request_bytes:
            raise RemoteProtocolError(
                f"a request of {ndesc} descriptors and {out_length} bytes; GET_FEATURE says at "
                f"most {v0.MAX_SEGS}, and limits.request_bytes is {self._request_bytes}"
            )
        yield from inbox.discard(out_length)
        status = v5.EOUTVQBUF if self._queue_size else v5.ENOCMD
        yield from self._refuse(command_id, v0.ERRNO[status], back)

    def _connect(self, command_id: int) -> Program:
        """Take CONNECT, its descriptor and its body."""
        inbox, row = self.inbox, v0.COMMANDS[v0.CONNECT]
        fields = row.command.decode(inbox.view, inbox.pos)
        if fields["ndesc"] != 1:
            raise RemoteProtocolError(f"CONNECT with {fields['ndesc']} descriptors; it has one")
        head = 16 + DESC.size
        while inbox.end - inbox.pos < head:
            yield head
        back = bytearray(inbox.view[inbox.pos + 16 : inbox.pos + head])
        _, length, _, flags, _ = DESC.unpack(back)
        if flags & v0.VRING_DESC_F_WRITE:
            inbox.pos += head
            yield from self._refuse(command_id, v0.ERRNO[v5.ENOTGT], back)
            return
        if length != v0.BODY_BYTES or fields["oftype"] != v0.OFTYPE_STREAM:
            inbox.pos += head
            yield from inbox.discard(length)
            self._complete(v0.ERRNO[v5.EBADVQN], command_id)
            return
        while inbox.end - inbox.pos < head + length:
            yield head + length
        body = bytes(inbox.view[inbox.pos + head : inbox.pos + head + length])
        inbox.pos += head + length
        yield from self._connect_with(fields, command_id, body)

    def _other(self, opcode: int, command_id: int) -> Program:
        """Take any other command."""
        inbox = self.inbox
        row = v0.COMMANDS.get(opcode)
        fields = row.command.decode(inbox.view, inbox.pos) if row else {}
        inbox.pos += 16
        yield from self._obey(opcode, command_id, fields)

    # -- out ----------------------------------------------------------------------------------

    def push(self, chain: Chain, written: int, filled: int | None = None) -> None:
        """Queue the completion of a request. See ``DeviceQueue.push``."""
        try:
            command_id, capacity, size, slab, slot, payload, back = chain.token
        except TypeError:
            raise LocalProtocolError("this chain was pushed already") from None
        filled = check_used(written, filled, capacity)
        chain.token = None
        chain.readable = chain.writable = ()  # whoever keeps it keeps no memory
        COMPLETION.pack_into(slab, slot, v0.OK, command_id, len(back) // DESC.size, written)
        stop = slot + 16 + len(back)
        if filled < capacity:
            zeroes = _shorten(memoryview(back), filled)
            slab[stop + filled : stop + filled + zeroes] = bytes(zeroes)
            filled += zeroes
        slab[slot + 16 : stop] = back
        self._emit(slab, slot, stop + filled)
        self._held -= size
        self.inflight -= 1
        self.inbox.lent -= 1
        if payload is not None:
            self._spare(payload)

    def _complete(self, status: int, command_id: int, ndesc: int = 0, value: int = 0) -> None:
        self._cut()
        self.errors += status != v0.OK
        self.outbox.tail += COMPLETION.pack(status, command_id, ndesc, value)

    def _refuse(self, command_id: int, status: int, back: bytearray) -> Program:
        """Answer a request that cannot be carried out, with every writable descriptor.

        The answer can be much longer than the request: it waits until it fits the budget.
        """
        ndesc, end, last = len(back) // DESC.size, len(back), 0
        while self._failure and end and not last:  # the last one that is not empty
            end -= DESC.size
            (last,) = LENGTH.unpack_from(back, end + LENGTH_AT)
        if last > INLINE_BYTES:
            raise RemoteProtocolError(
                f"a request beyond the limits, whose failure cannot be told: {last} bytes at its "
                "end, where the status belongs"
            )
        if back:
            yield from self._afford(16 + len(back) + ndesc + last)
        if last:
            data = bytes(_shorten(memoryview(back)[:end], 0))
            data += self._failure[-last:].rjust(last, b"\0")
        else:
            data = bytes(_shorten(memoryview(back), 0))
        self._complete(status, command_id, ndesc)
        self.outbox.tail += back
        self.outbox.tail += data


def _sort(table: bytes, back: bytearray) -> tuple[int, int]:
    """Append the writable descriptors of a table to ``back``.

    Returns:
        How many bytes all are that are to be read, and all that are to be written.
    """
    out_length = in_length = 0
    for number, (_, length, _, flags, _) in enumerate(DESC.iter_unpack(table)):
        if flags & v0.VRING_DESC_F_WRITE:
            in_length += length
            back += table[DESC.size * number : DESC.size * (number + 1)]
        else:
            out_length += length
    return out_length, in_length


def _shorten(back: memoryview, filled: int) -> int:
    """Write into descriptors how much of each is returned, where not all was filled.

    Args:
        back: descriptors.
        filled: so many bytes, from the front, are the device's.

    Returns:
        How many zeroes follow those bytes: one for each descriptor that is not filled at all.
    """
    left, zeroes = filled, 0
    for at in range(LENGTH_AT, len(back), DESC.size):
        (capacity,) = LENGTH.unpack_from(back, at)
        used = min(capacity, left)
        left -= used
        if capacity and not used:
            used = 1
            zeroes += 1
        LENGTH.pack_into(back, at, used)
    return zeroes
