# SPDX-License-Identifier: BSD-3-Clause
"""Peers on queue pairs that break the rules of dialect v0, beside one that must not notice."""

import pytest
import trio

import vof
from tests import wire_v0
from tests.models import Echo
from tests.wire_keyed import Peer, serving
from tests.wire_v0 import DISCONNECT, DONE, GET_STATUS, WRITE, Completion, Desc, plain, vring
from vof.initiator.requests import RequestQueue
from vof.virtio.device import VirtqueueInfo

LIMIT = 10
URL = "vof+loopback+keyed://wire?dialect=v0"
WILD = Desc(0xDEAD0000, 16, 0, 0, 0xDEADBEEF)


def at(peer: Peer, view: memoryview, flags: int = 0, **more: int) -> Desc:
    """Return a descriptor of memory of the peer, by the right key."""
    address, known = peer.memory.find(view)
    key = known.write if flags & WRITE else known.read
    return Desc(address, len(view), 0, flags, key)._replace(**more)


def readable(peer: Peer, data: bytes) -> Desc:
    return at(peer, peer.place(data))


def connect(peer: Peer, instance: int = wire_v0.NEW, index: int = 0xFFFF) -> bytes:
    body = readable(peer, wire_v0.names())
    return wire_v0.connect(instance, index, oftype=1, body=b"")[:16] + body.pack()


async def completion(peer: Peer) -> Completion | None:
    """The next one; None for the end of the connection."""
    data = await peer.take()
    if not data:
        return None
    code, ident, ndesc, _, value = DONE.unpack(data)
    return Completion(code, ident, ndesc, value)


async def joined(target) -> tuple[Peer, Peer]:
    control, queue = await target.peer(), await target.peer()
    control.send(connect(control))
    instance = (await completion(control)).value
    queue.send(connect(queue, instance, 0))
    assert (await completion(queue)).status == 0
    return control, queue


async def echoes(queue: Peer) -> None:
    """Each writable descriptor is written in full, whatever the device wrote."""
    views = [queue.place(size) for size in (2, 5)]
    for view in views:
        view[:] = b"?" * len(view)
    queue.send(vring(7, readable(queue, b"abc"), *[at(queue, view, WRITE) for view in views]))
    assert await completion(queue) == Completion(0, 7, 2, 7)
    assert [bytes(view) for view in views] == [b"ab", b"cabca"]


BAD = {
    "nothing": lambda peer: b"",
    "short": lambda peer: bytes(15),
    "cut": lambda peer: vring(1, readable(peer, b"abc"))[:-1],
    "one byte more": lambda peer: vring(1, readable(peer, b"abc")) + b"?",
    "one descriptor more": lambda peer: vring(1, readable(peer, b"abc"), ndesc=2),
    "one descriptor less": lambda peer: vring(1, readable(peer, b"abc"), ndesc=0),
    "too many": lambda peer: vring(1, *[readable(peer, b"a")] * 129),
    "longer than any": lambda peer: bytes(16 + 24 * 130),
    "a command and more": lambda peer: plain(GET_STATUS) + bytes(24),
    "connect again": connect,
    "wild read": lambda peer: vring(1, WILD),
    "wild write": lambda peer: vring(1, WILD._replace(flags=WRITE)),
    "read by a key to write": lambda peer: vring(
        1, at(peer, peer.place(16), WRITE)._replace(flags=0)
    ),
    "write by a key to read": lambda peer: vring(1, at(peer, peer.place(16))._replace(flags=WRITE)),
    "beyond": lambda peer: vring(1, at(peer, peer.place(16), length=1 << 20)),
}


@pytest.mark.parametrize("bad", BAD.values(), ids=BAD)
async def test_innocent_beside_hostile(bad):
    async with serving(Echo, url=URL) as target, vof.connect(str(target.url)) as device:
        await device.initialize(0)
        (vq,) = await device.find_vqs([VirtqueueInfo("q")])
        await device.ready()
        requests = RequestQueue(vq)
        answer = bytearray(8)
        control, queue = await joined(target)
        await echoes(queue)
        queue.send(bad(queue))
        assert await completion(queue) is None
        stranger = await target.peer()
        stranger.send(bad(stranger))
        if bad is not connect:
            assert await completion(stranger) is None
        with trio.fail_after(LIMIT):
            assert await requests.request([b"question", answer], 1, 1) == 8
        assert answer == b"question"
        control.send(plain(GET_STATUS))
        assert (await completion(control)).status == 0


async def test_goodbye_after_what_was_asked():
    async with serving(Echo, url=URL) as target:
        _, queue = await joined(target)
        view = queue.place(4)
        queue.send(vring(3, readable(queue, b"abcd"), at(queue, view, WRITE)), plain(DISCONNECT, 4))
        assert await completion(queue) == Completion(0, 3, 1, 4)
        assert bytes(view) == b"abcd"
        assert await completion(queue) == Completion(0, 4, 0, 0)
        assert await completion(queue) is None
