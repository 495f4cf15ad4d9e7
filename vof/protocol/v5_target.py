# SPDX-License-Identifier: BSD-3-Clause
"""Dialect v5 on a byte stream, as the target: commands in, completions out. Pure."""

import struct
from collections.abc import Mapping

from vof.errors import LocalProtocolError, RemoteProtocolError
from vof.protocol import v5
from vof.protocol.byte_target import ByteTarget
from vof.protocol.stream import INLINE_BYTES, Program
from vof.protocol.target_stream import Message
from vof.protocol.wire import Layout
from vof.virtio.model import Chain

HEADER = struct.Struct("<HH4xII")
"""A VQ command, and a completion: code, command id, and two lengths."""

NOTICES = {v5.ID_CONFIG_CHANGE: v5.CONFIG_EVENT, v5.ID_KEEPALIVE: v5.KEEPALIVE_EVENT}

NO_FIELDS: Mapping[str, int] = {}


class V5Target(ByteTarget):
    """See ``TargetStream``."""

    dialect = "v5"

    # -- in -----------------------------------------------------------------------------------

    def _commands(self) -> Program:
        inbox, outbox, unpack, vq = self.inbox, self.outbox, HEADER.unpack_from, v5.VQ
        limit = min(self._request_bytes, INLINE_BYTES)
        while True:
            view, pos, end = inbox.view, inbox.pos, inbox.end
            append, held = self.chains.append, self._held
            slab, slot = self._slab, self._slab_pos
            room = self._queue_size - self.inflight
            budget = self._grant
            if budget > self._queue_bytes:  # one alone may be larger
                budget = self._queue_bytes
            if outbox.pieces:
                budget -= outbox.pending()
            slab_size = len(slab)
            inline = 0 if inbox.apart else limit
            count = 0
            # The fast path: requests that are here whole, within every limit.
            while end - pos >= 16:
                opcode, command_id, out_length, in_length = unpack(view, pos)
                start = pos + 16
                pos_after = start + out_length
                stop = slot + 16 + in_length
                size = out_length + in_length
                if (
                    opcode != vq
                    or count >= room
                    or out_length > inline
                    or pos_after > end
                    or stop > slab_size
                    or held + size > budget
                    or in_length > limit
                ):
                    break
                append(
                    Chain(
                        (view[start:pos_after],) if out_length else (),
                        (slab[slot + 16 : stop],) if in_length else (),
                        (command_id, in_length, size, slab, slot, None),
                    )
                )
                held += size
                slot = stop
                pos = pos_after
                count += 1
            inbox.pos, self._slab_pos, self._held = pos, slot, held
            inbox.lent += count
            self.inflight += count
            self.taken += count
            del view, slab, append  # a program that waits holds no memory
            if end - pos < 16:
                yield 16
                continue
            self.taken += 1
            opcode, command_id, out_length, in_length = unpack(inbox.view, pos)
            if opcode == vq and self._queue_size >= 0:
                yield from self._request(command_id, out_length, in_length)
            else:
                yield from self._other(opcode, command_id)

    def _request(self, command_id: int, out_length: int, in_length: int) -> Program:
        """Take one VQ command, at the front of the inbox, the slow way."""
        inbox = self.inbox
        refusal = (
            v5.ENOCMD
            if not self._queue_size
            else v5.EOUTVQBUF
            if out_length > self._request_bytes
            else v5.EINVQBUF
            if in_length > self._request_bytes
            else v5.ECMDQUOT
            if self.inflight >= self._queue_size
            else 0
        )
        if refusal:
            inbox.pos += 16
            yield from inbox.discard(out_length)
            self._complete(v5.COMPLETION, command_id, refusal)
            return
        size = out_length + in_length
        yield from self._afford(size)
        self._held += size
        inline = out_length if out_length <= INLINE_BYTES else 0
        while inbox.end - inbox.pos < 16 + inline:
            yield 16 + inline
        room = yield from self._room(out_length - inline, 16 + in_length, inline)
        inbox.pos += 16
        if room is None:
            self._held -= size
            yield from inbox.discard(out_length)
            refusal = v5.EINVQBUF if in_length > out_length else v5.EOUTVQBUF
            self._complete(v5.COMPLETION, command_id, refusal)
            return
        payload, slab, slot, _ = room
        stop = slot + 16 + in_length
        readable = yield from self._fetch(room, out_length, stop)
        writable = (slab[slot + 16 : stop],) if in_length else ()
        token = (command_id, in_length, size, slab, slot, payload)
        self.chains.append(Chain(readable, writable, token))
        self.inflight += 1
        inbox.lent += 1

    def _other(self, opcode: int, command_id: int) -> Program:
        """Take one command other than VQ, with its body."""
        inbox = self.inbox
        row = v5.COMMANDS.get(opcode)
        fields = row.command.decode(inbox.view, inbox.pos) if row else {}
        body = b""
        length = fields["length"] if opcode == v5.CONNECT else 0
        if length not in (0, v5.BODY_BYTES):
            raise RemoteProtocolError(
                f"CONNECT with a body of {length} bytes; it has {v5.BODY_BYTES} or none",
                v5.EBADVQN,
            )
        while inbox.end - inbox.pos < 16 + length:
            yield 16 + length
        if length:
            body = bytes(inbox.view[inbox.pos + 16 : inbox.pos + 16 + length])
        inbox.pos += 16 + length
        queues = row.queues if row else ""
        yield from self._message(Message(opcode, command_id, fields, body, queues))

    # -- out ----------------------------------------------------------------------------------

    def push(self, chain: Chain, written: int, filled: int | None = None) -> None:
        """Queue the completion of a request. See ``DeviceQueue.push``."""
        try:
            command_id, capacity, size, slab, slot, payload = chain.token
        except TypeError:
            raise LocalProtocolError("this chain was pushed already") from None
        if filled is None:
            filled = written
        if not 0 <= written <= filled <= capacity:
            raise LocalProtocolError(
                f"used length {written} of {filled} filled bytes in a buffer of {capacity}"
            )
        chain.token = None
        chain.readable = chain.writable = ()  # whoever keeps it keeps no memory
        HEADER.pack_into(slab, slot, 0, command_id, written, filled)
        if slab is self._run and slot == self._run_stop:
            self._run_stop = slot + 16 + filled
        else:
            self._cut()
            self._run, self._run_start, self._run_stop = slab, slot, slot + 16 + filled
        self._held -= size
        self.inflight -= 1
        self.inbox.lent -= 1
        if payload is not None:
            self._spare(payload)

    def answer(self, message: Message, status: int, **fields: int) -> None:
        """Queue any other completion."""
        row = v5.COMMANDS.get(message.opcode)
        self._complete(row.completion if row else v5.COMPLETION, message.command_id, status, fields)

    def notice(self, ident: int, **fields: int) -> bool:
        """Queue a notice."""
        self._complete(NOTICES[ident], ident, v5.OK, fields)
        return True

    def _complete(
        self, layout: Layout, command_id: int, status: int, fields: Mapping[str, int] = NO_FIELDS
    ) -> None:
        self._cut()
        self.errors += status != v5.OK
        self.outbox.tail += layout.encode({"status": status, "command_id": command_id, **fields})
