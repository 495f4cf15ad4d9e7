# SPDX-License-Identifier: BSD-3-Clause
"""The table of dialects, and how a connection shows which it is."""

import pytest

from tests.protocol.keyed import Alone
from tests.protocol.pipe import feed
from vof.errors import RemoteProtocolError
from vof.protocol import v0, v5
from vof.protocol.byte_target import ByteTarget
from vof.protocol.dialects import DIALECTS, ByteOpening, KeyedOpening, recognise
from vof.protocol.keyed_target import KeyedTarget
from vof.protocol.v0_keyed_target import DESC

V5_CONTROL = bytes.fromhex("00000100 ffff0000 00040000 20000000")
V5_QUEUE = bytes.fromhex("00000000 07000200 00000000 80000000")
V0_C = bytes.fromhex("0000cdab ffffffff 010000aa bbccddee")
V0_LINUX = bytes.fromhex("00000000 ffff0000 01000000 00000000")
V0_RDMA = bytes.fromhex("00000000 ffff0000 01000100 00000000")
OTHERS = [bytes(16), b"GET / HTTP/1.1\r\n", b"\xff" * 16, bytes([3]) + bytes(15)]


@pytest.mark.parametrize(
    ("name", "head"),
    [("v5", head) for head in (V5_CONTROL, V5_QUEUE, *OTHERS)]
    + [("v0", head) for head in (V0_C, V0_LINUX, V0_RDMA)],
)
def test_recognise(name, head):
    assert recognise(head) is DIALECTS[name]


@pytest.mark.parametrize("step", [1, 7, None])
def test_another_stream_goes_on_where_the_opening_ends(step):
    opening = ByteOpening()
    rest = bytes(range(100))
    feed(opening.inbox, V0_LINUX[:15], step)
    assert opening.dialect is None
    feed(opening.inbox, V0_LINUX[15:] + rest, None)
    assert opening.dialect is DIALECTS["v0"]
    inbox = opening.inbox
    assert bytes(inbox.view[inbox.pos : inbox.end]) == V0_LINUX + rest
    assert opening.seal() == []
    opening.all_sent()


def test_a_first_message_shows_the_dialect():
    opening = KeyedOpening()
    alone = Alone(opening)
    assert (opening.receives, opening.unsent, alone.posts()) == ((1, 64), False, [])
    opening.completed(0)
    assert not opening.expects
    opening.received(V0_RDMA + DESC.pack(1, 1024, 0, 0, 7))
    assert opening.dialect is DIALECTS["v0"]
    assert opening.receives == (0, 64)
    stream = opening.open(opening.dialect, 1000, 1000)
    alone = Alone(stream)
    stream.advance()
    assert [post.there for post in alone.posts()] == [(1, 1024, 7)]


def test_a_first_message_that_is_none():
    opening = KeyedOpening()
    with pytest.raises(RemoteProtocolError, match="a message of 15 bytes"):
        opening.received(bytes(15))
    opening.release()
    assert opening.receives == (1, 64)


def test_the_ports():
    assert (DIALECTS["v5"].port, DIALECTS["v0"].port) == (v5.PORT, v0.PORT) == (8549, 15771)


def test_what_a_mapping_says_it_is():
    for name, row in DIALECTS.items():
        for mapping in ("stream", "keyed"):
            assert row.on(mapping).target.dialect == name
        assert issubclass(row.on("stream").target, ByteTarget)
        assert issubclass(row.on("keyed").target, KeyedTarget)
