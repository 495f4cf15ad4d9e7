# SPDX-License-Identifier: BSD-3-Clause
"""The life of one queue's connection: which message may come when. One table, both roles.

Two rules of this file: all transitions are in ``TRANSITIONS``; nothing here knows which side we
play. A side that sends something illegal made a local error, a side that receives it a remote one;
``Session.sent`` and ``Session.received`` are the only places that tell the two apart.

Requests of a live virtqueue do not pass through here one by one: the state is looked up once a
batch. ``specs/states.md`` is generated from these tables.
"""

from enum import Enum

from vof.errors import LocalProtocolError, RemoteProtocolError


class State(Enum):
    """Where the connection stands; the value is what a person reads."""

    NEW = "connected, no CONNECT yet"
    CONNECTING = "CONNECT under way"
    LIVE = "bound to a queue"
    DRAINING = "DISCONNECT under way: in-flight commands end first"
    CLOSED = "over"


class Event(Enum):
    """What passes over the connection, in whichever direction."""

    CONNECT = "CONNECT command"
    ACCEPTED = "CONNECT completion, OK"
    REFUSED = "CONNECT completion, any other status"
    COMMAND = "any other command"
    COMPLETION = "completion of any other command"
    NOTICE = "completion that no command asked for (config change, keepalive)"
    DISCONNECT = "DISCONNECT command"
    DISCONNECTED = "DISCONNECT completion"
    LOST = "end of the connection"


TRANSITIONS: dict[State, dict[Event, State]] = {
    State.NEW: {Event.CONNECT: State.CONNECTING, Event.LOST: State.CLOSED},
    State.CONNECTING: {
        Event.ACCEPTED: State.LIVE,
        Event.REFUSED: State.NEW,
        Event.LOST: State.CLOSED,
    },
    State.LIVE: {
        Event.COMMAND: State.LIVE,
        Event.COMPLETION: State.LIVE,
        Event.NOTICE: State.LIVE,
        Event.DISCONNECT: State.DRAINING,
        Event.LOST: State.CLOSED,
    },
    State.DRAINING: {
        Event.COMPLETION: State.DRAINING,
        Event.NOTICE: State.DRAINING,
        Event.DISCONNECTED: State.CLOSED,
        Event.LOST: State.CLOSED,
    },
    State.CLOSED: {Event.LOST: State.CLOSED},
}


class Session:
    """The state of one connection."""

    __slots__ = ("state",)

    def __init__(self) -> None:
        self.state = State.NEW

    def _apply(self, event: Event) -> bool:
        following = TRANSITIONS[self.state].get(event)
        if following is None:
            return False
        self.state = following
        return True

    def sent(self, event: Event) -> None:
        """Note what this side sends.

        Raises:
            LocalProtocolError: it may not be sent now; nothing changed.
        """
        if not self._apply(event):
            raise LocalProtocolError(f"{event.value} may not be sent: {self.state.value}")

    def received(self, event: Event) -> None:
        """Note what the peer sent.

        Raises:
            RemoteProtocolError: it may not come now; nothing changed.
        """
        if not self._apply(event):
            raise RemoteProtocolError(f"{event.value} may not come: {self.state.value}")
