# SPDX-License-Identifier: BSD-3-Clause
"""Limits that connections share, and peers that begin a message and do not end it."""

import trio

from tests.models import Echo, Hoard
from tests.wire import Peer, command, request, serving
from vof.protocol import v5
from vof.protocol.budget import FREE
from vof.target.server import Limits

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
