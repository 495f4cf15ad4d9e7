# SPDX-License-Identifier: BSD-3-Clause
"""Queue pairs of software: what they refuse, as an adapter would, and what ends them."""

import pytest

from tests.transport.pairs import BOTH, making
from vof.errors import ConnectionLost, RemoteProtocolError
from vof.protocol.keyed import READ, WRITE
from vof.protocol.registered import REMOTE_READ, REMOTE_WRITE, Keys, Memory
from vof.transport.loopback_pairs import Fault, LoopbackDomain, faults, join


@pytest.fixture
async def make():
    async with making() as make:
        yield make


# -- memory ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "right", "at", "why"),
    [
        (READ, REMOTE_WRITE, 0, "gives rights 2, not 1"),
        (WRITE, REMOTE_READ, 0, "gives rights 1, not 2"),
        (READ, REMOTE_READ, 4092, "not within key"),
        (WRITE, REMOTE_WRITE, -1, "not within key"),
    ],
)
async def test_memory_that_is_not_open(make, kind, right, at, why):
    ends = make()
    ends.ready()
    post, here, _ = ends.transfer(kind, 5, right, at)
    ends.send(post, b"later")
    assert not ends.near.receive()
    assert not ends.far.receive()
    assert why in str(ends.near.error)
    assert "went for memory" in str(ends.far.error)
    assert not ends.streams[1].got
    assert bytes(here) == bytes(5)
    assert [why in fault for fault in faults] == [True]


async def test_a_key_that_was_taken_back(make):
    ends = make()
    post, _, _ = ends.transfer(READ)
    ends.pairs[1].memory.domain.deregister(Keys(post[3], post[5]))
    ends.send(post)
    ends.near.receive()
    assert "is dead" in str(ends.near.error)


async def test_a_wrong_local_key_is_ones_own_fault(make):
    ends = make()
    post, _, _ = ends.transfer(READ)
    ends.send((*post[:3], post[3] ^ 1, *post[4:]))
    ends.near.receive()
    ends.far.receive()
    assert "is dead" in str(ends.near.error)
    assert "the peer ended the connection" in str(ends.far.error)


async def test_keys_die_with_the_last_queue_pair():
    memory = Memory(LoopbackDomain(), BOTH)
    one, other = join(memory)
    second = join(memory)
    _, at = memory.find(memory.alloc(8))
    one.close()
    memory.domain.reach(at.start, 8, at.read, REMOTE_READ)
    second[0].close()
    with pytest.raises(Fault, match="is dead"):
        memory.domain.reach(at.start, 8, at.read, REMOTE_READ)
    memory.domain.deregister(at.keys[0])
    other.close()
    second[1].close()


# -- fencing --------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["fence", "fail", "close"])
async def test_nothing_lands_after_the_end(make, how):
    ends = make()
    post, here, there = ends.transfer(WRITE)
    here[:] = b"late!"
    ends.pairs[0].held = True
    ends.send(post, b"m")
    {"fence": ends.far.fence, "close": ends.far.close, "fail": lambda: ends.far.fail(None)}[how]()
    ends.pairs[0].carry_out()
    assert bytes(there) == bytes(5)
    assert isinstance(ends.far.error, ConnectionLost)
    assert not ends.near.receive()
    assert "the peer ended the connection" in str(ends.near.error)
    assert not faults


async def test_nothing_of_ours_lands_after_our_end(make):
    ends = make()
    post, here, there = ends.transfer(WRITE)
    here[:] = b"late!"
    ends.pairs[0].held = True
    ends.send(post)
    ends.near.fail(None)
    ends.pairs[0].carry_out()
    assert bytes(there) == bytes(5)


async def test_the_reason_of_the_end_is_the_first(make):
    ends = make()
    ends.near.fail(RemoteProtocolError("first"))
    ends.near.fence()
    ends.near.close()
    assert str(ends.near.error) == "first"
    assert not ends.near.receive()
    ends.send(b"nothing happens")
