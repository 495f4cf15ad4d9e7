# SPDX-License-Identifier: BSD-3-Clause
"""Dialect v0 on a queue pair, both sides: what differs from v5."""

import errno

import pytest

from tests.protocol.keyed import BOTH, Alone, live_v0
from tests.protocol.pipe import MIB, content, taken
from vof.errors import CommandError, InvalidArgument, RemoteProtocolError
from vof.memory import HEAP, Region
from vof.protocol import v0, v5
from vof.protocol.keyed_initiator import EXTRA
from vof.protocol.registered import REMOTE_READ, REMOTE_WRITE
from vof.protocol.session import State
from vof.protocol.v0_commands import COMPLETION
from vof.protocol.v0_keyed_initiator import DESC, VRING_COMMAND, V0KeyedInitiator
from vof.protocol.v0_keyed_target import V0KeyedTarget

KEY = 77
WRITE = v0.VRING_DESC_F_WRITE


def vring(ident, out=(), into=(), ndesc=None):
    """Return a VRING command with descriptors of these lengths."""
    count = len(out) + len(into)
    message = VRING_COMMAND.pack(v0.VRING, ident, sum(out), count if ndesc is None else ndesc)
    for number, length in enumerate((*out, *into)):
        flags = WRITE if number >= len(out) else 1
        message += DESC.pack(0x1000 + 0x10000 * number, length, number, flags, KEY)
    return message


def done(ident, value=0, ndesc=0, status=0):
    return COMPLETION.pack(status, ident, ndesc, value)


def connect(oftype=1, length=1024, flags=0, ndesc=1, name=b"disk\0"):
    layout = v0.COMMANDS[v0.CONNECT].command
    fields = {"opcode": 0, "command_id": 5, "device_instance_id": 0xFFFF, "ndesc": ndesc}
    message = layout.encode({**fields, "oftype": oftype})
    return message + DESC.pack(0x1000, length, 0, flags, KEY) * ndesc


# -- the target -----------------------------------------------------------------------------------


def test_every_writable_descriptor_is_written_in_full():
    queue = live_v0()
    queue.stream.received(vring(1, [3], [2, 5]))
    queue.run(b"abc")
    (chain,) = taken(queue.stream)
    assert content([chain]) == [(b"abc", 7)]
    chain.writable[0][:] = b"?" * 7
    chain.writable[0][:3] = b"xyz"
    queue.stream.push(chain, 2, 3)
    assert queue.run() == [
        ("write", (0x11000, 2, KEY), b"xy"),
        ("write", (0x21000, 5, KEY), b"z\0\0\0\0"),
        done(1, 2, 2),
    ]
    assert not queue.stream.transferring


def test_a_request_without_writable_part():
    queue = live_v0()
    queue.stream.received(vring(1, [3]))
    queue.run()
    queue.stream.push(taken(queue.stream)[0], 0)
    assert queue.run() == [done(1)]


def test_empty_descriptors_mean_nothing():
    queue = live_v0()
    queue.stream.received(vring(1, [0, 3, 0], [0, 4]))
    queue.run(b"abc")
    (chain,) = taken(queue.stream)
    assert content([chain]) == [(b"abc", 4)]
    queue.stream.push(chain, 0)
    assert queue.run() == [("write", (0x41000, 4, KEY), bytes(4)), done(1, 0, 2)]
    queue.stream.received(vring(2, [0], [0]))
    queue.stream.push(taken(queue.stream)[0], 0)
    assert queue.run() == [done(2, 0, 1)]


def test_one_too_many_waits():
    queue = live_v0(queue_size=2)
    for ident in (1, 2, 3):
        queue.stream.received(vring(ident, (), [1]))
    assert queue.stream.inflight == 2
    assert queue.stream.paused
    queue.stream.push(taken(queue.stream)[0], 0)
    queue.stream.advance()
    assert queue.stream.inflight == 2


@pytest.mark.parametrize(
    ("out", "into", "posts"),
    [
        ([], [5, MIB], [("write", (0x11000 + MIB - 1, 1, KEY), b"\1"), 2]),
        ([MIB + 1], [5, 1], [("write", (0x21000, 1, KEY), b"\1"), 2]),
        ([MIB + 1], [], [0]),
        ([], [], [0]),
        ([MIB + 1], [5, 0], [("write", (0x11004, 1, KEY), b"\1"), 2]),
    ],
)
def test_a_refusal_carries_the_word_for_failure(out, into, posts):
    queue = live_v0()
    queue.stream.received(vring(9, out, into))
    *written, count = posts
    assert queue.run() == [*written, done(9, 0, count, errno.EINVAL)]
    assert queue.stream.errors == 1
    assert not queue.stream.transferring


def test_what_a_region_never_holds_is_refused():
    queue = live_v0(pool=Region(1 << 20))
    queue.stream.received(vring(9, (), [950_000]))
    failure = ("write", (0x1000 + 949_999, 1, KEY), b"\1")
    assert queue.run() == [failure, done(9, 0, 1, errno.EINVAL)]


def test_a_device_without_a_word_for_failure():
    queue = live_v0()
    queue.stream.bind(4, HEAP)
    queue.stream.received(vring(9, (), [MIB + 1]))
    assert queue.run() == [done(9, 0, 1, errno.EINVAL)]


def test_a_control_queue_has_no_requests():
    queue = live_v0(queue_size=0)
    queue.stream.received(vring(9, (), [1]))
    assert queue.run()[-1] == done(9, 0, 1, errno.EOPNOTSUPP)


@pytest.mark.parametrize(
    ("message", "why"),
    [
        (bytes(15), "a message of 15 bytes"),
        (vring(1, [1])[:-1], "a message of 39 bytes with 1 descriptors of 24"),
        (vring(1, [1]) + b"?", "a message of 41 bytes"),
        (vring(1, [1], ndesc=2), "a message of 40 bytes with 2"),
        (vring(1, [1], ndesc=0), "a message of 40 bytes with 0"),
        (vring(1, [1] * 129), "with 129 descriptors"),
        (VRING_COMMAND.pack(v0.GET_STATUS, 1, 0, 0) + bytes(24), "GET_STATUS in a message of 40"),
    ],
)
def test_what_no_initiator_sends(message, why):
    queue = live_v0()
    with pytest.raises(RemoteProtocolError, match=why):
        queue.stream.received(message)
    assert not queue.posts()
    assert not queue.memory._own


def opened():
    alone = Alone(V0KeyedTarget(MIB, MIB))
    alone.stream.advance()
    return alone


def test_connect_reads_its_body():
    alone = opened()
    assert alone.stream.receives == (1, 64)
    alone.stream.received(connect())
    body = b"me\0".ljust(256, b"?") + b"disk\0".ljust(768, b"?")
    assert alone.run(body) == []
    (message,) = alone.stream.messages
    assert (message.opcode, message.body) == (v5.CONNECT, body)
    assert message.fields["length"] == 1024
    alone.stream.bind(8, HEAP)
    assert alone.stream.receives == (8 + EXTRA, 16 + 24 * 128)


@pytest.mark.parametrize(
    ("message", "status"),
    [
        (connect(oftype=0), errno.EPROTO),
        (connect(length=1023), errno.EPROTO),
        (connect(flags=WRITE), errno.ENODEV),
    ],
)
def test_connect_that_is_refused(message, status):
    alone = opened()
    alone.stream.received(message)
    assert alone.run() == [done(5, status=status)]
    alone.stream.received(connect())
    assert len(alone.posts()) == 1


def test_a_name_without_end():
    alone = opened()
    alone.stream.received(connect())
    assert alone.run(b"n" * 1024) == [done(5, status=errno.ENODEV)]


@pytest.mark.parametrize("message", [connect(ndesc=0), connect(ndesc=2)])
def test_connect_with_other_than_one_descriptor(message):
    with pytest.raises(RemoteProtocolError, match="it has one"):
        opened().stream.received(message)


def test_commands_that_look_are_legal_on_a_virtqueue_too():
    queue = live_v0()
    queue.stream.received(VRING_COMMAND.pack(v0.GET_STATUS, 3, 0, 0))
    (message,) = queue.stream.messages
    assert message.opcode == v5.GET_STATUS
    queue.stream.answer(queue.stream.messages.pop(), v5.OK, device_status=4)
    assert queue.run() == [done(3, 4)]
    queue.stream.advance()
    queue.stream.received(VRING_COMMAND.pack(v0.GET_FEATURE, 4, 0, 0))
    assert queue.run() == [done(4, 128)]
    queue.stream.received(bytes.fromhex("5555 0600") + bytes(40))
    assert queue.stream.messages.pop().queues == ""


# -- the initiator --------------------------------------------------------------------------------


def queue(size=3):
    alone = Alone(V0KeyedInitiator(size, control=False), BOTH)
    alone.stream.session.state = State.LIVE
    return alone


def test_each_segment_has_a_descriptor():
    alone = queue()
    memory = alone.memory.alloc(100)
    memory[:20] = b"m" * 20
    into = bytearray(b"....")
    alone.stream.add([memory[:10], memory[10:20], b"", b"x", memory[20:], into], 4, "token", 5)
    (message,) = alone.posts()
    assert VRING_COMMAND.unpack_from(message) == (v0.VRING, 1, 21, 5)
    descs = list(DESC.iter_unpack(message[16:]))
    assert [desc[1:4] for desc in descs] == [
        (10, 0, 0),
        (10, 1, 0),
        (1, 2, 0),
        (80, 3, WRITE),
        (4, 4, WRITE),
    ]
    rights = [REMOTE_READ] * 3 + [REMOTE_WRITE] * 2
    places = [
        alone.domain.reach(address, length, key, right)
        for (address, length, _, _, key), right in zip(descs, rights, strict=True)
    ]
    assert b"".join(places[:3]) == b"m" * 20 + b"x"
    places[3][:] = b"d" * 80
    places[4][:] = b"e\0\0\0"
    alone.stream.received(done(1, 81, 2))
    assert alone.stream.used.popleft() == ("token", 81, 5)
    assert memory[20:] == b"d" * 80
    assert into == b"e\0\0\0"


@pytest.mark.parametrize("sgs", [[b""], [b"x"] * 129])
def test_what_cannot_be_said(sgs):
    alone = queue()
    with pytest.raises(InvalidArgument, match="not empty; dialect v0 carries 1 to 128"):
        alone.stream.add(sgs, len(sgs), 1, None)
    assert len(alone.stream.free) == 3
    assert not alone.stream.unsent


@pytest.mark.parametrize(
    ("message", "error", "why"),
    [
        (done(2), RemoteProtocolError, "command id 2: none in flight"),
        (done(9), RemoteProtocolError, "command id 9: none in flight"),
        (done(0), RemoteProtocolError, "command id 0: none in flight"),
        (done(1, 5), RemoteProtocolError, "used length of 5, for a request with 4"),
        (done(1, status=22), CommandError, "EOUTVQBUF"),
    ],
)
def test_what_ends_the_queue(message, error, why):
    alone = queue()
    alone.stream.add([b"x", bytearray(4)], 1, 1, None)
    with pytest.raises(error, match=why):
        alone.stream.received(message)


def test_connect_and_what_follows_it():
    alone = Alone(V0KeyedInitiator(32, control=True), BOTH)
    fields = {"device_instance_id": v5.NEW_INSTANCE, "vq_index": 0, "queue_size": 32}
    alone.stream.command(v5.CONNECT, {**fields, "length": 1024}, b"n" * 1024, "connect")
    (message,) = alone.posts()
    assert message[:16] == bytes.fromhex("00000180 ffffffff 01000100 00000000")
    ((address, length, ident, flags, key),) = DESC.iter_unpack(message[16:])
    assert (length, ident, flags) == (1024, 0, 0)
    assert alone.domain.reach(address, length, key, REMOTE_READ) == b"n" * 1024
    alone.stream.received(done(0x8001, 513))
    assert alone.stream.answers.popleft()[:2] == ("connect", 0)
    assert not alone.stream._lent
    assert [len(post) for post in alone.posts()] == [16, 16]  # queues, and changes


def test_no_more_commands_than_there_are_receives():
    alone = Alone(V0KeyedInitiator(32, control=True), BOTH)
    alone.stream.session.state = State.LIVE
    for number in range(20):
        alone.stream.command(v5.GET_CONFIG, {"offset": number, "bytes": 1}, b"", number)
    sent = alone.posts()
    assert len(sent) == 32
    seen = 0
    while sent:
        command = sent.pop(0)
        seen += 1
        alone.stream.received(b"\0\0" + command[2:4] + bytes(12))
        sent += alone.posts()
        assert len(sent) <= 32
    assert seen == 60
    assert [answer.data for answer in alone.stream.answers] == list(range(20))


def test_the_c_target_answers_with_the_id_0():
    alone = Alone(V0KeyedInitiator(32, control=True), BOTH)
    alone.stream.session.state = State.LIVE
    alone.stream.command(v5.SET_CONFIG, {"offset": 0, "bytes": 1, "value": 1}, b"", "set")
    alone.posts()
    alone.stream.received(bytes(16))
    assert alone.stream.answers.popleft()[:2] == ("set", v5.ENOCMD)
