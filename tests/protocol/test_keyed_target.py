# SPDX-License-Identifier: BSD-3-Clause
"""The target's side of a queue pair in dialect v5: requests, limits, and what no peer sends."""

import pytest

from tests.protocol.keyed import KEY, Alone, done, live, vq
from tests.protocol.pipe import MIB, content, taken
from vof.errors import LocalProtocolError, RemoteProtocolError
from vof.memory import HEAP
from vof.protocol import v5
from vof.protocol.keyed_initiator import EXTRA
from vof.protocol.registered import LOCAL
from vof.protocol.target_stream import Message
from vof.protocol.v5_keyed import DESC, DESCS, EAGER, EAGER_DONE, HEADER, from_fields
from vof.protocol.v5_keyed_target import EAGER_PIECE, V5KeyedTarget

DISCONNECT = HEADER.pack(v5.DISCONNECT, 40, 0, 0)


def eager(ident, offset, length, into=()):
    """Return the command of a request that was written beforehand."""
    message = EAGER.pack(v5.VQ_KEYED_EAGER_BUF, ident, offset, length, sum(into))
    return message + b"".join(DESC.pack(0x5000, size, KEY) for size in into)


# -- requests -------------------------------------------------------------------------------------


def test_a_request_is_read_handed_out_and_written():
    queue = live()
    queue.stream.received(vq(1, [3, 4], [2, 5]))
    assert not queue.stream.chains
    first, second = queue.posts()
    assert first[:2] == ("read", (0x1000, 3, KEY))
    assert second[:2] == ("read", (0x11000, 4, KEY))
    first.here[:], second.here[:] = b"abc", b"defg"
    queue.stream.completed(1)
    assert not queue.stream.chains
    assert queue.stream.transferring
    queue.stream.completed(1)
    (chain,) = taken(queue.stream)
    assert content([chain]) == [(b"abcdefg", 7)]
    chain.writable[0][:] = b"hijklmn"
    queue.stream.push(chain, 3, 6)
    assert queue.run() == [
        ("write", (0x21000, 2, KEY), b"hi"),
        ("write", (0x31000, 4, KEY), b"jklm"),
        done(1, 3, 6),
    ]
    assert not queue.stream.transferring
    assert not queue.stream.inflight


def test_only_what_was_filled_is_written():
    queue = live()
    queue.stream.received(vq(1, (), [2, 5]))
    (chain,) = taken(queue.stream)
    chain.writable[0][:2] = b"ab"
    queue.stream.push(chain, 2)
    assert queue.run() == [("write", (0x1000, 2, KEY), b"ab"), done(1, 2)]
    queue.stream.received(vq(2, (), [2, 5]))
    queue.stream.push(taken(queue.stream)[0], 0)
    assert queue.run() == [done(2, 0)]


def test_a_request_of_nothing():
    queue = live()
    queue.stream.received(vq(1))
    (chain,) = taken(queue.stream)
    assert content([chain]) == [(b"", 0)]
    queue.stream.push(chain, 0)
    assert queue.run() == [done(1, 0)]


def test_requests_come_in_order_whatever_must_be_read():
    queue = live()
    for message in (vq(1, [5]), vq(2, (), [1]), vq(3, [6])):
        queue.stream.received(message)
    assert not queue.stream.chains
    assert queue.stream.inflight == 3
    assert len(queue.posts()) == 2
    queue.stream.completed(1)
    assert [c.token.command_id for c in queue.stream.chains] == [1, 2]
    queue.stream.completed(1)
    assert [c.token.command_id for c in queue.stream.chains] == [1, 2, 3]


def test_no_more_reads_than_agreed_and_nothing_waits_behind_them():
    queue = live(reads=2)
    queue.stream.received(vq(1, (), [1]))
    (chain,) = taken(queue.stream)
    for ident in (2, 3):
        queue.stream.received(vq(ident, [10, 10]))
    assert [post.kind for post in queue.posts()] == ["read", "read"]
    assert queue.stream.unsent
    assert not queue.posts()
    queue.stream.push(chain, 0)
    assert queue.posts() == [done(1, 0)]
    queue.stream.completed(1)
    assert [post.kind for post in queue.posts()] == ["read"]
    queue.stream.completed(3)
    assert [post.kind for post in queue.posts()] == ["read"]
    assert len(queue.stream.chains) == 1
    queue.stream.completed(1)
    assert len(queue.stream.chains) == 2


def test_no_more_posts_than_there_is_room_for():
    queue = live()
    queue.stream.received(vq(1, (), [1, 1, 1]))
    queue.stream.push(taken(queue.stream)[0], 3)
    queue.stream.received(vq(2, [1, 1]))
    assert queue.stream.pending() == 64
    posts = [queue.posts(3), queue.posts(2), queue.posts(2)]
    assert [len(some) for some in posts] == [3, 2, 1]
    assert posts[1][0] == done(1, 3)
    assert not queue.stream.unsent


def test_a_chain_is_pushed_once_and_within_its_room():
    queue = live()
    queue.stream.received(vq(1, (), [4]))
    (chain,) = taken(queue.stream)
    with pytest.raises(LocalProtocolError, match="used length 5"):
        queue.stream.push(chain, 5)
    with pytest.raises(LocalProtocolError, match="used length 3 of 2"):
        queue.stream.push(chain, 3, 2)
    queue.stream.push(chain, 4)
    with pytest.raises(LocalProtocolError, match="pushed already"):
        queue.stream.push(chain, 4)


# -- receives -------------------------------------------------------------------------------------


def test_receives_stand_ready_before_they_are_needed():
    alone = Alone(V5KeyedTarget(MIB, MIB))
    alone.stream.advance()
    assert alone.stream.receives == (1, 64)
    alone.stream.bind(0, HEAP)
    assert alone.stream.receives == (v5.CONTROL_QUEUE_SIZE + EXTRA, 16 + 16 * DESCS)
    queue = live(queue_size=100)
    assert queue.stream.receives == (100 + EXTRA, 16 + 16 * DESCS)


# -- refusals -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("message", "status"),
    [
        (vq(9, [MIB + 1]), v5.EOUTVQBUF),
        (vq(9, (), [MIB + 1]), v5.EINVQBUF),
        (eager(9, 0, 1), v5.ENOCMD),
    ],
)
def test_what_is_refused_is_answered(message, status):
    queue = live()
    queue.stream.received(message)
    assert queue.run() == [done(9, 0, status=status)]
    assert queue.stream.errors == 1
    assert not queue.stream.inflight


def test_more_requests_than_the_queue_has():
    queue = live(queue_size=2)
    for ident in range(3):
        queue.stream.received(vq(ident, (), [1]))
    assert queue.run() == [done(2, 0, status=v5.ECMDQUOT)]
    assert queue.stream.inflight == 2


@pytest.mark.parametrize("message", [vq(9, [2], [1]), eager(9, 0, 1, [1])])
def test_a_control_queue_has_no_requests(message):
    queue = live(queue_size=0)
    queue.stream.received(message)
    assert queue.run() == [done(9, 0, status=v5.ENOCMD)]


@pytest.mark.parametrize(
    ("message", "why"),
    [
        (b"", "a message of 0 bytes"),
        (bytes(15), "a message of 15 bytes"),
        (vq(1, [2]) + b"?", "each keyed descriptor 16"),
        (vq(1, [2])[:-1], "each keyed descriptor 16"),
        (vq(1, [2], [3], (3, 2)), "a keyed descriptor of 3 bytes at 2, over the end"),
        (vq(1, [2], [3], (1, 4)), "a keyed descriptor of 2 bytes at 0, over the end"),
        (vq(1, [2], [3], (2, 4)), "of 5 bytes, for a request of 2 and 4"),
        (vq(1, [2], [3], (2, 2)), "of 5 bytes, for a request of 2 and 2"),
        (vq(1, [], [], (0, 1)), "of 0 bytes, for a request of 0 and 1"),
        (vq(1, [2, 0], [3]), "a keyed descriptor of no bytes"),
        (vq(1, [1] * (DESCS + 1)), f"{DESCS} at most"),
        (vq(1, [0xFFFFFFFF] * 3, (), (0xFFFFFFFD, 0)), "of 4294967295 bytes at 0"),
        (eager(1, 0, 5, [3])[:-16], "of 0 bytes, for a request of 0 and 3"),
        (HEADER.pack(v5.KEEPALIVE, 1, 0, 0) + bytes(16), "KEEPALIVE with 1 keyed"),
        (HEADER.pack(v5.GET_KEYED_EAGER_BUF, 1, 0, 0), "with 0 keyed descriptors; it has one"),
        (HEADER.pack(v5.GET_KEYED_EAGER_BUF, 1, 0, 0) + bytes(32), "with 2 keyed"),
        (HEADER.pack(v5.CONNECT, 1, 1024, 0), r"a body of 1024 bytes, in \[\]"),
        (HEADER.pack(v5.CONNECT, 1, 0, 0) + DESC.pack(1, 1024, 1), r"a body of 0 bytes"),
        (HEADER.pack(v5.CONNECT, 1, 1024, 0) + DESC.pack(1, 1023, 1), r"in \[1023\]"),
        (HEADER.pack(v5.CONNECT, 1, 512, 0) + DESC.pack(1, 512, 1), "a body of 512"),
        (HEADER.pack(v5.CONNECT, 1, 1024, 0) + DESC.pack(1, 512, 1) * 2, r"in \[512, 512\]"),
    ],
)
def test_what_no_peer_sends(message, why):
    queue = live(request_bytes=1 << 40)
    with pytest.raises(RemoteProtocolError, match=why):
        queue.stream.received(message)
    assert not queue.posts()
    assert not queue.memory._own  # nothing was allocated for it


# -- other commands -------------------------------------------------------------------------------


def test_an_unknown_command_is_handed_out_whatever_follows_it():
    queue = live()
    queue.stream.received(HEADER.pack(0x5555, 3, 0, 0) + bytes(32))
    (message,) = queue.stream.messages
    assert message == Message(0x5555, 3, {}, b"", "")
    queue.stream.messages.clear()
    queue.stream.answer(message, v5.ENOCMD)
    assert queue.run() == [done(3, 0, status=v5.ENOCMD)]


def test_a_command_waits_for_all_requests_before_it():
    queue = live()
    queue.stream.received(vq(1, [5]))
    queue.stream.received(DISCONNECT)
    assert not queue.stream.messages
    queue.run()
    assert len(queue.stream.chains) == 1
    (message,) = queue.stream.messages
    assert (message.opcode, message.queues) == (v5.DISCONNECT, "cv")


def test_one_command_at_a_time():
    queue = live(queue_size=0)
    for ident in (1, 2):
        queue.stream.received(HEADER.pack(v5.GET_STATUS, ident, 0, 0))
    queue.stream.advance()
    assert [m.command_id for m in queue.stream.messages] == [1]
    queue.stream.answer(queue.stream.messages.pop(), v5.OK, device_status=7)
    queue.stream.advance()
    assert [m.command_id for m in queue.stream.messages] == [2]
    assert queue.run() == [bytes.fromhex("00000100 07000000 00000000 00000000")]


def test_the_body_of_connect_is_read_and_more_may_come_meanwhile():
    alone = Alone(
        V5KeyedTarget(MIB, MIB, [HEADER.pack(v5.CONNECT, 1, 1024, 0) + DESC.pack(1, 1024, 9)])
    )
    assert alone.stream.receives == (0, 64)
    alone.stream.advance()
    assert alone.stream.receives == (0, 64)  # what comes next may be larger
    alone.stream.received(HEADER.pack(v5.GET_STATUS, 2, 0, 0))
    (read,) = alone.posts()
    assert read[:2] == ("read", (1, 1024, 9))
    read.here[:] = b"n" * 1024
    alone.stream.completed(1)
    (message,) = alone.stream.messages
    assert message.body == b"n" * 1024
    assert message.fields["length"] == 1024


def test_after_a_refusal_there_is_a_receive_for_the_next_try():
    alone = Alone(V5KeyedTarget(MIB, MIB))
    alone.stream.advance()
    alone.stream.received(HEADER.pack(v5.CONNECT, 1, 0, 0))
    assert alone.stream.receives == (0, 64)
    alone.stream.answer(alone.stream.messages.pop(), v5.EBADDEV)
    assert alone.stream.receives == (1, 64)  # before the answer is sent
    alone.run()
    alone.stream.advance()
    assert alone.stream.receives == (1, 64)


def test_connect_without_a_body():
    alone = Alone(V5KeyedTarget(MIB, MIB))
    alone.stream.advance()
    alone.stream.received(HEADER.pack(v5.CONNECT, 1, 0, 0))
    assert alone.stream.messages.pop().body == b""


def test_notices():
    queue = live(queue_size=0)
    assert queue.stream.notice(v5.ID_CONFIG_CHANGE, generation=5)
    assert queue.run() == [bytes.fromhex("0000feff 05000000 00000000 00000000")]


def test_quiet_means_that_nothing_begins_and_what_began_comes():
    queue = live()
    queue.stream.received(vq(1, [5]))
    queue.stream.quiesce()
    queue.stream.received(vq(2, [5]))
    assert queue.stream.transferring
    queue.run()
    assert [c.token.command_id for c in queue.stream.chains] == [1]
    assert not queue.stream.transferring
    assert not queue.stream.unfinished


# -- the eager buffer -----------------------------------------------------------------------------


def test_a_request_that_was_written_beforehand():
    queue = live(queue_size=4)
    (desc,) = from_fields(queue.stream.eager_buffer(8))
    address, size, key = desc
    assert size == 4 * EAGER_PIECE
    assert queue.stream.eager_buffer(8) == queue.stream.eager_buffer(1)
    buffer = queue.domain.reach(address, size, key, 2)
    buffer[100:105] = b"hello"
    queue.stream.received(eager(1, 100, 5, [3]))
    buffer[100:105] = b"later"
    (chain,) = taken(queue.stream)
    assert content([chain]) == [(b"hello", 3)]
    chain.writable[0][:] = b"xyz"
    queue.stream.push(chain, 2, 3)
    assert queue.run() == [("write", (0x5000, 3, KEY), b"xyz"), EAGER_DONE.pack(0, 1, 2)]
    queue.stream.received(eager(2, size - 5, 6))
    assert queue.run() == [done(2, 0, status=v5.EOUTVQBUF)]
    queue.stream.received(eager(3, size - 5, 5))
    queue.stream.received(eager(4, 0, 0))
    assert len(queue.stream.chains) == 2
    queue.stream.release()
    assert not [g for g in queue.domain._grants.values() if g.rights != LOCAL]


def test_a_request_that_is_here_waits_for_one_that_came_before():
    queue = live(queue_size=4)
    ((address, size, key),) = from_fields(queue.stream.eager_buffer(1))
    queue.domain.reach(address, size, key, 2)[:5] = b"hello"
    queue.stream.received(vq(1, [3], [2]))
    queue.stream.received(eager(2, 0, 5, [3]))
    assert not queue.stream.chains
    (read,) = queue.posts()
    read.here[:] = b"abc"
    queue.stream.completed(1)
    assert content(taken(queue.stream)) == [(b"abc", 2), (b"hello", 3)]


@pytest.mark.parametrize(("room", "asked", "descs"), [(16, 3, 1), (15, 3, 0), (48, 0, 0)])
def test_the_answer_fits_into_its_room(room, asked, descs):
    queue = live(queue_size=0)
    command = v5.COMMANDS[v5.GET_KEYED_EAGER_BUF].command.encode(
        {"opcode": v5.GET_KEYED_EAGER_BUF, "command_id": 6, "vq_index": 2, "descs": asked}
    )
    queue.stream.received(command + DESC.pack(0x9000, room, KEY))
    message = queue.stream.messages.pop()
    assert message.fields["descs"] == min(asked, room // 16)
    granted = {"descs": 1, "addr.0": 1, "length.0": 2, "key.0": 3} if descs else {"descs": 0}
    queue.stream.answer(message, v5.OK, **granted)
    *written, answer = queue.run()
    assert written == [("write", (0x9000, 16, KEY), DESC.pack(1, 2, 3))] * descs
    assert answer == bytes.fromhex("0000 0600") + bytes([descs]) + bytes(11)
    queue.stream.answer(message, v5.EQUEUEQUOT)
    assert queue.run() == [done(6, 0, status=v5.EQUEUEQUOT)]
