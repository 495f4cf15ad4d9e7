# SPDX-License-Identifier: BSD-3-Clause
"""Commands of dialect v0 other than requests, as the target, on whatever carries them. Pure."""

import struct
from abc import abstractmethod
from collections.abc import Callable
from typing import ClassVar

from vof.protocol import v0, v5
from vof.protocol.stream import Program
from vof.protocol.target_stream import UNKNOWN, Message, TargetStream

COMPLETION = struct.Struct("<HHH2xQ")
VQN = slice(v5.VQN_BYTES, 2 * v5.VQN_BYTES)
"""The device's name in a CONNECT body."""
MOST_HELD = v5.CONTROL_QUEUE_SIZE

OPCODES = {common: opcode for opcode, common in v0.COMMON.items()}


class V0Answers(TargetStream):
    """The commands' half of a target.

    Attributes:
        oftype: of the carrier, as CONNECT must say it.
        most_segs: descriptors of one request, at most.
    """

    dialect = "v0"
    waits = False
    oftype: ClassVar[int]
    most_segs: ClassVar[int]
    _asked: tuple[int, ...] = ()  # ids of GET_CONFIG_CHANGED commands
    _changed: int | None = None  # the generation that nobody was told yet

    @abstractmethod
    def _complete(self, status: int, command_id: int, ndesc: int = 0, value: int = 0) -> None:
        """Queue a completion that brings no more than a value."""

    def _connect_with(self, fields: dict[str, int], command_id: int, body: bytes) -> Program:
        """Hand out CONNECT, with its body."""
        if fields["device_instance_id"] == v5.NEW_INSTANCE and b"\0" not in body[VQN]:
            self._complete(v0.ERRNO[v5.ENOTGT], command_id)  # to the C target, the name goes on
            return
        fields |= {"length": len(body), "queue_size": 0}
        queues = v0.COMMANDS[v0.CONNECT].queues
        yield from self._message(Message(v5.CONNECT, command_id, fields, body, queues))

    def _obey(self, opcode: int, command_id: int, fields: dict[str, int]) -> Program:
        """Take any command but CONNECT and a request."""
        row = v0.COMMANDS.get(opcode)
        here = self._queue_size >= 0 and HERE.get(opcode)
        if row and here and ("v" if self._queue_size else "c") in row.queues:
            status = here(self, command_id, fields)
            if status is not None:
                self._complete(status, command_id)
            if status is not None or opcode not in v0.COMMON:
                return
        common = v0.COMMON.get(opcode, UNKNOWN)
        queues = row.queues if row else ""
        yield from self._message(Message(common, command_id, fields, b"", queues))

    # -- commands, or parts of them, that concern the wire alone: the status, or None ---------

    def _get_feature(self, command_id: int, fields: dict[str, int]) -> int | None:
        if fields["select"] != v0.FEATURE_MAX_SEGS:
            return v0.ERRNO[v5.EFEATURE]
        self._complete(v0.OK, command_id, value=self.most_segs)
        return None

    def _set_feature(self, command_id: int, fields: dict[str, int]) -> int | None:
        right = fields["select"] == v0.FEATURE_MAX_SEGS and 0 < fields["feature"] <= self.most_segs
        return v0.OK if right else v0.ERRNO[v5.EFEATURE]

    def _select(self, command_id: int, fields: dict[str, int]) -> int | None:
        return v0.ERRNO[v5.EDEVFEATURE] if fields["select"] else None

    def _set_queue_size(self, command_id: int, fields: dict[str, int]) -> int | None:
        return v0.ERRNO[v5.EQSIZEQUOT] if fields["size"].bit_count() != 1 else None

    def _get_config_changed(self, command_id: int, fields: dict[str, int]) -> int | None:
        if len(self._asked) >= MOST_HELD:
            return v0.ERRNO[v5.ECMDQUOT]
        self._asked += (command_id,)
        if self._changed is not None:
            self.notice(v5.ID_CONFIG_CHANGE, generation=self._changed)
        return None

    # -- out ----------------------------------------------------------------------------------

    def answer(self, message: Message, status: int, **fields: int) -> None:
        """Queue any other completion."""
        row = v0.COMMANDS.get(OPCODES.get(message.opcode, UNKNOWN))
        value = fields.get(row.completion.names[-1], 0) if row else 0
        if message.opcode == v5.GET_VQ_SIZE and value:
            value = 1 << value.bit_length() - 1  # a ring's size is a power of two
        if message.fields.get("device_instance_id", v5.NEW_INSTANCE) != v5.NEW_INSTANCE:
            value = 0  # only a control queue is told
        self._complete(v0.ERRNO[status], message.command_id, value=value)

    def notice(self, ident: int, **fields: int) -> bool:
        """Answer GET_CONFIG_CHANGED, or the next one: to ask again is to have looked."""
        if ident != v5.ID_CONFIG_CHANGE:
            return False
        self._changed = None if self._asked else fields["generation"]
        for command_id in self._asked:
            self._complete(v0.OK, command_id, value=fields["generation"])
        self._asked = ()
        return False


HERE: dict[int, Callable[[V0Answers, int, dict[str, int]], int | None]] = {
    v0.GET_FEATURE: V0Answers._get_feature,
    v0.SET_FEATURE: V0Answers._set_feature,
    v0.GET_DEVICE_FEATURE: V0Answers._select,
    v0.SET_DRIVER_FEATURE: V0Answers._select,
    v0.SET_QUEUE_SIZE: V0Answers._set_queue_size,
    v0.GET_CONFIG_CHANGED: V0Answers._get_config_changed,
}
"""What this wire decides by itself; a command of the common vocabulary goes on after None."""
