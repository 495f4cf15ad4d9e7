# SPDX-License-Identifier: BSD-3-Clause
"""Queue pairs over real verbs, both ends in this process: what they carry, refuse and leave."""

import errno
import gc
import os

import pytest
import trio

from tests.lab.conftest import ADDRESSES
from tests.lab.native import DEVICES as DEVICE_FOLDER
from tests.transport.pairs import Carried
from vof.errors import ConnectionLost
from vof.memory import Region
from vof.protocol.keyed import READ, WRITE
from vof.protocol.registered import LOCAL, REMOTE_READ, REMOTE_WRITE
from vof.transport import connect, listen, parse_url

DEVICES = {path.parent.name: path.read_text() for path in DEVICE_FOLDER.glob("*/node_type")}
IWARP = any("RNIC" in kind for kind in DEVICES.values())
checked = pytest.mark.skipif(
    any(name.startswith("siw") for name in DEVICES),
    reason="soft-iWARP lets a peer read whatever is registered",
)
LIMIT = 100
HOSTS = [f"[{one}]" if ":" in one else one for one in ADDRESSES]


def reason(words: str) -> str:
    """What is to be said of an end; iWARP does not tell a sender what the peer ended it for."""
    return "closed" if IWARP else words


def descriptors() -> list[str]:
    """Return what is open of RDMA, and of shared memory."""
    found = []
    for name in os.listdir("/proc/self/fd"):
        try:
            found.append(os.readlink(f"/proc/self/fd/{name}"))
        except FileNotFoundError:
            pass  # of the listing itself
    return sorted(name for name in found if "infiniband" in name or "memfd" in name)


class Ends:
    """Both ends of a connection: ``near`` is the initiator's."""

    def __init__(self, near, far, nursery) -> None:
        self.near, self.far = near, far
        self.streams = Carried(), Carried()
        for connection, stream in zip((near, far), self.streams, strict=True):
            connection.attach(stream, nursery)
            connection.flush()

    def send(self, side: int, *posts) -> None:
        self.streams[side].waiting += posts
        (self.near, self.far)[side].flush()

    async def until(self, side: int, done: int, got: int = 0) -> None:
        """Wait for completions and messages of one side."""
        connection, stream = (self.near, self.far)[side], self.streams[side]
        with trio.fail_after(LIMIT):
            stream.expects = stream.done < done  # who has to be told of posts says so
            connection.receive()
            while stream.done < done or len(stream.got) < got:
                if connection.error is not None:
                    raise connection.error
                await connection.wait()
                connection.receive()

    async def over(self, side: int) -> str:
        """Wait for the end of one side; return its reason."""
        with pytest.raises(ConnectionLost) as caught:
            await self.until(side, 1 << 30)
        return str(caught.value)

    def close(self) -> None:
        self.near.close()
        self.far.close()


async def pair(nursery, host: str = HOSTS[0], at: str = "") -> Ends:
    """Connect to ``host``, where somebody listens ``at``."""
    [listener] = await listen(parse_url(f"vof+rdma://{at or host}:0"))
    far = []

    async def accept() -> None:
        far.append(await listener.accept())

    try:
        with trio.fail_after(LIMIT):
            async with trio.open_nursery() as both:
                both.start_soon(accept)
                near = await connect(parse_url(f"vof+rdma://{host}:{listener.url.port}"))
        return Ends(near, *far, nursery)
    finally:
        listener.close()


@pytest.fixture
async def ends(flat):
    async with trio.open_nursery() as nursery:
        made = await pair(nursery)
        yield made
        made.close()
        nursery.cancel_scope.cancel()


def place(connection, size: int, local: int = LOCAL):
    """Return memory of one side, its address and how it is registered."""
    view = connection.pool.alloc(size)
    address, at = connection.pool.find(view)
    return view, address, at


# -- what they carry ------------------------------------------------------------------------------


async def test_messages_and_transfers_in_order(ends):
    theirs, there, known = place(ends.near, 100_000)
    ours, here, at = place(ends.far, 100_000)
    theirs[:] = os.urandom(100_000)
    ends.send(1, (READ, here, 100_000, at.local, there, known.read))
    await ends.until(1, 1)
    assert ours == theirs
    ours[:] = os.urandom(100_000)
    ends.send(1, (WRITE, here, 100_000, at.local, there, known.write), b"here it is")
    await ends.until(0, 0, 1)
    assert ends.streams[0].got == [b"here it is"]
    assert ours == theirs
    await ends.until(1, 3)


async def test_many_of_all_kinds_under_way(ends):
    """Reads beyond the limit of reads are the stream's matter; all else may be as deep as it is."""
    _, there, known = place(ends.near, 4096)
    _, here, at = place(ends.far, 4096)
    write = (WRITE, here, 4096, at.local, there, known.write)
    for number in range(1, 5):
        ends.send(1, *[write] * 200, *[b"%d" % number] * 8)
        await ends.until(1, 208 * number)
        await ends.until(0, 0, 8 * number)
        ends.near.flush()  # posts receives again
    assert ends.streams[0].got == [b"%d" % number for number in range(1, 5) for _ in range(8)]


async def test_no_wake_up_is_lost(ends):
    """Each side answers what it was sent, from a sleep or not: messages cross and pile up."""

    async def talk(side: int) -> None:
        connection, stream = (ends.near, ends.far)[side], ends.streams[side]
        sent = 0
        while sent < 500 or len(stream.got) < 500:
            while sent <= len(stream.got) + 3 and sent < 500:
                ends.send(side, b"%d" % sent)
                sent += 1
            if sent < 500 or len(stream.got) < 500:
                if not connection.receive():
                    await connection.sleep()
                connection.flush()  # receives, for what came

    with trio.fail_after(LIMIT):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(talk, 0)
            nursery.start_soon(talk, 1)
    assert all(s.got == [b"%d" % n for n in range(500)] for s in ends.streams)


@pytest.mark.parametrize("host", HOSTS)
async def test_each_address_and_the_wildcard(host: str, flat):
    async with trio.open_nursery() as nursery:
        for at in (host, "[::]" if "[" in host else "0.0.0.0"):
            made = await pair(nursery, host, at)
            ends_are = host.strip("[]")
            assert (made.near.peer, made.far.peer) == (ends_are, ends_are)
            made.send(0, b"hello")
            await made.until(1, 0, 1)
            made.close()


# -- what they refuse -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "key", "where"),
    [
        pytest.param(READ, "write", 0, marks=checked),
        (WRITE, "read", 0),
        (READ, "read", 1 << 20),
        (WRITE, "write", -8),
    ],
)
async def test_what_a_key_does_not_allow_ends_both(ends, kind: int, key: str, where: int):
    _, _, known = place(ends.near, 64)
    _, here, at = place(ends.far, 64)
    ends.send(1, (kind, here, 64, at.local, known.start + where, getattr(known, key)))
    assert reason("does not allow") in await ends.over(1)
    await ends.over(0)


async def test_a_key_that_was_taken_back_is_dead(ends):
    region = Region(4096)
    keys = ends.near.pool.domain.register(region, REMOTE_READ | REMOTE_WRITE)
    _, here, at = place(ends.far, 64)
    post = (READ, here, 64, at.local, region.address, keys.remote)
    ends.send(1, post)
    await ends.until(1, 1)
    ends.near.pool.domain.deregister(keys)
    ends.send(1, post)
    assert reason("does not allow") in await ends.over(1)


@checked
async def test_a_target_lets_nobody_read(ends):
    """Even by a key that would: its queue pairs do not."""
    region = Region(4096)
    keys = ends.far.pool.domain.register(region, REMOTE_READ)
    _, here, at = place(ends.near, 64)
    ends.send(0, (READ, here, 64, at.local, region.address, keys.remote))
    await ends.over(0)


async def test_a_message_that_is_too_long_ends_both(ends):
    ends.send(0, bytes(5000))
    await ends.over(1)
    await ends.over(0)


async def test_a_peer_without_receives(ends):
    ends.send(0, *[b"x"] * 20)
    assert reason("no receive posted") in await ends.over(0)


# -- ends -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("side", [0, 1])
async def test_the_other_end_notices_a_close(ends, side: int):
    (ends.near, ends.far)[side].close()
    assert "closed" in await ends.over(1 - side)


async def test_transfers_under_way_at_the_end(ends):
    theirs, there, known = place(ends.near, 1 << 20)
    _, here, at = place(ends.far, 1 << 20)
    ends.send(1, *[(WRITE, here, 1 << 20, at.local, there, known.write)] * 20)
    ends.near.close()
    before = bytes(theirs)
    await ends.over(1)
    assert bytes(theirs) == before  # nothing lands any more


class AtStep(trio.abc.Instrument):
    """Cancels a scope when the task ``dial`` begins a step of a number."""

    def __init__(self, scope: trio.CancelScope, number: int) -> None:
        self.scope, self.left = scope, number

    def before_task_step(self, task) -> None:
        if task.name.endswith("dial"):
            self.left -= 1
            if not self.left:
                self.scope.cancel()


async def test_connecting_may_be_cancelled_anywhere(flat):
    """At each step; nothing is left of it, and the listener goes on."""
    [listener] = await listen(parse_url(f"vof+rdma://{HOSTS[0]}:0"))
    done = False

    async def accept() -> None:
        while True:
            (await listener.accept()).close()

    async def dial() -> None:
        nonlocal done
        try:
            (await connect(listener.url)).close()
        except OSError as error:
            assert error.errno == errno.ECONNABORTED  # noqa: PT017 - the other end is quick
        done = True

    async with trio.open_nursery() as nursery:
        nursery.start_soon(accept)
        number = 0
        while not done:
            number += 1
            with trio.fail_after(LIMIT), trio.CancelScope() as scope:
                instrument = AtStep(scope, number)
                trio.lowlevel.add_instrument(instrument)
                try:
                    async with trio.open_nursery() as dialling:
                        dialling.start_soon(dial)
                finally:
                    trio.lowlevel.remove_instrument(instrument)
        nursery.cancel_scope.cancel()
    assert number > 4
    listener.close()


async def test_nobody_listens_and_no_device(flat):
    with pytest.raises(ConnectionRefusedError, match="refuse"):
        await connect(parse_url(f"vof+rdma://{HOSTS[0]}:1"))
    with pytest.raises(OSError, match="rdma_resolve"):
        await connect(parse_url("vof+rdma://192.0.2.1:1"))
    [listener] = await listen(parse_url(f"vof+rdma://{HOSTS[0]}:0"))
    with pytest.raises(OSError, match="rdma_") as caught:
        await listen(parse_url(f"vof+rdma://{HOSTS[0]}:{listener.url.port}"))
    assert caught.value.errno == errno.EADDRINUSE
    listener.close()
    with pytest.raises(OSError, match="no RDMA device has the address"):
        await listen(parse_url("vof+rdma://192.0.2.1:0"))


async def test_nothing_is_left_of_two_hundred_connections(flat):
    async with trio.open_nursery() as nursery:
        (await pair(nursery)).close()
        gc.collect()  # what other tests left
        before = descriptors()
        for number in range(200):
            ends = await pair(nursery)
            ends.send(number % 2, b"hello")
            if number % 3:
                await ends.until(1 - number % 2, 0, 1)
            ends.close()
            del ends
        assert descriptors() == before
