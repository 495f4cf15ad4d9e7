# SPDX-License-Identifier: BSD-3-Clause
"""Keyed streams without an adapter: whoever tests one plays it, and the other side.

``Alone`` is one stream. ``Both`` are two of them, joined by queue pairs of software.
"""

from typing import NamedTuple

from tests.protocol.pipe import MIB
from vof.memory import HEAP
from vof.protocol import v5
from vof.protocol.keyed import READ
from vof.protocol.registered import LOCAL, REMOTE_READ, REMOTE_WRITE, Memory
from vof.protocol.v0_keyed_target import V0KeyedTarget
from vof.protocol.v5_keyed import DESC, HEADER
from vof.protocol.v5_keyed_target import V5KeyedTarget
from vof.transport.loopback_pairs import LoopbackDomain, join

BOTH = REMOTE_READ | REMOTE_WRITE


class Moved(NamedTuple):
    """A transfer that was posted: what the peer's memory is called, and the bytes on this side."""

    kind: str
    there: tuple[int, int, int]
    here: memoryview


class Alone:
    """One stream."""

    def __init__(self, stream, rights=LOCAL, reads=16):
        self.domain = LoopbackDomain()
        self.memory = Memory(self.domain, rights)
        self.stream = stream
        stream.carry(self.memory, reads)

    def posts(self, room=1000):
        """Return what is posted: messages, and ``Moved``."""
        return [
            post
            if type(post) is bytes
            else Moved(
                "read" if post[0] == READ else "write",
                (post[4], post[2], post[5]),
                self.domain.reach(post[1], post[2], post[3], LOCAL),
            )
            for post in self.stream.posts(room)
        ]

    def run(self, answers=b""):
        """Complete all that is posted, reads with ``answers``, until nothing is; return the rest.

        What is written is returned as it was at the time.
        """
        done = []
        while posts := self.posts():
            for post in posts:
                if type(post) is Moved and post.kind == "read":
                    size = len(post.here)
                    post.here[:] = answers[:size].ljust(size, b"?")
                    answers = answers[size:]
                else:
                    done.append(post if type(post) is bytes else post[:2] + (bytes(post.here),))
            self.stream.completed(len(posts))
        return done


class Both:
    """An initiator and a target, without anybody around them."""

    def __init__(self, initiator, target, **limits):
        near = Memory(LoopbackDomain(), BOTH)
        self.pool = near
        self.ends = []
        for stream, pair in zip((initiator, target), join(near, **limits), strict=True):
            stream.carry(pair.memory, pair.reads)
            self.ends.append([stream, pair, 0])

    def close(self):
        for _, pair, _ in self.ends:
            pair.close()

    def step(self, number, room=1000):
        """Let one end post and take what there is; return whether anything happened."""
        stream, pair, ready = self.ends[number]
        count, size = stream.receives
        if count > ready:
            pair.receives(count - ready, size)
            ready = count
        room = min(room, pair.depth - len(pair._under_way))
        if posts := stream.posts(room):
            pair.post(posts)
        done, messages = pair.poll()
        self.ends[number][2] = ready - len(messages)
        if done:
            stream.completed(done)
        for message in messages:
            stream.received(message)
        return bool(posts or done or messages)

    def settle(self, most=10_000):
        """Let both work until nothing happens any more."""
        for _ in range(most):
            if not (self.step(1) | self.step(0) | self.step(1)):
                return
        raise AssertionError("they never come to rest")


def live(kind=V5KeyedTarget, queue_size=4, request_bytes=MIB, queue_bytes=8 * MIB, pool=HEAP, **k):
    """Return a target's virtqueue, alone."""
    alone = Alone(kind(request_bytes, queue_bytes), **k)
    alone.stream.advance()
    alone.stream.bind(queue_size, pool, failure=b"\1")
    return alone


def live_v0(**options):
    """Return the same of dialect v0."""
    return live(V0KeyedTarget, **options)


# -- messages of dialect v5 -----------------------------------------------------------------------

KEY = 77


def vq(ident, out=(), into=(), lengths=None):
    """Return a VQ command with descriptors of these lengths."""
    totals = lengths or (sum(out), sum(into))
    message, address = HEADER.pack(v5.VQ, ident, *totals), 0x1000
    for length in (*out, *into):
        message += DESC.pack(address, length, KEY)
        address += 0x10000
    return message


def done(ident, used, written=None, status=0):
    return HEADER.pack(status, ident, used, used if written is None else written)
