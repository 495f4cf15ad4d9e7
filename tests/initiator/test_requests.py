# SPDX-License-Identifier: BSD-3-Clause
"""Many tasks on one queue: who leads, who is cancelled, who waits for room, and what breaks."""

import random
from contextlib import asynccontextmanager

import pytest
import trio
import trio.testing

from tests.conformance.fabric import fabric
from tests.conformance.memory_device import maker
from tests.models import Echo, Hoard
from vof.errors import ConnectionLost, InvalidArgument, QueueBroken, QueueFull, VofError
from vof.initiator import RequestQueue
from vof.initiator.requests import MOST_UNSENT
from vof.virtio import VirtqueueInfo

LIMIT = 10
settled = trio.testing.wait_all_tasks_blocked


LOOPBACK = fabric("vof+loopback://requests")
MAKES = {"loopback": LOOPBACK, "memory": maker(), "late memory": maker(late=3)}


def opener(make):
    """Return ``opened(model)``, which yields a RequestQueue on the only queue of the model."""

    @asynccontextmanager
    async def opened(model):
        with trio.fail_after(LIMIT):  # nothing in it may hang
            async with make(model) as device:
                await device.initialize(0)
                (vq,) = await device.find_vqs([VirtqueueInfo("requests")])
                await device.ready()
                queue = RequestQueue(vq)
                yield queue
                assert not queue._waiting
                assert not queue._room
                assert not queue._leading

    return opened


@pytest.fixture(params=MAKES.values(), ids=MAKES)
def opened(request):
    return opener(request.param)


def hoard(size=16):
    return Hoard(queue_sizes=(size,))


async def ask(queue, number, results=None):
    """One request, with an answer of its own; ``results`` get how it ended."""
    question, answer = b"%08d" % number, bytearray(12)
    try:
        written = await queue.request([question, answer], 1, 1)
    except VofError as error:
        results[number] = error
        return
    assert written in (0, 12)
    if written:
        assert answer == (question * 2)[:12]
    if results is not None:
        results[number] = written


def asked(model):
    return [int(bytes(chain.readable[0])) for chain in model.chains]


def count_kicks(vq, monkeypatch):
    kicks = []
    notify = vq.notify
    monkeypatch.setattr(vq, "notify", lambda: kicks.append(1) or notify(), raising=False)
    return kicks


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


# -- broken -----------------------------------------------------------------------------------


async def test_a_queue_broken_on_request(opened):
    model, results = hoard(4), {}
    async with opened(model) as queue:
        async with trio.open_nursery() as nursery:
            for number in range(8):
                nursery.start_soon(ask, queue, number, results)
            await model.holds(4)
            sent = asked(model)
            queue.vq.break_()
        assert len(results) == 8
        for number, error in results.items():
            assert isinstance(error, QueueBroken)
            assert error.maybe_executed == (number in sent)
        await ask(queue, 9, results)
        assert isinstance(results[9], QueueBroken)
        assert not results[9].maybe_executed


async def test_a_break_at_every_step(opened):
    """Each is served, or told whether the device may have seen it; nobody waits for ever."""
    for step in range(16):
        results = {}
        model = Echo(queue_sizes=(2,))
        async with opened(model) as queue:
            async with trio.open_nursery() as nursery:
                for number in range(6):
                    nursery.start_soon(ask, queue, number, results)
                for _ in range(step):
                    await trio.lowlevel.checkpoint()
                queue.vq.break_()
        assert results.keys() == set(range(6))
        errors = [result for result in results.values() if result != 12]
        assert all(isinstance(error, QueueBroken) for error in errors)
        in_flight = [error for error in errors if error.maybe_executed]
        assert len(in_flight) <= 2
        assert model.served <= 6 - len(errors) + len(in_flight)


class Dies(Hoard):
    """Ends the queue when it holds enough."""

    async def serve(self, index, queue):
        while len(self.chains) < 3:
            self.chains += await queue.receive()
        raise RuntimeError("a bug of the model")


async def test_a_connection_that_ends_with_requests_in_flight(caplog):
    results = {}
    async with opener(LOOPBACK)(Dies(queue_sizes=(3,))) as queue:
        async with trio.open_nursery() as nursery:
            for number in range(5):
                nursery.start_soon(ask, queue, number, results)
        errors = list(results.values())
        assert sorted(error.maybe_executed for error in errors) == [False] * 2 + [True] * 3
        for error in errors:
            assert isinstance(error, ConnectionLost if error.maybe_executed else QueueBroken)
    assert "a bug of the model" in caplog.text


async def test_a_break_while_another_is_chosen_strands_nobody(opened):
    model, results = hoard(1), {}
    async with opened(model) as queue:

        async def first():
            await ask(queue, 0)
            queue.vq.break_()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(first)
            await model.holds(1)
            for number in range(1, 6):
                nursery.start_soon(ask, queue, number, results)
            await settled()
            model.use()
        assert len(results) == 5
        assert not any(error.maybe_executed for error in results.values())


async def test_a_leader_that_is_cancelled_as_the_queue_breaks(opened):
    model, results = hoard(2), {}
    async with opened(model) as queue:
        scope = trio.CancelScope()

        async def leader():
            with scope:
                await ask(queue, 0)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(leader)
            await model.holds(1)
            for number in range(1, 6):
                nursery.start_soon(ask, queue, number, results)
            await model.holds(2)
            await settled()
            scope.cancel()
            queue.vq.break_()
        assert results.keys() == {1, 2, 3, 4, 5}
        assert sum(error.maybe_executed for error in results.values()) == 1


async def test_what_was_used_before_the_break_counts(opened, monkeypatch):
    model, results = hoard(), {}
    async with opened(model) as queue:
        vq = queue.vq
        get_buf = vq.get_buf

        def used_then_broken():
            used = get_buf()
            if used is None and not vq.num_free < 16:
                vq.break_()
            return used

        async with trio.open_nursery() as nursery:
            nursery.start_soon(ask, queue, 1, results)
            await model.holds(1)
            monkeypatch.setattr(vq, "get_buf", used_then_broken, raising=False)
            model.use()
        assert results == {1: 0}


# -- what nobody waits for --------------------------------------------------------------------


async def test_what_was_abandoned_is_told_when_it_is_used(opened):
    model, told = hoard(), []
    async with opened(model) as queue:
        with trio.CancelScope() as scope:
            async with trio.open_nursery() as nursery:
                for number in range(2):  # one leads, one follows
                    buffers = [b"%08d" % number, bytearray(12)]
                    late = lambda written, number=number: told.append((number, written))  # noqa: E731
                    nursery.start_soon(
                        queue.request, buffers, 1, 1, lambda late=late: told.append("left") or late
                    )
                await model.holds(2)
                scope.cancel()
        assert told == ["left", "left"]
        first, second = asked(model)
        model.use(written=5)
        model.use(written=6)
        results = {}
        async with trio.open_nursery() as nursery:
            nursery.start_soon(ask, queue, 7, results)
            await model.holds(1)
            model.use()
        assert told[2:] == [(first, 5), (second, 6)]
        assert results == {7: 0}


async def test_what_was_used_before_the_cancelled_task_ran_is_told(opened, monkeypatch):
    model, told = hoard(), []
    async with opened(model) as queue, trio.open_nursery() as nursery:
        nursery.start_soon(ask, queue, 1)
        await model.holds(1)
        take = queue._take
        with trio.CancelScope() as scope:
            async with trio.open_nursery() as inner:
                buffers = [b"%08d" % 2, bytearray(12)]
                inner.start_soon(queue.request, buffers, 1, 1, lambda: told.append)
                await model.holds(2)
                await settled()
                monkeypatch.setattr(queue, "_take", lambda: scope.cancel() or take())
                model.use(1, written=5)
        assert told == [5]
        model.use()


async def test_what_was_not_abandoned_is_not_told(opened):
    async with opened(Echo(queue_sizes=(1,))) as queue:
        for number in range(3):
            buffers = [b"%08d" % number, bytearray(8)]
            assert await queue.request(buffers, 1, 1, pytest.fail) == 8


async def test_one_who_never_got_room_abandons_nothing(opened):
    model = hoard(1)
    async with opened(model) as queue, trio.open_nursery() as nursery:
        nursery.start_soon(ask, queue, 1)
        await model.holds(1)
        with trio.move_on_after(0.01):
            await queue.request([b"more"], 1, 0, pytest.fail)
        model.use()


async def test_posts_come_back_with_the_next_that_needs_the_queue(opened):
    model, used = hoard(2), []
    async with opened(model) as queue:
        queue.post([b"00000001", bytearray(3)], 1, 1, used.append)
        queue.post([b"00000002"], 1, 0, used.append)
        with pytest.raises(QueueFull):
            queue.post([b"00000003"], 1, 0, used.append)
        await model.holds(2)
        assert asked(model) == [1, 2]
        model.use(written=3)
        model.use()
        while True:
            await settled()
            try:
                queue.post([b"00000004"], 1, 0, used.append)
                break
            except QueueFull:
                pass
        async with trio.open_nursery() as nursery:
            nursery.start_soon(ask, queue, 5)
            await model.holds(2)
            model.use()
            model.use()
        assert used[:3] == [3, 0, 0]
        queue.vq.break_()
        with pytest.raises(QueueBroken):
            queue.post([b"00000007"], 1, 0, used.append)
