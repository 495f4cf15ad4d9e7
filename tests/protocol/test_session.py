# SPDX-License-Identifier: BSD-3-Clause
"""Every state times every event, as the side that sends and as the side that receives."""

from itertools import product

import pytest

from vof.errors import LocalProtocolError, RemoteProtocolError
from vof.protocol.session import TRANSITIONS, Event, Session, State

# Written by hand, so that the table is compared with something that is not the table.
PATHS = {
    State.NEW: [],
    State.CONNECTING: [Event.CONNECT],
    State.LIVE: [Event.CONNECT, Event.ACCEPTED],
    State.DRAINING: [Event.CONNECT, Event.ACCEPTED, Event.DISCONNECT],
    State.CLOSED: [Event.LOST],
}
LEGAL = {
    State.NEW: {Event.CONNECT, Event.LOST},
    State.CONNECTING: {Event.ACCEPTED, Event.REFUSED, Event.LOST},
    State.LIVE: {Event.COMMAND, Event.COMPLETION, Event.NOTICE, Event.DISCONNECT, Event.LOST},
    State.DRAINING: {Event.COMPLETION, Event.NOTICE, Event.DISCONNECTED, Event.LOST},
    State.CLOSED: {Event.LOST},
}
MOVES = {
    (State.NEW, Event.CONNECT): State.CONNECTING,
    (State.CONNECTING, Event.ACCEPTED): State.LIVE,
    (State.CONNECTING, Event.REFUSED): State.NEW,
    (State.LIVE, Event.DISCONNECT): State.DRAINING,
    (State.DRAINING, Event.DISCONNECTED): State.CLOSED,
}


def at(state: State) -> Session:
    """Return a session that was led to ``state``."""
    session = Session()
    for event in PATHS[state]:
        session.sent(event)
    assert session.state is state
    return session


@pytest.mark.parametrize(
    ("verb", "fault"), [("sent", LocalProtocolError), ("received", RemoteProtocolError)]
)
@pytest.mark.parametrize(
    ("state", "event"), list(product(State, Event)), ids=lambda member: member.name
)
def test_every_state_and_event(state, event, verb, fault):
    session = at(state)
    if event in LEGAL[state]:
        getattr(session, verb)(event)
        following = State.CLOSED if event is Event.LOST else MOVES.get((state, event), state)
        assert session.state is following
    else:
        with pytest.raises(fault) as caught:
            getattr(session, verb)(event)
        assert event.value in str(caught.value)
        assert state.value in str(caught.value)
        assert session.state is state


def test_the_table_names_every_state_and_nothing_else():
    assert set(TRANSITIONS) == set(State)
    assert {new for row in TRANSITIONS.values() for new in row.values()} == set(State)


def test_every_event_is_legal_somewhere():
    assert {event for row in TRANSITIONS.values() for event in row} == set(Event)


def test_a_refused_connection_may_try_again():
    session = at(State.CONNECTING)
    session.received(Event.REFUSED)
    session.sent(Event.CONNECT)
    session.received(Event.ACCEPTED)
    assert session.state is State.LIVE
