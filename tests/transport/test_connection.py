# SPDX-License-Identifier: BSD-3-Clause
"""The edge of a byte stream: sockets that are slow, that end, that are reset or closed."""

import contextlib
import os
import socket
import struct

import pytest
import trio
import trio.testing

from tests.protocol.pipe import pattern
from vof.errors import ConnectionLost, RemoteProtocolError
from vof.protocol.stream import SCRATCH_BYTES, Inbox, Outbox
from vof.transport.connection import IOV_MAX, SocketConnection

LIMIT = 10
MIB = 1 << 20


class Carried:
    """A stream that keeps what comes."""

    def __init__(self):
        self.inbox, self.outbox = Inbox(), Outbox()
        self.seal = self.outbox.seal
        self.got = bytearray()
        self.target = None
        self.sent = 0
        self.inbox.run(self.program())

    def program(self):
        inbox = self.inbox
        while True:
            self.got += inbox.view[inbox.pos : inbox.end]
            inbox.pos = inbox.end
            target, self.target = self.target, None
            yield 1 if target is None else target

    def all_sent(self):
        assert not self.outbox.pending()
        self.sent += 1


class Ends:
    """A connection with its stream, and the bare socket at the other end."""

    def __init__(self, near, far, nursery):
        self.far = far
        self.stream = Carried()
        self.connection = SocketConnection(near, "peer")
        self.connection.attach(self.stream, nursery)

    def put(self, data):
        self.stream.outbox.tail += data

    async def take(self, count):
        """Read so many bytes at the other end."""
        self.far.setblocking(False)
        data = bytearray()
        with trio.fail_after(LIMIT):
            while len(data) < count:
                await trio.lowlevel.wait_readable(self.far)
                data += self.far.recv(count - len(data))
        return bytes(data)

    async def until_over(self):
        with trio.fail_after(LIMIT):
            while self.connection.error is None:
                await self.connection.wait()
                self.connection.receive()
        assert isinstance(self.connection.error, ConnectionLost)
        return str(self.connection.error)


@pytest.fixture
async def ends():
    async with trio.open_nursery() as nursery:
        ends = Ends(*socket.socketpair(), nursery)
        yield ends
        ends.connection.close()
        ends.far.close()
        nursery.cancel_scope.cancel()


@pytest.fixture
async def tcp_ends():
    with socket.create_server(("127.0.0.1", 0)) as server:
        near = socket.create_connection(server.getsockname())
        far, _ = server.accept()
    async with trio.open_nursery() as nursery:
        ends = Ends(near, far, nursery)
        yield ends
        ends.connection.close()
        ends.far.close()
        nursery.cancel_scope.cancel()


def reset(sock):
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()


# -- out --------------------------------------------------------------------------------------


async def test_flush_sends_at_once(ends):
    ends.connection.flush()
    assert ends.stream.sent == 0
    ends.put(b"one")
    ends.connection.flush()
    assert ends.far.recv(100) == b"one"
    ends.stream.outbox.append(b"two")
    ends.put(b"three")
    ends.connection.flush()
    assert ends.far.recv(100) == b"twothree"
    assert ends.stream.sent == 2
    assert not ends.connection.blocked
    with trio.fail_after(LIMIT):
        await ends.connection.drained()


async def test_more_pieces_than_one_call_takes(ends):
    parts = [b"%05d" % number for number in range(3 * IOV_MAX)]
    for part in parts:
        ends.stream.outbox.append(part)
    ends.connection.flush()
    assert await ends.take(5 * len(parts)) == b"".join(parts)
    with trio.fail_after(LIMIT):
        await ends.connection.drained()
    assert ends.stream.sent == 1


async def test_a_slow_reader_blocks_and_what_comes_meanwhile_follows(ends):
    data = pattern(8 * MIB, 1)
    ends.stream.outbox.append(data[:100])
    ends.stream.outbox.append(data[100:])
    ends.connection.flush()
    assert ends.connection.blocked
    ends.put(b"later")
    ends.connection.flush()
    assert ends.stream.sent == 0
    assert await ends.take(len(data) + 5) == data + b"later"
    with trio.fail_after(LIMIT):
        await ends.connection.drained()
    assert not ends.connection.blocked
    assert ends.stream.sent == 1
    ends.put(b"again")
    ends.connection.flush()
    assert await ends.take(5) == b"again"


async def test_a_full_socket_takes_nothing(ends):
    full = 0
    with contextlib.suppress(BlockingIOError):
        while True:
            full += ends.connection._sock.send(bytes(65536))
    ends.put(b"rest")
    ends.connection.flush()
    assert ends.connection.blocked
    await trio.testing.wait_all_tasks_blocked()
    assert (await ends.take(full + 4))[full:] == b"rest"
    with trio.fail_after(LIMIT):
        await ends.connection.drained()


async def test_a_cancelled_caller_tears_nothing(ends):
    data = pattern(4 * MIB, 2)
    with trio.CancelScope() as scope:
        scope.cancel()
        ends.stream.outbox.append(data)
        ends.connection.flush()
        await ends.connection.drained()
    assert scope.cancelled_caught
    assert await ends.take(len(data)) == data


async def test_a_writer_that_is_woken_goes_on(ends):
    data = pattern(4 * MIB, 3)
    ends.stream.outbox.append(data)
    ends.connection.flush()
    await trio.testing.wait_all_tasks_blocked()
    ends.connection.interrupt()
    await trio.testing.wait_all_tasks_blocked()
    assert ends.connection.blocked
    assert await ends.take(len(data)) == data


async def test_a_reader_that_goes_away_ends_the_writer(ends):
    ends.stream.outbox.append(bytes(4 * MIB))
    ends.connection.flush()
    await trio.testing.wait_all_tasks_blocked()
    ends.far.close()
    with trio.fail_after(LIMIT):
        await ends.connection.drained()
    assert isinstance(ends.connection.error, ConnectionLost)
    assert ends.stream.sent == 0
    ends.connection.flush()
    assert not ends.connection.blocked


async def test_flush_into_a_closed_peer_is_an_error_and_no_exception(ends):
    ends.far.close()
    ends.put(b"x")
    ends.connection.flush()
    assert "Broken pipe" in str(ends.connection.error)


@pytest.fixture
async def other():
    """Another connection of the thread, which has something to read."""
    near, far = socket.socketpair()
    with near, far:
        other = SocketConnection(near, "other")
        far.send(b"x")
        yield other
        other.close()


def spins(connection):
    """Whether a spin finds the connection, and nothing else, ready."""
    connection.spin.slept()  # the loop had its turn
    return connection.spin()


async def test_who_waits_for_room_to_send_delays_no_spin_and_is_not_delayed(ends, other):
    data = pattern(4 * MIB, 7)
    ends.stream.outbox.append(data)
    ends.connection.flush()
    await trio.testing.wait_all_tasks_blocked()
    assert ends.connection.blocked
    assert spins(other)
    ends.far.setblocking(False)
    taken = bytearray()
    while spins(other):
        taken += ends.far.recv(65536)
    taken += await ends.take(len(data) - len(taken))
    assert taken == data
    with trio.fail_after(LIMIT):
        await ends.connection.drained()
    assert spins(other)


async def test_a_writer_that_starts_after_the_close_leaves_the_next_of_its_number_alone(ends):
    ends.stream.outbox.append(bytes(4 * MIB))
    ends.connection.flush()
    number = ends.connection._sock.fileno()
    ends.connection.close()
    near, far = socket.socketpair()
    with near, far:
        assert near.fileno() == number
        other = SocketConnection(near, "other")
        far.send(b"x")
        await trio.testing.wait_all_tasks_blocked()
        assert spins(other)
        other.close()


async def test_a_nursery_that_ends_lets_go_of_who_waits():
    near, far = socket.socketpair()
    async with trio.open_nursery() as outer:
        async with trio.open_nursery() as nursery:
            ends = Ends(near, far, nursery)
            ends.stream.outbox.append(bytes(4 * MIB))
            ends.connection.flush()
            outer.start_soon(ends.connection.drained)
            await trio.testing.wait_all_tasks_blocked()
            nursery.cancel_scope.cancel()
        with trio.fail_after(LIMIT):
            await ends.connection.drained()
    assert not ends.connection.blocked
    ends.connection.close()
    far.close()


# -- in ---------------------------------------------------------------------------------------


async def test_everything_that_is_there_comes_with_one_call(ends, monkeypatch):
    before = ends.connection.heard
    monkeypatch.setattr("vof.transport.connection.monotonic", lambda: before + 5)
    assert not ends.connection.receive()
    assert ends.connection.dry
    assert ends.connection.error is None
    assert ends.connection.heard == before
    ends.far.send(b"one")
    ends.far.send(b"two")
    assert ends.connection.receive()
    assert ends.stream.got == b"onetwo"
    assert ends.connection.heard == before + 5


async def test_a_full_buffer_is_not_dry(ends):
    data = pattern(SCRATCH_BYTES + 5, 4)
    ends.far.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4 * MIB)
    ends.far.setblocking(False)
    rest = memoryview(data)
    rest = rest[ends.far.send(rest) :]
    assert ends.connection.receive()
    assert ends.connection.dry == (not rest and len(ends.stream.got) < SCRATCH_BYTES)
    for _ in range(1000):
        if rest:
            rest = rest[ends.far.send(rest) :]
        ends.connection.receive()
    assert ends.stream.got == data
    assert ends.connection.dry


@pytest.mark.parametrize("size", [4, 10, 14])
async def test_a_target_is_filled_in_place(ends, size):
    place = bytearray(10)
    ends.stream.target = memoryview(place)
    ends.far.send(b"first")
    assert ends.connection.receive()
    assert ends.stream.inbox.target is not None
    data = pattern(size, 5)
    ends.far.send(data)
    assert ends.connection.receive()
    assert place == data[:10].ljust(10, b"\0")
    assert ends.stream.got == b"first" + data[10:]
    assert ends.connection.dry


async def test_a_target_and_the_buffer_behind_it_that_are_full_are_not_dry(ends):
    place = bytearray(10)
    ends.stream.target = memoryview(place)
    ends.far.send(b"first")
    assert ends.connection.receive()
    data = pattern(10 + len(ends.stream.inbox.space()) + 1, 6)
    assert ends.far.send(data) == len(data)
    assert ends.connection.receive()
    assert not ends.connection.dry
    assert ends.connection.receive()
    assert ends.connection.dry
    assert place + ends.stream.got[5:] == data


async def test_the_end_comes_after_the_bytes(ends):
    ends.far.send(b"last words")
    ends.far.close()
    assert await ends.until_over() == "connection to peer lost: the peer closed it"
    assert ends.stream.got == b"last words"


async def test_a_reset(tcp_ends):
    reset(tcp_ends.far)
    assert "reset" in await tcp_ends.until_over()
    assert not tcp_ends.connection.receive()


async def test_wait_and_sleep_end_when_there_is_something(ends):
    async with trio.open_nursery() as nursery:
        for wait in (ends.connection.wait, ends.connection.sleep):
            nursery.start_soon(wait)
            await trio.testing.wait_all_tasks_blocked()
            assert len(nursery.child_tasks) == 1
            ends.far.send(b"x")
            with trio.fail_after(LIMIT):
                while nursery.child_tasks:
                    await trio.lowlevel.checkpoint()
            ends.connection.receive()
    assert ends.stream.got == b"xx"


class Rested:
    """A spin that finds nothing, and is told of sleeps."""

    def __init__(self):
        self.events = []

    def __call__(self):
        self.events.append("spun")
        return False

    def slept(self):
        self.events.append("slept")


async def test_a_spin_that_finds_nothing_is_told_of_the_sleep(ends, monkeypatch):
    monkeypatch.setattr(ends.connection, "spin", Rested())
    ends.far.send(b"x")
    await ends.connection.wait()
    await ends.connection.sleep()
    assert ends.connection.spin.events == ["spun", "slept", "slept"]
    monkeypatch.undo()


# -- end --------------------------------------------------------------------------------------


async def test_close_wakes_whoever_waits(ends):
    ends.stream.outbox.append(bytes(4 * MIB))
    ends.connection.flush()
    files = len(os.listdir("/proc/self/fd"))
    with trio.fail_after(LIMIT):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(ends.connection.wait)
            nursery.start_soon(ends.connection.drained)
            await trio.testing.wait_all_tasks_blocked()
            ends.connection.close()
    assert str(ends.connection.error) == "connection to peer closed"
    assert len(os.listdir("/proc/self/fd")) == files - 1
    ends.connection.close()
    ends.connection.interrupt()
    ends.connection.flush()
    with trio.fail_after(LIMIT):
        await ends.connection.sleep()
    assert not ends.connection.receive()


async def test_a_failure_wakes_whoever_waits_and_shows_at_the_other_end(ends):
    ends.stream.outbox.append(bytes(4 * MIB))
    ends.connection.flush()
    with trio.fail_after(LIMIT):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(ends.connection.sleep)
            nursery.start_soon(ends.connection.drained)
            await trio.testing.wait_all_tasks_blocked()
            ends.connection.fail(RemoteProtocolError("nonsense"))
    ends.far.settimeout(LIMIT)
    while ends.far.recv(MIB):
        pass


async def test_interrupt_wakes_and_ends_nothing(ends):
    with trio.fail_after(LIMIT):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(ends.connection.wait)
            await trio.testing.wait_all_tasks_blocked()
            ends.connection.interrupt()
    assert ends.connection.error is None
    ends.far.send(b"x")
    assert ends.connection.receive()


async def test_the_first_reason_stays(ends):
    offence = RemoteProtocolError("nonsense")
    ends.connection.fail(offence)
    ends.connection.fail(OSError("later"))
    ends.connection.close()
    assert ends.connection.error is offence
    assert ends.far.recv(1) == b""
