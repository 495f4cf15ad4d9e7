# SPDX-License-Identifier: BSD-3-Clause
"""A state machine over both ends of one queue, beside a model of plain lists.

trio runs in a thread of its own, so that each rule can be an async step of one long life.
"""

import queue
import threading
from functools import partial

import trio
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from vof.conformance.rig import FILL, opened
from vof.conformance.rules import LIMIT, soon
from vof.errors import QueueBroken, QueueBusy, QueueFull

SIZE = 8


class Request:
    """The token of one chain, and what is known of it."""

    def __init__(self, question, buffers):
        self.question, self.buffers = question, buffers
        self.answer = self.written = None

    @property
    def room(self):
        return sum(map(len, self.buffers))


class Loop:
    """Runs coroutines in a trio loop of another thread, for as long as ``setup`` is entered."""

    def __init__(self, setup, clock):
        self._ready = queue.Queue()
        main = partial(trio.run, self._main, setup, clock=clock)
        self._thread = threading.Thread(target=main, daemon=True)
        self._thread.start()
        self.value = self._ready.get(timeout=2 * LIMIT)
        if isinstance(self.value, BaseException):
            raise self.value

    async def _main(self, setup):
        self._token, self._stop = trio.lowlevel.current_trio_token(), trio.Event()
        try:
            async with setup as value:
                self._ready.put(value)
                await self._stop.wait()
        except Exception as error:
            self._ready.put(error)

    def run(self, step, *args):
        async def bounded():
            with soon("a step ends", 4):
                return await step(*args)

        return trio.from_thread.run(bounded, trio_token=self._token)

    def close(self):
        self._token.run_sync_soon(self._stop.set)
        self._thread.join(2 * LIMIT)
        assert not self._thread.is_alive()
        assert self._ready.empty(), self._ready.get()


def step(method):
    """Make an async method of the machine one that its loop runs."""

    def run(self, **values):
        self.loop.run(partial(method, self, **values))

    return run


class VirtqueueMachine(RuleBasedStateMachine):
    """Subclass it with ``make``, and with a ``clock`` if the medium is not the real world."""

    make = None
    clock = type(None)

    def __init__(self):
        super().__init__()
        self.loop = Loop(opened(type(self).make, SIZE, callback=True), type(self).clock())
        self.rig = self.loop.value
        self.vq, self.lane = self.rig.vq, self.rig.lane
        self.added = []  # by the driver, not kicked
        self.offered = []  # kicked, and not taken by the device
        self.held = {}  # in the device's hands: request -> chain
        self.used = []  # by the device, in order, and not taken by the driver
        self.calls = None  # callbacks seen when they were enabled with nothing to take

    @initialize()
    def quiet(self):
        self.vq_call(self.vq.disable_cb)

    def vq_call(self, function):
        async def call():
            function()

        self.loop.run(call)

    @property
    def outstanding(self):
        return [*self.added, *self.offered, *self.held, *self.used]

    # -- the driver ---------------------------------------------------------------------------

    @rule(
        out=st.lists(st.binary(min_size=1, max_size=40), max_size=3),
        ins=st.lists(st.integers(1, 40), max_size=3),
        count=st.integers(1, 5),
        kick=st.booleans(),
    )
    @step
    async def add(self, out, ins, count, kick):
        if not out and not ins:
            ins = [1]
        for _ in range(count):
            self.add_one(out, ins)
        if kick:
            self.do_kick()

    def add_one(self, out, ins):
        readable = [self.rig.filled(data) for data in out]
        request = Request(b"".join(out), [self.rig.space(size) for size in ins])
        buffers = [*readable, *request.buffers]
        free = self.vq.num_free
        try:
            self.vq.add_sgs(buffers, len(out), len(ins), request, ctx=request)
        except QueueFull:
            assert free < len(buffers)
            assert self.vq.num_free == free
        else:
            assert free > self.vq.num_free >= free - len(buffers)
            self.added.append(request)

    @rule()
    @step
    async def kick(self):
        self.do_kick()

    def do_kick(self):
        assert self.vq.kick()
        self.offered += self.added
        self.added = []

    @rule(disabled=st.booleans(), wait=st.booleans(), most=st.integers(1, SIZE))
    @step
    async def get_buf(self, disabled, wait, most):
        if disabled:
            self.vq.disable_cb()
            self.calls = None
        if not self.used:
            assert self.vq.get_buf_ctx() is None
        for _ in self.used[:most]:
            found = None if wait else self.vq.get_buf_ctx()
            if found is None:
                with soon("wait_used returns"):
                    await self.vq.wait_used()
                found = self.vq.get_buf_ctx()
            assert found is not None
            self.took(found)

    def took(self, found):
        request, written, ctx = found
        assert request is ctx
        assert request is self.used.pop(0)
        assert written == request.written
        wanted = request.answer.ljust(request.room, bytes([FILL]))
        assert b"".join(request.buffers) == wanted

    # -- callbacks ----------------------------------------------------------------------------

    @rule()
    @step
    async def disable(self):
        self.vq.disable_cb()
        self.calls = None

    @rule(delayed=st.booleans())
    @step
    async def enable(self, delayed):
        calls = self.rig.calls.count
        enabled = self.vq.enable_cb_delayed() if delayed else self.vq.enable_cb()
        if not enabled:
            assert self.used
        self.calls = calls if enabled and not delayed else None

    @rule()
    @step
    async def poll(self):
        calls = self.rig.calls.count
        if self.vq.poll(self.vq.enable_cb_prepare()):
            assert self.used
            self.vq.disable_cb()
            self.calls = None
        else:
            self.calls = calls

    # -- the device ---------------------------------------------------------------------------

    @precondition(lambda self: self.offered)
    @rule(data=st.data())
    def device_takes(self, data):
        count = data.draw(st.integers(1, len(self.offered)))
        self.loop.run(self.take, count)

    async def take(self, count):
        for chain in await self.lane.take(count):
            request = self.offered.pop(0)
            assert b"".join(chain.readable) == request.question
            assert sum(map(len, chain.writable)) == request.room
            self.held[request] = chain

    @precondition(lambda self: self.held)
    @rule(data=st.data())
    def device_uses(self, data):
        order = data.draw(st.permutations(list(self.held)))
        order = order[: data.draw(st.integers(1, len(order)))]
        answers = [data.draw(st.binary(max_size=request.room)) for request in order]
        self.loop.run(self.use, order, answers, data.draw(st.booleans()))

    async def use(self, order, answers, together):
        calls, self.calls = self.calls, None
        for request, answer in zip(order, answers, strict=True):
            request.answer, request.written = answer, len(answer)
            self.used.append(request)
            self.lane.use(self.held.pop(request), answer, flush=not together)
        self.lane.queue.flush()
        if calls is not None:
            await self.rig.calls.beyond(calls)

    # -- the whole ----------------------------------------------------------------------------

    @rule()
    @step
    async def break_and_unbreak(self):
        self.vq.break_()
        assert self.vq.get_buf() is None
        try:
            self.vq.add_inbuf([self.rig.space(1)], "refused")
        except QueueBroken:
            self.vq.unbreak()
        assert not self.vq.is_broken
        self.vq.disable_cb()
        self.calls = None

    @precondition(lambda self: self.outstanding)
    @rule()
    @step
    async def detach(self):
        try:
            self.vq.detach_unused_buf()
        except QueueBusy:
            return
        raise AssertionError("detach_unused_buf of a live queue")

    @rule(steps=st.integers(1, 5))
    @step
    async def time_passes(self, steps):
        for _ in range(steps):
            await trio.lowlevel.checkpoint()

    @invariant()
    def room(self):
        if not self.outstanding:
            assert self.vq.num_free == SIZE
        else:
            assert 0 <= self.vq.num_free <= SIZE - len(self.outstanding) + len(self.used)

    def teardown(self):
        try:
            self.loop.run(self.finish)
        finally:
            self.loop.close()

    async def finish(self):
        """Break the queue and take everything back: each token that is left, exactly once."""
        self.vq.break_()
        left = []
        while (token := self.vq.detach_unused_buf()) is not None:
            left.append(token)
        assert sorted(map(id, left)) == sorted(map(id, self.outstanding))
