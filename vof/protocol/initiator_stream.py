# SPDX-License-Identifier: BSD-3-Clause
"""What the initiator's side of a stream is, whatever the dialect and the mapping. Pure.

A command id stands for an entry in a list; entries that are free stand on a stack. So the token
given at ``add`` is what a completion is matched with, and an id comes back into use only when its
completion was read, whatever happened to whoever waited for it.
"""

from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Mapping, Sequence
from typing import ClassVar, NamedTuple

from vof.memory import Buffer
from vof.protocol import v5
from vof.protocol.session import Event, Session

Used = tuple[object, int, object]

Entry = tuple[object, object, Sequence[memoryview] | None, int]
"""A command in flight: the caller's token; its second value (of a control command, the opcode);
where the writable part goes (None for a control command), and how many bytes that is."""


class Answer(NamedTuple):
    """The completion of a control command.

    Attributes:
        data: the caller's token.
        status: its status code.
        fields: by name.
    """

    data: object
    status: int
    fields: dict[str, int]


SENT = {v5.CONNECT: Event.CONNECT, v5.DISCONNECT: Event.DISCONNECT}
"""What sending a control command is to the session; any other is a COMMAND."""

ABANDONED = object()
"""The token of a command whose buffers went back to the driver before it completed."""


class InitiatorStream(ABC):
    """One connection's two directions.

    Attributes:
        free: command ids that are not in flight.
        used: completed requests that were not taken yet: token, used length, context.
        answers: completions of control commands that were not taken yet.
        notices: completions that nobody asked for, that were not taken yet.
        session: what may be sent and received now.
        transport_features: those of the transport that are of use here, if the target has them.
    """

    transport_features: ClassVar[int] = 0

    def __init__(self, size: int, control: bool) -> None:
        self.free = list(range(size - 1, -1, -1))
        self.used: deque[Used] = deque()
        self.answers: deque[Answer] = deque()
        self.notices: deque[tuple[int, dict[str, int]]] = deque()
        self._entries: list[Entry | None] = [None] * size
        self.session = Session()
        self._control = control

    @abstractmethod
    def add(self, sgs: Sequence[Buffer], out_sgs: int, data: object, ctx: object) -> None:
        """Append one request. There must be a free id; ``sgs`` is not empty."""

    @abstractmethod
    def command(self, opcode: int, fields: Mapping[str, int], body: bytes, data: object) -> None:
        """Append any other command. There must be a free id.

        It may be answered at once, where the dialect has nothing to ask: look at ``answers``.

        Raises:
            LocalProtocolError: it may not be sent now; nothing was appended.
        """

    def allow(self, descs: int, eager: Mapping[str, int] | None) -> None:  # noqa: B027
        """Use what the target allows on this virtqueue, by its transport features.

        Args:
            descs: descriptors of one command; 0: it does not say.
            eager: its eager buffer, as GET_KEYED_EAGER_BUF answered; None for none.
        """

    @abstractmethod
    def trim(self) -> None:
        """Let go of memory that holds nothing."""

    # -- ends ---------------------------------------------------------------------------------

    def inflight(self) -> list[object]:
        """Return the tokens of all commands in flight."""
        return [e[0] for e in self._entries if e is not None and e[0] is not ABANDONED]

    def abandon(self) -> object | None:
        """Return the token of one request in flight, or None; its buffers are not touched again.

        Its command id stays in use until its completion was read. Where the peer has access to
        memory, the connection must be over.
        """
        for command_id, entry in enumerate(self._entries):
            if entry is not None and entry[2] is not None and entry[0] is not ABANDONED:
                self._entries[command_id] = (ABANDONED, None, (), entry[3])
                self._spare(command_id)
                return entry[0]
        return None

    def _spare(self, command_id: int) -> None:  # noqa: B027 - for whom it makes a difference
        """Touch the buffers of a request no more: it was abandoned."""


def answered(opcode: object, status: int) -> Event:
    """Return the event that a completion is."""
    if opcode == v5.CONNECT:
        return Event.REFUSED if status else Event.ACCEPTED
    return Event.DISCONNECTED if opcode == v5.DISCONNECT else Event.COMPLETION


def scatter(segments: Sequence[memoryview], data: memoryview) -> None:
    """Copy ``data`` to the front of ``segments``."""
    for segment in segments:
        part = data[: len(segment)]
        segment[: len(part)] = part
        data = data[len(part) :]
