# SPDX-License-Identifier: BSD-3-Clause
"""Commands out, completions in: every offence, and buffers that went back to the driver."""

import weakref

import pytest

from tests.protocol.pipe import Scratch, allocating, done, drain, feed, pattern, vq
from vof.errors import CommandError, LocalProtocolError, RemoteProtocolError
from vof.protocol import v5
from vof.protocol.byte_initiator import SMALL_BYTES
from vof.protocol.session import State
from vof.protocol.stream import INLINE_BYTES, SCRATCH_BYTES
from vof.protocol.v5_initiator import V5Initiator


def queue(size=8):
    return V5Initiator(size, control=False)


def room(*sizes):
    return [bytearray(size) for size in sizes]


# -- out --------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [0, 1, SMALL_BYTES, SMALL_BYTES + 1, 1 << 20])
@pytest.mark.parametrize("spaces", [0, 1, 2])
@pytest.mark.parametrize("parts", [1, 2])
def test_a_command_on_the_wire(size, spaces, parts):
    stream = queue()
    data = pattern(size, 1)
    head = [data] if parts == 1 else [b"head", data]
    stream.add([*head, *room(*[5] * spaces)], parts, "token", None)
    stream.add([b"next", bytearray(1)], 1, "next", None)
    assert drain(stream) == vq(0, b"".join(head), 5 * spaces) + vq(1, b"next", 1)
    assert stream.inflight() == ["token", "next"]


def test_large_readable_parts_are_not_copied():
    stream = queue()
    data = bytearray(SMALL_BYTES + 1)
    stream.add([data, bytearray(1)], 1, "token", None)
    assert any(piece is data for piece in stream.seal())


def test_ids_are_free_again_when_their_completion_was_read():
    stream = queue(2)
    stream.add([b"a"], 1, "a", None)
    stream.add([b"b"], 1, "b", None)
    assert not stream.free
    feed(stream.inbox, done(1))
    assert stream.free == [1]
    assert list(stream.used) == [("b", 0, None)]
    assert stream.inflight() == ["a"]


# -- in ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("step", [1, 100, None])
@pytest.mark.parametrize("form", ["memoryview", "bytearray"])
@pytest.mark.parametrize("size", [0, 1, INLINE_BYTES, INLINE_BYTES + 1, 40_000])
@pytest.mark.parametrize("cuts", [[], [1], [0, 5], [16_000, 10], [50_000]])
def test_writable_parts_are_filled_in_order(step, form, size, cuts):
    stream = queue()
    spaces = room(*cuts, 50_000)
    data = pattern(size, 2)
    sgs = [memoryview(s) if form == "memoryview" else s for s in spaces]
    stream.add([b"?", *sgs], 1, "token", "ctx")
    feed(stream.inbox, done(0, data, size // 2), step)
    assert list(stream.used) == [("token", size // 2, "ctx")]
    assert b"".join(spaces) == data.ljust(sum(cuts) + 50_000, b"\0")


def test_many_completions_at_once():
    stream = queue(64)
    spaces = room(*[4] * 64)
    for number, space in enumerate(spaces):
        stream.add([b"?", space], 1, number, None)
    order = list(range(0, 64, 2)) + list(range(1, 64, 2))
    feed(stream.inbox, b"".join(done(i, b"%04d" % i) for i in order))
    assert [token for token, _, _ in stream.used] == order
    assert b"".join(spaces) == b"".join(b"%04d" % i for i in range(64))
    assert sorted(stream.free) == list(range(64))


@pytest.mark.parametrize("step", [1, None])
def test_control_commands_and_their_answers(step):
    stream = V5Initiator(4, control=True)
    stream.command(v5.CONNECT, {"length": v5.BODY_BYTES}, b"b" * v5.BODY_BYTES, "connect")
    with pytest.raises(LocalProtocolError):
        stream.command(v5.GET_STATUS, {}, b"", "too early")
    assert len(stream.free) == 3
    assert drain(stream)[16:] == b"b" * v5.BODY_BYTES
    feed(stream.inbox, bytes.fromhex("00000000 07000000 00000000 00000000"), step)
    (answer,) = stream.answers
    assert (answer.data, answer.status) == ("connect", v5.OK)
    assert answer.fields["device_instance_id"] == 7
    stream.answers.clear()
    stream.command(v5.GET_CONFIG, {"offset": 0, "bytes": 8}, b"", "config")
    stream.command(v5.GET_STATUS, {}, b"", "refused")
    get_config = v5.COMMANDS[v5.GET_CONFIG].command
    sent = drain(stream)
    assert get_config.decode(sent) == {
        "opcode": v5.GET_CONFIG,
        "command_id": 0,
        "offset": 0,
        "bytes": 8,
    }
    assert len(sent) == 32
    replies = [
        bytes.fromhex("0000feff 05000000 00000000 00000000"),
        bytes.fromhex("01000100 00000000 00000000 00000000"),
        bytes.fromhex("00000000 05000000 00000200 00000000"),
        bytes.fromhex("0000ffff 00000000 00000000 00000000"),
    ]
    feed(stream.inbox, b"".join(replies), step)
    refused, config = stream.answers
    assert (refused.data, refused.status) == ("refused", v5.ENOCMD)
    assert (config.data, config.fields["generation"], config.fields["value"]) == (
        "config",
        5,
        0x20000,
    )
    assert [ident for ident, _ in stream.notices] == [v5.ID_CONFIG_CHANGE, v5.ID_KEEPALIVE]
    assert stream.notices[0][1]["generation"] == 5
    assert sorted(stream.free) == [0, 1, 2, 3]
    stream.command(v5.DISCONNECT, {}, b"", "bye")
    feed(stream.inbox, bytes.fromhex("00000000 00000000 00000000 00000000"), step)
    assert stream.answers[-1].data == "bye"
    with pytest.raises(LocalProtocolError):
        stream.command(v5.GET_STATUS, {}, b"", "too late")


def test_a_refused_connect_may_be_tried_again():
    stream = V5Initiator(4, control=True)
    for status in (v5.ENOTGT, v5.OK):
        stream.command(v5.CONNECT, {}, b"", status)
        feed(stream.inbox, v5.COMPLETION.encode({"status": status, "command_id": 0}))
        assert stream.answers.popleft().status == status
    assert stream.session.state is State.LIVE


OFFENCES = {
    "an id that is not in flight": done(1),
    "an id beyond the queue": done(8),
    "an event on a virtqueue": done(v5.ID_CONFIG_CHANGE),
    "more than was asked for": done(0, bytes(11)),
    "more used than sent": done(0, bytes(5), 6),
    "an enormous length": b"\0" * 8 + b"\xff" * 8,
    "the same twice": done(0) * 2,
}


@pytest.mark.parametrize("step", [1, None])
@pytest.mark.parametrize("data", OFFENCES.values(), ids=OFFENCES)
def test_an_offence_on_a_virtqueue(data, step):
    stream = queue()
    space = bytearray(10)
    stream.add([b"?", space], 1, "token", None)
    with allocating(2 * SCRATCH_BYTES), pytest.raises(RemoteProtocolError):
        feed(stream.inbox, data, step)
    assert space == bytes(10)


@pytest.mark.parametrize("command_id", [3, 0x7FFF])
def test_an_id_that_is_not_in_flight_on_the_control_queue(command_id):
    with pytest.raises(RemoteProtocolError, match="none in flight"):
        feed(V5Initiator(4, control=True).inbox, done(command_id))


def test_a_refused_request_is_an_error_with_its_status():
    stream = queue()
    stream.add([b"?"], 1, "token", None)
    with pytest.raises(CommandError, match="ECMDQUOT") as caught:
        feed(stream.inbox, done(0, status=v5.ECMDQUOT))
    assert caught.value.status == v5.ECMDQUOT


# -- buffers that go back ---------------------------------------------------------------------


def test_abandon_gives_back_every_request_once():
    stream = V5Initiator(8, control=True)
    stream.session.state = State.LIVE
    stream.command(v5.GET_STATUS, {}, b"", "control")
    for token in "abc":
        stream.add([b"?", bytearray(4)], 1, token, None)
    feed(stream.inbox, done(2, b"used"))
    assert [stream.abandon() for _ in range(4)] == ["a", "c", None, None]
    assert stream.inflight() == ["control"]
    assert len(stream.free) == 5  # their ids are in use until the completions were read


@pytest.mark.parametrize("parts", [[60_000], [5, 30_000, 29_995], [59_990, 10]])
@pytest.mark.parametrize("size", [10, INLINE_BYTES, INLINE_BYTES + 1, 60_000])
@pytest.mark.parametrize("here", [0, 1, 15, 16, 17, 20, 21, 9_999, 20_000, 50_000])
def test_abandoned_memory_is_not_touched(parts, size, here):
    stream = queue()
    spaces = room(*parts)
    stream.add([b"?", *spaces], 1, "token", None)
    data = done(0, pattern(size, 3))
    here = min(here, len(data) - 1)
    feed(stream.inbox, data[:here])
    assert stream.abandon() == "token"
    before = [bytes(space) for space in spaces]
    for space in spaces:
        space[:] = bytes(space)
    feed(stream.inbox, data[here:], 7_000)
    assert [bytes(space) for space in spaces] == before
    assert not stream.used
    assert len(stream.free) == 8
    again = bytearray(3)
    stream.add([b"?", again], 1, "again", None)
    feed(stream.inbox, done(0, b"yes"))
    assert again == b"yes"
    assert list(stream.used) == [("again", 3, None)]


@pytest.mark.parametrize("here", [0, 100_000])
def test_abandoning_takes_little_memory(here):
    stream = queue(32)
    space = bytearray(1 << 20)
    for number in range(32):
        stream.add([b"?", space], 1, number, None)
    data = pattern(len(space), 5)
    feed(stream.inbox, done(0, data)[:here])
    before = bytes(space)
    with allocating(2 << 20):
        while stream.abandon() is not None:
            pass
    feed(stream.inbox, done(0, data)[here:])
    answer = done(1, data)
    with allocating(1 << 20):
        feed(stream.inbox, answer)
    assert space == before
    assert len(stream.free) == 2


def test_abandoning_another_request_leaves_the_one_that_arrives():
    stream = queue()
    first, second = room(40_000, 40_000)
    stream.add([b"?", first], 1, "first", None)
    stream.add([b"?", second], 1, "second", None)
    data = pattern(40_000, 4)
    feed(stream.inbox, done(1, data)[:20_000])
    assert stream.abandon() == "first"
    feed(stream.inbox, done(1, data)[20_000:] + done(0, data))
    assert second == data
    assert first == bytes(40_000)
    assert [token for token, _, _ in stream.used] == ["second"]


@pytest.mark.parametrize("here", [0, 5, 16, 30_000])
def test_a_program_that_waits_holds_no_scratch_memory(here):
    stream = queue()
    stream.add([b"?", bytearray(60_000)], 1, "token", None)
    scratch = Scratch(SCRATCH_BYTES)
    gone = weakref.ref(scratch)
    stream.inbox.view = memoryview(scratch)
    del scratch
    feed(stream.inbox, done(0, bytes(60_000))[:here])
    stream.inbox.trim()
    assert gone() is None


@pytest.mark.parametrize("size", [4, 40_000])
def test_a_program_that_waits_holds_no_buffer(size):
    stream = queue()
    space, token = Scratch(size), Scratch(b"token")
    gone = [weakref.ref(space), weakref.ref(token)]
    stream.add([b"?", space], 1, token, None)
    feed(stream.inbox, done(0, bytes(size)))
    stream.used.clear()
    del space, token
    assert [ref() for ref in gone] == [None, None]
