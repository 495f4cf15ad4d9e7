# SPDX-License-Identifier: BSD-3-Clause
"""Dialect v0 on a byte stream, as the initiator. Pure.

The C target is taken as it is. What ends its life is never sent: transport features, keepalive, an
empty descriptor. What it does not implement it answers with a completion of zeroes, and so a
refused CONNECT: no command of ours has the id 0, and a completion that has it belongs to the oldest
command in flight, for it answers in order. How many bytes follow a completion is known from the
request alone.
"""

import errno
import struct
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from vof.errors import CommandError, InvalidArgument, RemoteProtocolError
from vof.memory import Buffer
from vof.protocol import v0, v5
from vof.protocol.byte_initiator import SMALL_BYTES, ByteInitiator
from vof.protocol.initiator_stream import (
    ABANDONED,
    SENT,
    Answer,
    answered,
)
from vof.protocol.session import Event
from vof.protocol.stream import INLINE_BYTES, Program
from vof.protocol.v0_target import OPCODES

VRING_COMMAND = v0.COMMANDS[v0.VRING].command.codec
COMPLETION = struct.Struct("<HHH2xQ")
DESC = v0.DESC.codec
CONTROL_IDS = range(0x8001, 0x10000)
"""Ids of control commands; those of requests are below, and none is 0."""

MOST = {
    "device_instance_id": v5.NEW_INSTANCE - 1,
    "vendor_id": 0xFFFFFFFF,
    "device_id": 0xFFFFFFFF,
    "generation": 0xFFFFFFFF,
    "device_status": 0xFF,
    "num_queues": 0xFFFF,
    "size": 0x8000,
}
"""What a completion may bring at most, by its name, whatever else fits into eight bytes."""

Fields = Mapping[str, int]
Step = tuple[int, dict[str, int]]
"""One command on the wire: opcode and fields."""
Result = tuple[int, dict[str, int]]
"""Status and fields, in the common vocabulary."""


class Plan(NamedTuple):
    """What a command of the common vocabulary is on this wire.

    Attributes:
        steps: the commands to send.
        finish: makes one answer of theirs.
    """

    steps: Callable[[Fields], list[Step]]
    finish: Callable[[Fields, list[Result]], Result]


def _only(fields: Fields, results: list[Result]) -> Result:
    return results[0] if results else (v5.OK, {})


def _config(fields: Fields, results: list[Result]) -> Result:
    """Give a value the generation that it was read in, or, between two, one that is nobody's."""
    (_, before), (status, config), (_, after) = results
    first, last = before.get("generation", 0), after.get("generation", 0)
    return status, {**config, "generation": last if first == last else first | 1 << 32}


def _connect(fields: Fields) -> list[Step]:
    new = fields["device_instance_id"] == v5.NEW_INSTANCE
    index = v5.NEW_INSTANCE if new else fields["vq_index"]
    return [(v0.CONNECT, {**fields, "vq_index": index, "ndesc": 1, "oftype": v0.OFTYPE_STREAM})]


PLANS: dict[int, Plan] = {
    v5.CONNECT: Plan(_connect, _only),
    v5.DISCONNECT: Plan(lambda _: [], _only),  # the end of the connection says the same
    v5.KEEPALIVE: Plan(lambda _: [(v0.GET_STATUS, {})], lambda _, results: (results[0][0], {})),
    v5.RESET_DEVICE: Plan(lambda _: [(v0.SET_STATUS, {"device_status": 0})], _only),
    v5.GET_DEVICE_FEATURE: Plan(
        lambda fields: [] if fields["select"] else [(v0.GET_DEVICE_FEATURE, dict(fields))],
        lambda _, results: results[0] if results else (v5.OK, {"feature": 0}),
    ),
    v5.GET_CONFIG: Plan(
        lambda fields: [
            (v0.GET_GENERATION, {}),
            (v0.GET_CONFIG, dict(fields)),
            (v0.GET_GENERATION, {}),
        ],
        _config,
    ),
}
"""Commands that are not the same on this wire."""


class _Command:
    """A command of the common vocabulary in flight, with the answers to its steps so far."""

    __slots__ = ("data", "fields", "left", "opcode", "results")

    def __init__(self, opcode: int, fields: Fields, data: object, left: int) -> None:
        self.opcode = opcode
        self.fields = fields
        self.data = data
        self.left = left
        self.results: list[Result] = []


class V0Initiator(ByteInitiator):
    """See ``InitiatorStream``."""

    def __init__(self, size: int, control: bool) -> None:
        super().__init__(size, control)
        self.free = list(range(size, 0, -1))
        self._entries = [None] * (size + 1)
        self._writable = [0] * (size + 1)  # descriptors, by command id
        self._steps: dict[int, tuple[int, _Command | None]] = {}
        self._next = CONTROL_IDS.start
        self._num_queues: int | None = None
        self._ask = False  # for the next change, with the next command

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

    def command(self, opcode: int, fields: Mapping[str, int], body: bytes, data: object) -> None:
        """Append any other command. See ``InitiatorStream``."""
        self.session.sent(SENT.get(opcode, Event.COMMAND))
        plan = PLANS.get(opcode)
        steps = plan.steps(fields) if plan else [(OPCODES[opcode], dict(fields))]
        if opcode == v5.GET_VQ_SIZE and fields["vq_index"] >= (self._num_queues or 0x10000):
            self._answer(_Command(opcode, fields, data, 0), (v5.EQUEUEQUOT, {}))
            return
        if self._ask and steps:
            self._ask = False
            self._send(v0.GET_CONFIG_CHANGED, {}, None)
        command = _Command(opcode, fields, data, len(steps))
        for step in steps:
            self._send(*step, command)
        if opcode == v5.CONNECT:
            self.outbox.tail += v0.DESC.encode({"length": len(body)}) + body
        if not steps:
            self._finish(command)

    def _send(self, opcode: int, fields: Mapping[str, int], command: _Command | None) -> None:
        """Append one command of the wire; of None, its answer is for ourselves."""
        while self._next in self._steps:
            self._advance()
        self._steps[self._next] = opcode, command
        layout = v0.COMMANDS[opcode].command
        known = {name: value for name, value in fields.items() if name in layout.names}
        values = {**known, "opcode": opcode, "command_id": self._next}
        self.outbox.tail += layout.encode(values)
        self._advance()

    def _advance(self) -> None:
        self._next = self._next + 1 if self._next + 1 in CONTROL_IDS else CONTROL_IDS.start

    # -- in -----------------------------------------------------------------------------------

    def _completions(self) -> Program:
        inbox = self.inbox
        while True:
            if inbox.end - inbox.pos < 16:
                yield 16
                continue
            status, command_id, _, value = COMPLETION.unpack_from(inbox.view, inbox.pos)
            if not command_id and self._steps:
                command_id = next(iter(self._steps))
                status = status or errno.EOPNOTSUPP
            if command_id in self._steps:
                inbox.pos += 16
                self._completed(command_id, status, value)
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
            code = _status(v0.VRING, {}, status)
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

    def _completed(self, command_id: int, status: int, value: int) -> None:
        """Take the answer to one control command of the wire."""
        opcode, command = self._steps[command_id]
        names = v0.COMMANDS[opcode].completion.names
        fields = {names[-1]: value} if len(names) > 3 else {}
        if not status and value > MOST.get(names[-1], value):
            raise RemoteProtocolError(
                f"{v0.COMMANDS[opcode].name} is answered with {names[-1]} {value}: "
                f"it is at most {MOST[names[-1]]}"
            )
        del self._steps[command_id]
        if command is None:
            self._news(opcode, status, fields)
            return
        code = _status(opcode, command.fields, status)
        command.results.append((code, fields))
        command.left -= 1
        if not command.left:
            self._finish(command)

    def _finish(self, command: _Command) -> None:
        plan = PLANS.get(command.opcode)
        self._answer(command, (plan.finish if plan else _only)(command.fields, command.results))

    def _answer(self, command: _Command, result: Result) -> None:
        status, fields = result
        self.session.received(answered(command.opcode, status))
        self.answers.append(Answer(command.data, status, fields))
        if command.opcode == v5.CONNECT and self._control and not status:
            self._send(v0.GET_NUM_QUEUES, {}, None)
            self._send(v0.GET_CONFIG_CHANGED, {}, None)

    def _news(self, opcode: int, status: int, fields: dict[str, int]) -> None:
        """Take the answer to what this side asked by itself."""
        if opcode == v0.GET_NUM_QUEUES:
            self._num_queues = fields["num_queues"] if not status else None
        elif not status:
            self.notices.append((v5.ID_CONFIG_CHANGE, fields))
            self._ask = True  # not here: a target that answers at once would never be done with

    # -- ends ---------------------------------------------------------------------------------

    def inflight(self) -> list[object]:
        """Return the tokens of all commands in flight."""
        asked = dict.fromkeys(command for _, command in self._steps.values() if command)
        return [command.data for command in asked] + super().inflight()


def _status(opcode: int, fields: Fields, status: int) -> int:
    """Return what an errno is in the common vocabulary."""
    if not status:
        return v5.OK
    if status == errno.EINVAL:
        return v0.INVALID.get(opcode, v5.ENOCMD)
    if status == errno.ENODEV and fields.get("device_instance_id", v5.NEW_INSTANCE) != 0xFFFF:
        return v5.EBADDEV
    return v0.STATUS.get(status, v5.ENODEV)
