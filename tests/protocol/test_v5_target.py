# SPDX-License-Identifier: BSD-3-Clause
"""Commands in, completions out: every form of request, every refusal, and back-pressure."""

import pytest

from tests.protocol.pipe import (
    MIB,
    SpyPool,
    allocating,
    bound,
    content,
    done,
    drain,
    feed,
    pattern,
    taken,
    vq,
)
from vof.errors import LocalProtocolError, RemoteProtocolError
from vof.memory import HEAP
from vof.protocol import v5
from vof.protocol.byte_target import SLAB_BYTES
from vof.protocol.stream import INLINE_BYTES, SCRATCH_BYTES
from vof.protocol.target_stream import Message
from vof.protocol.v5_target import V5Target

MOST = (1 << 32) - 1


def command(name, command_id, **fields):
    row = v5.COMMANDS[getattr(v5, name)]
    return row.command.encode({"opcode": row.opcode, "command_id": command_id, **fields})


# -- requests ---------------------------------------------------------------------------------


@pytest.mark.parametrize("first", range(4))
def test_requests_without_one_part_or_without_both(first):
    stream = bound()
    parts = [(b"out", 0), (b"", 5), (b"", 0), (b"x", 1)]
    parts = parts[first:] + parts[:first]  # the first of all finds no slab
    feed(stream.inbox, b"".join(vq(i, *part) for i, part in enumerate(parts)))
    chains = taken(stream)
    assert content(chains) == parts
    for (out, room), chain in zip(parts, chains, strict=True):
        assert (len(chain.readable), len(chain.writable)) == (bool(out), bool(room))
    assert stream.inflight == 4


def test_completions_in_order_are_one_piece_and_never_copied():
    pool = SpyPool()
    stream = bound(pool=pool)
    feed(stream.inbox, b"".join(vq(i, b"?", 4) for i in range(5)))  # the first makes the slab
    assert pool.sizes == [SLAB_BYTES]
    for number, chain in enumerate(taken(stream)):
        chain.writable[0][:] = b"%04d" % number
        stream.push(chain, 4)
    assert stream.unsent
    pieces = stream.seal()
    assert [len(piece) for piece in pieces] == [5 * 20]
    assert not stream.unsent
    assert b"".join(pieces) == b"".join(done(i, b"%04d" % i) for i in range(5))


def test_completions_out_of_order_are_a_piece_each():
    stream = bound()
    feed(stream.inbox, b"".join(vq(i, in_length=4) for i in range(3)))
    for chain in reversed(taken(stream)):
        chain.writable[0][:] = b"data"
        stream.push(chain, 2, 4)
    assert drain(stream) == b"".join(done(i, b"data", 2) for i in (2, 1, 0))


def test_a_short_answer_ends_a_run():
    stream = bound()
    feed(stream.inbox, vq(0, in_length=4) + vq(1, in_length=4))
    first, second = taken(stream)
    first.writable[0][:], second.writable[0][:] = b"abcd", b"efgh"
    stream.push(first, 1)
    stream.push(second, 4)
    assert drain(stream) == done(0, b"a") + done(1, b"efgh")


def test_answers_stand_between_runs():
    stream = bound()
    feed(stream.inbox, vq(0, in_length=1) + vq(1, in_length=1))
    first, second = taken(stream)
    first.writable[0][:], second.writable[0][:] = b"a", b"b"
    stream.answer(Message(0xDFE, 9, {}, b"", ""), v5.ENOCMD)
    assert stream.unsent
    stream.push(first, 1)
    stream.answer(Message(0xDFE, 8, {}, b"", ""), v5.ENOCMD)
    stream.push(second, 1)
    wanted = done(9, status=1) + done(0, b"a") + done(8, status=1) + done(1, b"b")
    assert drain(stream) == wanted
    assert not stream.unsent


@pytest.mark.parametrize("size", [INLINE_BYTES, INLINE_BYTES + 1, SLAB_BYTES, MIB])
@pytest.mark.parametrize("step", [1000, None])
def test_large_requests(size, step):
    stream = bound()
    data = pattern(size, 3)
    feed(stream.inbox, vq(7, data, size), step)
    (chain,) = taken(stream)
    assert content([chain]) == [(data, size)]
    chain.writable[0][:] = data
    stream.push(chain, size)
    assert drain(stream) == done(7, data)


def test_a_large_request_that_came_whole_is_not_awaited():
    stream = bound()
    data = pattern(INLINE_BYTES + 1, 4)
    feed(stream.inbox, vq(1, data))
    assert stream.inbox.target is None
    assert content(taken(stream)) == [(data, 0)]


@pytest.mark.parametrize(
    ("written", "filled"), [(5, None), (-1, None), (3, 2), (1, 5), (-1, 2), (4, 5)]
)
def test_a_length_that_the_buffer_does_not_have(written, filled):
    stream = bound()
    feed(stream.inbox, vq(0, in_length=4))
    (chain,) = taken(stream)
    with pytest.raises(LocalProtocolError, match="used length"):
        stream.push(chain, written, filled)
    stream.push(chain, 0)  # nothing was spent
    assert drain(stream) == done(0)


def test_a_chain_is_pushed_once():
    stream = bound()
    feed(stream.inbox, vq(0))
    (chain,) = taken(stream)
    stream.push(chain, 0)
    with pytest.raises(LocalProtocolError, match="pushed already"):
        stream.push(chain, 0)
    assert stream.inflight == 0


# -- refusals ---------------------------------------------------------------------------------

REFUSALS = {
    "ENOCMD": (0, 100, 100, v5.ENOCMD),
    "EOUTVQBUF": (4, 4097, 0, v5.EOUTVQBUF),
    "EINVQBUF": (4, 100, 4097, v5.EINVQBUF),
    "both": (4, 4097, 4097, v5.EOUTVQBUF),
}


@pytest.mark.parametrize("step", [1, None])
@pytest.mark.parametrize("refusal", REFUSALS.values(), ids=REFUSALS)
def test_a_refused_request_leaves_the_stream_in_step(refusal, step):
    queue_size, out_length, in_length, status = refusal
    stream = bound(queue_size, request_bytes=4096)
    feed(stream.inbox, vq(5, bytes(out_length), in_length), step)
    assert drain(stream) == done(5, status=status)
    assert not stream.chains
    stream.bind(4, HEAP)
    feed(stream.inbox, vq(6, b"next", 1))
    assert content(taken(stream)) == [(b"next", 1)]


@pytest.mark.parametrize("step", [1, None])
def test_more_than_the_queue_size_is_refused_until_one_is_pushed(step):
    stream = bound(queue_size=2)
    feed(stream.inbox, b"".join(vq(i, b"%d" % i, 2) for i in range(4)), step)
    chains = taken(stream)
    assert content(chains) == [(b"0", 2), (b"1", 2)]
    assert drain(stream) == b"".join(done(i, status=v5.ECMDQUOT) for i in (2, 3))
    stream.push(chains[0], 0)
    feed(stream.inbox, vq(2, b"again"))
    assert content(taken(stream)) == [(b"again", 0)]


@pytest.mark.parametrize(("out_length", "in_length"), [(MOST, 0), (0, MOST), (MOST, MOST)])
def test_hostile_lengths_allocate_nothing(out_length, in_length):
    pool = SpyPool()
    stream = bound(pool=pool)
    rest = bytes(3 * SCRATCH_BYTES) if out_length else b""
    with allocating(2 * SCRATCH_BYTES):
        feed(stream.inbox, vq(1, b"", in_length, out_length))
        feed(stream.inbox, rest)
    assert pool.sizes == []
    assert stream.inbox.target is None
    assert drain(stream) == (b"" if out_length else done(1, status=v5.EINVQBUF))


def test_a_request_before_connect_is_a_message():
    stream = V5Target(MIB, MIB)
    feed(stream.inbox, vq(1, b"", 100))
    assert [(m.opcode, m.command_id) for m in stream.messages] == [(v5.VQ, 1)]
    assert not stream.chains


# -- back-pressure ----------------------------------------------------------------------------


def test_a_full_budget_pauses_and_goes_on_when_requests_end():
    stream = bound(queue_bytes=10_000)
    feed(stream.inbox, b"".join(vq(i, bytes(3000), 1000) for i in range(4)))
    chains = taken(stream)
    assert len(chains) == 2
    assert stream.paused
    stream.inbox.advance()
    assert stream.paused
    stream.push(chains[0], 0)
    stream.inbox.advance()
    assert len(taken(stream)) == 1
    assert stream.paused
    stream.push(chains[1], 0)
    drain(stream)
    stream.inbox.advance()
    assert len(taken(stream)) == 1
    assert not stream.paused


def test_what_is_not_sent_counts():
    stream = bound(queue_bytes=10_000)
    feed(stream.inbox, vq(0, b"", 8000) + vq(1, b"", 8000))
    (chain,) = taken(stream)
    stream.push(chain, 8000)
    stream.seal()
    stream.inbox.advance()
    assert stream.paused
    stream.outbox.sent(8016 - 2001)
    stream.inbox.advance()
    assert stream.paused
    stream.outbox.sent(1)
    stream.inbox.advance()
    assert content(taken(stream)) == [(b"", 8000)]
    assert not stream.paused


def test_unsent_bytes_end_the_fast_path_too():
    stream = bound(queue_bytes=1000)
    feed(stream.inbox, vq(0, b"", 500))
    stream.push(taken(stream)[0], 500)
    stream.seal()
    feed(stream.inbox, vq(1, b"", 484) + vq(2, b"", 500))
    assert len(taken(stream)) == 1
    assert stream.paused


def test_a_request_beyond_the_budget_passes_alone():
    stream = bound(queue_bytes=100)
    feed(stream.inbox, vq(0, bytes(1000), 1000) + vq(1))
    (chain,) = taken(stream)
    assert stream.paused
    stream.push(chain, 0)
    drain(stream)
    stream.inbox.advance()
    assert content(taken(stream)) == [(b"", 0)]


# -- other commands ---------------------------------------------------------------------------


@pytest.mark.parametrize("step", [1, None])
def test_messages_come_one_at_a_time(step):
    stream = V5Target(MIB, MIB)
    body = pattern(v5.BODY_BYTES, 5)
    connect = command(
        "CONNECT", 1, device_instance_id=7, vq_index=2, length=v5.BODY_BYTES, queue_size=3
    )
    short = command("CONNECT", 4, device_instance_id=7, vq_index=2, length=0, queue_size=3)
    strange = b"\xfe\x0d\x03\0" + bytes(range(12))
    commands = [connect + body, command("DISCONNECT", 2), strange, short]
    for message in commands:
        feed(stream.inbox, message, step)
        assert stream.paused
        assert len(stream.messages) == commands.index(message) + 1
        stream.inbox.advance()
        assert not stream.paused
    first, second, unknown, last = stream.messages
    assert (first.opcode, first.command_id, first.body) == (v5.CONNECT, 1, body)
    assert (first.fields["vq_index"], first.fields["queue_size"]) == (2, 3)
    assert (second.opcode, second.command_id, second.body) == (v5.DISCONNECT, 2, b"")
    assert unknown == (0x0DFE, 3, {}, b"", "")
    assert (last.command_id, last.body) == (4, b"")


def test_what_follows_a_message_waits():
    stream = bound()
    feed(stream.inbox, command("DISCONNECT", 1) + command("KEEPALIVE", 2) + vq(3, b"x"))
    assert [m.command_id for m in stream.messages] == [1]
    stream.inbox.advance()
    assert [m.command_id for m in stream.messages] == [1, 2]
    assert not stream.chains
    stream.inbox.advance()
    assert content(taken(stream)) == [(b"x", 0)]


@pytest.mark.parametrize("step", [1, None])
def test_a_message_between_requests_is_none(step):
    stream = bound()
    feed(stream.inbox, vq(0, b"first", 4))  # from here on there is a slab, and the fast path
    feed(stream.inbox, vq(1, b"before", 4) + command("DISCONNECT", 2), step)
    assert content(taken(stream)) == [(b"first", 4), (b"before", 4)]
    assert [(m.opcode, m.command_id) for m in stream.messages] == [(v5.DISCONNECT, 2)]
    stream.inbox.advance()
    feed(stream.inbox, vq(3, b"after", 4), step)
    assert content(taken(stream)) == [(b"after", 4)]
    assert stream.inflight == 3


@pytest.mark.parametrize("length", [1, 1023, 1025, MOST])
def test_a_connect_body_of_another_length_is_an_offence(length):
    stream = V5Target(MIB, MIB)
    row = command("CONNECT", 1, device_instance_id=0, vq_index=0, length=length, queue_size=0)
    with allocating(2 * SCRATCH_BYTES), pytest.raises(RemoteProtocolError, match="body") as caught:
        feed(stream.inbox, row)
    assert caught.value.status == v5.EBADVQN
