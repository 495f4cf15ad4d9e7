# SPDX-License-Identifier: BSD-3-Clause
"""The initiator's side of a queue pair in dialect v5: what is described, copied, and believed."""

import gc
import weakref

import pytest

from tests.protocol.keyed import BOTH, Alone
from vof.errors import CommandError, LocalProtocolError, RemoteProtocolError
from vof.memory import Region, address_of
from vof.protocol import v5
from vof.protocol.keyed_heads import heads_bytes
from vof.protocol.keyed_initiator import EXTRA
from vof.protocol.registered import REMOTE_READ, REMOTE_WRITE
from vof.protocol.session import State
from vof.protocol.v5_keyed import DESC, EAGER, EAGER_DONE, HEADER, to_fields
from vof.protocol.v5_keyed_initiator import EAGER_BYTES, V5KeyedInitiator
from vof.transport.loopback_pairs import Fault

HEADS = heads_bytes(3)
BUFFER = [(0x10000, HEADS + 3000, 9)]
"""An eager buffer for queues of three: short heads, and three pieces."""


def queue(size=3, control=False, descs=32, eager=None):
    alone = Alone(V5KeyedInitiator(size, control), BOTH)
    if not control:
        alone.stream.session.state = State.LIVE
        alone.stream.allow(descs, to_fields(eager) if eager is not None else None)
    return alone


def said(alone):
    """Return the one message that is posted: its header, and its descriptors."""
    (message,) = alone.posts()
    return HEADER.unpack_from(message), list(DESC.iter_unpack(message[16:]))


def done(ident, used, written=None, status=0):
    return HEADER.pack(status, ident, used, used if written is None else written)


def reach(alone, desc, right):
    """Go for described memory as the target would."""
    address, length, key = desc
    return alone.domain.reach(address, length, key, right)


# -- describing -----------------------------------------------------------------------------------


def test_registered_memory_is_described_where_it_is():
    alone = queue()
    out, into = alone.memory.alloc(100), alone.memory.alloc(50)
    out[:] = b"o" * 100
    alone.stream.add([out[10:], into], 1, "token", "ctx")
    header, (first, second) = said(alone)
    assert header == (v5.VQ, 0, 90, 50)
    assert first[:2] == (address_of(out) + 10, 90)
    assert second[:2] == (address_of(into), 50)
    assert reach(alone, first, REMOTE_READ) == out[10:]
    reach(alone, second, REMOTE_WRITE)[:3] = b"xyz"
    alone.stream.received(done(0, 2, 3))
    assert alone.stream.used.popleft() == ("token", 2, "ctx")
    assert bytes(into[:4]) == b"xyz\0"


def test_a_key_gives_one_right():
    alone = queue()
    alone.stream.add(
        [alone.memory.alloc(8), b"bytes", alone.memory.alloc(8), bytearray(8)], 2, 1, 0
    )
    _, descs = said(alone)
    assert [length for _, length, _ in descs] == [8, 5, 8, 8]
    for desc, right in zip(
        descs, (REMOTE_READ, REMOTE_READ, REMOTE_WRITE, REMOTE_WRITE), strict=True
    ):
        reach(alone, desc, right)
        with pytest.raises(Fault, match="gives rights"):
            reach(alone, desc, BOTH - right)


def test_what_is_not_registered_is_copied():
    alone = queue()
    into = bytearray(b"." * 6)
    alone.stream.add([b"hello", memoryview(b"world"), into], 2, "token", None)
    header, (first, second) = said(alone)
    assert header == (v5.VQ, 0, 10, 6)
    assert reach(alone, first, REMOTE_READ) == b"helloworld"
    reach(alone, second, REMOTE_WRITE)[:] = b"answer"
    alone.stream.received(done(0, 3, 4))
    assert alone.stream.used.popleft() == ("token", 3, None)
    assert into == b"answ.."


def test_pieces_of_both_kinds():
    alone = queue()
    one, two = alone.memory.alloc(4), alone.memory.alloc(4)
    loose = [bytearray(b".."), bytearray(b"...")]
    alone.stream.add([one, loose[0], b"", two, loose[1]], 0, "token", None)
    header, descs = said(alone)
    assert header[2:] == (0, 13)
    assert [length for _, length, _ in descs] == [4, 2, 4, 3]
    data = b"abcdefghijklm"
    at = 0
    for desc in descs:
        reach(alone, desc, REMOTE_WRITE)[:] = data[at : at + desc[1]]
        at += desc[1]
    alone.stream.received(done(0, 12))
    assert bytes(one) + loose[0] + bytes(two) + loose[1] == b"abcdefghijkl."


def test_pieces_side_by_side_are_one():
    alone = queue()
    memory = alone.memory.alloc(100)
    alone.stream.add([memory[:10], memory[10:30], memory[31:40], memory[40:]], 2, 1, None)
    _, descs = said(alone)
    assert [(a - address_of(memory), length) for a, length, _ in descs] == [(0, 30), (31, 69)]


@pytest.mark.parametrize(
    ("descs", "shape"), [(32, [1, 1, 1, 1, 1, 1]), (5, [1, 1, 1, 3]), (0, [3, 3])]
)
def test_more_pieces_than_the_target_takes_are_copied_to_one(descs, shape):
    alone = queue(descs=descs)
    pieces = [alone.memory.alloc(1) for _ in range(6)]
    for number, piece in enumerate(pieces):
        piece[0] = 65 + number
    alone.stream.add(pieces, 3, 1, None)
    _, found = said(alone)
    assert [length for _, length, _ in found] == shape
    seen = b"".join(reach(alone, d, REMOTE_READ) for d in found[: -3 if descs > 5 else -1])
    assert seen == b"ABC"
    for desc in found[-3 if descs > 5 else -1 :]:
        reach(alone, desc, REMOTE_WRITE)[:] = b"xyz"[: desc[1]]
    alone.stream.received(done(0, 3))
    assert b"".join(pieces[3:]) == (b"xxx" if descs > 5 else b"xyz")


def test_a_request_of_nothing():
    alone = queue()
    alone.stream.add([b"", bytearray()], 1, 1, None)
    assert said(alone) == ((v5.VQ, 0, 0, 0), [])


def test_buffers_live_as_long_as_they_are_described():
    alone = queue()
    out = alone.memory.alloc(64)
    gone = weakref.ref(out.obj)
    alone.stream.add([out], 1, "token", None)
    del out
    gc.collect()
    said(alone)
    assert gone() is not None
    alone.stream.received(done(0, 0))
    gc.collect()
    assert gone() is None


def test_a_region_of_the_driver_itself():
    alone, region = queue(), Region(4096)
    alone.memory.add(region)
    view = region.alloc(64)
    alone.stream.add([view], 0, 1, None)
    assert said(alone)[1][0][0] == address_of(view)


def test_places_are_used_again():
    alone = queue()
    seen = set()
    for _ in range(5):
        alone.stream.add([b"q" * 3000, bytearray(3000)], 1, "token", None)
        seen.add(tuple(desc[0] for desc in said(alone)[1]))
        alone.stream.received(done(0, 3000))
    assert len(seen) == 1
    alone.stream.trim()
    assert not any(memory._own for memory in alone.stream._own)


# -- the eager buffer -----------------------------------------------------------------------------


def test_a_small_readable_part_is_written_beforehand():
    alone = queue(eager=BUFFER)
    alone.stream.free.remove(1)
    alone.stream.free.append(1)
    into = alone.memory.alloc(50)
    alone.stream.add([b"head", b"er", into], 2, "token", None)
    (kind, there, here), message = alone.posts()
    assert (kind, there, bytes(here)) == ("write", (0x10000 + HEADS + 1000, 6, 9), b"header")
    assert EAGER.unpack_from(message) == (v5.VQ_KEYED_EAGER_BUF, 1, HEADS + 1000, 6, 50)
    ((address, length, _),) = DESC.iter_unpack(message[16:])
    assert (address, length) == (address_of(into), 50)
    alone.stream.received(EAGER_DONE.pack(0, 1, 7))
    assert alone.stream.used.popleft() == ("token", 7, None)


def test_most_requests():
    """One small buffer to read, and one to write."""
    alone = queue(eager=BUFFER)
    out, into = alone.memory.alloc(20), alone.memory.alloc(50)
    out[:] = b"o" * 20
    gone = weakref.ref(into.obj)
    alone.stream.add([out, into], 1, "token", "ctx")
    (kind, there, here), message = alone.posts()
    assert (kind, there, bytes(here)) == ("write", (0x10000, 20, 9), bytes(out))
    assert EAGER.unpack_from(message) == (v5.VQ_KEYED_EAGER_BUF, 0, 0, 20, 50)
    (desc,) = DESC.iter_unpack(message[16:])
    assert desc[:2] == (address_of(into), 50)
    reach(alone, desc, REMOTE_WRITE)
    del into
    gc.collect()
    assert gone() is not None
    alone.stream.received(EAGER_DONE.pack(0, 0, 9))
    assert alone.stream.used.popleft() == ("token", 9, "ctx")
    alone.stream.add([b"q", bytearray()], 1, 1, None)
    _, message = alone.posts()
    assert len(message) == 16


def test_what_a_device_wrote_beyond_is_copied_too():
    alone = queue(eager=BUFFER)
    into = bytearray(b"......")
    alone.stream.add([b"q", into], 1, "token", None)
    _, message = alone.posts()
    (desc,) = DESC.iter_unpack(message[16:])
    assert reach(alone, desc, REMOTE_WRITE) == b"......"
    reach(alone, desc, REMOTE_WRITE)[:4] = b"abcd"
    alone.stream.received(EAGER_DONE.pack(0, 0, 2))
    assert alone.stream.used.popleft() == ("token", 2, None)
    assert into == b"abcd.."


@pytest.mark.parametrize("size", [0, 1001])
def test_what_has_no_place_there_is_described(size):
    alone = queue(eager=BUFFER)
    alone.stream.add([bytes(size), bytearray(1)], 1, 1, None)
    assert said(alone)[0] == (v5.VQ, 0, size, 1)


def test_large_ones_are_not_written_beforehand_however_large_the_buffer():
    alone = queue(eager=[(0x10000, 1 << 30, 9)])
    alone.stream.add([bytes(EAGER_BYTES + 1)], 1, 1, None)
    assert said(alone)[0][0] == v5.VQ
    alone.stream.add([bytes(EAGER_BYTES)], 1, 1, None)
    assert len(alone.posts()) == 2


def test_an_eager_buffer_in_pieces():
    alone = queue(size=2, eager=[(0x10000, 5, 1), (0x20000, 3, 2), (0x30000, 6, 3)])
    alone.stream.add([b"abcdefg"], 1, 1, None)
    *writes, message = alone.posts()
    assert EAGER.unpack_from(message)[2:] == (0, 7, 0)
    assert [(w.there, bytes(w.here)) for w in writes] == [
        ((0x10000, 5, 1), b"abcde"),
        ((0x20000, 2, 2), b"fg"),
    ]
    alone.stream.add([b"ABCDEFG"], 1, 1, None)
    *writes, message = alone.posts()
    assert EAGER.unpack_from(message)[2:] == (7, 7, 0)
    assert [(w.there, bytes(w.here)) for w in writes] == [
        ((0x20002, 1, 2), b"A"),
        ((0x30000, 6, 3), b"BCDEFG"),
    ]


@pytest.mark.parametrize("buffer", [[], [(0x10000, 2, 9)]])
def test_a_buffer_too_small_for_anything(buffer):
    alone = queue(eager=buffer)
    alone.stream.add([b"q"], 1, 1, None)
    assert said(alone)[0][0] == v5.VQ


# -- the edge -------------------------------------------------------------------------------------


def test_a_control_queue_has_receives_for_an_event_behind_each_command():
    """A configuration that changes all the time is told of after each look at it."""
    assert V5KeyedInitiator(32, control=True).receives == (2 * 32 + EXTRA, 16)


def test_receives_and_room():
    alone = queue(size=3, eager=BUFFER)
    assert alone.stream.receives == (3 + EXTRA, 16)
    assert not alone.stream.unsent
    assert not alone.stream.expects
    for _ in range(2):
        alone.stream.add([b"q"], 1, 1, None)
    assert alone.stream.unsent
    assert [len(alone.posts(room)) for room in (3, 0, 5)] == [3, 0, 1]
    assert not alone.stream.unsent
    alone.stream.completed(4)
    assert alone.stream.receives == (3 + EXTRA, 16)


# -- what a target says ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("message", "why"),
    [
        (b"", "a message of 0 bytes"),
        (bytes(17), "a message of 17 bytes"),
        (done(1, 0), "command id 1: none in flight"),
        (done(3, 0), "command id 3: none in flight"),
        (done(0xFFFE, 0), "command id 65534: none in flight"),
        (done(0, 5, 4), "a used length of 5 and 4 bytes, for a request with 10"),
        (done(0, 5, 11), "a used length of 5 and 11 bytes"),
        (done(0, 12, 12), "a used length of 12 and 12 bytes"),
    ],
)
def test_what_no_target_says(message, why):
    alone = queue()
    alone.stream.add([b"q", bytearray(10)], 1, 1, None)
    with pytest.raises(RemoteProtocolError, match=why):
        alone.stream.received(message)
    assert not alone.stream.used


def test_an_eager_completion_that_claims_too_much():
    alone = queue(eager=BUFFER)
    alone.stream.add([b"q", bytearray(10)], 1, 1, None)
    with pytest.raises(RemoteProtocolError, match="a used length of 11 and 10"):
        alone.stream.received(EAGER_DONE.pack(0, 0, 11))


def test_a_completion_comes_once():
    alone = queue()
    alone.stream.add([b"q"], 1, 1, None)
    alone.stream.received(done(0, 0))
    with pytest.raises(RemoteProtocolError, match="none in flight"):
        alone.stream.received(done(0, 0))


def test_a_refusal():
    alone = queue()
    alone.stream.add([b"q"], 1, 1, None)
    with pytest.raises(CommandError, match="EINVQBUF"):
        alone.stream.received(done(0, 0, status=v5.EINVQBUF))


# -- commands -------------------------------------------------------------------------------------


def connect(alone, ident=0):
    fields = {"device_instance_id": v5.NEW_INSTANCE, "length": 1024, "queue_size": 32}
    alone.stream.command(v5.CONNECT, fields, b"n" * 1024, "connect")


def test_connect_tells_where_its_body_is():
    alone = queue(size=4, control=True)
    connect(alone)
    (message,) = alone.posts()
    assert message[:16] == bytes.fromhex("00000000 ffff0000 00040000 20000000")
    (desc,) = DESC.iter_unpack(message[16:])
    assert reach(alone, desc, REMOTE_READ) == b"n" * 1024
    with pytest.raises(LocalProtocolError):
        connect(alone)
    alone.stream.received(HEADER.pack(v5.ENOTGT, 0, 0, 0))
    assert alone.stream.answers.popleft()[:2] == ("connect", v5.ENOTGT)
    connect(alone)
    alone.stream.received(bytes.fromhex("00000000 07000000 00000000 00000000"))
    assert alone.stream.answers.popleft().fields["device_instance_id"] == 7
    assert alone.stream.session.state is State.LIVE
    assert sorted(alone.stream.free) == [0, 1, 2, 3]


def control():
    alone = queue(size=4, control=True)
    alone.stream.session.state = State.LIVE
    return alone


def test_the_eager_buffer_is_asked_for():
    alone = control()
    alone.stream.command(v5.GET_KEYED_EAGER_BUF, {"vq_index": 2, "descs": 3}, b"", "eager")
    (message,) = alone.posts()
    (desc,) = DESC.iter_unpack(message[16:])
    assert desc[1] == 48
    reach(alone, desc, REMOTE_WRITE)[:32] = DESC.pack(1, 2, 3) + DESC.pack(4, 5, 6)
    alone.stream.received(b"\0\0\0\0\2" + bytes(11))
    assert alone.stream.answers.popleft() == ("eager", 0, to_fields([(1, 2, 3), (4, 5, 6)]))


@pytest.mark.parametrize("status", [0, v5.EQUEUEQUOT])
def test_an_eager_buffer_of_more_pieces_than_there_is_room_for(status):
    alone = control()
    alone.stream.command(v5.GET_KEYED_EAGER_BUF, {"vq_index": 2, "descs": 3}, b"", "eager")
    answer = status.to_bytes(2, "little") + b"\0\0\4" + bytes(11)
    if status:
        alone.stream.received(answer)
        assert alone.stream.answers.popleft()[:2] == ("eager", status)
    else:
        with pytest.raises(RemoteProtocolError, match="4 descriptors; there was room for 3"):
            alone.stream.received(answer)


def test_notices():
    alone = control()
    alone.stream.received(bytes.fromhex("0000feff 05000000 00000000 00000000"))
    assert alone.stream.notices.popleft()[1]["generation"] == 5
    with pytest.raises(RemoteProtocolError, match="none in flight"):
        alone.stream.received(done(3, 0))


# -- ends -----------------------------------------------------------------------------------------


def test_what_is_abandoned_is_not_touched_again():
    alone = queue()
    into = bytearray(4)
    alone.stream.add([b"q", into], 1, "first", None)
    alone.stream.add([b"q"], 1, "second", None)
    _, descs = HEADER, list(DESC.iter_unpack(alone.posts()[0][16:]))
    reach(alone, descs[1], REMOTE_WRITE)[:] = b"late"
    assert alone.stream.inflight() == ["first", "second"]
    assert alone.stream.abandon() == "first"
    with pytest.raises(RemoteProtocolError, match="none in flight"):
        alone.stream.received(done(0, 4))
    assert into == bytes(4)
    assert alone.stream.abandon() == "second"
    assert alone.stream.abandon() is None
    assert alone.stream.free == [2]
