# SPDX-License-Identifier: BSD-3-Clause
"""Dialect v0 on a queue pair, as the initiator. Pure.

Each segment has a descriptor of its own, in order: a device of before VIRTIO_F_VERSION_1 looks at
how a request is cut. Every writable one is written in full. No more commands are under way than a
control queue has receives for.
"""

from collections import deque
from collections.abc import Sequence

from vof.errors import CommandError, InvalidArgument, RemoteProtocolError
from vof.memory import Buffer
from vof.protocol import v0, v5
from vof.protocol.keyed_initiator import NOTHING, KeyedInitiator, Lent, gather
from vof.protocol.v0_commands import COMPLETION, V0Commands, common_status

VRING_COMMAND = v0.COMMANDS[v0.VRING].command.codec
DESC = v0.DESC.codec


class V0KeyedInitiator(V0Commands, KeyedInitiator):
    """See ``InitiatorStream``."""

    oftype = v0.OFTYPE_KEYED
    joins = False

    def __init__(self, size: int, control: bool) -> None:
        super().__init__(size, control)
        self._asked = 0
        self._later: deque[bytes] = deque()

    # -- out ----------------------------------------------------------------------------------

    def add(self, sgs: Sequence[Buffer], out_sgs: int, data: object, ctx: object) -> None:
        """Append one VRING command; an empty segment is left out.

        Raises:
            InvalidArgument: all segments are empty, or they are too many.
        """
        readable = [sg for sg in sgs[:out_sgs] if len(sg)]
        writable = [memoryview(sg) for sg in sgs[out_sgs:] if len(sg)]
        ndesc = len(readable) + len(writable)
        if not 0 < ndesc <= v0.KEYED_MAX_SEGS:
            raise InvalidArgument(
                f"a buffer of {ndesc} segments that are not empty; dialect v0 carries 1 to "
                f"{v0.KEYED_MAX_SEGS}"
            )
        out = self._lay_out(readable, False, ndesc)
        into = self._lay_out(writable, True, ndesc)
        gather(out.slot, out.copied)
        command_id = self.free.pop()
        self._entries[command_id] = (data, ctx, writable, sum(map(len, writable)))
        self._lent[command_id] = Lent(out.slot, into, sgs=sgs)
        out_length = sum(length for _, length, _ in out.descs)
        message = VRING_COMMAND.pack(v0.VRING, command_id, out_length & 0xFFFFFFFF, ndesc)
        flags = 0
        for number, (address, length, key) in enumerate((*out.descs, *into.descs)):
            if number == len(out.descs):
                flags = v0.VRING_DESC_F_WRITE
            message += DESC.pack(address, length, number, flags, key)
        self._posts.append(message)

    def _emit(self, command_id: int, command: bytes, body: bytes) -> None:
        if body:
            slot, (address, length, key) = self._lend(body)
            self._lent[command_id] = Lent(slot, NOTHING)
            command += DESC.pack(address, length, 0, 0, key)
        if self._asked < v5.CONTROL_QUEUE_SIZE:
            self._asked += 1
            self._posts.append(command)
        else:  # one command of the common vocabulary may be several here
            self._later.append(command)

    # -- in -----------------------------------------------------------------------------------

    def _completion(self, message: bytes) -> None:
        status, command_id, _, value = COMPLETION.unpack(message)
        if self._answers(command_id, status, value):
            return
        entry = self._entries[command_id] if command_id < len(self._entries) else None
        if entry is None:
            raise RemoteProtocolError(f"a completion for command id {command_id}: none in flight")
        data, ctx, _, capacity = entry
        if value > capacity:
            raise RemoteProtocolError(
                f"a completion claims a used length of {value}, "
                f"for a request with {capacity} writable bytes"
            )
        if status:
            code = common_status(v0.VRING, {}, status)
            raise CommandError(f"the target refused a request: {v5.status_text(code)}", code)
        self._take_back(command_id, capacity)
        self._entries[command_id] = None
        self.free.append(command_id)
        self.used.append((data, value, ctx))

    def _completed(self, command_id: int, status: int, value: int) -> None:
        if command_id in self._lent:
            self._take_back(command_id)
        if self._later:
            self._posts.append(self._later.popleft())
        else:
            self._asked -= 1
        super()._completed(command_id, status, value)
