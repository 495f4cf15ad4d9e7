# SPDX-License-Identifier: BSD-3-Clause
"""The device level: identity, status, features, configuration, queues as a whole, reset."""

import trio

from vof.conformance.lifecycle import busy, detached
from vof.conformance.rig import WANTED, Calls, Make, Rig, exactly_once, start
from vof.conformance.rules import expect, refuses, same, soon
from vof.conformance.script import FEATURES, READ_ONLY, UNOFFERED, ScriptModel
from vof.errors import NotSupported, QueueBroken, VofError
from vof.virtio import VirtioDevice, VirtqueueInfo
from vof.virtio.constants import (
    VIRTIO_CONFIG_S_ACKNOWLEDGE,
    VIRTIO_CONFIG_S_DRIVER,
    VIRTIO_CONFIG_S_DRIVER_OK,
    VIRTIO_CONFIG_S_FEATURES_OK,
    VIRTIO_F_VERSION_1,
    bit,
)

ACKNOWLEDGE = VIRTIO_CONFIG_S_ACKNOWLEDGE
DRIVER = ACKNOWLEDGE | VIRTIO_CONFIG_S_DRIVER
FEATURES_OK = DRIVER | VIRTIO_CONFIG_S_FEATURES_OK
DRIVER_OK = FEATURES_OK | VIRTIO_CONFIG_S_DRIVER_OK
QUEUES = [VirtqueueInfo("small"), VirtqueueInfo("large")]
SIZES = (8, 64)


async def identity(make: Make) -> None:
    """The device is what the model says, and the model hears once that its driver left."""
    model = ScriptModel(SIZES)
    async with make(model) as device:
        same(device.device_id, model.device_id, "device_id")
        same(device.vendor_id, model.vendor_id, "vendor_id")
        buffer = device.pool.alloc(1000)
        same((bytes(buffer), buffer.format), (bytes(1000), "B"), "a buffer from the pool")
        expect(not buffer.readonly, "a buffer from the pool can be written")
        same(model.closes, 0, "calls of close while the driver is there")
    same(model.closes, 1, "calls of close after the driver left")


async def status_walk(make: Make) -> None:
    """The status byte reads as it was written, step by step; the model hears each step."""
    model = ScriptModel(SIZES)
    async with make(model) as device:
        for _ in range(2):
            with soon("status"):
                await device.reset()
                same(await device.get_status(), 0, "status after reset")
                del model.statuses[:]
                await walk(device, (ACKNOWLEDGE, DRIVER))
                offered = await device.get_features()
                await device.finalize_features(offered & WANTED)
                await walk(device, (FEATURES_OK, DRIVER_OK))
                same(model.statuses[-4:], [ACKNOWLEDGE, DRIVER, FEATURES_OK, DRIVER_OK], "model")


async def walk(device: VirtioDevice, steps: tuple[int, ...]) -> None:
    """Write each status and read it back."""
    for status in steps:
        await device.set_status(status)
        same(await device.get_status(), status, "status after set_status")


async def status_refused(make: Make) -> None:
    """A status that is no legal next step is not taken; afterwards the legal ones are."""
    async with make(ScriptModel(SIZES)) as device:
        with soon("status"):
            await device.reset()
            for illegal in (DRIVER_OK, FEATURES_OK, VIRTIO_CONFIG_S_DRIVER_OK):
                await refused(device, illegal, 0)
            await walk(device, (ACKNOWLEDGE, DRIVER))
            for illegal in (ACKNOWLEDGE, DRIVER_OK):
                await refused(device, illegal, DRIVER)
            await device.initialize(WANTED)
            await device.ready()
            for illegal in (FEATURES_OK, DRIVER, ACKNOWLEDGE):
                await refused(device, illegal, DRIVER_OK)


async def refused(device: VirtioDevice, status: int, before: int) -> None:
    """Demand that writing ``status`` changes nothing, with an error or without."""
    try:
        await device.set_status(status)
    except VofError:
        pass
    same(await device.get_status(), before, f"status after an illegal write of 0x{status:02x}")


async def features(make: Make) -> None:
    """Offered features reach the driver, chosen ones the model, before it serves a queue."""
    for chosen in (FEATURES, bit(0, 63), bit(50), 0):
        model = ScriptModel(SIZES)
        async with make(model) as device:
            with soon("features"):
                offered = await device.get_features()
                same(offered & (FEATURES | UNOFFERED), FEATURES, "offered features")
                expect(bool(offered & bit(VIRTIO_F_VERSION_1)), "VIRTIO_F_VERSION_1 is offered")
                same(await device.initialize(chosen), device.features, "negotiated features")
                same(device.features, chosen | bit(VIRTIO_F_VERSION_1), "negotiated features")
                await device.find_vqs(QUEUES)
                await device.ready()
            for index in range(len(QUEUES)):
                await model.lane(index)
                same(model.features, device.features, "the model's features when it serves")


async def features_refused(make: Make) -> None:
    """A feature that is not offered cannot be chosen."""
    async with make(ScriptModel(SIZES)) as device:
        with soon("features"):
            await device.reset()
            await walk(device, (ACKNOWLEDGE, DRIVER))
            try:
                await device.finalize_features(bit(VIRTIO_F_VERSION_1) | UNOFFERED)
                await device.set_status(FEATURES_OK)
            except VofError:
                pass
            accepted = await device.get_status() & VIRTIO_CONFIG_S_FEATURES_OK
            expect(not accepted, "FEATURES_OK is not kept for a feature that was not offered")
            await device.initialize(WANTED)


async def config(make: Make) -> None:
    """Configuration is read and written at any offset and length."""
    model = ScriptModel(SIZES)
    size = len(model.space)
    async with make(model) as device:
        with soon("configuration"):
            await device.initialize(WANTED)
            for offset, length in ((0, size), (0, 1), (3, 4), (size - 1, 1), (7, 9), (8, 8)):
                wanted = bytes(model.space[offset : offset + length])
                same(await device.get(offset, length), wanted, f"{length} bytes at {offset}")
                same(await device.read_config(offset, length), wanted, "read_config")
            for offset, value in ((READ_ONLY, b"\xff"), (9, b"\xfe\xfd\xfc"), (16, b"12345678")):
                await device.set(offset, value)
                same(bytes(model.space[offset : offset + len(value)]), value, "what was written")
                same(await device.get(0, size), bytes(model.space), "the whole configuration")
            before = bytes(model.space)
            try:
                await device.set(2, b"\xff")
            except VofError:
                pass
            same(bytes(model.space), before, "configuration after a write to a read-only part")
            same(await device.get(0, size), before, "configuration after a refused write")


async def config_changes(make: Make) -> None:
    """Each change calls ``config_changed`` and moves the generation, before and after DRIVER_OK."""
    model = ScriptModel(SIZES)
    async with make(model) as device:
        news = trio.Event()

        def changed(_: VirtioDevice) -> None:
            news.set()

        device.config_changed = changed
        with soon("the device starts"):
            await device.initialize(WANTED)
            same(await device.generation(), await device.generation(), "generation stands still")
            await device.find_vqs(QUEUES)
            await device.ready()
        for turn in range(1, 20):
            with soon("config_changed is called after a change"):
                before = await device.generation()
                same((await device.get(0, 1))[0], turn - 1, "configuration before a change")
                news = trio.Event()
                model.change_config(0, bytes([turn]))
                await news.wait()
                expect(await device.generation() != before, "the generation moves with a change")
                same((await device.read_config(0, 1))[0], turn, "configuration after a change")


async def config_changes_together(make: Make) -> None:
    """Of many changes at once, the driver is told after the last one, at least."""
    model = ScriptModel(SIZES)
    async with make(model) as device:
        news = trio.Event()
        device.config_changed = lambda _: news.set()
        await start(device, model, QUEUES)

        async def driver() -> None:
            nonlocal news
            seen = b""
            while seen != b"\xff":
                await news.wait()
                news = trio.Event()
                seen = await device.get(0, 1)

        with soon("the driver sees the last of many changes", 12):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(driver)
                for turn in range(0x100):
                    model.change_config(0, bytes([turn]))
                    for _ in range(turn % 7):
                        await trio.lowlevel.checkpoint()


async def queue_sizes(make: Make) -> None:
    """get_vq_size tells each queue's largest size, and 0 where there is no queue."""
    async with make(ScriptModel(SIZES)) as device:
        with soon("queue sizes"):
            await device.initialize(WANTED)
            for index, size in enumerate((*SIZES, 0, 0)):
                same(await device.get_vq_size(index), size, f"size of queue {index}")
            same(await device.get_vq_size(1000), 0, "size of queue 1000")
            with refuses("find_vqs of more queues than there are", NotSupported):
                await device.find_vqs([*QUEUES, VirtqueueInfo("missing")])
            vqs = await device.find_vqs(QUEUES)
            same(device.vqs, vqs, "vqs after find_vqs")
            same([vq.index for vq in vqs], [0, 1], "index of each queue")
            same([vq.name for vq in vqs], ["small", "large"], "name of each queue")
            same([vq.get_vring_size() for vq in vqs], list(SIZES), "size of each queue")


async def queues_apart(make: Make) -> None:
    """Queues do not wait for each other, and one that breaks leaves the other alone."""
    model = ScriptModel(SIZES)
    async with make(model) as device:
        vqs, lanes = await start(device, model, QUEUES)
        one, two = (Rig(device, model, *ends, Calls()) for ends in zip(vqs, lanes, strict=True))
        for mark in range(8):
            one.add(mark, mark)
        one.vq.kick()
        chains = await one.lane.take(8)
        await two.works()
        for chain in reversed(chains):
            one.lane.use(chain)
        await two.works()
        same([(await one.used())[0] for _ in chains], list(range(8))[::-1], "tokens")
        one.vq.break_()
        expect(not two.vq.is_broken, "a queue breaks alone")
        await two.works()


async def break_device(make: Make) -> None:
    """break_device breaks all queues, unbreak_device mends them."""
    model = ScriptModel(SIZES)
    async with make(model) as device:
        vqs, lanes = await start(device, model, QUEUES)
        rigs = [Rig(device, model, *ends, Calls()) for ends in zip(vqs, lanes, strict=True)]
        for _ in range(3):
            for rig in rigs:
                await rig.works()
            device.break_device()
            for rig in rigs:
                expect(rig.vq.is_broken, "is_broken after break_device")
                with refuses("add_sgs after break_device", QueueBroken):
                    rig.add("refused")
            device.unbreak_device()
        cause = VofError("the check breaks it")
        device.break_device(cause)
        for vq in vqs:
            expect(vq.is_broken and vq.broken_by is cause, "break_device hands on its cause")


async def reset(make: Make) -> None:
    """When reset returns, the device is quiet and its queues are gone; it can start again."""
    model = ScriptModel(SIZES)
    async with make(model) as device:
        for _ in range(4):
            vqs, lanes = await start(device, model, QUEUES)
            rigs = [Rig(device, model, *ends, Calls()) for ends in zip(vqs, lanes, strict=True)]
            given = [await busy(rig) for rig in rigs]
            del model.statuses[:]
            with soon("the device resets"):
                await device.reset()
            for lane in lanes:
                expect(lane.ended.is_set(), "after reset, the device serves no queue of before")
            same(model.statuses[-1:], [0], "the model hears of the reset")
            with soon("status"):
                same(await device.get_status(), 0, "status after reset")
            for rig, tokens in zip(rigs, given, strict=True):
                exactly_once(detached(rig.vq), tokens, "detach after reset")
                with refuses("add_sgs to a queue of before the reset", QueueBroken):
                    rig.add("refused")


async def reset_lets_go(make: Make) -> None:
    """What is on its way from the device at a reset does not reach a buffer after the reset."""
    model = ScriptModel([16])
    async with make(model) as device:
        for turn in range(4):
            (vq,), (lane,) = await start(device, model, QUEUES[:1])
            rig = Rig(device, model, vq, lane, Calls())
            buffers = [rig.space(512 * 1024) for _ in range(8)]
            for mark, buffer in enumerate(buffers):
                vq.add_inbuf([buffer], mark)
            vq.kick()
            for chain in await lane.take(8):
                lane.use(chain, bytes(len(buffers[0])))
            for _ in range(turn):
                await trio.lowlevel.checkpoint()
            with soon("the device resets"):
                await device.reset()
            same(sorted(map(str, detached(vq))), [str(n) for n in range(8)], "detach after reset")
            mine = bytes([turn]) * len(buffers[0])
            for buffer in buffers:
                buffer[:] = mine
            (vq,), (lane,) = await start(device, model, QUEUES[:1])
            await Rig(device, model, vq, lane, Calls()).works()
            for buffer in buffers:
                expect(buffer == mine, "after reset and detach, a buffer is the driver's alone")


async def reset_while_waiting(make: Make) -> None:
    """A task that waits for a used buffer wakes when the device is reset."""
    model = ScriptModel(SIZES)
    async with make(model) as device:
        vqs, lanes = await start(device, model, QUEUES)
        rig = Rig(device, model, vqs[0], lanes[0], Calls())
        rig.add("token")
        rig.vq.kick()
        await rig.lane.take()
        with soon("wait_used returns after reset"):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(rig.vq.wait_used)
                await device.reset()
        same(detached(rig.vq), ["token"], "detach after reset")


async def del_vqs(make: Make) -> None:
    """After del_vqs the queues are gone; after a reset they can be set up again."""
    model = ScriptModel(SIZES)
    async with make(model) as device:
        for _ in range(3):
            vqs, lanes = await start(device, model, QUEUES)
            for ends in zip(vqs, lanes, strict=True):
                await Rig(device, model, *ends, Calls()).works()
            with soon("del_vqs takes the queues down"):
                await device.del_vqs()
                for lane in lanes:
                    await lane.ended.wait()
            same(device.vqs, [], "vqs after del_vqs")
            for vq in vqs:
                with refuses("add_sgs after del_vqs", QueueBroken):
                    vq.add_outbuf([device.pool.alloc(1)], "refused")


async def the_end(make: Make) -> None:
    """With buffers still in its queues, a device ends when its context does."""
    with soon("the device's context ends", 2):
        model = ScriptModel(SIZES)
        async with make(model) as device:
            vqs, lanes = await start(device, model, QUEUES)
            await busy(Rig(device, model, vqs[0], lanes[0], Calls()))
        same([lane.ended.is_set() for lane in lanes], [True, True], "queues served after the end")
        same(model.closes, 1, "calls of close after the end")


CHECKS = (
    identity,
    status_walk,
    status_refused,
    features,
    features_refused,
    config,
    config_changes,
    config_changes_together,
    queue_sizes,
    queues_apart,
    break_device,
    reset,
    reset_lets_go,
    reset_while_waiting,
    del_vqs,
    the_end,
)
