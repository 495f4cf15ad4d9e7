# SPDX-License-Identifier: BSD-3-Clause
"""The target's mapping of dialect v0: what goes back for what comes in."""

import struct

import pytest

from tests.protocol.pipe import SpyPool, drain, feed, pattern, taken
from vof.errors import LocalProtocolError, RemoteProtocolError
from vof.memory import HEAP
from vof.protocol import v0, v5
from vof.protocol.stream import INLINE_BYTES
from vof.protocol.target_stream import GET_NUM_QUEUES, UNKNOWN, Message
from vof.protocol.v0_target import V0Target

MIB = 1 << 20
DESC = struct.Struct("<QIHHI4x")
DONE = struct.Struct("<HHHHQ")
ENDS = [1, 3, None]


def desc(length, ident, write=False, key=0, flags=0):
    return DESC.pack(99, length, ident, flags | 2 * write, key)


def vring(ident, *descs, payload=b"", length=0):
    return struct.pack("<HHIHHI", 8192, ident, length, len(descs), 0xFFFF, 77) + (
        b"".join(descs) + payload
    )


def plain(opcode, ident=1, form="<12x", *values):
    return struct.pack("<HH", opcode, ident) + struct.pack(form, *values)


def done(ident, value=0, ndesc=0, status=0):
    return DONE.pack(status, ident, ndesc, 0, value)


def bound(size=8, request_bytes=MIB, queue_bytes=8 * MIB, failure=b"", pool=HEAP):
    stream = V0Target(request_bytes, queue_bytes)
    stream.bind(size, pool, failure)
    return stream


def fill(chain, data):
    (segment,) = chain.writable
    segment[: len(data)] = data


@pytest.mark.parametrize("step", ENDS)
def test_a_read(step):
    stream = bound()
    data = vring(7, desc(2, 5), desc(4, 9, True, 3), desc(1, 8, True), payload=b"hi")
    feed(stream.inbox, data * 2, step)
    for chain in taken(stream):
        assert b"".join(chain.readable) == b"hi"
        fill(chain, b"dataS")
        stream.push(chain, 5)
    answer = done(7, 5, 2) + desc(4, 9, True, 3) + desc(1, 8, True) + b"dataS"
    assert drain(stream) == answer * 2
    assert (stream.inflight, stream._held, stream.inbox.lent) == (0, 0, 0)


@pytest.mark.parametrize(
    ("filled", "lengths"),
    [(0, (1, 1, 0, 1)), (2, (2, 1, 0, 1)), (4, (4, 1, 0, 1)), (5, (4, 1, 0, 1)), (9, (4, 5, 0, 1))],
)
def test_every_writable_descriptor_comes_back_with_a_byte(filled, lengths):
    stream = bound()
    sizes = (4, 5, 0, 3)
    feed(stream.inbox, vring(1, *(desc(size, i, True) for i, size in enumerate(sizes))))
    (chain,) = taken(stream)
    fill(chain, b"x" * 12)
    stream.push(chain, filled // 2, filled)
    returned = b"".join(desc(size, i, True) for i, size in enumerate(lengths))
    payload = (b"x" * filled).ljust(sum(lengths), b"\0")
    assert drain(stream) == done(1, filled // 2, 4) + returned + payload


def test_a_write_needs_no_descriptor_in_between_and_length_is_not_looked_at():
    stream = bound()
    feed(
        stream.inbox,
        vring(1, desc(3, 0), desc(1, 1, True), desc(2, 2), payload=b"abcde", length=1),
    )
    (chain,) = taken(stream)
    assert b"".join(chain.readable) == b"abcde"
    fill(chain, b"\0")
    stream.push(chain, 1)
    assert drain(stream) == done(1, 1, 1) + desc(1, 1, True) + b"\0"


@pytest.mark.parametrize("step", [1000, None])
@pytest.mark.parametrize("size", [INLINE_BYTES, INLINE_BYTES + 1, 300_000])
def test_large_payload_both_ways(size, step):
    stream = bound()
    data = pattern(size, 1)
    feed(stream.inbox, vring(1, desc(size, 0), desc(size, 1, True), payload=data), step)
    (chain,) = taken(stream)
    assert b"".join(chain.readable) == data
    fill(chain, data)
    stream.push(chain, size)
    assert drain(stream) == done(1, size, 1) + desc(size, 1, True) + data


def test_what_is_large_and_here_already():
    stream = bound(queue_bytes=1)
    first = vring(1, desc(1, 0), payload=b"?")
    size = INLINE_BYTES + 1
    data = pattern(size, 2)
    feed(stream.inbox, first + vring(2, desc(size, 0), payload=data))
    assert stream.paused
    (chain,) = taken(stream)
    stream.push(chain, 0)
    drain(stream)
    stream.inbox.advance()
    (chain,) = taken(stream)
    assert b"".join(chain.readable) == data


def test_more_requests_than_the_queue_holds_wait():
    stream = bound(2)
    feed(stream.inbox, b"".join(vring(1, desc(1, 0), payload=b"%d" % i) for i in range(3)))
    first, second = taken(stream)
    assert stream.paused
    stream.push(first, 0)
    stream.inbox.advance()
    (third,) = taken(stream)
    assert b"".join(third.readable) == b"2"
    stream.push(second, 0)
    stream.push(third, 0)
    assert drain(stream) == done(1) * 3


@pytest.mark.parametrize("size", [0, 1])
def test_what_cannot_be_carried_out_comes_back_whole(size):
    stream = bound(size, request_bytes=100, failure=b"\1")
    parts = [desc(101, 0), desc(9, 1, True), desc(2, 2, True)]
    feed(stream.inbox, vring(4, *parts, payload=bytes(101)) + vring(5))
    status = 22 if size else 95
    assert drain(stream) == (
        done(4, 0, 2, status) + desc(1, 1, True) + desc(2, 2, True) + b"\0\0\1"
    ) + done(5, 0, 0, status)
    feed(stream.inbox, vring(6, desc(101, 1, True)))
    assert drain(stream) == done(6, 0, 1, status) + desc(101, 1, True) + bytes(100) + b"\1"
    assert not stream.chains


def test_the_largest_request():
    stream = bound(request_bytes=100)
    feed(stream.inbox, vring(1, desc(100, 0), desc(100, 1, True), payload=bytes(100)))
    (chain,) = taken(stream)
    assert [len(part) for part in (*chain.readable, *chain.writable)] == [100, 100]


def test_a_device_without_a_word_for_failure():
    stream = bound(1, request_bytes=100)
    feed(stream.inbox, vring(6, desc(101, 1, True), desc(0, 2, True)))
    assert drain(stream) == done(6, 0, 2, 22) + desc(1, 1, True) + desc(0, 2, True) + b"\0"


@pytest.mark.parametrize("failure", [b"\1", b"ab"])
def test_failure_is_told_at_the_very_end_even_where_empty_descriptors_follow(failure):
    stream = bound(1, request_bytes=100, failure=failure)
    descs = [desc(101, 1, True), desc(1, 2, True), desc(0, 3, True), desc(0, 4, True)]
    feed(stream.inbox, vring(6, *descs) + vring(7, desc(0, 3, True), desc(101, 4)) + bytes(101))
    answer = done(6, 0, 4, 22) + desc(1, 1, True) + b"".join(descs[1:]) + b"\0" + failure[-1:]
    assert drain(stream) == answer + done(7, 0, 1, 22) + desc(0, 3, True)


def test_a_failure_that_cannot_be_told_ends_the_connection():
    stream = bound(1, request_bytes=100, failure=b"\1")
    with pytest.raises(RemoteProtocolError, match="cannot be told"):
        feed(stream.inbox, vring(6, desc(INLINE_BYTES + 1, 1, True)))


@pytest.mark.parametrize("step", [7, 4096, None])
@pytest.mark.parametrize(("size", "status"), [(0, 95), (8, 22)], ids=["control", "virtqueue"])
def test_too_many_descriptors_are_passed_over(size, status, step):
    pool = SpyPool()
    stream = bound(size, pool=pool, failure=b"\1" if size else b"")
    head = struct.pack("<HHIHHI", 8192, 5, 0, 1025, 0, 0)
    back = desc(3, 7, True)
    data = head + desc(2, 1, False) * 1023 + desc(9, 8, True) + back
    feed(stream.inbox, data + b"x" * 2046 + plain(2, 9), step)
    answer = done(5, ndesc=2, status=status) + desc(1, 8, True)
    if size:
        answer += back + bytes(3) + b"\1"
    else:
        answer += desc(1, 7, True) + bytes(2)
    assert drain(stream) == answer
    assert not pool.sizes
    assert [(m.opcode, m.command_id) for m in stream.messages] == [(v5.KEEPALIVE, 9)]


def test_so_many_descriptors_and_no_more():
    stream = bound()
    feed(stream.inbox, vring(1, *[desc(1, n) for n in range(1024)], payload=b"x" * 1024))
    (chain,) = taken(stream)
    assert b"".join(chain.readable) == b"x" * 1024


def test_too_many_descriptors_of_too_much_end_the_connection():
    stream = bound(request_bytes=100)
    head = struct.pack("<HHIHHI", 8192, 5, 0, 1025, 0, 0)
    with pytest.raises(RemoteProtocolError, match="1025 descriptors and 102500 bytes"):
        feed(stream.inbox, head + desc(100, 1, False) * 1025)


def test_refusals_that_nobody_reads_wait():
    stream = bound(request_bytes=100, queue_bytes=50_000, failure=b"\1")
    feed(stream.inbox, vring(6, desc(101, 1, True), desc(INLINE_BYTES, 2, True)) * 100)
    assert stream.outbox.pending() < 50_000
    assert stream.paused
    for _ in range(100):
        answer = drain(stream)
        if not answer:
            break
        assert len(answer) % (16 + 48 + 1 + INLINE_BYTES) == 0
        stream.inbox.advance()
    assert not stream.paused


def test_the_budget_is_of_all_that_a_request_takes():
    size = 300 + 200 + 16 + 2 * 24
    stream = bound(queue_bytes=2 * size)
    data = vring(1, desc(300, 0), desc(200, 1, True), payload=bytes(300))
    feed(stream.inbox, data * 3)
    first, second = taken(stream)
    assert stream.paused
    stream.push(first, 0)
    drain(stream)
    stream.inbox.advance()
    (third,) = taken(stream)
    assert not stream.paused
    for chain in (second, third):
        stream.push(chain, 0)
    assert stream._held == 0


def test_large_buffers_are_used_again():
    pool = SpyPool()
    stream = bound(pool=pool)
    for _ in range(3):
        feed(stream.inbox, vring(1, desc(INLINE_BYTES + 1, 0), payload=bytes(INLINE_BYTES + 1)))
        (chain,) = taken(stream)
        stream.push(chain, 0)
        drain(stream)
    assert pool.sizes.count(INLINE_BYTES + 1) == 1


def test_each_chain_once_and_within_its_room():
    stream = bound()
    feed(stream.inbox, vring(1, desc(2, 0, True)))
    (chain,) = taken(stream)
    with pytest.raises(LocalProtocolError, match="used length"):
        stream.push(chain, 3)
    stream.push(chain, 0)
    with pytest.raises(LocalProtocolError, match="already"):
        stream.push(chain, 0)


def test_answers_stay_behind_the_requests_before_them():
    stream = bound()
    feed(stream.inbox, vring(1, desc(2, 0, True)) + plain(2, 2) + plain(3, 3, "<I8x", 0))
    (chain,) = taken(stream)
    stream.push(chain, 2)
    stream.answer(stream.messages[0], v5.OK)
    stream.inbox.advance()
    payload = desc(2, 0, True) + bytes(2)
    assert drain(stream) == done(1, 2, 1) + payload + done(2) + done(3, v0.MAX_SEGS)


def test_errors_are_counted():
    stream = bound(1, request_bytes=100)
    feed(stream.inbox, vring(6, desc(101, 1, True)) + vring(7) + plain(3, 3, "<I8x", 0))
    assert stream.errors == 2


# -- CONNECT ----------------------------------------------------------------------------------


NAMES = (b"n" * 255 + b"\0") * 4


def connect(ident=3, target=0xFFFF, queue=0xFFFF, ndesc=1, oftype=0, length=1024, write=False):
    head = struct.pack("<HHHHHB5s", 0, ident, target, queue, ndesc, oftype, b"\xaa" * 5)
    return head + desc(length, 0, write, 5) + (b"" if write else NAMES[:length])


@pytest.mark.parametrize("step", ENDS)
def test_connect(step):
    stream = V0Target(MIB, MIB)
    feed(stream.inbox, connect(), step)
    (message,) = stream.messages
    assert stream.paused
    assert (message.opcode, message.command_id) == (v5.CONNECT, 3)
    assert message.body == NAMES
    fields = message.fields
    assert (fields["device_instance_id"], fields["vq_index"]) == (0xFFFF, 0xFFFF)
    assert (fields["length"], fields["queue_size"]) == (1024, 0)
    stream.answer(message, v5.OK, device_instance_id=12)
    stream.answer(message, v5.EBADVQN, device_instance_id=0)
    assert drain(stream) == done(3, 12) + done(3, status=71)


@pytest.mark.parametrize("step", [1, 100, None])
@pytest.mark.parametrize(
    ("wrong", "answer"),
    [
        ({"oftype": 1}, done(3, status=71)),
        ({"length": 0}, done(3, status=71)),
        ({"length": 1023}, done(3, status=71)),
        ({"write": True}, done(3, 0, 1, 19) + desc(1, 0, True, 5) + b"\0"),
    ],
)
def test_a_connect_that_is_none_may_be_tried_again(wrong, answer, step):
    stream = V0Target(MIB, MIB)
    feed(stream.inbox, connect(**wrong) + connect(4), step)
    assert drain(stream) == answer
    assert [message.command_id for message in stream.messages] == [4]


@pytest.mark.parametrize("size", [0, 1])
@pytest.mark.parametrize("wrong", [{}, {"oftype": 1}, {"length": 1023}, {"write": True}])
def test_connect_on_a_queue_is_for_the_session_to_judge(size, wrong):
    stream = bound(size)
    feed(stream.inbox, connect(**wrong))
    assert [message.opcode for message in stream.messages] == [v5.CONNECT]
    assert drain(stream) == b""


@pytest.mark.parametrize(("target", "status"), [(0xFFFF, 19), (7, None)])
def test_a_device_name_without_end_names_nothing(target, status):
    stream = V0Target(MIB, MIB)
    feed(stream.inbox, connect(target=target)[:-1024] + b"n" * 512 + bytes(512))
    assert drain(stream) == (done(3, status=status) if status else b"")
    assert len(stream.messages) == (not status)


@pytest.mark.parametrize("ndesc", [0, 2, 65535])
def test_connect_has_one_descriptor(ndesc):
    with pytest.raises(RemoteProtocolError, match="descriptors"):
        feed(V0Target(MIB, MIB).inbox, connect(ndesc=ndesc))


def test_requests_before_connect_are_for_the_session_to_judge():
    stream = V0Target(MIB, MIB)
    feed(stream.inbox, vring(1, desc(1, 0), payload=b"x"))
    assert [message.opcode for message in stream.messages] == [UNKNOWN]


# -- other commands ---------------------------------------------------------------------------


@pytest.mark.parametrize("opcode", v0.COMMON)
def test_the_common_vocabulary(opcode):
    if opcode != v0.CONNECT:
        stream = bound(0)
        form = {v0.SET_QUEUE_SIZE: "<HHQ", v0.GET_CONFIG: "<HBx8x"}.get(opcode, "<IQ")
        values = {"<HHQ": (1, 0, 16), "<HBx8x": (4, 8), "<IQ": (0, 8)}[form]
        feed(stream.inbox, plain(opcode, 9, form, *values))
        (message,) = stream.messages
        assert (message.opcode, message.command_id) == (v0.COMMON[opcode], 9)
        assert message.queues == v0.COMMANDS[opcode].queues
        names = v0.COMMANDS[opcode].completion.names[3:]
        stream.answer(message, v5.OK, **dict.fromkeys(names, 8))
        assert drain(stream) == done(9, 8 if names else 0)


@pytest.mark.parametrize("opcode", [5, 0x0FFF, 4109, 8193, 65535])
def test_an_unknown_command_is_nobody_elses(opcode):
    stream = bound(0)
    feed(stream.inbox, plain(opcode, 9))
    (message,) = stream.messages
    assert message == (UNKNOWN, 9, {}, b"", "")
    stream.answer(message, v5.ENOCMD)
    assert drain(stream) == done(9, status=95)


@pytest.mark.parametrize(
    ("command", "status", "value"),
    [
        (plain(3, 1, "<I8x", 0), 0, v0.MAX_SEGS),
        (plain(3, 1, "<I8x", 1), 22, 0),
        (plain(4, 1, "<IQ", 0, 128), 0, 0),
        (plain(4, 1, "<IQ", 0, v0.MAX_SEGS), 0, 0),
        (plain(4, 1, "<IQ", 0, 1), 0, 0),
        (plain(4, 1, "<IQ", 0, 0), 22, 0),
        (plain(4, 1, "<IQ", 0, v0.MAX_SEGS + 1), 22, 0),
        (plain(4, 1, "<IQ", 7, 1), 22, 0),
        (plain(4101, 1, "<I8x", 1), 22, 0),
        (plain(4102, 1, "<IQ", 1, 0), 22, 0),
        (plain(4105, 1, "<HHQ", 0, 0, 48), 22, 0),
        (plain(4105, 1, "<HHQ", 0, 0, 0), 22, 0),
    ],
)
def test_what_the_wire_decides(command, status, value):
    stream = bound(0)
    feed(stream.inbox, command)
    assert not stream.messages
    assert drain(stream) == done(1, value, status=status)
    unbound = V0Target(MIB, MIB)
    feed(unbound.inbox, command)
    assert len(unbound.messages) == 1


def test_only_what_only_looks_is_decided_on_a_virtqueue():
    stream = bound(1)
    feed(stream.inbox, plain(3, 1, "<I8x", 0) + plain(4, 2, "<IQ", 0, 5))
    assert drain(stream) == done(1, v0.MAX_SEGS)
    assert [(m.opcode, m.queues) for m in stream.messages] == [(UNKNOWN, "c")]


@pytest.mark.parametrize(("size", "told"), [(1, 1), (2, 2), (100, 64), (128, 128), (32768, 32768)])
def test_a_queue_size_is_a_power_of_two(size, told):
    stream = bound(0)
    stream.answer(Message(v5.GET_VQ_SIZE, 1, {}, b"", ""), v5.OK, size=size)
    stream.answer(Message(GET_NUM_QUEUES, 2, {}, b"", ""), v5.OK, num_queues=size)
    stream.answer(Message(v5.GET_VQ_SIZE, 3, {}, b"", ""), v5.EQUEUEQUOT)
    assert drain(stream) == done(1, told) + done(2, size) + done(3, status=44)


def test_get_config_changed_is_held_until_a_change():
    stream = bound(0)
    feed(stream.inbox, plain(4108, 5) + plain(4108, 6))
    assert not stream.notice(v5.ID_KEEPALIVE)
    assert drain(stream) == b""
    assert not stream.notice(v5.ID_CONFIG_CHANGE, generation=3)
    assert drain(stream) == done(5, 3) + done(6, 3)
    stream.notice(v5.ID_CONFIG_CHANGE, generation=4)
    assert drain(stream) == b""
    feed(stream.inbox, plain(4108, 7) + plain(4108, 8))
    assert drain(stream) == done(7, 4)


def test_so_many_are_held_and_no_more():
    stream = bound(0)
    feed(stream.inbox, plain(4108, 5) * 33)
    assert drain(stream) == done(5, status=16)


def test_every_status_is_an_errno():
    assert v0.ERRNO.keys() == v5.STATUS.keys()
    assert all(0 <= number < v0.EQUIRK for number in v0.ERRNO.values())
