# SPDX-License-Identifier: BSD-3-Clause
"""Initiators that break every rule over RDMA, in each dialect, beside one that must not notice."""

from contextlib import asynccontextmanager

import trio

import vof
from tests.e2e import test_hostile_keyed_v0 as v0
from tests.e2e.test_hostile_keyed import BAD, ENDS, noise, vq_of_four
from tests.models import Echo
from tests.wire import command
from tests.wire_keyed import DESC, serving
from vof.initiator.requests import RequestQueue
from vof.protocol import v5
from vof.target.limits import Limits
from vof.transport import connect
from vof.virtio.device import VirtqueueInfo

LIMIT = 200
ROUNDS = 20


@asynccontextmanager
async def innocent(target):
    """Somebody who sends and receives all the time; the block may take as long as it likes."""
    async with vof.connect(str(target.url)) as device:
        await device.initialize(0)
        [vq] = await device.find_vqs([VirtqueueInfo("q")])
        await device.ready()
        requests = RequestQueue(vq)
        over = trio.Event()
        rounds = 0

        async def work() -> None:
            nonlocal rounds
            answer = device.pool.alloc(512)
            while rounds < ROUNDS or not over.is_set():
                data = rounds.to_bytes(8, "little") * 64
                assert await requests.request([data, answer], 1, 1) == len(data)
                assert answer == data
                rounds += 1

        with trio.fail_after(LIMIT):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(work)
                yield
                over.set()


async def gone(target, but: int) -> None:
    """Wait until the target has so many connections."""
    with trio.fail_after(LIMIT):
        while len(target.server.connections) > but:
            await trio.lowlevel.checkpoint()


async def test_each_in_its_way(address: str, flat):
    async with serving(Echo, url=f"vof+rdma://{address}:0") as target, innocent(target):

        async def one(name: str, bad, status: int) -> None:
            control, queue = await target.peer(), await target.peer()
            assert await queue.join(await control.control()) == v5.OK, name
            await control.start()
            assert await queue.status(bad(queue)) == status, name
            assert (status == ENDS) == (queue.connection.error is not None), name
            if status != ENDS:
                view = queue.place(4)
                queue.send(vq_of_four(queue, view))
                assert (await queue.take())[:2] == bytes(2), name
                assert bytes(view) == b"abcd"
            assert (await control.ask(v5.GET_STATUS))["status"] == 0, name
            for peer in (control, queue):
                peer.connection.close()

        async with trio.open_nursery() as nursery:
            for name, (bad, status) in BAD.items():
                nursery.start_soon(one, name, bad, status)
        await gone(target, 2)


async def test_each_in_its_way_in_v0(address: str, flat):
    async with serving(Echo, url=f"vof+rdma://{address}:0") as target, innocent(target):

        async def one(name: str, bad) -> None:
            control, queue = await v0.joined(target)
            queue.send(bad(queue))
            assert await v0.completion(queue) is None, name
            control.send(v0.plain(v0.GET_STATUS))
            assert (await v0.completion(control)).status == 0, name
            for peer in (control, queue):
                peer.connection.close()

        async with trio.open_nursery() as nursery:
            for name, bad in v0.BAD.items():
                nursery.start_soon(one, name, bad)
        await gone(target, 2)


async def test_strangers(address: str, flat):
    """Who never says who it is: silent, noisy, or gone in the middle of connecting."""
    limits = Limits(connect_seconds=3)
    async with serving(Echo, limits, f"vof+rdma://{address}:0") as target, innocent(target):
        strangers = [await target.peer() for _ in range(4)]
        for number, stranger in enumerate(strangers):
            stranger.send(*[noise(16 + 16 * number)] * number)
        for _ in range(4):
            with trio.move_on_after(0.1):
                (await connect(target.url)).close()
        await gone(target, 2)
        for stranger in strangers:
            assert await stranger.take() == b""
            stranger.connection.close()


async def test_keys_of_another_connection(address: str, flat):
    """What the target gave one initiator to write to is of no use to another."""
    async with serving(Echo, url=f"vof+rdma://{address}:0") as target, innocent(target):
        control, queue, thief = [await target.peer() for _ in range(3)]
        assert await queue.join(await control.control()) == v5.OK
        await control.ask(v5.GET_FEATURE, select=0)
        await control.ask(v5.SET_FEATURE, select=0, feature=3)
        view = control.place(DESC.size)
        control.send(command(v5.GET_KEYED_EAGER_BUF, 1, descs=1) + control.writable(view))
        answer = v5.COMMANDS[v5.GET_KEYED_EAGER_BUF].completion.decode(await control.take())
        assert (answer["status"], answer["descs"]) == (v5.OK, 1)
        there, _, key = DESC.unpack(view)
        for peer in (thief, queue):
            peer.local_write(b"mine", there, key)
            peer.connection.flush()
        assert await thief.take() == b""
        assert "does not allow" in str(thief.connection.error)
        with trio.fail_after(LIMIT):
            await queue.connection.drained()
        assert queue.connection.error is None
        for peer in (control, queue, thief):
            peer.connection.close()
