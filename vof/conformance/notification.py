# SPDX-License-Identifier: BSD-3-Clause
"""Who tells whom, and when: kicks, callbacks, polling, waiting.

A kick, a callback and a wake-up are hints in one direction (there may be more of them than needed)
and promises in the other: nothing that they announce may be lost. So no check here counts them.
"""

import random

import trio
from trio.testing import wait_all_tasks_blocked

from vof.conformance.rig import Make, Rig, mark_of, on_call, opened, polled
from vof.conformance.rules import expect, same, soon

ROUNDS = 20


async def kick_in_two_halves(make: Make) -> None:
    """Whatever was added before a kick_prepare is seen, if notify follows where it says so."""
    async with opened(make) as rig:
        for before in ("nothing", "prepare", "prepare and add", "kick"):
            wanted = [0, 1, 2]
            for mark in wanted:
                rig.add(mark, mark)
            if before.startswith("prepare"):
                rig.vq.kick_prepare()
            if before == "prepare and add":
                rig.add(3, 3)
                wanted.append(3)
            if before == "kick":
                expect(rig.vq.kick(), "kick returns True")
            elif rig.vq.kick_prepare():
                expect(rig.vq.notify(), "notify of a queue that is not broken returns True")
            await all_through(rig, wanted)


async def kick_of_nothing(make: Make) -> None:
    """Without anything new, kick_prepare says False, and kick is harmless."""
    async with opened(make) as rig:
        expect(not rig.vq.kick_prepare(), "kick_prepare of an unused queue is False")
        expect(rig.vq.kick(), "kick without anything new returns True")
        rig.add("token")
        rig.vq.kick()
        (chain,) = await rig.lane.take()
        expect(not rig.vq.kick_prepare(), "kick_prepare is False when the device has all buffers")
        rig.lane.use(chain)
        same((await rig.used())[0], "token", "token")
        expect(not rig.vq.kick_prepare(), "kick_prepare of an idle queue is False")
        await rig.works()


async def kick_while_busy(make: Make) -> None:
    """Kicks at any time, with any number of adds before them, lose no buffer."""
    rng = random.Random(5)
    async with opened(make, 16) as rig:
        for _ in range(100):
            marks = list(range(rng.randrange(6)))
            for mark in marks:
                rig.add(mark, mark)
                if rng.random() < 0.3:
                    rig.vq.kick()
                    if rng.random() < 0.5:
                        await trio.lowlevel.checkpoint()
            rig.vq.kick()
            await all_through(rig, marks)


async def callback_comes(make: Make) -> None:
    """Callbacks are on from the start; after all was taken, the next used buffer calls again."""
    async with opened(make, callback=True) as rig:
        for turn in range(ROUNDS):
            calls = rig.calls.count
            await use_next(rig, turn)
            same(await on_call(rig, calls), (turn, 0), "token and used length")
            expect(rig.vq.get_buf() is None, "one used buffer is one used buffer")


async def polling(make: Make) -> None:
    """With callbacks disabled, get_buf alone finds what was used; enabled again, they come."""
    async with opened(make) as rig:
        await found_by_get_buf(rig)
    async with opened(make, callback=True) as rig:
        for _ in range(ROUNDS):
            rig.vq.disable_cb()
            await found_by_get_buf(rig)
            expect(rig.vq.enable_cb(), "enable_cb with nothing to take returns True")
            calls = rig.calls.count
            await use_next(rig, "called")
            same(await on_call(rig, calls), ("called", 0), "token and used length")


async def found_by_get_buf(rig: Rig) -> None:
    """Demand that get_buf finds a used buffer, with nobody waiting for it."""
    taken: list[object] = []

    def look() -> bool:
        taken.append(rig.vq.get_buf())
        return taken[-1] is not None

    await use_next(rig, "polled")
    await polled(look, "get_buf finds a used buffer while callbacks are disabled")
    same(taken[-1], ("polled", 0), "token and used length")


async def poll_sees(make: Make) -> None:
    """``poll`` says False before, True after a buffer was used, until it was taken."""
    async with opened(make, callback=True) as rig:
        for turn in range(ROUNDS):
            position = rig.vq.enable_cb_prepare()
            expect(not rig.vq.poll(position), "poll is False when nothing was used")
            rig.vq.disable_cb()
            await use_next(rig, turn)
            await polled(lambda at=position: rig.vq.poll(at), "poll sees a used buffer")  # type: ignore[misc]
            expect(rig.vq.poll(position), "poll takes nothing")
            expect(rig.vq.poll(rig.vq.enable_cb_prepare()), "poll sees a buffer that was not taken")
            expect(not rig.vq.enable_cb(), "enable_cb with a buffer to take returns False")
            rig.vq.disable_cb()
            same(rig.vq.get_buf(), (turn, 0), "token and used length")
            expect(not rig.vq.poll(rig.vq.enable_cb_prepare()), "poll is False when all is taken")


async def pending_at_enable(make: Make) -> None:
    """enable_cb returns False as long as a used buffer was not taken."""
    async with opened(make) as rig:
        for turn in range(ROUNDS):
            rig.vq.disable_cb()
            await use_next(rig, turn)
            await rig.arrived()
            expect(not rig.vq.enable_cb(), "enable_cb with a used buffer to take returns False")
            rig.vq.disable_cb()
            same(rig.vq.get_buf(), (turn, 0), "token and used length")
            expect(rig.vq.enable_cb(), "enable_cb with nothing to take returns True")


async def race_at_enable(make: Make) -> None:
    """A buffer used while the driver enables callbacks is told: by False or by a callback."""
    async with opened(make, callback=True) as rig:
        for turn in range(ROUNDS):
            for moment in ("before", "between", "after"):
                rig.vq.disable_cb()
                expect(rig.vq.get_buf() is None, "nothing is used")
                calls = rig.calls.count
                rig.add(turn)
                rig.vq.kick()
                (chain,) = await rig.lane.take()
                if moment == "before":
                    rig.lane.use(chain)
                position = rig.vq.enable_cb_prepare()
                if moment == "between":
                    rig.lane.use(chain)
                missed = rig.vq.poll(position)
                if moment == "after":
                    rig.lane.use(chain)
                used = rig.vq.get_buf() if missed else await on_call(rig, calls)
                same(used, (turn, 0), f"a buffer used {moment} enable_cb")


async def interrupt_driver(make: Make) -> None:
    """The loop of every kernel driver (sleep, disable, drain, enable) misses nothing."""
    rng = random.Random(6)
    async with opened(make, 16, callback=True) as rig:
        rounds, taken = 300, 0

        async def device() -> None:
            for _ in range(rounds):
                (chain,) = await rig.lane.take()
                for _ in range(rng.randrange(4)):
                    await trio.lowlevel.checkpoint()
                rig.lane.use(chain, flush=rng.random() < 0.8)
                if not rig.lane.waiting:
                    rig.lane.queue.flush()

        async with trio.open_nursery() as nursery:
            for serial in range(16):
                rig.add(serial)
            rig.vq.kick()
            nursery.start_soon(device)
            added = 16
            while taken < rounds:
                calls = rig.calls.count
                while not rig.vq.enable_cb():
                    rig.vq.disable_cb()
                    pending = taken
                    while used := rig.vq.get_buf():
                        same(used, (taken, 0), "used buffers, in order")
                        taken += 1
                        if added < rounds:
                            rig.add(added)
                            added += 1
                    expect(taken > pending, "enable_cb returns False when there is one to take")
                    rig.vq.kick()
                if taken < rounds:
                    await rig.calls.beyond(calls)
        same(rig.vq.num_free, rig.vq.get_vring_size(), "num_free of an empty queue")


async def delayed_callback(make: Make) -> None:
    """enable_cb_delayed: a callback at the latest when most buffers are used."""
    async with opened(make, 16, callback=True) as rig:
        for used_now in (16, 14):
            rig.vq.disable_cb()
            for mark in range(16):
                rig.add(mark, mark)
            rig.vq.kick()
            chains = await rig.lane.take(16)
            calls = rig.calls.count
            expect(rig.vq.enable_cb_delayed(), "enable_cb_delayed with nothing used returns True")
            for chain in chains[:used_now]:
                rig.lane.use(chain)
            await rig.calls.beyond(calls)
            for chain in chains[used_now:]:
                rig.lane.use(chain)
            await drain(rig, 16)


async def delayed_when_pending(make: Make) -> None:
    """enable_cb_delayed returns False when many used buffers wait already."""
    async with opened(make, 16, callback=True) as rig:
        for _ in range(3):
            rig.vq.disable_cb()
            for mark in range(16):
                rig.add(mark, mark)
            rig.vq.kick()
            for chain in await rig.lane.take(16):
                rig.lane.use(chain, flush=False)
            rig.lane.queue.flush()
            while True:
                calls = rig.calls.count
                if not rig.vq.enable_cb_delayed():
                    break
                await rig.calls.beyond(calls)
            await drain(rig, 16)


async def wait_for_used(make: Make) -> None:
    """wait_used returns when a buffer was used: at once, later, or after it was cancelled."""
    for callback in (False, True):
        async with opened(make, callback=callback) as rig:
            await waits(rig)


async def waits(rig: Rig) -> None:
    """Wait for used buffers, in all the ways."""
    for turn in range(ROUNDS):
        rig.add(turn)
        rig.vq.kick()
        (chain,) = await rig.lane.take()
        for _ in range(turn % 3):
            with trio.CancelScope() as scope:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(rig.vq.wait_used)
                    await wait_all_tasks_blocked()
                    expect(rig.vq.get_buf() is None, "nothing is used")
                    scope.cancel()
        with soon("wait_used wakes when a buffer is used"):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(rig.vq.wait_used)
                await wait_all_tasks_blocked()
                expect(len(nursery.child_tasks) == 1, "wait_used waits for a used buffer")
                rig.lane.use(chain)
        for _ in range(2):
            with soon("wait_used returns at once when a buffer can be taken"):
                await rig.vq.wait_used()
        same(rig.vq.get_buf(), (turn, 0), "token and used length")
        expect(rig.vq.get_buf() is None, "wait_used takes nothing and doubles nothing")


async def wait_cancelled(make: Make) -> None:
    """Cancelling wait_used at any time, also while bytes arrive, loses nothing."""
    rng = random.Random(7)
    size = 5000
    async with opened(make, 16) as rig:
        for turn in range(100):
            buffer = rig.space(size)
            rig.vq.add_inbuf([buffer], turn)
            rig.vq.kick()
            (chain,) = await rig.lane.take()
            steps, moment, answer = rng.randrange(6), rng.randrange(6), rng.randbytes(size)
            with trio.CancelScope() as scope:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(rig.vq.wait_used)
                    for step in range(6):
                        if step == moment:
                            rig.lane.use(chain, answer)
                        if step == steps:
                            scope.cancel()
                            break
                        await trio.lowlevel.checkpoint()
            if steps < moment:
                rig.lane.use(chain, answer)
            same((await rig.used())[:2], (turn, size), "token and used length")
            same(bytes(buffer), answer, "the answer")


async def use_next(rig: Rig, token: object) -> None:
    """Send one chain through the device, and do not take it."""
    rig.add(token)
    rig.vq.kick()
    rig.lane.use((await rig.lane.take())[0])


async def all_through(rig: Rig, marks: list[int]) -> None:
    """Demand that the chains with these marks, in order, are all that the device has."""
    chains = await rig.lane.take(len(marks))
    same([mark_of(chain) for chain in chains], marks, "available buffers, in order")
    same(len(rig.lane.waiting), 0, "chains that nobody added")
    for chain in chains:
        rig.lane.use(chain)
    for mark in marks:
        same((await rig.used())[0], mark, "token")


async def drain(rig: Rig, count: int) -> None:
    """Take ``count`` used buffers in polling mode; their tokens are 0, 1, ..."""
    rig.vq.disable_cb()
    taken: list[object] = []

    def take_all() -> bool:
        while used := rig.vq.get_buf():
            taken.append(used[0])
        return len(taken) >= count

    await polled(take_all, "get_buf finds all used buffers while callbacks are disabled")
    same(taken, list(range(count)), "tokens")


CHECKS = (
    kick_in_two_halves,
    kick_of_nothing,
    kick_while_busy,
    callback_comes,
    polling,
    poll_sees,
    pending_at_enable,
    race_at_enable,
    interrupt_driver,
    delayed_callback,
    delayed_when_pending,
    wait_for_used,
    wait_cancelled,
)
