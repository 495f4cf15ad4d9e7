# SPDX-License-Identifier: BSD-3-Clause
"""Limits that connections share, and peers that begin a message and do not end it."""

import pytest
import trio

from tests.models import Echo, Hoard
from tests.wire import Peer, command, connect_control, request, serving
from vof.protocol import v5
from vof.protocol.budget import FREE
from vof.target.limits import Books, Limits
from vof.target.stalls import Stalls

MIB = 1 << 20
SHORT = Limits(command_seconds=0.2, keepalive_seconds=0)


async def passes(seconds: float) -> None:
    """Let real time pass: the daemon has to notice that it did."""
    await trio.sleep(seconds)


async def test_a_message_that_does_not_end_is_cut():
    async with serving(Echo, SHORT) as target:
        innocent_control, innocent = await target.queue()
        control, vq = await target.queue()
        await vq.send(request(1, bytes(100), 10)[:60])
        with trio.fail_after(3):
            assert await vq.ended()
        assert target.server.refusals["limits.command_seconds"] == 1
        await control.send(command(v5.GET_STATUS)[:15])
        with trio.fail_after(3):
            assert await control.ended()
        await target.gone(but=1)
        await innocent.send(request(2, b"abc", 3))
        assert (await innocent.used())[0] == 2
        assert (await innocent_control.ask(v5.GET_STATUS))["status"] == 0
        assert target.server.refusals["limits.command_seconds"] == 2


async def test_large_payload_that_stands_still_is_cut():
    async with serving(Echo, SHORT) as target:
        _, vq = await target.queue()
        await vq.send(request(1, bytes(MIB), 0)[: MIB // 2])
        with trio.fail_after(3):
            assert await vq.ended()


async def test_many_messages_in_pieces_go_on():
    async with serving(Echo, SHORT) as target:
        _, vq = await target.queue()
        data, sent = request(1, b"abc", 3), 0
        with trio.fail_after(10):
            for _ in range(8):  # always inside a message, never long in the same
                await vq.send(data[sent:] + data[:7])
                assert (await vq.used())[2] == b"abc"
                await vq.send(data[7:9])
                sent = 9
                await passes(0.1)


async def test_a_peer_that_is_waited_for_is_not_cut():
    """The target does not read on because of its own limits: the peer cannot finish."""
    model = Hoard()
    limits = Limits(command_seconds=0.2, request_bytes=8192, queue_bytes=8192)
    async with serving(lambda: model, limits) as target:
        _, vq = await target.queue()
        await vq.send(request(1, bytes(8000), 8000) + request(2, bytes(8000), 8000)[:100])
        await model.holds(1)
        await passes(0.6)
        model.use()
        assert (await vq.used())[0] == 1
        await vq.send(request(2, bytes(8000), 8000)[100:])
        await model.holds(1)
        model.use()
        assert (await vq.used())[0] == 2


async def connected(target, host: str) -> Peer:
    """Connect from another address of the loopback network."""
    stream = await trio.open_tcp_stream(target.url.host, target.url.port, local_address=host)
    target.peers.append(Peer(stream))
    return target.peers[-1]


async def live(target, host: str) -> Peer:
    """Return a live virtqueue of a peer there."""
    control, vq = await connected(target, host), await connected(target, host)
    assert await vq.join(await control.control()) == v5.OK
    await control.start()
    return vq


async def test_one_address_cannot_hold_what_belongs_to_all():
    limits = Limits(
        request_bytes=MIB,
        queue_bytes=4 * MIB,
        association_bytes=4 * MIB,
        peer_bytes=6 * MIB,
        total_bytes=9 * MIB,
    )
    greedy, modest = [], []
    makers = iter([*[greedy] * 4, modest])

    def make() -> Hoard:
        model = Hoard()
        next(makers).append(model)
        return model

    async with serving(make, limits) as target:
        async with trio.open_nursery() as nursery:
            for _ in range(4):
                vq = await live(target, "127.0.0.2")
                nursery.start_soon(vq.send, b"".join(request(i, b"", MIB) for i in range(16)))
            server = target.server
            with trio.fail_after(5):
                while server.budget.used < 5 * MIB:
                    await trio.lowlevel.checkpoint()
            innocent = await live(target, "127.0.0.3")
            for number in range(8):
                await innocent.send(request(number, b"", MIB))
                await modest[0].holds(1)
                modest[0].use(written=MIB)
                ident, written, _ = await innocent.used()
                assert (ident, written) == (number, MIB)
            held = sum(len(model.chains) for model in greedy) * MIB
            assert held <= limits.peer_bytes + 4 * FREE
            assert server.budget.used <= limits.total_bytes
            assert max(one.budget.used for one in server.associations.values()) <= 4 * MIB
            nursery.cancel_scope.cancel()
    assert server.budget.used == 0


# -- how many -------------------------------------------------------------------------------------


def test_the_books():
    books = Books(Limits(queues=3, peer_queues=2, peer_bytes=10, total_bytes=20))
    assert books.full("queues", "a") == ""
    for _ in range(2):
        books.take("queues", "a")
    assert books.full("queues", "a") == "peer_queues"
    assert books.full("queues", "b") == ""
    assert books.full("connections", "a") == ""
    books.take("queues", "b")
    assert books.full("queues", "b") == "queues"
    assert (books.total.queues, books.peers["a"].queues, books.peers["b"].queues) == (3, 2, 1)
    books.give("queues", "b")
    assert books.full("queues", "b") == ""
    assert list(books.peers) == ["a"]
    books.limits = Limits(peer_bytes=5, total_bytes=6)
    assert (books.total.budget.limit, books.peers["a"].budget.limit) == (6, 5)


async def test_connections_of_one_peer():
    async with serving(Echo, Limits(peer_connections=2)) as target:
        first, second, third = [await connected(target, "127.0.0.2") for _ in range(3)]
        assert await third.ended()
        other = await connected(target, "127.0.0.3")
        await other.control()
        assert target.server.refusals == {"limits.peer_connections": 1}
        await first.stream.aclose()
        with trio.fail_after(5):
            while target.server.books.peers["127.0.0.2"].connections > 1:
                await trio.lowlevel.checkpoint()
        await (await connected(target, "127.0.0.2")).control()
        await second.control()


@pytest.mark.parametrize("name", ["associations", "peer_associations"])
async def test_device_instances(name):
    async with serving(Echo, Limits(**{name: 2})) as target:
        peers = [await connected(target, "127.0.0.2") for _ in range(3)]
        for peer in peers[:2]:
            await peer.control()
        assert await peers[2].status(connect_control()) == v5.ENODEV
        status = await (await connected(target, "127.0.0.3")).status(connect_control())
        assert status == (v5.OK if name == "peer_associations" else v5.ENODEV)
        assert set(target.server.refusals) == {f"limits.{name}"}
        await peers[0].stream.aclose()
        await target.gone(but=2 if name == "peer_associations" else 1)
        assert await peers[2].status(connect_control()) == v5.OK


@pytest.mark.parametrize("name", ["queues", "peer_queues"])
async def test_virtqueues(name, caplog):
    caplog.set_level("INFO")
    async with serving(lambda: Hoard(queue_sizes=(4,) * 4), Limits(**{name: 2})) as target:
        control = await connected(target, "127.0.0.2")
        ident = await control.control()
        queues = [await connected(target, "127.0.0.2") for _ in range(3)]
        for index, vq in enumerate(queues[:2]):
            assert await vq.join(ident, index) == v5.OK
        assert await queues[2].join(ident, 4) == v5.EQUEUEQUOT
        assert target.server.refusals == {"EQUEUEQUOT": 1}
        assert await queues[2].join(ident, 2) == v5.EQUEUEQUOT
        assert target.server.refusals[f"limits.{name}"] == 1
        assert f"127.0.0.2: CONNECT refused: EQUEUEQUOT: limits.{name} is 2" in caplog.text
        await queues[0].stream.aclose()
        with trio.fail_after(5):
            while target.server.books.total.queues > 1:
                await trio.lowlevel.checkpoint()
        assert await queues[2].join(ident, 2) == v5.OK
        await control.stream.aclose()
        await target.gone()
        with trio.fail_after(5):
            while target.server.books.peers:
                await trio.lowlevel.checkpoint()
        total = target.server.books.total
        assert (total.connections, total.associations, total.queues) == (0, 0, 0)


# -- who is waited for ----------------------------------------------------------------------------


class Sleeper:
    """A connection inside a message, and the stream on it."""

    def __init__(self, asleep):
        self.asleep, self.blocked, self.error = asleep, False, None
        self.unfinished, self.taken = True, 1

    def fail(self, error):
        self.error = error


async def test_time_counts_only_while_somebody_waits(autojump_clock):
    asleep, away = Sleeper(True), Sleeper(False)
    stalls = Stalls({one: one for one in (asleep, away)}, lambda: 10.0, list)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(stalls.run)
        for one in (asleep, away):
            stalls.note(one)
        await trio.sleep(9.5)
        assert asleep.error is None
        await trio.sleep(2)
        assert "limits.command_seconds" in str(asleep.error)
        await trio.sleep(1000)
        assert away.error is None
        away.asleep = True
        await trio.sleep(12)
        assert away.error is not None
        nursery.cancel_scope.cancel()


async def test_a_process_that_was_stopped_heard_nobody(autojump_clock):
    one = Sleeper(True)
    stalls = Stalls({one: one}, lambda: 10.0, list)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(stalls.run)
        stalls.note(one)
        await trio.sleep(0.5)
        autojump_clock.jump(1000)  # as if nothing ran meanwhile
        await trio.sleep(1.5)
        assert one.error is None
        nursery.cancel_scope.cancel()
