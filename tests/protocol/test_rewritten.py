# SPDX-License-Identifier: BSD-3-Clause
"""A device that rewrites the memory which it shares with the target, while a request is read."""

import struct

import pytest

from tests.protocol.pipe import content, drain, taken
from tests.protocol.pipe import done as done_v5
from tests.protocol.pipe import vq as vq_v5
from tests.protocol.test_v0_target import desc, vring
from tests.protocol.test_v0_target import done as done_v0
from vof.memory import HeapPool
from vof.protocol.v0_target import V0Target
from vof.protocol.v5_target import V5Target

MIB = 1 << 20
OUT, IN = 100, 40
LIES = [b"\0", b"\1", b"\xff", struct.pack("<I", 5000)]


class Shared(HeapPool):
    """Keeps what it gave out, as a device does."""

    def __init__(self):
        self.given = []

    def alloc(self, size):
        self.given.append(super().alloc(size))
        return self.given[-1]

    scratch = alloc

    def rewrite(self, lie, end):
        """Write all over what was given, up to ``end``."""
        for view in self.given:
            view[:end] = (lie * end)[:end]


def read_v5(data):
    return V5Target(MIB, 8 * MIB), vq_v5(3, data, IN), done_v5(3, bytes(IN // 2))


def read_v0(data):
    halves = desc(IN // 2, 7, True), desc(IN // 2, 8, True)
    request = vring(3, desc(OUT, 6), *halves, payload=data)
    answer = done_v0(3, IN // 2, 2) + halves[0] + desc(1, 8, True)
    return V0Target(MIB, 8 * MIB), request, answer + bytes(IN // 2 + 1)


@pytest.mark.parametrize("lie", LIES)
@pytest.mark.parametrize("make", [read_v5, read_v0])
def test_what_was_read_once_is_not_read_again(make, lie):
    data = bytes(range(OUT))
    stream, request, answer = make(data)
    pool = Shared()
    stream.bind(8, pool)
    inbox = stream.inbox
    for at in range(len(request)):  # a byte at a time, and the device is always faster
        inbox.space()[:1] = request[at : at + 1]
        inbox.received(1)
        head = len(request) - OUT
        if at + 1 >= head:
            pool.rewrite(lie, head)
    assert pool.given
    ((readable, room),) = content(chains := taken(stream))
    assert (readable, room) == (data, IN)
    pool.rewrite(lie, 1000)
    (chain,) = chains
    chain.writable[0][:] = bytes(IN)
    stream.push(chain, IN // 2)
    assert drain(stream) == answer
