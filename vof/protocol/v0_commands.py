# SPDX-License-Identifier: BSD-3-Clause
"""Commands of dialect v0 other than requests, as the initiator, on whatever carries them. Pure.

What the common vocabulary says with one command is none, one or several on this wire; ``PLANS`` has
the difference. The C target is taken as it is: see ``V0Initiator``.
"""

import errno
import struct
from abc import abstractmethod
from collections.abc import Callable, Mapping
from typing import ClassVar, NamedTuple

from vof.errors import RemoteProtocolError
from vof.protocol import v0, v5
from vof.protocol.initiator_stream import SENT, Answer, InitiatorStream, answered
from vof.protocol.session import Event
from vof.protocol.v0_answers import OPCODES

COMPLETION = struct.Struct("<HHH2xQ")
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
    return [(v0.CONNECT, {**fields, "vq_index": index, "ndesc": 1})]


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


class V0Commands(InitiatorStream):
    """The commands' half of an initiator.

    Attributes:
        oftype: of the carrier, as CONNECT says it.
    """

    oftype: ClassVar[int]

    def __init__(self, size: int, control: bool) -> None:
        super().__init__(size, control)
        self.free = list(range(size, 0, -1))
        self._entries = [None] * (size + 1)
        self._steps: dict[int, tuple[int, _Command | None]] = {}
        self._next = CONTROL_IDS.start
        self._num_queues: int | None = None
        self._ask = False  # for the next change, with the next command

    @abstractmethod
    def _emit(self, command_id: int, command: bytes, body: bytes) -> None:
        """Append one command of the wire, and its body, if it has one."""

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
            self._send(*step, command, body)
        if not steps:
            self._finish(command)

    def _send(
        self, opcode: int, fields: Mapping[str, int], command: _Command | None, body: bytes = b""
    ) -> None:
        """Append one command of the wire; of None, its answer is for ourselves."""
        while self._next in self._steps:
            self._advance()
        self._steps[self._next] = opcode, command
        layout = v0.COMMANDS[opcode].command
        known = {name: value for name, value in fields.items() if name in layout.names}
        values = {**known, "opcode": opcode, "command_id": self._next}
        if opcode == v0.CONNECT:
            values["oftype"] = self.oftype
        self._emit(self._next, layout.encode(values), body)
        self._advance()

    def _advance(self) -> None:
        self._next = self._next + 1 if self._next + 1 in CONTROL_IDS else CONTROL_IDS.start

    def _answers(self, command_id: int, status: int, value: int) -> bool:
        """Take a completion, if it answers one of these commands; return whether it does.

        The C target answers what it does not implement with the id 0, in order.
        """
        if not command_id and self._steps:
            command_id = next(iter(self._steps))
            status = status or errno.EOPNOTSUPP
        if command_id not in self._steps:
            return False
        self._completed(command_id, status, value)
        return True

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
        code = common_status(opcode, command.fields, status)
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

    def inflight(self) -> list[object]:
        """Return the tokens of all commands in flight."""
        asked = dict.fromkeys(command for _, command in self._steps.values() if command)
        return [command.data for command in asked] + super().inflight()


def common_status(opcode: int, fields: Fields, status: int) -> int:
    """Return what an errno is in the common vocabulary."""
    if not status:
        return v5.OK
    if status == errno.EINVAL:
        return v0.INVALID.get(opcode, v5.ENOCMD)
    if status == errno.ENODEV and fields.get("device_instance_id", v5.NEW_INSTANCE) != 0xFFFF:
        return v5.EBADDEV
    return v0.STATUS.get(status, v5.ENODEV)
