# SPDX-License-Identifier: BSD-3-Clause
"""Dialect v0 on a queue pair, as the target. Pure.

As on a stream, its initiators do not look at the status of a request: one that is refused for good
gets the device's own word for failure, written to its last bytes, and one too many waits.
"""

from vof.errors import RemoteProtocolError
from vof.protocol import v0, v5
from vof.protocol.keyed_request import Request
from vof.protocol.keyed_target import HEADER_BYTES, KeyedTarget
from vof.protocol.registered import Desc
from vof.protocol.stream import Program
from vof.protocol.v0_answers import COMPLETION, V0Answers

VRING_COMMAND = v0.COMMANDS[v0.VRING].command.codec
DESC = v0.DESC.codec


class V0KeyedTarget(V0Answers, KeyedTarget):
    """See ``TargetStream``."""

    oftype = v0.OFTYPE_KEYED
    most_segs = v0.KEYED_MAX_SEGS
    message_bytes = HEADER_BYTES + DESC.size * v0.KEYED_MAX_SEGS

    # -- in -----------------------------------------------------------------------------------

    def _command(self, message: bytes) -> Program:
        opcode, command_id, _, ndesc = VRING_COMMAND.unpack_from(message)
        if opcode == v0.VRING and self._queue_size >= 0:
            yield from self._request(command_id, _table(message, ndesc))
            return
        row = v0.COMMANDS.get(opcode)
        fields = row.command.decode(message) if row else {}
        if opcode == v0.CONNECT and self._queue_size < 0:
            yield from self._connect(command_id, fields, _table(message, ndesc))
            return
        if row and len(message) != HEADER_BYTES:
            raise RemoteProtocolError(f"{row.name} in a message of {len(message)} bytes")
        yield from self._obey(opcode, command_id, fields)

    def _connect(
        self, command_id: int, fields: dict[str, int], table: "list[tuple[int, ...]]"
    ) -> Program:
        """Take CONNECT, and read its body."""
        if len(table) != 1:
            raise RemoteProtocolError(f"CONNECT with {len(table)} descriptors; it has one")
        address, length, _, flags, key = table[0]
        if flags & v0.VRING_DESC_F_WRITE:
            self._complete(v0.ERRNO[v5.ENOTGT], command_id)
        elif length != v0.BODY_BYTES or fields["oftype"] != self.oftype:
            self._complete(v0.ERRNO[v5.EBADVQN], command_id)
        else:
            yield from self._fetch((address, length, key))
            yield from self._connect_with(fields, command_id, self._fetched)

    def _request(self, command_id: int, table: "list[tuple[int, ...]]") -> Program:
        """Take one VRING command; an empty descriptor means nothing."""
        parts: tuple[list[Desc], list[Desc]] = [], []
        lengths = [0, 0]
        count = 0
        for address, length, _, flags, key in table:
            writable = bool(flags & v0.VRING_DESC_F_WRITE)
            count += writable
            lengths[writable] += length
            if length:
                parts[writable].append((address, length, key))
        refusal = (
            v5.ENOCMD
            if not self._queue_size
            else v5.EOUTVQBUF
            if lengths[0] > self._request_bytes or not table
            else v5.EINVQBUF
            if lengths[1] > self._request_bytes
            else v5.OK
        )
        if not refusal:
            while self.inflight >= self._queue_size:
                yield from self._pause()
            totals = lengths[0], lengths[1]
            refusal = yield from self._begin(command_id, totals, *parts, note=count)
        if refusal:
            self._refuse(command_id, v0.ERRNO[refusal], count, parts[1])

    # -- out ----------------------------------------------------------------------------------

    def _complete_request(self, request: Request, written: int, filled: int) -> bytes:
        capacity = request.capacity
        if request.slot is not None:
            stop = request.start - request.slot.address + capacity
            request.slot.view[stop - capacity + filled : stop] = bytes(capacity - filled)
        self._write(request, capacity)
        return COMPLETION.pack(v0.OK, request.command_id, request.note, written)

    def _complete(self, status: int, command_id: int, ndesc: int = 0, value: int = 0) -> None:
        self.errors += status != v0.OK
        self._sends.append(COMPLETION.pack(status, command_id, ndesc, value))
        self._marks.append(None)

    def _refuse(self, command_id: int, status: int, count: int, writable: list[Desc]) -> None:
        """Answer a request that cannot be carried out."""
        self.errors += 1
        request = None
        if writable and self._failure:
            address, length, key = writable[-1]
            failure = self._failure[-length:]
            slot = self._own.take(len(failure))
            slot.view[: len(failure)] = failure
            there = address + length - len(failure), len(failure), key
            request = Request(command_id, len(failure), 0, slot, [there])
            self._write(request, len(failure))
        self._sends.append(COMPLETION.pack(status, command_id, count, 0))
        self._marks.append(request)


def _table(message: bytes, ndesc: int) -> "list[tuple[int, ...]]":
    """Return the descriptors of a message: address, length, id, flags, key. All of it is theirs."""
    if len(message) != HEADER_BYTES + ndesc * DESC.size or ndesc > v0.KEYED_MAX_SEGS:
        raise RemoteProtocolError(
            f"a message of {len(message)} bytes with {ndesc} descriptors of {DESC.size}; "
            f"{v0.KEYED_MAX_SEGS} at most"
        )
    return list(DESC.iter_unpack(message[HEADER_BYTES:]))
