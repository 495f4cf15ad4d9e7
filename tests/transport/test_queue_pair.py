# SPDX-License-Identifier: BSD-3-Clause
"""The edge of a queue pair, and the queue pairs of software that stand for an adapter."""

import select

import pytest
import trio
import trio.testing

from tests.transport.pairs import LIMIT, making
from vof.errors import RemoteProtocolError
from vof.protocol.keyed import FIRST_BYTES, READ, WRITE
from vof.transport.loopback_pairs import faults


@pytest.fixture
async def make():
    async with making() as make:
        yield make


# -- both ways ------------------------------------------------------------------------------------


async def test_messages_and_transfers_in_order(make):
    ends = make()
    ends.ready()
    read, here, there = ends.transfer(READ)
    there[:] = b"their"
    write, mine, theirs = ends.transfer(WRITE)
    mine[:] = b"mine!"
    ends.send(read, write, b"message")
    assert (bytes(here), bytes(theirs)) == (b"their", b"mine!")
    assert ends.far.receive()
    assert ends.streams[1].got == [b"message"]
    assert not ends.near.receive()
    assert ends.streams[0].done == 1  # the read
    ends.streams[0].expects = True
    ends.near.flush()
    assert not ends.near.receive()
    assert ends.streams[0].done == 3
    assert (ends.near.bytes_in, ends.near.bytes_out) == (5, 12)
    assert (ends.far.bytes_in, ends.far.bytes_out) == (7, 0)
    assert not faults


async def test_what_a_stream_is_told(make):
    ends = make(reads=3)
    assert ends.near.pool is ends.pairs[0].memory
    assert ends.streams[0].begun == (ends.pairs[0].memory, 3)
    assert ends.near.mapping == "keyed"
    assert ends.near.dry


async def test_the_target_can_be_sent_to_before_it_looks(make):
    ends = make()
    ends.send(bytes(FIRST_BYTES))
    assert ends.far.receive()
    assert ends.streams[1].got == [bytes(FIRST_BYTES)]


async def test_receives_are_posted_anew(make):
    ends = make()
    for _ in range(5):
        ends.ready()
        ends.send(*[b"m"] * 8)
        assert ends.far.receive()
    assert len(ends.streams[1].got) == 40
    assert not faults


async def test_a_message_without_a_receive(make):
    ends = make()
    ends.ready()
    ends.send(*[b"m"] * 9)
    assert ends.far.receive()
    assert len(ends.streams[1].got) == 8
    assert not ends.far.receive()
    assert "the peer ended the connection" in str(ends.far.error)
    assert not ends.near.receive()
    assert not ends.near.receive()
    assert "no receive is posted for a message of 1 bytes" in str(ends.near.error)
    assert len(faults) == 1


async def test_a_message_that_is_too_long(make):
    ends = make()
    ends.send(bytes(FIRST_BYTES + 1))
    assert not ends.near.receive()
    assert not ends.far.receive()
    assert "meets a receive of 64" in str(ends.near.error)
    assert "a message of 65 bytes, of 64 at most" in str(ends.far.error)


async def test_a_bad_message_is_told(make):
    ends = make()
    ends.ready()
    ends.send(b"good", b"bad", b"later")
    with pytest.raises(RemoteProtocolError, match="it is bad"):
        ends.far.receive()
    assert ends.streams[1].got == [b"good"]
    assert ends.far.error is None  # whoever called decides


# -- room -----------------------------------------------------------------------------------------


async def until(condition):
    with trio.fail_after(LIMIT):
        while not condition():
            await trio.testing.wait_all_tasks_blocked()


async def test_no_more_is_under_way_than_there_is_room_for(make):
    ends = make(depth=3)
    ends.ready()
    ends.pairs[0].held = True
    ends.send(*[b"%d" % number for number in range(8)])
    assert ends.near.blocked
    assert len(ends.pairs[0]._under_way) == 3
    for sent in (3, 6, 8):
        ends.pairs[0].carry_out()
        await trio.testing.wait_all_tasks_blocked()
        ends.far.receive()
        assert len(ends.streams[1].got) == sent
    assert not ends.near.blocked
    with trio.fail_after(LIMIT):
        await ends.near.drained()
    assert not ends.near.receive()
    assert ends.streams[0].done == 8
    assert ends.streams[1].got == [b"%d" % number for number in range(8)]


async def test_who_reads_and_who_waits_for_room_wait_together(make, nursery):
    ends = make(depth=2)
    ends.ready()
    ends.pairs[0].held = True
    nursery.start_soon(ends.near.sleep)
    await trio.testing.wait_all_tasks_blocked()
    assert ends.near.asleep
    ends.send(*[b"m"] * 4)
    await trio.testing.wait_all_tasks_blocked()
    assert ends.near.blocked
    ends.pairs[0].carry_out()
    await trio.testing.wait_all_tasks_blocked()
    assert not ends.near.asleep
    ends.pairs[0].carry_out()
    await until(lambda: not ends.near.blocked)
    ends.far.receive()
    assert len(ends.streams[1].got) == 4


async def test_who_reads_makes_room(make):
    """Whoever sees that posts completed posts the rest, and nobody waits for it any longer."""
    ends = make(depth=2)
    ends.ready()
    ends.pairs[0].held = True
    ends.send(*[b"m"] * 3)
    await trio.testing.wait_all_tasks_blocked()
    ends.pairs[0].held = False
    ends.pairs[0].carry_out()
    assert not ends.near.receive()
    ends.far.receive()
    assert len(ends.streams[1].got) == 3
    await trio.testing.wait_all_tasks_blocked()
    assert not ends.near.blocked


async def test_a_message_that_comes_while_one_waits_for_room_is_not_lost(make):
    ends = make(depth=2)
    ends.ready()
    ends.pairs[0].held = True
    ends.send(*[b"m"] * 3)
    await trio.testing.wait_all_tasks_blocked()
    ends.streams[1].waiting.append(b"hello")
    ends.far.flush()
    await trio.testing.wait_all_tasks_blocked()
    assert not ends.streams[0].got
    with trio.fail_after(LIMIT):
        await ends.near.sleep()  # it is there already
    assert ends.near.receive()
    assert ends.streams[0].got == [b"hello"]
    assert ends.near.blocked


async def test_who_waits_for_room_notices_the_end(make):
    ends = make(depth=2)
    ends.ready()
    ends.pairs[0].held = True
    ends.send(*[b"m"] * 3)
    await trio.testing.wait_all_tasks_blocked()
    ends.far.close()
    with trio.fail_after(LIMIT):
        await ends.near.drained()
    assert not ends.near.blocked
    assert ends.near.error is not None


async def test_drained_means_that_it_is_there(make, nursery):
    ends = make()
    ends.ready()
    ends.pairs[0].held = True
    ends.send(b"last words")
    done = []

    async def drain():
        await ends.near.drained()
        done.append(True)

    nursery.start_soon(drain)
    await trio.testing.wait_all_tasks_blocked()
    assert not done
    ends.pairs[0].carry_out()
    await until(lambda: done)
    ends.near.close()
    assert ends.far.receive()
    assert ends.streams[1].got == [b"last words"]


# -- waiting --------------------------------------------------------------------------------------


async def test_waiting_for_a_message(make, nursery):
    ends = make()
    ends.ready()
    before = ends.far.heard

    async def receive():
        while not ends.far.receive():
            await ends.far.wait()

    with trio.fail_after(LIMIT):
        async with trio.open_nursery() as inner:
            inner.start_soon(receive)
            await trio.testing.wait_all_tasks_blocked()
            ends.send(b"hello")
    assert ends.streams[1].got == [b"hello"]
    assert ends.far.heard > before


def readable(pair):
    return bool(select.select([pair.fd], [], [], 0)[0])


async def test_posts_that_complete_wake_nobody_who_does_not_wait_for_them(make):
    ends = make()
    ends.ready()
    ends.near.receive()
    for pair in ends.pairs:
        pair.arm()
    ends.send(b"one")
    assert not readable(ends.pairs[0])
    assert readable(ends.pairs[1])
    ends.pairs[1].disarm()
    assert not readable(ends.pairs[1])
    ends.streams[1].waiting.append(b"answer")
    ends.far.flush()
    assert readable(ends.pairs[0])
    assert ends.near.receive()
    assert ends.streams[0].done == 1
    ends.send(b"two")
    ends.streams[0].expects = True
    assert not ends.near.receive()
    assert not ends.near.receive()
    assert ends.streams[0].done == 2
    ends.pairs[0].disarm()
    ends.pairs[0].arm()
    ends.send(b"three")
    assert readable(ends.pairs[0])
    ends.streams[0].expects = False
    ends.near.receive()
    ends.pairs[0].disarm()
    ends.pairs[0].arm()
    ends.send(b"four")
    assert not readable(ends.pairs[0])
    with trio.fail_after(LIMIT):
        await ends.near.drained()  # what completed before counts
    assert not ends.near.receive()
    assert ends.streams[0].done == 4


async def test_who_has_something_to_do_does_not_sleep(make):
    """Neither over a message, nor over posts that another saw completing."""
    ends = make()
    ends.ready()
    ends.send(b"hello")
    assert not readable(ends.pairs[1])  # nobody asked for that
    with trio.fail_after(LIMIT):
        await ends.far.wait()
    assert ends.far.receive()
    with trio.fail_after(LIMIT):
        await ends.near.drained()
        await ends.near.sleep()
    ends.near.receive()
    assert ends.streams[0].done == 1


@pytest.mark.parametrize("how", ["interrupt", "fence", "close"])
async def test_whoever_sleeps_is_woken(make, nursery, how):
    ends = make()
    nursery.start_soon(ends.near.sleep)
    nursery.start_soon(ends.near.sleep)
    await trio.testing.wait_all_tasks_blocked()
    getattr(ends.near, how)()
    await until(lambda: not ends.near.asleep)
    ends.near.close()
    ends.near.interrupt()
    with trio.fail_after(LIMIT):
        await ends.near.sleep()  # there is nothing to wait for


async def test_more_posts_than_room_would_be_noticed(make):
    ends = make(depth=2, reads=1)
    ends.pairs[0].held = True
    with pytest.raises(AssertionError, match="room"):
        ends.pairs[0].post([b"m"] * 3)
    post, _, _ = ends.transfer(READ)
    other = make(depth=4, reads=1)
    other.pairs[0].held = True
    with pytest.raises(AssertionError, match="reads"):
        other.pairs[0].post([post, post])
