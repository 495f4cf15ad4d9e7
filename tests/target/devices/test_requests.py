# SPDX-License-Identifier: BSD-3-Clause
"""The shortest way to a device: what becomes of requests and answers."""

import pytest
import trio
import trio.testing

from tests.conformance.memory_device import maker
from tests.target.devices.fakes import FakeQueue, answer, segments
from vof.conformance import check_model
from vof.target import RequestModel
from vof.virtio import Chain


class Upper(RequestModel):
    device_id = 1000

    def handle(self, request, room):
        return request.upper()


class Later(RequestModel):
    """Answers when it is told to, by the request's text."""

    device_id = 1000

    def __init__(self):
        super().__init__()
        self.events = {}
        self.ended = []

    async def handle(self, request, room):
        try:
            await self.events.setdefault(request, trio.Event()).wait()
        finally:
            self.ended.append(request)
        return request + b"!"


class Wrong(RequestModel):
    device_id = 1000

    def __init__(self, value):
        super().__init__()
        self.value = value

    def handle(self, request, room):
        return self.value


def chain(request=b"", room=0, cuts=(), in_cuts=()):
    return Chain(segments(request, cuts), segments(b"." * room, in_cuts), None)


def text(chain):
    return b"".join(chain.writable)


def test_an_answer_is_cut_as_the_driver_likes():
    chains = [
        chain(b"whole", 5),
        chain(b"pieces", 8, cuts=(1, 1, 4), in_cuts=(0, 2, 3)),
        chain(b"too long", 3),
        chain(b"no room"),
        chain(room=4),
        Chain((), (), None),
    ]
    assert answer(Upper(), chains) == [5, 6, 3, 0, 0, 0]
    assert [text(one) for one in chains] == [b"WHOLE", b"PIECES..", b"TOO", b"", b"....", b""]


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
def test_any_bytes_are_an_answer(kind):
    one = chain(room=4)
    assert answer(Wrong(kind(b"abc")), [one]) == [3]
    assert text(one) == b"abc."


def test_what_room_there_is():
    class Fill(Upper):
        def handle(self, request, room):
            return bytes(room)

    one = chain(b"x", 7, in_cuts=(3,))
    assert answer(Fill(), [one]) == [7]
    assert text(one) == bytes(7)


@pytest.mark.parametrize("value", [None, "text", 3, [1]])
async def test_what_is_no_answer_is_named(value):
    queue = FakeQueue()
    queue.offer(chain(b"a", 4))
    with pytest.raises(TypeError, match=r"Wrong\.handle returned .*, not bytes"):
        await Wrong(value).serve(0, queue)
    assert not queue.pushed


async def test_a_plain_handle_that_forgot_to_await_is_named():
    async def nothing():
        return b""

    coroutine = nothing()
    queue = FakeQueue()
    queue.offer(chain(b"a", 4))
    with pytest.raises(TypeError, match="returned <coroutine"):
        await Wrong(coroutine).serve(0, queue)
    coroutine.close()


async def test_requests_that_take_time_end_in_any_order(autojump_clock):
    model, queue = Later(), FakeQueue()
    a, b, c = chain(b"a", 4), chain(b"b", 4), chain(b"c", 4)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(model.serve, 0, queue)
        queue.offer(a, b)
        queue.offer(c)
        await trio.testing.wait_all_tasks_blocked()
        assert sorted(model.events) == [b"a", b"b", b"c"]
        model.events[b"c"].set()
        assert await queue.used(c) == [2]
        assert a not in queue.visible
        model.events[b"a"].set()
        assert await queue.used(a) == [2]
        assert text(a) == b"a!.."
        nursery.cancel_scope.cancel()
    assert sorted(model.ended) == [b"a", b"b", b"c"]
    assert b not in queue.visible


async def test_an_exception_in_one_task_ends_the_queue(autojump_clock):
    class Bad(Later):
        async def handle(self, request, room):
            if request == b"bad":
                raise ZeroDivisionError
            return await super().handle(request, room)

    model, queue = Bad(), FakeQueue()
    queue.offer(chain(b"good", 4), chain(b"bad", 4))
    with pytest.raises(ExceptionGroup) as caught:
        await model.serve(0, queue)
    assert isinstance(caught.value.exceptions[0], ZeroDivisionError)


async def test_it_is_a_model():
    await check_model(Upper, maker())
