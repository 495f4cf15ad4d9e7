# SPDX-License-Identifier: BSD-3-Clause
"""Dialect v5 on a byte stream, as the target: commands in, completions out. Pure.

Memory, which is what makes this fast and bounded: the writable part of a request and the header
of its completion lie side by side in a *slab*, in the order in which the commands came. A model
that completes a batch in order leaves one contiguous run of bytes, sent with one call and never
copied. When nothing is in flight, slab and scratch buffer start again from the front.

Nothing is allocated for a request before its lengths are checked, and a queue whose requests and
unsent completions reach ``queue_bytes`` stops reading: back-pressure is the peer's socket.
"""

import struct
from typing import NamedTuple

from vof.errors import LocalProtocolError, RemoteProtocolError
from vof.memory import HEAP, Buffer, Pool
from vof.protocol import v5
from vof.protocol.stream import INLINE_BYTES, Inbox, Outbox, Program
from vof.virtio.model import Chain

HEADER = struct.Struct("<HH4xII")
"""A VQ command, and a completion: code, command id, and two lengths."""

SLAB_BYTES = 256 * 1024
SPARES = 16


class Message(NamedTuple):
    """A command other than VQ.

    Attributes:
        opcode: its number, known or not.
        command_id: to be echoed.
        fields: by name; empty for an unknown opcode.
        body: the CONNECT body, or b"".
    """

    opcode: int
    command_id: int
    fields: dict[str, int]
    body: bytes


class TargetStream:
    """One connection's two directions.

    Attributes:
        chains: requests that came and were not taken yet; taken by whoever serves the queue.
        messages: other commands that came and were not taken yet.
        inflight: how many requests were not pushed yet.
        paused: the parser waits for requests to end: call ``inbox.advance()`` when some did.
    """

    def __init__(self, request_bytes: int, queue_bytes: int) -> None:
        self.inbox = Inbox()
        self.outbox = Outbox()
        self.chains: list[Chain] = []
        self.messages: list[Message] = []
        self.inflight = 0
        self.paused = False
        self._request_bytes = request_bytes
        self._queue_bytes = queue_bytes
        self._queue_size = -1  # not bound yet
        self._held = 0
        self._pool: Pool = HEAP
        self._slab = memoryview(b"")
        self._slab_pos = 0
        self._spares: dict[int, list[memoryview]] = {}
        self._run: memoryview | None = None
        self._run_start = self._run_stop = 0
        self._sending: list[memoryview] = []
        self.inbox.run(self._commands())

    def bind(self, queue_size: int, pool: Pool) -> None:
        """Become a queue's stream.

        Args:
            queue_size: requests that may be in flight; 0 for a control queue, which has none.
            pool: where payload goes.
        """
        self._queue_size = queue_size
        self._pool = pool

    # -- in -----------------------------------------------------------------------------------

    def _commands(self) -> Program:
        inbox, outbox, unpack, vq = self.inbox, self.outbox, HEADER.unpack_from, v5.VQ
        limit = min(self._request_bytes, INLINE_BYTES)
        while True:
            view, pos, end = inbox.view, inbox.pos, inbox.end
            append, held = self.chains.append, self._held
            slab, slot = self._slab, self._slab_pos
            room = self._queue_size - self.inflight
            budget = self._queue_bytes
            if outbox.pieces:
                budget -= outbox.pending()
            slab_size = len(slab)
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
                    or out_length > limit
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
            del view, slab, append  # a program that waits holds no memory
            if end - pos < 16:
                yield 16
                continue
            opcode, command_id, out_length, in_length = unpack(inbox.view, pos)
            if opcode == vq and self._queue_size >= 0:
                yield from self._request(command_id, out_length, in_length)
            else:
                yield from self._message(opcode, command_id)

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
            self.answer(v5.COMMANDS[v5.VQ].completion.name, command_id, refusal)
            return
        size = out_length + in_length
        while (self.inflight or self.outbox.pending()) and (
            self._held + size + self.outbox.pending() > self._queue_bytes
        ):
            self.paused = True
            yield None
            self.paused = False
        payload: memoryview | None = None
        readable: tuple[memoryview, ...] = ()
        if out_length > INLINE_BYTES:
            payload = self._take(out_length)
            inbox.pos += 16
            here = min(inbox.end - inbox.pos, out_length)
            payload[:here] = inbox.view[inbox.pos : inbox.pos + here]
            inbox.pos += here
            if here < out_length:
                yield payload[here:out_length]
            readable = (payload[:out_length],)
        else:
            while inbox.end - inbox.pos < 16 + out_length:
                yield 16 + out_length
            inbox.pos += 16 + out_length
            if out_length:
                readable = (inbox.view[inbox.pos - out_length : inbox.pos],)
        slab, slot = self._slot(16 + in_length)
        writable = (slab[slot + 16 : slot + 16 + in_length],) if in_length else ()
        token = (command_id, in_length, size, slab, slot, payload)
        self.chains.append(Chain(readable, writable, token))
        self._held += size
        self.inflight += 1
        inbox.lent += 1

    def _message(self, opcode: int, command_id: int) -> Program:
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
        self.messages.append(Message(opcode, command_id, fields, body))
        self.paused = True
        yield None  # one at a time: what follows may depend on it
        self.paused = False

    # -- memory -------------------------------------------------------------------------------

    def _slot(self, size: int) -> tuple[memoryview, int]:
        """Return a slab and a place of ``size`` bytes in it."""
        if size > SLAB_BYTES // 4:
            return self._take(size), 0
        if self._slab_pos + size > len(self._slab):
            self._slab, self._slab_pos = self._pool.alloc(SLAB_BYTES), 0
        slot = self._slab_pos
        self._slab_pos += size
        return self._slab, slot

    def _take(self, size: int) -> memoryview:
        """Return a large buffer, of this queue's spare ones if possible."""
        spares = self._spares.get(size)
        return spares.pop() if spares else self._pool.alloc(size)

    def _spare(self, buffer: memoryview) -> None:
        """Keep a large buffer for later; nobody else may hold a view of it."""
        spares = self._spares
        size = len(buffer)
        if size not in spares:
            if len(spares) >= 2:
                spares.clear()
            spares[size] = []
        if len(spares[size]) < SPARES:
            spares[size].append(buffer)

    def trim(self) -> None:
        """Let go of all memory that holds nothing."""
        self._spares.clear()
        self.inbox.trim()
        if not self.inflight and not self.outbox.pending():
            self._slab, self._slab_pos = memoryview(b""), 0

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

    def answer(self, layout: str, command_id: int, status: int, **fields: int) -> None:
        """Queue any other completion."""
        self._cut()
        self.outbox.tail += v5.LAYOUTS[layout].encode(
            {"status": status, "command_id": command_id, **fields}
        )

    def _cut(self) -> None:
        """End the contiguous run of completions."""
        if (run := self._run) is not None:
            self.outbox.append(run[self._run_start : self._run_stop])
            if run is not self._slab:
                self._sending.append(run)
            self._run = None

    def seal(self) -> list[Buffer]:
        """Return all pieces that wait to be sent, in order; tell ``outbox.sent``."""
        outbox = self.outbox
        if (run := self._run) is None or outbox.tail:
            self._cut()
            return outbox.seal()
        outbox.pieces.append(run[self._run_start : self._run_stop])
        if run is not self._slab:
            self._sending.append(run)
        self._run = None
        return outbox.pieces

    @property
    def unsent(self) -> bool:
        """Whether something was pushed or answered since ``seal``."""
        return self._run is not None or bool(self.outbox.tail)

    def all_sent(self) -> None:
        """Note that nothing waits to be sent any more: memory can be used again."""
        if self._sending:
            for slab in self._sending:
                if len(slab) != SLAB_BYTES:
                    self._spare(slab)
            self._sending.clear()
        if not self.inflight:
            self._slab_pos = 0
