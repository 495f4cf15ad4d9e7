# SPDX-License-Identifier: BSD-3-Clause
"""The end of a queue and what comes after it: break, unbreak, detach, reset, resize."""

import trio
from trio.testing import wait_all_tasks_blocked

from vof.conformance.rig import FILL, Make, Rig, exactly_once, mark_of, on_call, opened
from vof.conformance.rules import expect, refuses, same, soon
from vof.errors import InvalidArgument, NotSupported, QueueBroken, QueueBusy, QueueFull, VofError
from vof.virtio import Virtqueue

MOST = 1000
"""How many tokens a queue of a check holds at most: where a loop ends that should have."""


async def broken_refuses(make: Make) -> None:
    """A broken queue takes no work and gives none back, and says why."""
    async with opened(make) as rig:
        await busy(rig)
        position = rig.vq.enable_cb_prepare()
        cause = VofError("the check breaks it")
        rig.vq.break_(cause)
        free = rig.vq.num_free
        for _ in range(2):
            expect(rig.vq.is_broken, "is_broken after break_")
            expect(rig.vq.broken_by is cause, "broken_by is the first cause")
            with refuses("add_sgs to a broken queue", QueueBroken) as refusal:
                rig.add("refused")
            expect(getattr(refusal.error, "cause", None) is cause, "QueueBroken tells the cause")
            same(rig.vq.num_free, free, "num_free of a broken queue after add_sgs")
            rig.vq.kick_prepare()
            expect(not rig.vq.notify(), "notify of a broken queue returns False")
            expect(not rig.vq.kick(), "kick of a broken queue returns False")
            expect(rig.vq.get_buf() is None, "get_buf of a broken queue is None")
            expect(rig.vq.get_buf_ctx() is None, "get_buf_ctx of a broken queue is None")
            expect(not rig.vq.poll(position), "poll of a broken queue is False")
            rig.vq.disable_cb()
            rig.vq.enable_cb()
            with soon("wait_used returns on a broken queue"):
                await rig.vq.wait_used()
            rig.vq.break_(VofError("a later cause"))


async def break_wakes(make: Make) -> None:
    """A task in wait_used wakes when the queue breaks."""
    for cause in (None, VofError("the check breaks it")):
        async with opened(make) as rig:
            rig.add("token")
            rig.vq.kick()
            await rig.lane.take()
            with soon("wait_used wakes when the queue breaks"):
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(rig.vq.wait_used)
                    await wait_all_tasks_blocked()
                    rig.vq.break_(cause)
                await rig.vq.wait_used()
            expect(rig.vq.is_broken and rig.vq.broken_by is cause, "is_broken and broken_by")
            expect(rig.vq.get_buf() is None, "get_buf of a broken queue is None")


async def detach_after_break(make: Make) -> None:
    """After break_, every buffer comes back once: used, taken by the device, or only added."""
    async with opened(make) as rig:
        tokens = await busy(rig)
        rig.vq.break_()
        exactly_once(detached(rig.vq), tokens, "detach after break_")
        expect(rig.vq.detach_unused_buf() is None, "an empty queue has nothing to detach")
        expect(rig.vq.get_buf() is None, "get_buf of a broken queue is None")


async def detach_after_reset(make: Make) -> None:
    """After a reset, every buffer comes back once, and the queue is of no more use."""
    async with opened(make) as rig:
        tokens = await busy(rig)
        with soon("the device resets"):
            await rig.device.reset()
        expect(rig.lane.ended.is_set(), "after reset the device does not serve the queue any more")
        exactly_once(detached(rig.vq), tokens, "detach after reset")
        expect(rig.vq.detach_unused_buf() is None, "an empty queue has nothing to detach")
        with refuses("add_sgs to a queue of before the reset", QueueBroken):
            rig.add("refused")
        expect(rig.vq.get_buf() is None, "get_buf after reset is None")


async def detach_after_del_vqs(make: Make) -> None:
    """After del_vqs, every buffer comes back once."""
    async with opened(make) as rig:
        tokens = await busy(rig)
        with soon("del_vqs takes the queue down"):
            await rig.device.del_vqs()
            await rig.lane.ended.wait()
        exactly_once(detached(rig.vq), tokens, "detach after del_vqs")


async def detach_when_live(make: Make) -> None:
    """While the device may use a buffer, it cannot be detached; it stays where it is."""
    async with opened(make) as rig:
        buffer = rig.add("token")
        rig.vq.kick()
        with refuses("detach_unused_buf of a live queue", QueueBusy):
            rig.vq.detach_unused_buf()
        (chain,) = await rig.lane.take()
        with refuses("detach_unused_buf of a live queue", QueueBusy):
            rig.vq.detach_unused_buf()
        rig.lane.use(chain, b"data")
        same((await rig.used())[:2], ("token", 4), "token and used length")
        same(bytes(buffer), b"data", "the answer")
        await rig.works()


async def unbreak(make: Make) -> None:
    """A queue that was broken on request works again after unbreak, and lost nothing."""
    async with opened(make, 16) as rig:
        rig.vq.unbreak()
        await rig.works()
        for turn in range(5):
            rig.vq.break_()
            expect(rig.vq.is_broken, "is_broken after break_")
            rig.vq.unbreak()
            expect(not rig.vq.is_broken, "is_broken after unbreak")
            expect(rig.vq.broken_by is None, "broken_by after unbreak")
            await rig.works()
            tokens = [object() for _ in range(turn + 1)]
            for mark, token in enumerate(tokens):
                rig.add(token, mark)
            rig.vq.kick()
            chains = await rig.lane.take(len(tokens))
            rig.lane.use(chains[0])
            rig.vq.break_()
            for chain in chains[1:-1]:
                rig.lane.use(chain)
            expect(rig.vq.get_buf() is None, "get_buf of a broken queue is None")
            rig.vq.unbreak()
            for chain in chains[1:][-1:]:
                rig.lane.use(chain)
            for token in tokens:
                expect((await rig.used())[0] is token, "after unbreak, tokens come back in order")
            await rig.works()
            same(rig.vq.num_free, 16, "num_free of an empty queue")


async def unbreak_after_detach(make: Make) -> None:
    """Work that was detached from a broken queue never reaches a queue that works again.

    A queue may as well stay broken, where the device could still touch a detached buffer.
    """
    async with opened(make, 8) as rig:
        buffers = [rig.add(object(), mark) for mark in range(6)]
        rig.vq.kick()
        chains = await rig.lane.take(6)
        rig.lane.use(chains[0], b"late")
        rig.vq.break_()
        same(len(detached(rig.vq)), 6, "tokens after break_")
        rig.vq.unbreak()
        if rig.vq.is_broken:
            return
        for round_ in range(1, 6):
            try:
                fresh = rig.add(round_, 50 + round_)
            except QueueFull:
                expect(rig.vq.num_free == 0, "a queue is full when it has no place")
                fresh = None
            rig.lane.use(chains[round_], b"late")
            if fresh is None:
                continue
            expect(rig.vq.kick(), "kick of an unbroken queue")
            (chain,) = await rig.lane.take()
            same(mark_of(chain), 50 + round_, "the available buffer")
            rig.lane.use(chain, b"new!")
            same((await rig.used())[:2], (round_, 4), "token and used length")
            same(bytes(fresh[:4]), b"new!", "the answer")
        for buffer in buffers:
            same(bytes(buffer), bytes([FILL]) * len(buffer), "a detached buffer is left alone")
        await rig.works()


async def callbacks_survive(make: Make) -> None:
    """Callbacks that were enabled come after unbreak and after resize too."""
    async with opened(make, 16, callback=True) as rig:
        for size in (16, 8, 4):
            with soon("resize"):
                try:
                    await rig.vq.resize(size, never)
                except NotSupported:
                    pass
            if rig.lane.ended.is_set():
                rig.lane = await rig.model.lane(0)
            rig.vq.break_()
            rig.vq.unbreak()
            calls = rig.calls.count
            rig.add(size)
            rig.vq.kick()
            rig.lane.use((await rig.lane.take())[0])
            same(await on_call(rig, calls), (size, 0), "token and used length")


async def resize(make: Make) -> None:
    """A resized queue has its new size, and recycled what it held. Or: NotSupported, always."""
    async with opened(make, 16) as rig:
        vq = rig.vq
        able: set[bool] = set()
        for size in (8, 16, 4):
            tokens = await busy(rig, 4)
            recycled: list[object] = []

            def recycle(queue: Virtqueue, token: object, into: list[object] = recycled) -> None:
                expect(queue is vq, "recycle is called with the queue")
                into.append(token)

            able.add(await resized(rig, size, recycle))
            expect(len(able) == 1, "resize is supported always or never")
            if True in able:
                same(vq.get_vring_size(), size, "size after resize")
                expect(not vq.is_broken, "a resized queue is not broken")
                rig.lane = await rig.model.lane(0)
            else:
                same(vq.get_vring_size(), 16, "size after NotSupported")
                expect(not recycled, "NotSupported recycles nothing")
                vq.kick()
                for chain in await rig.lane.take(len(tokens) - 1):
                    rig.lane.use(chain)
                recycled += [(await rig.used())[0] for _ in tokens]
            exactly_once(recycled, tokens, "resize")
            same(vq.num_free, vq.get_vring_size(), "num_free after resize")
            expect(vq.get_buf() is None, "a resized queue is empty")
            await rig.works()
            await fills(rig)


async def resize_refused(make: Make) -> None:
    """An impossible size is refused, whatever is supported, and the queue goes on as it was."""
    async with opened(make, 16) as rig:
        for size in (0, 17, -1, 1 << 20):
            tokens = await busy(rig, 4)
            with soon("resize"), refuses(f"resize to {size}", InvalidArgument):
                await rig.vq.resize(size, never)
            same(rig.vq.get_vring_size(), 16, "size after a refused resize")
            rig.vq.kick()
            for chain in await rig.lane.take(len(tokens) - 1):
                rig.lane.use(chain)
            exactly_once([(await rig.used())[0] for _ in tokens], tokens, "a refused resize")
            await fills(rig)


async def resized(rig: Rig, size: int, recycle: object) -> bool:
    """Resize and return whether that is supported."""
    with soon("resize"):
        try:
            await rig.vq.resize(size, recycle)  # type: ignore[arg-type]
        except NotSupported:
            return False
    return True


def never(queue: Virtqueue, token: object) -> None:
    """Be the recycle function of a resize that must not happen."""
    expect(False, f"a refused resize recycles {token!r}")


async def busy(rig: Rig, count: int = 6) -> list[object]:
    """Leave the empty queue with chains at each place where one can be, and return their tokens.

    The first is used and not taken, the second is in the device's hands, the third too or on its
    way there, the others are on their way, and the last is added but not kicked.
    """
    tokens = [object() for _ in range(count)]
    for mark, token in enumerate(tokens[:2]):
        rig.add(token, mark)
    rig.vq.kick()
    (first,) = await rig.lane.take()
    rig.lane.use(first)
    await rig.arrived()
    for mark, token in enumerate(tokens[2:-1], 2):
        rig.add(token, mark)
    rig.vq.kick()
    rig.add(tokens[-1], count - 1)
    return tokens


def detached(vq: Virtqueue) -> list[object]:
    """Detach all that the queue holds."""
    tokens: list[object] = []
    while len(tokens) < MOST and (token := vq.detach_unused_buf()) is not None:
        tokens.append(token)
    return tokens


async def fills(rig: Rig) -> None:
    """Demand that the empty queue takes exactly get_vring_size() chains, and empty it again."""
    size = rig.vq.get_vring_size()
    for mark in range(size):
        rig.add(mark, mark)
    with refuses("add to a full queue", QueueFull):
        rig.add("too many", size)
    rig.vq.kick()
    chains = await rig.lane.take(size)
    same([mark_of(chain) for chain in chains], list(range(size)), "the chains at the device")
    for chain in chains:
        rig.lane.use(chain)
    for mark in range(size):
        same((await rig.used())[0], mark, "token")
    same(rig.vq.num_free, size, "num_free of an empty queue")


CHECKS = (
    broken_refuses,
    break_wakes,
    detach_after_break,
    detach_after_reset,
    detach_after_del_vqs,
    detach_when_live,
    unbreak,
    unbreak_after_detach,
    callbacks_survive,
    resize,
    resize_refused,
)
