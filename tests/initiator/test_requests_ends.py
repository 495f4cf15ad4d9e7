# SPDX-License-Identifier: BSD-3-Clause
"""Many tasks on one queue: what breaks, and what nobody waits for any more."""

import pytest
import trio
import trio.testing

from tests.initiator.asking import LOOPBACK, MAKES, ask, asked, hoard, opener, settled
from tests.models import Echo, Hoard
from vof.errors import ConnectionLost, QueueBroken, QueueFull


@pytest.fixture(params=MAKES.values(), ids=MAKES)
def opened(request):
    return opener(request.param)


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
