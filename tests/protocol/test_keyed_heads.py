# SPDX-License-Identifier: BSD-3-Clause
"""Heads of short requests, where the target has an eager buffer."""

from tests.protocol.test_keyed_initiator import BUFFER, HEADS, queue
from vof.protocol.v5_keyed import EAGER, EAGER_DONE


def written(alone):
    """Return where heads are written and what, and where commands say that they are."""
    posts = alone.posts()
    writes = [(w.there[0] - 0x10000, bytes(w.here)) for w in posts if type(w) is not bytes]
    return writes, [EAGER.unpack_from(post)[2] for post in posts if type(post) is bytes]


def test_short_heads_that_are_added_together_are_one_write():
    alone = queue(eager=BUFFER)

    def add(head):
        alone.stream.add([head, alone.memory.alloc(1)], 1, head, None)

    for head in (b"one", b"two", b"three"):
        add(head)
    padded = b"one".ljust(64, b"\0") + b"two".ljust(64, b"\0") + b"three"
    assert written(alone) == ([(0, padded)], [0, 64, 128])
    ids = [alone.stream._entries.index(entry) for entry in alone.stream._entries]
    first = next(i for i in ids if alone.stream._entries[i][0] == b"one")
    alone.stream.received(EAGER_DONE.pack(0, first, 1))
    add(b"four")
    assert written(alone) == ([(192, b"four")], [192])
    for entry in list(alone.stream._entries):
        if entry[0] != b"two":
            alone.stream.received(EAGER_DONE.pack(0, alone.stream._entries.index(entry), 1))
    add(b"five")
    add(b"six")
    assert written(alone) == ([(256, b"five".ljust(64, b"\0") + b"six")], [256, 320])
    for entry in list(alone.stream._entries):
        if entry[0] != b"two":
            alone.stream.received(EAGER_DONE.pack(0, alone.stream._entries.index(entry), 1))
    add(b"seven")  # from the front on, and over the one that is still in flight
    add(b"eight")
    assert written(alone) == ([(0, b"seven"), (128, b"eight")], [0, 128])


def test_a_buffer_with_little_room_for_heads_has_none():
    alone = queue(eager=[(0x10000, 2 * HEADS - 1, 9)])
    piece = (2 * HEADS - 1) // 3
    for _ in range(2):
        alone.stream.add([b"head", alone.memory.alloc(1)], 1, 1, None)
    assert written(alone) == ([(0, b"head"), (piece, b"head")], [0, piece])
