# SPDX-License-Identifier: BSD-3-Clause
"""Both sides of a queue pair, whatever is asked and in whatever order things happen."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.protocol.keyed import Both
from tests.protocol.pipe import MIB, pattern
from vof.errors import CommandError, RemoteProtocolError
from vof.memory import HEAP, Region
from vof.protocol.dialects import DIALECTS
from vof.protocol.session import State
from vof.protocol.v5_keyed import from_fields
from vof.transport.loopback_pairs import faults

SIZES = st.one_of(st.integers(0, 40), st.sampled_from([511, 512, 513, 4096, 4097, 70_000]))
SEGMENTS = st.lists(st.tuples(SIZES, st.booleans()), max_size=5)
QUEUE = 3


class Asked:
    """A request: its buffers, and what the device shall answer."""

    def __init__(self, number, readable, writable, used, filled, pool):
        make = {True: pool.alloc, False: lambda size: memoryview(bytearray(size))}
        self.readable = [make[registered](size) for size, registered in readable]
        self.writable = [make[registered](size) for size, registered in writable]
        self.question = pattern(sum(map(len, self.readable)), number)
        at = 0
        for buffer in self.readable:
            buffer[:] = self.question[at : at + len(buffer)]
            at += len(buffer)
        capacity = sum(map(len, self.writable))
        self.filled = int(filled * capacity)
        self.used = int(used * self.filled)
        self.answer = pattern(self.filled, number + 100)
        self.empty = not self.question and not capacity


@st.composite
def worlds(draw):
    return {
        "eager": draw(st.booleans()),
        "descs": draw(st.sampled_from([0, 2, 3, 32])),
        "region": draw(st.booleans()),
        "limits": {"depth": draw(st.integers(2, 9)), "reads": draw(st.integers(1, 3))},
        "queue_bytes": draw(st.sampled_from([1, 5000, 8 * MIB])),
        "requests": draw(
            st.lists(st.tuples(SEGMENTS, SEGMENTS, st.floats(0, 1), st.floats(0, 1)), max_size=8)
        ),
        "steps": draw(st.lists(st.integers(0, 4), min_size=10, max_size=60)),
        "rooms": draw(st.sampled_from([1, 2, 1000])),
    }


def check(dialect, world):
    initiator = dialect.keyed.initiator(QUEUE, False)
    initiator.session.state = State.LIVE
    target = dialect.keyed.target(4 * MIB, world["queue_bytes"])
    target.advance()
    both = Both(initiator, target, **world["limits"])
    target.bind(QUEUE, Region(4 * MIB) if world["region"] else HEAP, b"\1")
    if world["eager"]:
        initiator.allow(world["descs"], target.eager_buffer(4) or None)
    both.step(1)  # the target is ready before the initiator may send
    ids = sorted(initiator.free)
    waiting = [Asked(n, *asked, both.pool) for n, asked in enumerate(world["requests"])]
    if target.dialect == "v0":
        waiting = [asked for asked in waiting if not asked.empty]
    outstanding, at_device = {}, []
    total, back = len(waiting), 0
    steps = [*world["steps"], *[0, 1, 2, 3, 4] * (20 * total + 50)]
    for step in steps:
        if step == 0 and waiting and initiator.free:
            asked = outstanding[initiator.free[-1]] = waiting.pop(0)
            initiator.add([*asked.readable, *asked.writable], len(asked.readable), asked, None)
        elif step in (1, 2):
            both.step(step - 1, world["rooms"])
        elif step == 3:
            both.step(1)
            at_device += target.chains
            target.chains.clear()
        elif step == 4:
            if at_device:
                serve(target, at_device.pop(len(at_device) // 2), outstanding)
            if target.paused:
                target.advance()
        while initiator.used:
            asked, used, _ = initiator.used.popleft()
            assert used == asked.used
            written = b"".join(asked.writable)
            assert written[: asked.filled] == asked.answer
            assert written[asked.filled :] == bytes(len(written) - asked.filled)
            del outstanding[next(ident for ident, one in outstanding.items() if one is asked)]
            back += 1
    assert (back, waiting, outstanding) == (total, [], {})
    both.settle()
    assert sorted(initiator.free) == ids
    assert not initiator._lent
    assert (target.inflight, target._held, target.transferring) == (0, 0, False)
    both.close()


def serve(target, chain, outstanding):
    """Be the device."""
    asked = outstanding[chain.token.command_id]
    assert b"".join(chain.readable) == asked.question
    assert sum(map(len, chain.writable)) == sum(map(len, asked.writable))
    at = 0
    for segment in chain.writable:
        part = asked.answer[at : at + len(segment)]
        segment[: len(part)] = part
        at += len(segment)
    target.push(chain, asked.used, asked.filled)


@pytest.mark.parametrize("name", DIALECTS)
@given(world=worlds())
@settings(max_examples=150, deadline=None)
def test_every_request_is_answered_with_its_own(name, world):
    faults.clear()
    check(DIALECTS[name], world)
    assert not faults


# -- garbage --------------------------------------------------------------------------------------

MESSAGES = st.one_of(
    st.binary(max_size=80),
    st.builds(
        lambda first, rest, descs: bytes(first) + rest + b"".join(descs),
        st.sampled_from([b"\xff\x0f\1\0", b"\xfe\x0f\1\0", b"\0\x20\1\0", b"\0\0\1\0"]),
        st.binary(min_size=12, max_size=12),
        st.lists(st.binary(min_size=16, max_size=24), max_size=3),
    ),
)


@pytest.mark.parametrize("name", DIALECTS)
@pytest.mark.parametrize("size", [-1, 0, 2])
@given(messages=st.lists(MESSAGES, max_size=5))
@settings(max_examples=100, deadline=None)
def test_a_target_survives_anything(name, size, messages):
    target = DIALECTS[name].keyed.target(1000, 2000)
    target.advance()
    both = Both(DIALECTS[name].keyed.initiator(1, False), target)
    if size >= 0:
        target.bind(size, HEAP)
    if size > 0:
        assert not from_fields(target.eager_buffer(1))[1:]
    allocated = len(both.ends[1][1].memory._own)
    try:
        for message in messages:
            target.received(message)
            for post in target.posts(1000):
                assert type(post) is bytes or post[2] <= 1024
                target.completed(1)
            for chain in target.chains:
                target.push(chain, 0)
            target.chains.clear()
            target.messages.clear()
            target.advance()
    except RemoteProtocolError:
        pass
    assert len(both.ends[1][1].memory._own) <= allocated + 1
    both.close()


@pytest.mark.parametrize("name", DIALECTS)
@given(
    messages=st.lists(
        st.one_of(st.binary(max_size=20), st.binary(min_size=16, max_size=16)), max_size=5
    )
)
@settings(max_examples=100, deadline=None)
def test_an_initiator_survives_anything(name, messages):
    initiator = DIALECTS[name].keyed.initiator(3, False)
    initiator.session.state = State.LIVE
    both = Both(initiator, DIALECTS[name].keyed.target(1000, 2000))
    into = bytearray(7)
    initiator.add([b"q", into], 1, "token", None)
    try:
        for message in messages:
            initiator.received(message)
    except (RemoteProtocolError, CommandError):
        pass
    assert len(initiator.used) <= 1
    assert into == bytes(7)
    both.close()
