# SPDX-License-Identifier: BSD-3-Clause
"""What a queue carries: bytes, lengths, tokens, and how many."""

import random

from vof.conformance.rig import FILL, Make, Rig, joined, mark_of, opened, polled
from vof.conformance.rules import Failed, expect, refuses, same
from vof.errors import InvalidArgument, QueueFull
from vof.virtio import Chain, VirtqueueInfo

KIB = 1024
SHAPES: tuple[tuple[tuple[int, ...], tuple[int, ...]], ...] = (
    ((1,), ()),
    ((), (1,)),
    ((1,), (1,)),
    ((3, 5, 7), (2, 9)),
    ((16, 1, 31, 64), ()),
    ((), (17, 1, 300)),
    ((513, 1, 4097), (1, 1021, 3)),
    ((300 * KIB,), ()),
    ((), (300 * KIB,)),
    ((3, 300 * KIB, 1), (5, 300 * KIB, 7)),
    ((1,) * 20, (1,) * 20),
)
"""Sizes of the readable and of the writable buffers of a chain."""

REQUESTS = 0x10000 + 1000
"""More than any 16-bit index counts."""

WILD = 3000
"""Of these, how many at either end go in random batches and order."""


async def bytes_in_order(make: Make) -> None:
    """Both directions carry all bytes, in the order of their buffers, however they are cut."""
    rng = random.Random(1)
    async with opened(make) as rig:
        for out_sizes, in_sizes in SHAPES:
            question, answer = rng.randbytes(sum(out_sizes)), rng.randbytes(sum(in_sizes))
            whole, readable = rig.filled(question), []
            for size in out_sizes:
                readable.append(whole[:size])
                whole = whole[size:]
            writable = [rig.space(size) for size in in_sizes]
            token = object()
            rig.vq.add_sgs([*readable, *writable], len(readable), len(writable), token)
            rig.vq.kick()
            chain = (await rig.lane.take())[0]
            same(joined(chain.readable), question, f"readable bytes of {out_sizes}")
            same(sum(map(len, chain.writable)), len(answer), f"writable bytes of {in_sizes}")
            rig.lane.use(chain, answer)
            data, written, _ = await rig.used()
            expect(data is token, "the token comes back")
            same(written, len(answer), "used length")
            same(joined(writable), answer, f"bytes written to {in_sizes}")
            same(joined(readable), question, "readable bytes stay as they are")


async def used_length(make: Make) -> None:
    """The used length is the device's word, 0 to all; what is beyond nobody looks at."""
    async with opened(make) as rig:
        for length in (0, 1, 6, 7, 8, 19, 20):
            buffers = [rig.space(7), rig.space(13)]
            rig.vq.add_inbuf(buffers, length)
            rig.vq.kick()
            answer = bytes(range(1, length + 1))
            rig.lane.use((await rig.lane.take())[0], answer)
            same((await rig.used())[:2], (length, length), "token and used length")
            same(joined(buffers)[:length], answer, f"{length} bytes written")


async def used_length_below_data(make: Make) -> None:
    """A device may report less than it wrote: the length is as reported, the bytes are there."""
    async with opened(make) as rig:
        for written, length in ((0, 1), (0, 20), (1, 20), (7, 8), (19, 20)):
            buffers = [rig.space(7), rig.space(13)]
            rig.vq.add_inbuf(buffers, "token")
            rig.vq.kick()
            answer = bytes(range(1, length + 1))
            rig.lane.use((await rig.lane.take())[0], answer, written)
            same((await rig.used())[1], written, "used length")
            same(joined(buffers)[:length], answer, f"{length} bytes written")


async def tokens_and_contexts(make: Make) -> None:
    """Token and context come back together, once, as the same objects; they may be anything."""
    tokens: list[object] = [[], [], 0, "", False, {}, object(), object(), (), rigid := object()]
    contexts: list[object] = [None, [], [], 0, object(), rigid, None, "", {}, False]
    async with opened(make) as rig:
        buffers = []
        for token, context in zip(tokens, contexts, strict=True):
            buffers.append(rig.space(4))
            rig.vq.add_inbuf_ctx([buffers[-1]], token, context)
        rig.vq.kick()
        for chain in await rig.lane.take(len(tokens)):
            rig.lane.use(chain, b"done", flush=False)
        rig.lane.queue.flush()
        for token, context in zip(tokens, contexts, strict=True):
            data, written, ctx = await rig.used()
            expect(data is token, "the token comes back as the same object, in the order of use")
            expect(ctx is context, "the context comes back beside its token")
            same(written, 4, "used length")
        expect(rig.vq.get_buf_ctx() is None, "no token comes back twice")
        same(rig.vq.num_free, rig.vq.get_vring_size(), "num_free of an empty queue")


async def wrappers(make: Make) -> None:
    """add_outbuf, add_inbuf, add_inbuf_ctx and get_buf are the ops they are named for."""
    async with opened(make) as rig:
        rig.vq.add_outbuf([rig.filled(b"ab"), rig.filled(b"c")], "out")
        rig.vq.add_inbuf([rig.space(2), rig.space(3)], "in")
        rig.vq.add_inbuf_ctx([rig.space(6)], "ctx", "context")
        expect(rig.vq.kick(), "kick returns True")
        chains = await rig.lane.take(3)
        shapes = [(joined(c.readable), sum(map(len, c.writable))) for c in chains]
        same(shapes, [(b"abc", 0), (b"", 5), (b"", 6)], "the chains at the device, in order")
        for chain in chains:
            rig.lane.use(chain)
        for token, context in (("out", None), ("in", None), ("ctx", "context")):
            await rig.arrived()
            if context is None:
                same(rig.vq.get_buf(), (token, 0), "get_buf")
            else:
                same(rig.vq.get_buf_ctx(), (token, 0, context), "get_buf_ctx")
        expect(rig.vq.get_buf() is None, "get_buf of an empty queue is None")


async def out_of_order(make: Make) -> None:
    """A device uses buffers in any order; they come back in the order of use, each with its own."""
    rng = random.Random(2)
    async with opened(make, 16) as rig:
        for _ in range(10):
            tokens = [object() for _ in range(rig.vq.get_vring_size())]
            buffers = [rig.add(token, mark) for mark, token in enumerate(tokens)]
            rig.vq.kick()
            chains = await rig.lane.take(len(tokens))
            same([mark_of(chain) for chain in chains], list(range(len(tokens))), "order of adding")
            rng.shuffle(chains)
            order = [mark_of(chain) for chain in chains]
            for chain in chains:
                rig.lane.use(chain, bytes([mark_of(chain)]) * 3, flush=rng.random() < 0.3)
            rig.lane.queue.flush()
            for mark in order:
                data, written, _ = await rig.used()
                expect(data is tokens[mark], "buffers come back in the order of use")
                same(written, 3, "used length")
                same(bytes(buffers[mark][:3]), bytes([mark] * 3), "each its own bytes")
                expect(buffers[mark][3] in (FILL, 0), "what the device did not write holds nothing")


async def full(make: Make) -> None:
    """QueueFull at exactly get_vring_size() chains of one buffer; room again after one get_buf."""
    async with opened(make, 8) as rig:
        size = rig.vq.get_vring_size()
        same((size, rig.vq.num_free), (8, 8), "size and num_free")
        for mark in range(size):
            rig.add(mark, mark)
            same(rig.vq.num_free, size - mark - 1, "num_free after an add")
        for _ in range(3):
            refuse(rig)
        rig.vq.kick()
        refuse(rig)
        chains = await rig.lane.take(size)
        same([mark_of(chain) for chain in chains], list(range(size)), "the chains at the device")
        for mark, chain in enumerate(chains):
            refuse(rig)
            rig.lane.use(chain, b"x")
            same((await rig.used())[0], mark, "token")
            same(rig.vq.num_free, 1, "num_free after one get_buf")
            rig.add(size + mark, size + mark)
            rig.vq.kick()
        refuse(rig)
        chains = await rig.lane.take(size)
        marks = list(range(size, 2 * size))
        same([mark_of(chain) for chain in chains], marks, "a refused chain never was there")
        for chain in chains:
            rig.lane.use(chain)
        same([(await rig.used())[0] for _ in chains], marks, "tokens")
        same(rig.vq.num_free, size, "num_free of an empty queue")
        expect(rig.vq.get_buf() is None, "the token of a refused chain does not come back")


def refuse(rig: Rig) -> None:
    """Demand that a full queue refuses a chain and stays as it is."""
    with refuses("add to a full queue", QueueFull):
        rig.add("too many", 500)
    same(rig.vq.num_free, 0, "num_free of a full queue")


async def arguments(make: Make) -> None:
    """add_sgs refuses what is no chain, and nothing was added."""
    async with opened(make, 8) as rig:
        one, two = rig.space(3), rig.space(4)
        bad: tuple[tuple[list[memoryview], int, int, object], ...] = (
            ([], 0, 0, "no buffer"),
            ([one], 0, 0, "fewer counted than there are"),
            ([one], 1, 1, "more counted than there are"),
            ([one, two], 1, 0, "fewer counted than there are"),
            ([one], 2, -1, "a negative count"),
            ([one], -1, 2, "a negative count"),
            ([one], 0, 1, None),
        )
        for sgs, out_sgs, in_sgs, token in bad:
            why = token or "no token"
            with refuses(f"add_sgs with {why}", InvalidArgument):
                rig.vq.add_sgs(sgs, out_sgs, in_sgs, token)
            same(rig.vq.num_free, 8, f"num_free after add_sgs with {why}")
        await rig.works()


async def sizes(make: Make) -> None:
    """A queue has the wanted size, or the device's largest; both are told."""
    from_model = 32
    async with opened(make, from_model) as rig:
        vq = rig.vq
        same((vq.index, vq.name), (0, "check"), "index and name")
        same((vq.num_max, vq.get_vring_size()), (from_model, from_model), "num_max and size")
        same(vq.num_free, from_model, "num_free")
        await rig.device.reset()
        await rig.device.initialize(0)
        (vq,) = await rig.device.find_vqs([VirtqueueInfo("small", size=8)])
        same((vq.num_max, vq.get_vring_size()), (from_model, 8), "num_max and wanted size")
        same((vq.name, vq.num_free), ("small", 8), "name and num_free")


async def many_requests(make: Make, requests: int = REQUESTS) -> None:
    """Far more requests than 2^16: every one comes back, once.

    In random batches and order at the start and about the wrap; in full batches between. Fewer
    are enough where a queue begins near the wrap.
    """
    rng = random.Random(3)
    async with opened(make, 128) as rig:
        vq, lane = rig.vq, rig.lane
        free = [(rig.space(4), rig.space(5)) for _ in range(vq.get_vring_size())]
        outstanding: dict[object, tuple[memoryview, memoryview]] = {}
        held: list[Chain] = []
        serial = 0
        while serial < requests or outstanding:
            wild = not WILD < serial < requests - WILD
            most = min(vq.num_free // 2, len(free)) if serial < requests else 0
            count = rng.randrange(not held, most + 1) if wild and most else most
            for number in range(serial, serial + count):
                outstanding[number] = readable, writable = free.pop()
                readable[:] = number.to_bytes(4, "little")
                vq.add_sgs((readable, writable), 1, 1, number)
            serial += count
            vq.kick()
            held += await lane.take(count)
            expect(bool(held), "an idle queue has room")
            using = len(held)
            if wild:
                rng.shuffle(held)
                using = rng.randrange(using) + 1
            for chain in held[:using]:
                lane.use(chain, joined(chain.readable), flush=False)
            del held[:using]
            lane.queue.flush()
            for _ in range(using):
                token, written, _ = vq.get_buf_ctx() or await rig.used()
                if token not in outstanding:
                    raise Failed(f"{token!r} comes back, which is not outstanding")
                buffers = outstanding.pop(token)
                if written != 4 or int.from_bytes(buffers[1][:4], "little") != token:
                    raise Failed(f"answer to {token!r}: {bytes(buffers[1])!r}, {written} written")
                free.append(buffers)
        same(vq.num_free, vq.get_vring_size(), f"num_free after {serial} requests")
        await rig.works()


async def all_large(make: Make) -> None:
    """Many large requests at once get through, in both directions, in polling mode too."""
    rng = random.Random(8)
    size = 16
    async with opened(make, 2 * size) as rig:
        for polls in (False, True):
            questions = [rng.randbytes(512 * KIB) for _ in range(size)]
            answers = [rig.space(512 * KIB) for _ in range(size)]
            rig.vq.disable_cb()
            for mark, question in enumerate(questions):
                rig.vq.add_sgs([rig.filled(question), answers[mark]], 1, 1, mark)
            rig.vq.kick()
            chains = await rig.lane.take(size)
            for chain in chains:
                rig.lane.use(chain, joined(chain.readable)[::-1], flush=False)
            rig.lane.queue.flush()
            tokens: list[object] = []

            def look(tokens: list[object] = tokens) -> bool:
                while used := rig.vq.get_buf():
                    tokens.append(used[0])
                return len(tokens) == size

            if polls:
                await polled(look, "get_buf alone receives large buffers")
            else:
                tokens += [(await rig.used())[0] for _ in range(size)]
            same(tokens, list(range(size)), "tokens")
            for question, answer in zip(questions, answers, strict=True):
                expect(bytes(answer) == question[::-1], "each large buffer has its own bytes")


async def device_receive_cancelled(make: Make) -> None:
    """Cancelling the device's ``receive`` loses no chain."""
    rng = random.Random(4)
    async with opened(make, 16) as rig:
        for turn in range(60):
            for step in range(3):
                if rng.random() < 0.5:
                    rig.lane.interrupt()
                rig.add((turn, step), step)
                if rng.random() < 0.7:
                    rig.vq.kick()
                if rng.random() < 0.5:
                    rig.lane.interrupt()
            rig.vq.kick()
            chains = await rig.lane.take(3)
            same(
                [mark_of(chain) for chain in chains], [0, 1, 2], "chains after a cancelled receive"
            )
            for step, chain in enumerate(chains):
                rig.lane.use(chain)
                same((await rig.used())[0], (turn, step), "token")


CHECKS = (
    bytes_in_order,
    used_length,
    used_length_below_data,
    tokens_and_contexts,
    wrappers,
    out_of_order,
    full,
    arguments,
    sizes,
    many_requests,
    all_large,
    device_receive_cancelled,
)
