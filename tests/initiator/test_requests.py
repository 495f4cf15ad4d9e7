# SPDX-License-Identifier: BSD-3-Clause
"""Many tasks on one queue: who leads, who is cancelled, and who waits for room."""

import random

import pytest
import trio
import trio.testing

from tests.initiator.asking import (
    MAKES,
    ask,
    asked,
    count_kicks,
    hoard,
    opener,
    settled,
)
from tests.models import Echo
from vof.errors import InvalidArgument
from vof.initiator.requests import MOST_UNSENT


@pytest.fixture(params=MAKES.values(), ids=MAKES)
def opened(request):
    return opener(request.param)


# -- together ---------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [1, 2, 7, 64, 256])
async def test_a_hundred_tasks(opened, size):
    async with opened(Echo(queue_sizes=(size,))) as queue:

        async def many(first):
            for number in range(first, first + 5):
                await ask(queue, number)

        async with trio.open_nursery() as nursery:
            for task in range(100):
                nursery.start_soon(many, 1000 * task)
        assert queue.vq.num_free == size


async def test_those_who_come_together_share_a_kick(opened, monkeypatch):
    model = hoard(64)
    async with opened(model) as queue:
        kicks = count_kicks(queue.vq, monkeypatch)
        async with trio.open_nursery() as nursery:
            for number in range(20):
                nursery.start_soon(ask, queue, number)
            await model.holds(20)
            assert len(kicks) <= 5
            for number in range(20, 40):
                nursery.start_soon(ask, queue, number)
            await model.holds(40)
            assert len(kicks) <= 10
            while model.chains:
                model.use()


async def test_a_crowd_is_sent_in_parts_that_the_device_can_start_with(opened, monkeypatch):
    model = hoard(64)
    async with opened(model) as queue:
        kicks = count_kicks(queue.vq, monkeypatch)
        async with trio.open_nursery() as nursery:
            for number in range(3 * MOST_UNSENT):
                nursery.start_soon(ask, queue, number)
            await model.holds(3 * MOST_UNSENT)
            assert 3 <= len(kicks) <= 5
            while model.chains:
                model.use()


async def test_who_comes_later_does_not_wait_for_those_before(opened):
    model = hoard()
    async with opened(model) as queue:
        async with trio.open_nursery() as nursery:
            for number in range(3):
                nursery.start_soon(ask, queue, number)
                await model.holds(number + 1)
                await settled()
            for number in (2, 1, 0):  # the last to come is the first to be served
                model.use(number)
                await settled()
                assert len(nursery.child_tasks) == number


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0), (1, 0, 2)])
async def test_each_wakes_with_its_own(opened, order):
    model, results = hoard(), {}
    async with opened(model) as queue, trio.open_nursery() as nursery:
        for number in range(3):
            nursery.start_soon(ask, queue, number, results)
        await model.holds(3)
        for done, number in enumerate(order):
            model.use(asked(model).index(number))
            await settled()
            assert list(results) == list(order[: done + 1])


async def test_a_wrong_request_disturbs_nobody(opened):
    model = hoard(1)
    async with opened(model) as queue, trio.open_nursery() as nursery:
        nursery.start_soon(ask, queue, 1)
        await model.holds(1)
        nursery.start_soon(ask, queue, 2)
        await settled()
        with pytest.raises(InvalidArgument):
            await queue.request([], 0, 0)
        model.use()
        await model.holds(1)
        model.use()


# -- cancelled --------------------------------------------------------------------------------


@pytest.mark.parametrize("victims", [{0}, {1}, {2}, {0, 1}, {1, 2}, {0, 1, 2}])
async def test_the_others_go_on_when_one_is_cancelled(opened, victims):
    model, results = hoard(), {}
    async with opened(model) as queue:
        scopes = {}

        async def cancellable(number):
            with trio.CancelScope() as scopes[number]:
                await ask(queue, number, results)

        async with trio.open_nursery() as nursery:
            for number in range(3):
                nursery.start_soon(cancellable, number)
                await model.holds(number + 1)
                await settled()
            for number in victims:
                scopes[number].cancel()
            await settled()
            assert len(nursery.child_tasks) == 3 - len(victims)
            assert queue.vq.num_free == 13  # their buffers stay with the queue
            while model.chains:
                model.use()
        assert results.keys() == {0, 1, 2} - victims
        async with trio.open_nursery() as nursery:
            nursery.start_soon(ask, queue, 9)
            await model.holds(1)
            model.use()
        assert queue.vq.num_free == 16


async def test_a_cancelled_task_that_waits_for_room(opened):
    model, results = hoard(1), {}
    async with opened(model) as queue:
        scopes = {}

        async def cancellable(number):
            with trio.CancelScope() as scopes[number]:
                await ask(queue, number, results)

        async with trio.open_nursery() as nursery:
            for number in range(4):
                nursery.start_soon(cancellable, number)
                await settled()
            scopes[0].cancel()  # one who waits for room leads now
            await settled()
            scopes[1].cancel()
            await settled()
            scopes[2].cancel()
            await settled()
            model.use()
            await model.holds(1)
            assert asked(model) == [3]
            model.use()
        assert results == {3: 0}


@pytest.mark.parametrize("size", [1, 2, 8])
@pytest.mark.parametrize("seed", range(8))
async def test_cancellation_at_any_time(opened, size, seed):
    rng = random.Random(seed)
    async with opened(Echo(queue_sizes=(size,))) as queue:
        done = []

        async def doomed(number):
            with trio.CancelScope() as scope:
                async with trio.open_nursery() as nursery:

                    async def executioner(steps):
                        for _ in range(steps):
                            await trio.lowlevel.checkpoint()
                        scope.cancel()

                    nursery.start_soon(executioner, rng.randrange(30))
                    await ask(queue, number)
                    done.append(number)
                    nursery.cancel_scope.cancel()

        async def surviving(first):
            for number in range(first, first + 10):
                await ask(queue, number)
                done.append(number)

        async with trio.open_nursery() as nursery:
            for task in range(3):
                nursery.start_soon(surviving, 100 + 10 * task)
            for number in range(60):
                nursery.start_soon(doomed, number)
                for _ in range(rng.randrange(3)):
                    await trio.lowlevel.checkpoint()
        assert {*range(100, 130)} <= {*done}
        assert len(done) == len({*done})
        async with trio.open_nursery() as nursery:
            for number in range(size):
                nursery.start_soon(ask, queue, 500 + number)


@pytest.mark.parametrize("victims", [{0}, {1}, {2}, {3}, {0, 2}])
async def test_cancellation_at_every_step(opened, victims):
    """Two in flight, two that wait for room; whoever is cancelled, the others get theirs."""
    for step in range(16):
        results = {}
        async with opened(Echo(queue_sizes=(2,))) as queue:
            scopes = [trio.CancelScope() for _ in range(4)]

            async def cancellable(number, scopes=scopes, queue=queue, results=results):
                with scopes[number]:
                    await ask(queue, number, results)

            async with trio.open_nursery() as nursery:
                for number in range(4):
                    nursery.start_soon(cancellable, number)
                for _ in range(step):
                    await trio.lowlevel.checkpoint()
                for number in victims:
                    scopes[number].cancel()
            assert {0, 1, 2, 3} - victims <= results.keys()
            assert set(results.values()) == {12}
            async with trio.open_nursery() as nursery:
                for number in range(4, 8):
                    nursery.start_soon(ask, queue, number, results)
            assert {4, 5, 6, 7} <= results.keys()
