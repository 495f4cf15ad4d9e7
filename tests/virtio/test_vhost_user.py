# SPDX-License-Identifier: BSD-3-Clause
"""The vhost-user codec: tables, messages cut anywhere, and descriptors that are never lost."""

import os
import struct

import pytest

from vof.errors import RemoteProtocolError
from vof.virtio.vhost_user import (
    ADDR,
    BACKEND,
    CONFIG,
    FLAG_NEED_REPLY,
    FLAG_REPLY,
    FRONTEND,
    HEADER,
    MOST_FDS,
    MOST_PAYLOAD,
    STATE,
    U64,
    VRING_NO_FD,
    Decoder,
    Message,
    memory_table,
    vring_base,
    vring_fd,
)


def is_open(fd: int) -> bool:
    try:
        os.fstat(fd)
    except OSError:
        return False
    return True


@pytest.fixture
def fds():
    """Descriptors to give away; those that are still open are closed at the end."""
    made = [os.open(os.devnull, os.O_RDONLY) for _ in range(3)]
    yield made
    for fd in made:
        if is_open(fd):
            os.close(fd)


@pytest.mark.parametrize("table", [FRONTEND, BACKEND], ids=["frontend", "backend"])
def test_the_tables(table):
    numbers = [row.number for row in table.values()]
    assert numbers == list(range(1, len(numbers) + 1))
    assert all(0 <= row.fds <= MOST_FDS for row in table.values())
    assert all(
        len(row.payload.codec.unpack(bytes(row.payload.codec.size))) == len(row.payload.names)
        for row in table.values()
    )


def test_a_message_on_the_wire():
    message = Message(8, FLAG_NEED_REPLY, STATE.pack(1, 256))
    assert message.encode() == struct.pack("<IIIII", 8, 1 | 8, 8, 1, 256)
    assert message.need_reply
    assert not message.reply
    assert Message(8, FLAG_REPLY).reply


@pytest.mark.parametrize("step", [1, 5, 12, 1000])
def test_messages_cut_anywhere(step):
    sent = [Message(1), Message(24, FLAG_REPLY, CONFIG.pack(0, 3, 0, tail=b"abc")), Message(2)]
    data = b"".join(message.encode() for message in sent)
    decoder, got = Decoder(), []
    for at in range(0, len(data), step):
        got += decoder.feed(data[at : at + step])
    assert [(m.number, m.flags, m.payload) for m in got] == [
        (m.number, m.flags, m.payload) for m in sent
    ]
    assert CONFIG.unpack(got[1].payload) == (0, 3, 0)


def test_descriptors_come_with_their_message(fds):
    decoder = Decoder()
    data = Message(12, 0, U64.pack(0)).encode()
    assert not decoder.feed(data[:5], fds[:2])
    (message,) = decoder.feed(data[5:])
    assert message.take() == fds[0]
    message.close()
    assert message.take() is None
    assert [is_open(fd) for fd in fds] == [True, False, True]
    assert not decoder.feed(data[:5], fds[2:])
    decoder.close()
    assert not is_open(fds[2])


@pytest.mark.parametrize(
    "header",
    [
        HEADER.pack(1, 2, 0),
        HEADER.pack(1, 1, MOST_PAYLOAD + 1),
        HEADER.pack(1, 0, 0),
    ],
)
def test_a_header_that_is_none_closes_every_descriptor(fds, header):
    decoder = Decoder()
    with pytest.raises(RemoteProtocolError, match="vhost-user"):
        decoder.feed(Message(1).encode() + header, fds)
    assert not any(map(is_open, fds))


def test_too_many_descriptors(fds):
    more = [os.dup(fds[0]) for _ in range(MOST_FDS + 1)]
    with pytest.raises(RemoteProtocolError, match=f"{MOST_FDS + 1} descriptors"):
        Decoder().feed(b"", more)
    assert not any(map(is_open, more))


@pytest.mark.parametrize(("kind", "size"), [(U64, 7), (U64, 9), (STATE, 0), (CONFIG, 11)])
def test_a_payload_of_another_size(kind, size):
    with pytest.raises(RemoteProtocolError, match=f"payload of {size} bytes"):
        kind.unpack(bytes(size))


@pytest.mark.parametrize(
    ("position", "packed", "base"),
    [
        (0, False, 0),
        (65537, False, 1),
        (0, True, 0x8000_8000),
        (7, True, 0x8007_8007),
        (8, True, 0x0000_0000),
        (13, True, 0x0005_0005),
        (16, True, 0x8000_8000),
    ],
)
def test_where_a_ring_of_eight_begins(position, packed, base):
    assert vring_base(position, 8, packed) == base


def test_what_is_packed_for_rings():
    assert vring_fd(3, 9) == (U64.pack(3), [9])
    assert vring_fd(3, None) == (U64.pack(3 | VRING_NO_FD), [])
    assert ADDR.codec.size == 40
    table = memory_table([(1, 2, 3, 4), (5, 6, 7, 8)])
    assert table == struct.pack("<II8Q", 2, 0, *range(1, 9))
