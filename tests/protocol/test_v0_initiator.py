# SPDX-License-Identifier: BSD-3-Clause
"""The initiator's mapping of dialect v0: what is sent, and what is made of what comes back."""

import struct
import weakref

import pytest

from tests.protocol.pipe import Scratch, drain, feed, pattern
from vof.errors import CommandError, InvalidArgument, LocalProtocolError, RemoteProtocolError
from vof.protocol import v5
from vof.protocol.byte_initiator import SMALL_BYTES
from vof.protocol.session import State
from vof.protocol.stream import INLINE_BYTES
from vof.protocol.v0_commands import CONTROL_IDS
from vof.protocol.v0_initiator import V0Initiator

DESC = struct.Struct("<QIHHI4x")
DONE = struct.Struct("<HHHHQ")
FIRST = CONTROL_IDS.start
AT = FIRST + 10
ENDS = [1, 3, None]


def desc(length, ident, write=True, addr=0):
    return DESC.pack(addr, length, ident, 2 * write, 0)


def done(ident, value=0, ndesc=0, status=0):
    return DONE.pack(status, ident, ndesc, 0, value)


def plain(opcode, ident, form="<12x", *values):
    return struct.pack("<HH", opcode, ident) + struct.pack(form, *values)


def queue(size=4):
    return V0Initiator(size, control=False)


def control():
    """A control queue that is connected, by a target that has 2 queues and no news."""
    stream = V0Initiator(32, control=True)
    stream.command(
        v5.CONNECT, {"device_instance_id": 0xFFFF, "vq_index": 0, "queue_size": 32}, b"b", "c"
    )
    drain(stream)
    feed(stream.inbox, done(FIRST, 5))
    feed(stream.inbox, done(FIRST + 1, 2))
    drain(stream)
    stream.answers.clear()
    return stream


# -- requests ---------------------------------------------------------------------------------


def test_a_request_on_the_wire():
    stream = queue()
    spaces = [bytearray(4), bytearray(0), bytearray(1)]
    stream.add([b"head", b"", b"tail!", *spaces], 3, "token", "ctx")
    assert drain(stream) == (
        struct.pack("<HHIHHI", 8192, 1, 9, 4, 0, 0)
        + desc(4, 2, False)
        + desc(5, 3, False, 4)
        + desc(4, 0)
        + desc(1, 1)
        + b"headtail!"
    )
    assert stream.inflight() == ["token"]
    assert len(stream.free) == 3


def test_nothing_to_carry():
    stream = queue()
    with pytest.raises(InvalidArgument, match="without any byte"):
        stream.add([b"", bytearray(0)], 1, "token", None)
    assert len(stream.free) == 4


def test_so_many_segments_and_no_more():
    stream = queue()
    stream.add([b"?"] * 1000 + [bytearray(1)] * 24 + [b""], 1000, "token", None)
    drain(stream)
    with pytest.raises(InvalidArgument, match="1025 segments"):
        stream.add([b"?"] * 1000 + [bytearray(1)] * 25, 1000, "token", None)
    assert len(stream.free) == 3
    assert drain(stream) == b""


def test_large_readable_parts_are_not_copied():
    stream = queue()
    data = bytearray(SMALL_BYTES + 1)
    stream.add([data], 1, "token", None)
    assert any(piece is data for piece in stream.seal())


@pytest.mark.parametrize("step", [*ENDS, 5000])
@pytest.mark.parametrize("size", [1, 700, INLINE_BYTES, 50_000])
@pytest.mark.parametrize("ndesc", [0, 2])
def test_a_completion(step, size, ndesc):
    stream = queue()
    spaces = [bytearray(size), bytearray(3)]
    stream.add([b"?", *spaces], 1, "token", "ctx")
    data = pattern(size, 3)
    feed(stream.inbox, done(1, size + 2, ndesc) + desc(2, 1) + desc(size, 0) + b"xy" + data, step)
    assert list(stream.used) == [("token", size + 2, "ctx")]
    assert [bytes(space) for space in spaces] == [data, b"xy\0"]
    assert sorted(stream.free) == [1, 2, 3, 4]


def test_each_request_once():
    stream = queue()
    stream.add([b"?", bytearray(3)], 1, "token", None)
    answer = done(1, 3, 1) + desc(3, 0) + b"abc"
    with pytest.raises(RemoteProtocolError, match="id 1: none in flight"):
        feed(stream.inbox, answer * 2)
    assert len(stream.used) == 1


def test_in_any_order():
    stream = queue()
    for number in range(4):
        stream.add([b"?"], 1, number, None)
    feed(stream.inbox, done(3) + done(1) + done(4) + done(2))
    assert [used[0] for used in stream.used] == [2, 0, 3, 1]


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (done(2), "id 2: none in flight"),
        (done(0), "id 0: none in flight"),
        (done(999), "id 999: none"),
        (done(0x9000), "none in flight"),
        (done(1, 8), "used length of 8"),
        (done(1, 7) + desc(5, 0) + desc(1, 1), "of 4 bytes comes back with 5"),
        (done(1, 7) + desc(4, 0) + desc(4, 0), "there twice"),
        (done(1, 7) + desc(4, 0) + desc(4, 2), "not asked for"),
    ],
)
def test_what_no_target_says(answer, reason):
    stream = queue()
    stream.add([b"?", bytearray(4), bytearray(3)], 1, "token", None)
    with pytest.raises(RemoteProtocolError, match=reason):
        feed(stream.inbox, answer)
    assert not stream.used


@pytest.mark.parametrize(("status", "code"), [(22, v5.EOUTVQBUF), (95, v5.ENOCMD), (5, v5.ENODEV)])
def test_a_refused_request_is_read_to_its_end(status, code):
    stream = queue()
    stream.add([b"?", bytearray(4)], 1, "token", None)
    stream.add([b"?"], 1, "next", None)
    with pytest.raises(CommandError, match="refused a request") as caught:
        feed(stream.inbox, done(1, 0, 0, status) + desc(4, 0) + bytes(4) + done(2))
    assert caught.value.status == code
    assert bytes(stream.inbox.view[stream.inbox.pos : stream.inbox.end]) == done(2)
    assert 1 in stream.free


@pytest.mark.parametrize("cut", [0, 16, 40, 5000])
def test_abandoned_buffers_are_not_touched(cut):
    stream = queue()
    space = Scratch(40_000)
    stream.add([b"?", space], 1, "token", None)
    gone = weakref.ref(space)
    data = done(1, 40_000, 1) + desc(40_000, 0) + pattern(40_000, 1)
    feed(stream.inbox, data[:cut])
    assert stream.abandon() == "token"
    assert stream.abandon() is None
    before = bytes(space)
    feed(stream.inbox, data[cut:])
    assert bytes(space) == before
    del space
    assert gone() is None
    assert not stream.used
    assert sorted(stream.free) == [1, 2, 3, 4]


# -- control ----------------------------------------------------------------------------------


@pytest.mark.parametrize("step", ENDS)
def test_connect_and_what_is_asked_with_it(step):
    stream = V0Initiator(32, control=True)
    fields = {"device_instance_id": 0xFFFF, "vq_index": 0, "length": 1024, "queue_size": 32}
    stream.command(v5.CONNECT, fields, b"n" * 1024, "connect")
    assert drain(stream) == (
        struct.pack("<HHHHHB5x", 0, FIRST, 0xFFFF, 0xFFFF, 1, 0)
        + desc(1024, 0, False)
        + b"n" * 1024
    )
    assert stream.inflight() == ["connect"]
    feed(stream.inbox, done(FIRST, 77), step)
    (answer,) = stream.answers
    assert answer == ("connect", v5.OK, {"device_instance_id": 77})
    assert drain(stream) == plain(4103, FIRST + 1) + plain(4108, FIRST + 2)
    assert stream.inflight() == []


def test_connecting_a_virtqueue_asks_nothing_else():
    stream = queue()
    stream.command(v5.CONNECT, {"device_instance_id": 7, "vq_index": 2}, b"", "connect")
    assert drain(stream)[:16] == struct.pack("<HHHHHB5x", 0, FIRST, 7, 2, 1, 0)
    feed(stream.inbox, done(FIRST))
    assert drain(stream) == b""
    assert stream.session.state is State.LIVE


@pytest.mark.parametrize("ident", [FIRST, 0])
@pytest.mark.parametrize(
    ("instance", "status", "code"),
    [
        (0xFFFF, 19, v5.ENOTGT),
        (7, 19, v5.EBADDEV),
        (0xFFFF, 13, v5.EACLREJECTED),
        (7, 16, v5.EQUEUEBUSY),
        (7, 44, v5.EQUEUEQUOT),
        (7, 71, v5.EBADVQN),
        (7, 4096, v5.ENODEV),
    ],
)
def test_a_refused_connect_comes_with_any_id_and_may_be_tried_again(ident, instance, status, code):
    stream = V0Initiator(32, control=True)
    fields = {"device_instance_id": instance, "vq_index": 0}
    stream.command(v5.CONNECT, fields, b"", "first")
    feed(stream.inbox, done(ident, status=status))
    assert stream.answers.popleft()[:2] == ("first", code)
    stream.command(v5.CONNECT, fields, b"", "second")
    feed(stream.inbox, done(FIRST + 1, 4))
    assert stream.answers.popleft() == ("second", v5.OK, {"device_instance_id": 4})


@pytest.mark.parametrize(
    ("opcode", "fields", "sent", "answers", "result"),
    [
        (v5.GET_VENDOR_ID, {}, [plain(4096, AT)], [(7, 0)], (0, {"vendor_id": 7})),
        (v5.GET_DEVICE_ID, {}, [plain(4097, AT)], [(2, 0)], (0, {"device_id": 2})),
        (v5.GET_STATUS, {}, [plain(4099, AT)], [(15, 0)], (0, {"device_status": 15})),
        (v5.SET_STATUS, {"device_status": 3}, [plain(4100, AT, "<I8x", 3)], [(0, 0)], (0, {})),
        (
            v5.SET_STATUS,
            {"device_status": 3},
            [plain(4100, AT, "<I8x", 3)],
            [(0, 22)],
            (v5.ESTATUS, {}),
        ),
        (v5.RESET_DEVICE, {}, [plain(4100, AT, "<I8x", 0)], [(0, 0)], (0, {})),
        (v5.KEEPALIVE, {}, [plain(4099, AT)], [(15, 0)], (0, {})),
        (
            v5.GET_DEVICE_FEATURE,
            {"select": 0},
            [plain(4101, AT, "<I8x", 0)],
            [(0x1006, 0)],
            (0, {"feature": 0x1006}),
        ),
        (v5.GET_DEVICE_FEATURE, {"select": 1}, [], [], (0, {"feature": 0})),
        (
            v5.SET_DRIVER_FEATURE,
            {"select": 0, "feature": 6},
            [plain(4102, AT, "<IQ", 0, 6)],
            [(0, 22)],
            (v5.EDEVFEATURE, {}),
        ),
        (
            v5.GET_VQ_SIZE,
            {"vq_index": 1},
            [plain(4104, AT, "<H10x", 1)],
            [(64, 0)],
            (0, {"size": 64}),
        ),
        (v5.GET_VQ_SIZE, {"vq_index": 2}, [], [], (v5.EQUEUEQUOT, {})),
        (
            v5.SET_CONFIG,
            {"offset": 4, "bytes": 1, "value": 9},
            [plain(4107, AT, "<HBxQ", 4, 1, 9)],
            [(0, 0)],
            (0, {}),
        ),
        (
            v5.GET_CONFIG,
            {"offset": 4, "bytes": 8},
            [
                plain(4098, AT),
                plain(4106, AT + 1, "<HBx8x", 4, 8),
                plain(4098, AT + 2),
            ],
            [(3, 0), (99, 0), (3, 0)],
            (0, {"value": 99, "generation": 3}),
        ),
        (
            v5.GET_CONFIG,
            {"offset": 4, "bytes": 8},
            [
                plain(4098, AT),
                plain(4106, AT + 1, "<HBx8x", 4, 8),
                plain(4098, AT + 2),
            ],
            [(3, 0), (99, 0), (4, 0)],
            (0, {"value": 99, "generation": 3 | 1 << 32}),
        ),
        (
            v5.GET_CONFIG,
            {"offset": 4, "bytes": 3},
            [
                plain(4098, AT),
                plain(4106, AT + 1, "<HBx8x", 4, 3),
                plain(4098, AT + 2),
            ],
            [(3, 0), (0, 22), (3, 0)],
            (v5.ECONFOFF, {"value": 0, "generation": 3}),
        ),
    ],
)
def test_a_command_of_the_common_vocabulary(opcode, fields, sent, answers, result):
    stream = control()
    stream._next = AT
    stream.command(opcode, fields, b"", "token")
    assert drain(stream) == b"".join(sent)
    assert stream.inflight() == (["token"] if sent else [])
    for number, (value, status) in enumerate(answers):
        assert not stream.answers
        feed(stream.inbox, done(AT + number, value, status=status))
    assert stream.answers.popleft() == ("token", *result)
    assert stream.inflight() == []


def test_zeroes_are_the_answer_to_what_is_not_there():
    stream = control()
    feed(stream.inbox, done(0))  # to GET_CONFIG_CHANGED
    stream.command(v5.SET_CONFIG, {"offset": 0, "bytes": 1, "value": 1}, b"", "set")
    stream.command(v5.GET_STATUS, {}, b"", "get")
    assert len(drain(stream)) == 32
    feed(stream.inbox, done(0) + done(FIRST + 4, 1))
    assert [answer[:2] for answer in stream.answers] == [("set", v5.ENOCMD), ("get", v5.OK)]
    assert not stream.notices


def test_news_are_asked_for_again_with_the_next_command():
    stream = control()
    feed(stream.inbox, done(FIRST + 2, 6))
    assert list(stream.notices) == [(v5.ID_CONFIG_CHANGE, {"generation": 6})]
    assert drain(stream) == b""
    stream.command(v5.GET_VQ_SIZE, {"vq_index": 2}, b"", "nothing to send")
    assert drain(stream) == b""
    for number, more in enumerate((True, False)):
        stream.command(v5.GET_STATUS, {}, b"", "look")
        sent = plain(4108, FIRST + 3) if more else b""
        assert drain(stream) == sent + plain(4099, FIRST + 4 + number)


def test_a_flood_of_news_is_an_error_and_takes_no_memory():
    stream = control()
    with pytest.raises(RemoteProtocolError, match=f"id {FIRST + 3}: none in flight"):
        feed(stream.inbox, b"".join(done(FIRST + n, 6) for n in range(2, 1000)))
    assert len(stream.notices) == 1
    assert drain(stream) == b""


@pytest.mark.parametrize(
    ("opcode", "fields", "name", "most"),
    [
        (v5.GET_VENDOR_ID, {}, "vendor_id", 0xFFFFFFFF),
        (v5.GET_DEVICE_ID, {}, "device_id", 0xFFFFFFFF),
        (v5.GET_STATUS, {}, "device_status", 0xFF),
        (v5.GET_VQ_SIZE, {"vq_index": 0}, "size", 0x8000),
    ],
)
def test_no_value_beyond_its_kind(opcode, fields, name, most):
    stream = control()
    stream._next = AT
    stream.command(opcode, fields, b"", "right")
    stream.command(opcode, fields, b"", "refused")
    stream.command(opcode, fields, b"", "wrong")
    feed(stream.inbox, done(AT, most) + done(AT + 1, (1 << 64) - 1, status=22))
    assert stream.answers[0] == ("right", v5.OK, {name: most})
    assert len(stream.answers) == 2
    with pytest.raises(RemoteProtocolError, match=f"{name} {most + 1}: it is at most {most}"):
        feed(stream.inbox, done(AT + 2, most + 1))
    assert stream.inflight() == ["wrong"]  # who waits for it is told


@pytest.mark.parametrize(("at", "most"), [(1, 0xFFFF), (2, 0xFFFFFFFF)], ids=["queues", "news"])
def test_no_value_beyond_its_kind_of_what_is_asked_with_connect(at, most):
    for value in (most, most + 1):
        stream = V0Initiator(32, control=True)
        stream.command(v5.CONNECT, {"device_instance_id": 0xFFFF}, b"", "connect")
        feed(stream.inbox, done(FIRST, 0xFFFE))
        if value == most:
            feed(stream.inbox, done(FIRST + at, value))
        else:
            with pytest.raises(RemoteProtocolError, match=f"at most {most}"):
                feed(stream.inbox, done(FIRST + at, value))


def test_ids_of_the_largest_queue_are_none_of_control_commands():
    stream = queue(0x8000)
    assert (min(stream.free), max(stream.free)) == (1, 0x8000)
    assert range(0x8001, 0x10000) == CONTROL_IDS


def test_an_instance_id_has_16_bits():
    stream = V0Initiator(32, control=True)
    stream.command(v5.CONNECT, {"device_instance_id": 0xFFFF}, b"", "connect")
    with pytest.raises(RemoteProtocolError, match="CONNECT is answered with device_instance_id"):
        feed(stream.inbox, done(FIRST, 0xFFFF))
    assert not stream.answers


def test_a_target_that_does_not_know_its_queues():
    stream = V0Initiator(32, control=True)
    stream.command(v5.CONNECT, {"device_instance_id": 0xFFFF}, b"", "connect")
    feed(stream.inbox, done(FIRST))
    feed(stream.inbox, done(FIRST + 1, status=95))
    drain(stream)
    stream.command(v5.GET_VQ_SIZE, {"vq_index": 9}, b"", "size")
    assert drain(stream) == plain(4104, FIRST + 3, "<H10x", 9)


def test_goodbye_is_the_end_of_the_connection():
    stream = control()
    stream.command(v5.DISCONNECT, {}, b"", "bye")
    assert drain(stream) == b""
    assert stream.answers.popleft() == ("bye", v5.OK, {})
    with pytest.raises(LocalProtocolError):
        stream.command(v5.GET_STATUS, {}, b"", "late")


def test_ids_of_commands_go_round_past_those_in_flight():
    stream = control()  # one stays in flight
    stream._next = CONTROL_IDS.stop - 1
    for _ in range(3):
        stream.command(v5.GET_STATUS, {}, b"", "token")
    idents = [struct.unpack_from("<H", drain(stream), 2 + 16 * n)[0] for n in range(1)]
    assert idents == [CONTROL_IDS.stop - 1]
    stream.command(v5.GET_STATUS, {}, b"", "token")
    assert list(stream._steps) == [FIRST + 2, 0xFFFF, FIRST, FIRST + 1, FIRST + 3]
