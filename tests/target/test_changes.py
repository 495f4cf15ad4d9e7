# SPDX-License-Identifier: BSD-3-Clause
"""A server that changes while it serves: devices and listeners come and go, others go on."""

import pytest
import trio

from tests.models import Echo, Hoard
from tests.wire import command, connect_control, names, request, serving
from vof.protocol import v5
from vof.target.limits import Limits
from vof.target.server import Export
from vof.transport import listen, parse_url


def other(target, make=Echo) -> None:
    target.server.add(Export("other", make))


async def connect_other(target):
    """Return the control connection of the other device, and the status of CONNECT."""
    peer = await target.peer()
    await peer.send(connect_control(body=names(tvqn=b"other")))
    return peer, (await peer.answer(v5.CONNECT))["status"]


async def test_a_device_is_added():
    async with serving(Echo) as target:
        assert (await connect_other(target))[1] == v5.ENOTGT
        assert target.server.refusals == {"ENOTGT": 1}
        other(target)
        assert (await connect_other(target))[1] == v5.OK


async def test_a_device_is_removed_and_others_notice_nothing():
    model = Hoard()
    async with serving(lambda: model) as target:
        other(target)
        control, vq = await target.queue()
        neighbour, status = await connect_other(target)
        assert status == v5.OK
        await vq.send(request(1, b"a", 1))
        await model.holds(1)
        done = []

        async def remove() -> None:
            done.append(await target.server.remove("it", 5))

        target.nursery.start_soon(remove)
        await trio.testing.wait_all_tasks_blocked()
        assert target.server.draining == {"it"}
        assert await (await target.peer()).status(connect_control()) == v5.ENOTGT
        assert not done
        model.use()
        assert await vq.used() == (1, 0, b"")
        assert await control.ended()
        with trio.fail_after(5):
            while not done:
                await trio.lowlevel.checkpoint()
        assert done == [True]
        assert model.closed
        assert not target.server.draining
        assert (await neighbour.ask(v5.GET_DEVICE_ID))["status"] == v5.OK
        with pytest.raises(KeyError):
            await target.server.remove("it", 5)


async def test_a_removal_does_not_wait_for_ever():
    model = Hoard()
    async with serving(lambda: model) as target:
        control, vq = await target.queue()
        await vq.send(request(1, b"a", 1))
        await model.holds(1)
        with trio.fail_after(5):
            assert not await target.server.remove("it", 0.02)
        assert model.closed
        assert await control.ended()


async def test_what_no_model_has_seen_keeps_no_removal():
    async with serving(Echo) as target:
        control, vq = await target.peer(), await target.peer()
        await vq.join(await control.control())
        await vq.send(request(1, b"a", 1))
        [association] = target.server.associations.values()
        with trio.fail_after(5):
            while not association.queues[0].queue.facts("").in_flight:
                await trio.lowlevel.checkpoint()
            assert await target.server.remove("it", 3600)


async def test_disconnect_by_id_and_by_name():
    async with serving(Echo) as target:
        peers = [await target.peer() for _ in range(3)]
        ids = [await peer.control() for peer in peers[:2]]
        await peers[2].send(connect_control(body=names(ivqn=b"you")))
        stays = (await peers[2].answer(v5.CONNECT))["device_instance_id"]
        assert target.server.disconnect(ids[0]) == [ids[0]]
        assert await peers[0].ended()
        assert sorted(target.server.disconnect("me")) in ([ids[1]], sorted(ids))
        assert await peers[1].ended()
        assert target.server.disconnect("nobody") == []
        with trio.fail_after(5):
            while [*target.server.associations] != [stays]:
                await trio.lowlevel.checkpoint()


async def test_listeners_come_and_go():
    async with serving(Echo) as target:
        before = await target.peer()
        await before.control()
        [old] = target.server.listeners
        [new] = await listen(parse_url("vof+tcp://127.0.0.1:0"))
        target.server.listen(new)
        target.server.unlisten(old)
        with pytest.raises(OSError, match="connect"):
            await target.peer()
        target.url = new.url
        await (await target.peer()).control()
        assert (await before.ask(v5.GET_DEVICE_ID))["status"] == v5.OK
        [never] = await listen(parse_url("vof+tcp://127.0.0.1:0"))
        target.server.listen(never)
        target.server.unlisten(never)  # before anyone waited on it
        await trio.testing.wait_all_tasks_blocked()


async def test_limits_take_effect_for_what_comes_next():
    async with serving(Echo) as target:
        _, vq = await target.queue()
        target.server.limits = Limits(request_bytes=512, queue_bytes=4096)
        await vq.send(request(1, bytes(1000), 1000))
        assert (await vq.used())[0] == 1
        _, late = await target.queue()
        await late.send(request(1, bytes(1000), 1))
        assert (await late.answer(v5.VQ))["status"] == v5.EOUTVQBUF


async def test_what_is_gone_is_counted():
    async with serving(Echo, Limits(connect_seconds=0.05)) as target:
        control, vq = await target.queue()
        await vq.send(request(1, b"abc", 3))
        await vq.used()
        assert await vq.status(command(v5.GET_STATUS)) == v5.ENOCMD
        await control.stream.aclose()
        await target.gone()
        silent = await target.peer()
        assert await silent.ended()
        ended = target.server.ended
        with trio.fail_after(5):
            while ended.connections < 3:
                await trio.lowlevel.checkpoint()
        assert (ended.requests, ended.errors) == (1, 1)
        assert ended.bytes_in > 16 + 3
        assert ended.bytes_out > 16 + 3
        assert target.server.refusals == {"limits.connect_seconds": 1}


# -- where requests are, and for how long -----------------------------------------------------


class Clock:
    """Time that a test makes pass."""

    now = 100.0


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    for module in ("vof.transport.connection", "vof.target.queue"):
        monkeypatch.setattr(f"{module}.monotonic", lambda: clock.now)
    return clock


def facts(target):
    [association] = target.server.associations.values()
    return association.queues[0].queue.facts(association.where(0))


async def test_the_oldest_in_flight(clock):
    model = Hoard(queue_sizes=(1024,))
    async with serving(lambda: model) as target:
        _, vq = await target.queue()
        assert facts(target)[:3] == (0, None, "")
        for number in range(3):
            await vq.send(request(number, b"a", 0))
            await model.holds(number + 1)
            clock.now += 10
        assert facts(target)[:3] == (3, 30, "device")
        model.use(1)
        assert facts(target)[:2] == (2, 30)
        model.use(0)
        assert facts(target)[:2] == (1, 10)
        for number in range(500):  # one that hangs is seen behind any number that do not
            await vq.send(request(number + 3, b"a", 0))
            await model.holds(2)
            model.use(1)
        clock.now += 10
        assert facts(target)[:2] == (1, 20)
        model.use()
        assert facts(target)[:2] == (0, None)
        await vq.send(request(1, b"a", 0))
        await model.holds(1)
        clock.now += 1
        assert facts(target)[:2] == (1, 1)


async def test_what_is_done_is_not_kept():
    model = Hoard()
    async with serving(lambda: model) as target:
        _, vq = await target.queue()
        await vq.send(request(0, b"a", 0))
        await model.holds(1)
        for number in range(1, 300):
            await vq.send(request(number, b"a", 0))
            await model.holds(2)
            model.use(1)
            assert sum(len(batch) for _, batch in model.queue._later) <= 2 * 64
        model.use()
        await vq.send(request(1, b"a", 0))
        await model.holds(1)
        assert not model.queue._later


async def test_held_for_the_driver(clock):
    async with serving(Echo) as target:
        control, vq = await target.peer(), await target.peer()
        await vq.join(await control.control())
        await vq.send(request(1, b"a", 1))
        with trio.fail_after(5):
            while not facts(target).in_flight:
                await trio.lowlevel.checkpoint()
        clock.now += 5
        assert facts(target)[:3] == (1, 5, "driver")


async def test_a_peer_that_takes_nothing(clock):
    async with serving(Echo, url="vof+tcp://127.0.0.1:0") as target:
        _, vq = await target.queue()
        size = 1 << 20
        async with trio.open_nursery() as nursery:

            async def flood():
                for number in range(64):
                    await vq.send(request(number, b"a", size))

            nursery.start_soon(flood)
            with trio.fail_after(5):
                while facts(target).waits != "peer":
                    await trio.lowlevel.checkpoint()
            nursery.cancel_scope.cancel()
        await trio.testing.wait_all_tasks_blocked()
        clock.now += 7
        found = facts(target)
        assert found.stuck_seconds == 7
        assert found.unsent_bytes > 0
        assert found.bytes_out > 0


async def test_a_limit_that_keeps_a_queue_from_reading():
    model = Hoard()
    limits = Limits(request_bytes=4096, queue_bytes=8192)
    async with serving(lambda: model, limits) as target:
        _, vq = await target.queue()
        await vq.send(b"".join(request(number, bytes(3000), 1) for number in range(4)))
        await model.holds(2)
        await trio.testing.wait_all_tasks_blocked()
        found = facts(target)
        assert (found.in_flight, found.waits, found.paused) == (2, "device", True)
