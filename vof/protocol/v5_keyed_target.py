# SPDX-License-Identifier: BSD-3-Clause
"""Dialect v5 on a queue pair, as the target: commands in, completions out. Pure."""

from collections.abc import Mapping, Sequence

from vof.errors import OutOfMemory, RemoteProtocolError
from vof.memory import address_of
from vof.protocol import v5
from vof.protocol.keyed_request import Request
from vof.protocol.keyed_target import KeyedTarget
from vof.protocol.registered import REMOTE_WRITE, Desc, Keys, own_region
from vof.protocol.stream import Program
from vof.protocol.target_stream import Message
from vof.protocol.v5_keyed import (
    DESC,
    DESCS,
    EAGER,
    EAGER_DONE,
    FEATURES,
    HEADER,
    SHORT,
    from_fields,
    to_fields,
)
from vof.protocol.v5_target import NO_FIELDS, NOTICES
from vof.protocol.wire import Layout
from vof.virtio.model import Chain

EAGER_BYTES = 1 << 20
"""Of the eager buffer of a virtqueue, at most."""
EAGER_PIECE = 4096 + 256
"""Of it, for each request that may be in flight: a page, and what describes it."""


class V5KeyedTarget(KeyedTarget):
    """See ``TargetStream``."""

    dialect = "v5"
    transport_features = FEATURES
    message_bytes = HEADER.size + DESCS * DESC.size
    _eager = memoryview(b"")
    _keys: Keys
    _reply: Desc

    # -- in -----------------------------------------------------------------------------------

    def _quick(self, message: bytes) -> bool:
        """Begin a request that was written beforehand, with one place for its answer."""
        if len(message) != SHORT.size or self.inflight >= self._queue_size:
            return False
        opcode, command_id, place, out_length, in_length, address, length, key = SHORT.unpack(
            message
        )
        most = self._request_bytes
        if (
            opcode != v5.VQ_KEYED_EAGER_BUF
            or place + out_length > len(self._eager)
            or not 0 < length == in_length <= most
            or not 0 < out_length <= most
            or not self._fits(size := out_length + length)
            or (slot := self._try(size)) is None
        ):
            return False
        request = Request(command_id, length, size, slot, ((address, length, key),))
        request.start += out_length
        request.note = 1
        view = slot.view
        readable = view[:out_length]
        readable[:] = self._eager[place : place + out_length]
        chain = Chain((readable,), (view[out_length:size],), request)
        self._held += size
        self.inflight += 1
        if self._arriving:
            self._arriving.append((request, chain))
        else:
            self.chains.append(chain)
        return True

    def _command(self, message: bytes) -> Program:
        opcode, command_id, out_length, in_length = HEADER.unpack_from(message)
        if (len(message) - HEADER.size) % DESC.size:
            raise RemoteProtocolError(
                f"a message of {len(message)} bytes: a command has {HEADER.size}, and each keyed "
                f"descriptor {DESC.size}"
            )
        descs = list(DESC.iter_unpack(message[HEADER.size :]))
        if self._queue_size < 0 or opcode not in DATA:
            yield from self._other(opcode, command_id, message, descs)
            return
        place: int | None = None
        if opcode == v5.VQ_KEYED_EAGER_BUF:
            _, _, place, out_length, in_length = EAGER.unpack(message[: EAGER.size])
        written = out_length if place is not None else 0
        readable, writable = split(descs, out_length - written, in_length)
        if refusal := self._refusal(out_length, in_length, place):
            self._complete(v5.COMPLETION, command_id, refusal)
            return
        eager = None if place is None else self._eager[place : place + out_length]
        lengths = out_length, in_length
        refusal = yield from self._begin(
            command_id, lengths, readable, writable, eager, eager is not None
        )
        if refusal:
            self._complete(v5.COMPLETION, command_id, refusal)

    def _refusal(self, out_length: int, in_length: int, place: int | None) -> int:
        """Return the status that refuses a request, 0 for none."""
        if not self._queue_size or (place is not None and not self._eager):
            return v5.ENOCMD
        if out_length > self._request_bytes:
            return v5.EOUTVQBUF
        if place is not None and place + out_length > len(self._eager):
            return v5.EOUTVQBUF
        if in_length > self._request_bytes:
            return v5.EINVQBUF
        return v5.ECMDQUOT if self.inflight >= self._queue_size else v5.OK

    def _other(self, opcode: int, command_id: int, message: bytes, descs: list[Desc]) -> Program:
        """Take one command other than a request, with its body."""
        row = v5.COMMANDS.get(opcode)
        fields = row.command.decode(message) if row else {}
        body = b""
        lengths = [length for _, length, _ in descs]
        if opcode == v5.CONNECT:
            length = fields["length"]
            if length not in (0, v5.BODY_BYTES) or lengths != ([length] if length else []):
                raise RemoteProtocolError(
                    f"CONNECT with a body of {length} bytes, in {lengths}; it has "
                    f"{v5.BODY_BYTES} in one descriptor, or none",
                    v5.EBADVQN,
                )
            if descs:
                yield from self._fetch(descs[0])
                body = self._fetched
        elif opcode == v5.GET_KEYED_EAGER_BUF:
            if len(descs) != 1:
                raise RemoteProtocolError(
                    f"GET_KEYED_EAGER_BUF with {len(descs)} keyed descriptors; it has one"
                )
            self._reply = descs[0]
            fields["descs"] = min(fields["descs"], lengths[0] // DESC.size)
        elif row and descs:
            raise RemoteProtocolError(f"{row.name} with {len(descs)} keyed descriptors")
        queues = row.queues if row else ""
        yield from self._message(Message(opcode, command_id, fields, body, queues))

    # -- out ----------------------------------------------------------------------------------

    def _complete_request(self, request: Request, written: int, filled: int) -> bytes:
        self._write(request, filled)
        if request.note:
            return EAGER_DONE.pack(v5.OK, request.command_id, written)
        return HEADER.pack(v5.OK, request.command_id, written, filled)

    def answer(self, message: Message, status: int, **fields: int) -> None:
        """Queue any other completion."""
        row = v5.COMMANDS.get(message.opcode)
        layout = row.completion if row else v5.COMPLETION
        if message.opcode != v5.GET_KEYED_EAGER_BUF or status:
            self._complete(layout, message.command_id, status, fields)
            return
        data = b"".join(DESC.pack(*desc) for desc in from_fields(fields))
        slot = self._own.take(max(1, len(data)))
        slot.view[: len(data)] = data
        request = Request(message.command_id, len(data), 0, slot, [self._reply])
        self._write(request, len(data))
        self._complete(layout, message.command_id, status, {"descs": fields["descs"]}, request)

    def notice(self, ident: int, **fields: int) -> bool:
        """Queue a notice."""
        self._complete(NOTICES[ident], ident, v5.OK, fields)
        return True

    def _complete(
        self,
        layout: Layout,
        command_id: int,
        status: int,
        fields: Mapping[str, int] = NO_FIELDS,
        request: Request | None = None,
    ) -> None:
        self.errors += status != v5.OK
        values = {"status": status, "command_id": command_id, **fields}
        self._sends.append(layout.encode(values))
        self._marks.append(request)

    # -- the eager buffer -----------------------------------------------------------------------

    def eager_buffer(self, most: int) -> dict[str, int]:
        """Return memory that the initiator may write. See ``TargetStream``."""
        if not self._eager:
            size = min(self._queue_size * EAGER_PIECE, EAGER_BYTES)
            if not most or not self._budget.hold(size):
                return to_fields([])
            try:
                region = own_region(size)
                self._keys = self._memory.domain.register(region, REMOTE_WRITE)
            except OutOfMemory:
                self._budget.let_go(size)
                return to_fields([])
            self._eager = region.view[:size]
        return to_fields([(address_of(self._eager), len(self._eager), self._keys.remote)][:most])

    def release(self) -> None:
        """Let go of everything. See ``TargetStream``."""
        super().release()
        if self._eager:
            self._budget.let_go(len(self._eager))
            self._memory.domain.deregister(self._keys)
            self._eager = memoryview(b"")


DATA = frozenset((v5.VQ, v5.VQ_KEYED_EAGER_BUF))


def split(
    descs: Sequence[Desc], out_length: int, in_length: int
) -> tuple[Sequence[Desc], Sequence[Desc]]:
    """Return the descriptors of the readable part, and those of the writable one.

    Raises:
        RemoteProtocolError: they are not exactly that.
    """
    if len(descs) > DESCS:
        raise RemoteProtocolError(f"a request of {len(descs)} keyed descriptors; {DESCS} at most")
    at = count = 0
    for _, length, _ in descs:
        if not length:
            raise RemoteProtocolError("a keyed descriptor of no bytes")
        if at < out_length < at + length:
            raise RemoteProtocolError(
                f"a keyed descriptor of {length} bytes at {at}, over the end of a readable part "
                f"of {out_length}"
            )
        count += at < out_length
        at += length
    if at != out_length + in_length:
        raise RemoteProtocolError(
            f"keyed descriptors of {at} bytes, for a request of {out_length} and {in_length}"
        )
    return descs[:count], descs[count:]
