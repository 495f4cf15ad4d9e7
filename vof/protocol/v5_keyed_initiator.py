# SPDX-License-Identifier: BSD-3-Clause
"""Dialect v5 on a queue pair, as the initiator. Pure.

Where the target has an eager buffer, the readable part of a small request is written there, in
front of the command: the target would have to read it before it could begin, which takes as long as
the whole rest. Each command id has a piece of the buffer to itself; what is shortest and most
frequent goes to its front, together.
"""

from collections.abc import Mapping, Sequence

from vof.errors import CommandError, RemoteProtocolError
from vof.memory import Buffer
from vof.protocol import v5
from vof.protocol.initiator_stream import SENT, Answer, answered
from vof.protocol.keyed import WRITE, Post
from vof.protocol.keyed_heads import HEAD_BYTES, Heads, heads_bytes
from vof.protocol.keyed_initiator import NOTHING, KeyedInitiator, Layout, Lent, gather, in_a_row
from vof.protocol.registered import Desc, Slot
from vof.protocol.session import Event
from vof.protocol.v5_keyed import (
    DESC,
    EAGER,
    EAGER_DONE,
    FEATURES,
    HEADER,
    SHORT,
    from_fields,
    to_fields,
)

EAGER_BYTES = 8 * 1024
"""Readable parts up to this size are written eagerly: the target copies them once more."""
LEAST_DESCS = 2
"""Without the transport feature: one for each part of a request."""


class V5KeyedInitiator(KeyedInitiator):
    """See ``InitiatorStream``."""

    transport_features = FEATURES
    joins = True

    def __init__(self, size: int, control: bool) -> None:
        super().__init__(size, control)
        self._most = LEAST_DESCS
        self._eager: list[Desc] = []
        self._piece = self._first = 0
        self._heads: Heads | None = None  # of an eager buffer in one piece
        self._places: dict[int, int] = {}  # of heads, by command ids

    def allow(self, descs: int, eager: Mapping[str, int] | None) -> None:
        """Use what the target allows on this virtqueue. See ``InitiatorStream``."""
        self._most = max(LEAST_DESCS, descs)
        self._eager = from_fields(eager) if eager else []
        total, size = sum(length for _, length, _ in self._eager), len(self._entries)
        if len(self._eager) == 1 and total >= 2 * heads_bytes(size):
            self._heads = Heads(self._own[0], size, self._eager[0])
            self._first = heads_bytes(size)
        self._piece = min((total - self._first) // size, EAGER_BYTES)

    def posts(self, room: int) -> list[Post]:
        """Return what is to be posted. See ``KeyedStream``."""
        if self._heads is not None:
            self._heads.seal(self._posts)
        return super().posts(room)

    # -- out ----------------------------------------------------------------------------------

    def add(self, sgs: Sequence[Buffer], out_sgs: int, data: object, ctx: object) -> None:
        """Append one request. See ``InitiatorStream``."""
        heads = self._heads
        if heads and len(sgs) == 2 and out_sgs == 1 and 0 < len(sgs[0]) <= HEAD_BYTES and sgs[1]:
            self._add_short(heads, sgs[0], sgs[1], data, ctx)
            return
        readable, writable = sgs[:out_sgs], [memoryview(sg) for sg in sgs[out_sgs:]]
        out_length, in_length = sum(map(len, readable)), sum(map(len, writable))
        command_id = self.free[-1]
        most = self._most
        if 0 < out_length <= self._piece:
            eager, out, offset = True, NOTHING, self._first + command_id * self._piece
            into = self._lay_out(writable, True, most)
            gather(into.slot, into.copied)  # an eager completion does not say what was written
            slot = self._write(readable, out_length, offset)
            message = EAGER.pack(v5.VQ_KEYED_EAGER_BUF, command_id, offset, out_length, in_length)
        else:
            eager, out = False, self._lay_out(readable, False, most - 1)
            into = self._lay_out(writable, True, most - len(out.descs))
            slot = out.slot
            gather(slot, out.copied)
            message = HEADER.pack(v5.VQ, command_id, out_length, in_length)
        self.free.pop()
        self._entries[command_id] = (data, ctx, writable, in_length)
        self._lent[command_id] = Lent(slot, into, eager, sgs=sgs)
        self._posts.append(message + b"".join([DESC.pack(*d) for d in (*out.descs, *into.descs)]))

    def _add_short(
        self, heads: Heads, head: Buffer, tail: Buffer, data: object, ctx: object
    ) -> None:
        """Append what most requests are: one buffer to read, of few bytes, and one to write."""
        length, room = len(head), len(tail)
        kept: tuple[memoryview, ...] = ()
        if type(tail) is memoryview and (found := self._find(tail)):
            address, at = found
            kept = (tail,)
            command_id = self.free.pop()
        else:
            slot = self._in.take(room)
            slot.view[:room] = tail  # an eager completion does not say what was written
            address, at = slot.address, slot.at
            command_id = self.free.pop()
            self._lent[command_id] = Lent(None, Layout([], slot, [(0, 0, tail)]), True)
        posts = self._posts
        self._places[command_id] = place = heads.put(head, posts)
        self._entries[command_id] = (data, ctx, kept, room)
        offset = place * HEAD_BYTES
        posts.append(
            SHORT.pack(
                v5.VQ_KEYED_EAGER_BUF, command_id, offset, length, room, address, room, at.write
            )
        )

    def _write(self, readable: Sequence[Buffer], length: int, offset: int) -> Slot | None:
        """Write a readable part to a place in the eager buffer; return where it is until then."""
        slot = self._out.take(length)
        gather(slot, in_a_row(readable))
        address = slot.address
        for there, size, key in self._eager:
            here = min(size - offset, length)
            if here > 0:
                self._posts.append((WRITE, address, here, slot.at.local, there + offset, key))
                address, length, offset = address + here, length - here, 0
            else:
                offset -= size
        return slot

    def command(self, opcode: int, fields: Mapping[str, int], body: bytes, data: object) -> None:
        """Append any other command. See ``InitiatorStream``."""
        self.session.sent(SENT.get(opcode, Event.COMMAND))
        command_id = self.free.pop()
        self._entries[command_id] = (data, opcode, None, 0)
        values = {"opcode": opcode, "command_id": command_id, **fields}
        message = v5.COMMANDS[opcode].command.encode(values)
        if body:
            slot, desc = self._lend(body)
            self._lent[command_id] = Lent(slot, NOTHING)
            message += DESC.pack(*desc)
        elif opcode == v5.GET_KEYED_EAGER_BUF:
            size = DESC.size * fields["descs"]
            slot = self._in.take(size)
            self._lent[command_id] = Lent(None, Layout([], slot, []), room=size)
            message += DESC.pack(slot.address, size, slot.at.write)
        self._posts.append(message)

    # -- in -----------------------------------------------------------------------------------

    def _completion(self, message: bytes) -> None:
        status, command_id, length, in_length = HEADER.unpack(message)
        entry = self._entries[command_id] if command_id < len(self._entries) else None
        if entry is None:
            self._notice(command_id, message)
            return
        data, ctx, writable, capacity = entry
        if writable is None:
            self._answered(data, ctx, status, command_id, message)
        elif status:
            raise CommandError(f"the target refused a request: {v5.status_text(status)}", status)
        else:
            lent = self._lent.get(command_id)
            if lent is None or lent.eager:
                _, _, length = EAGER_DONE.unpack(message)
                in_length = capacity
            if not length <= in_length <= capacity:
                raise RemoteProtocolError(
                    f"a completion claims a used length of {length} and {in_length} bytes, "
                    f"for a request with {capacity} writable bytes"
                )
            if lent is not None:
                self._take_back(command_id, in_length)
            if self._heads and (place := self._places.pop(command_id, -1)) >= 0:
                self._heads.free(place)
            self.used.append((data, length, ctx))
        self._entries[command_id] = None
        self.free.append(command_id)

    def _answered(
        self, data: object, opcode: object, status: int, command_id: int, message: bytes
    ) -> None:
        """Take the completion of a control command."""
        assert type(opcode) is int
        fields = v5.COMMANDS[opcode].completion.decode(message)
        self.session.received(answered(opcode, status))
        lent = self._lent.get(command_id)
        if lent is not None:
            if lent.into.slot is not None and not status:
                fields = _granted(lent.into.slot.view[: lent.room], fields["descs"])
            self._take_back(command_id)
        self.answers.append(Answer(data, status, fields))

    def _notice(self, command_id: int, message: bytes) -> None:
        if not self._control or command_id not in v5.RESERVED_IDS:
            raise RemoteProtocolError(f"a completion for command id {command_id}: none in flight")
        self.session.received(Event.NOTICE)
        self.notices.append((command_id, v5.CONFIG_EVENT.decode(message)))


def _granted(room: memoryview, count: int) -> dict[str, int]:
    """Return the answer to GET_KEYED_EAGER_BUF, of which ``count`` descriptors were written."""
    size = count * DESC.size
    if size > len(room):
        raise RemoteProtocolError(
            f"GET_KEYED_EAGER_BUF is answered with {count} descriptors; there was room for "
            f"{len(room) // DESC.size}"
        )
    return to_fields(list(DESC.iter_unpack(room[:size])))
