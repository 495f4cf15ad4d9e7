# SPDX-License-Identifier: BSD-3-Clause
"""Bytes in, bytes out: what a program asks for is what it gets; what waits is sent once."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.protocol.pipe import feed, pattern, take
from vof.protocol.stream import BULK_BYTES, ROOM_BYTES, SCRATCH_BYTES, Inbox, Outbox


def reads(inbox, sizes, got):
    """A program that reads pieces of these sizes, in one piece each."""
    for size in sizes:
        while inbox.end - inbox.pos < size:
            yield size
        got.append(bytes(inbox.view[inbox.pos : inbox.pos + size]))
        inbox.pos += size
    while True:
        yield 1


def fills(targets):
    """A program that wants one target after the other filled."""
    yield from targets
    while True:
        yield 1


def started(program, inbox):
    inbox.run(program)
    inbox.received(0)
    return inbox


@pytest.mark.parametrize("step", [1, 7, None])
def test_pieces_come_whole_and_in_order(step):
    inbox, got = Inbox(), []
    sizes = [1, 0, 16, 300, 2]
    data = pattern(sum(sizes), 1)
    started(reads(inbox, sizes, got), inbox)
    feed(inbox, data, step)
    assert list(map(len, got)) == sizes
    assert b"".join(got) == data


def test_a_piece_that_does_not_fit_behind_the_others_is_moved_to_the_front():
    inbox, got = Inbox(), []
    sizes = [SCRATCH_BYTES - ROOM_BYTES - 1, ROOM_BYTES + 20]
    data = pattern(sum(sizes), 2)
    started(reads(inbox, sizes, got), inbox)
    feed(inbox, data[: sizes[0] + 10])
    first = inbox.view
    feed(inbox, data[sizes[0] + 10 :])
    assert inbox.view is first
    assert b"".join(got) == data


def test_a_piece_is_received_where_all_of_it_has_room():
    inbox, got = Inbox(), []
    sizes = [SCRATCH_BYTES - ROOM_BYTES - 500, ROOM_BYTES + 1000]
    data = pattern(sum(sizes), 3)
    started(reads(inbox, sizes, got), inbox)
    feed(inbox, data[: sizes[0] + 10])
    first = inbox.view
    assert len(first) - inbox.end >= ROOM_BYTES  # not the usual reason to rewind
    assert len(inbox.space()) >= sizes[1] - 10
    assert inbox.view is first
    feed(inbox, data[sizes[0] + 10 :])
    assert b"".join(got) == data


def test_everything_read_starts_again_at_the_front():
    inbox, got = Inbox(), []
    started(reads(inbox, [100, 100], got), inbox)
    feed(inbox, bytes(100))
    assert len(inbox.space()) == SCRATCH_BYTES
    assert (inbox.pos, inbox.end) == (0, 0)


def test_lent_bytes_are_not_touched():
    inbox, got = Inbox(), []
    started(reads(inbox, [SCRATCH_BYTES - 20, 50, 30], got), inbox)
    feed(inbox, b"a" * (SCRATCH_BYTES - 20))
    lent = inbox.view[: inbox.pos]
    inbox.lent = 1
    feed(inbox, b"b" * 80)
    assert bytes(lent) == b"a" * len(lent)
    assert got[1:] == [b"b" * 50, b"b" * 30]
    inbox.lent = 0
    assert len(inbox.space()) == SCRATCH_BYTES


def test_lent_bytes_with_room_behind_them_keep_their_buffer():
    inbox, got = Inbox(), []
    started(reads(inbox, [10, 10], got), inbox)
    feed(inbox, b"a" * 10)
    inbox.lent, view = 1, inbox.view
    feed(inbox, b"b" * 10)
    assert inbox.view is view
    assert bytes(view[:20]) == b"a" * 10 + b"b" * 10


def test_a_target_is_filled_first_and_the_rest_goes_behind_it():
    inbox = Inbox()
    places = [memoryview(bytearray(5)), memoryview(bytearray(3))]
    started(fills(places), inbox)
    assert take(inbox, b"123") == 3
    assert bytes(inbox.target) == b"\0\0"
    assert take(inbox, b"45xyz") == 5
    assert bytes(places[0]) == b"12345"
    assert inbox.target is places[1]
    assert bytes(inbox.view[inbox.pos : inbox.end]) == b"xyz"


def test_where_large_follows_large_little_goes_into_scratch():
    inbox = Inbox()
    started(fills([memoryview(bytearray(5)), memoryview(bytearray(5))]), inbox)
    assert len(inbox.space()) == BULK_BYTES
    feed(inbox, bytes(10), 5)
    assert len(inbox.space()) == BULK_BYTES  # the header of the next may come
    feed(inbox, b"x")
    assert len(inbox.space()) > BULK_BYTES


def test_a_redirected_target_keeps_its_length_and_forgets_the_bytes():
    inbox, place = Inbox(), memoryview(bytearray(10))
    started(fills([place]), inbox)
    feed(inbox, b"1234")
    inbox.redirect()
    assert len(inbox.target) == 6
    feed(inbox, b"567890")
    assert bytes(place) == b"1234" + bytes(6)
    assert inbox.target is None
    inbox.redirect()
    assert inbox.target is None


def test_advance_goes_on_with_a_pause_and_leaves_a_target_alone():
    inbox, steps = Inbox(), []

    def program():
        steps.append("pause")
        yield None
        steps.append("target")
        yield memoryview(bytearray(1))
        steps.append("end")
        yield 1

    started(program(), inbox)
    assert inbox.target is None
    inbox.advance()
    inbox.advance()
    assert steps == ["pause", "target"]
    feed(inbox, b"x")
    assert steps == ["pause", "target", "end"]


def test_another_program_goes_on_where_the_first_ended():
    inbox, got = Inbox(), []
    started(reads(inbox, [2], got), inbox)
    feed(inbox, b"aabb")
    inbox.run(reads(inbox, [3], got))
    feed(inbox, b"b")
    assert got == [b"aa", b"bbb"]


def test_trim_keeps_what_is_not_read_and_what_is_lent():
    inbox, got = Inbox(), []
    started(reads(inbox, [4, 4], got), inbox)
    feed(inbox, b"lentab")
    lent = inbox.view[:4]
    inbox.lent = 1
    inbox.trim()
    assert len(inbox.view) == 2
    feed(inbox, b"cd")
    assert got == [b"lent", b"abcd"]
    assert bytes(lent) == b"lent"


def test_an_outbox_gathers_small_things_and_keeps_the_order():
    outbox, large = Outbox(), bytearray(b"large")
    assert outbox.seal() == []
    outbox.tail += b"a"
    outbox.tail += b"b"
    outbox.append(large)
    outbox.append(b"more")
    outbox.tail += b"c"
    assert outbox.pending() == 12
    pieces = outbox.seal()
    assert pieces == [b"ab", b"large", b"more", b"c"]
    assert pieces[1] is large
    assert outbox.seal() is pieces


@given(st.lists(st.binary(min_size=1, max_size=5), max_size=8), st.lists(st.integers(0, 40)))
def test_what_was_sent_is_dropped_from_the_front(parts, counts):
    outbox = Outbox()
    for part in parts:
        outbox.append(part)
    rest = b"".join(parts)
    for count in counts:
        count = min(count, len(rest))
        outbox.sent(count)
        rest = rest[count:]
        assert b"".join(outbox.seal()) == rest
        assert outbox.pending() == len(rest)
        assert all(outbox.pieces)  # an empty one would be sent, again and again
        assert all(piece in parts for piece in outbox.pieces[1:])
