# SPDX-License-Identifier: BSD-3-Clause
"""Any device model: what must hold for it whoever presents it, and whatever a driver sends."""

import random
from collections.abc import Callable, Collection

from vof.conformance.lifecycle import detached
from vof.conformance.rig import Make, exactly_once
from vof.conformance.rules import Failed, expect, same, soon
from vof.errors import QueueFull
from vof.memory import Pool
from vof.virtio import DeviceModel, Virtqueue, VirtqueueInfo
from vof.virtio.constants import (
    RESERVED_FEATURES,
    VIRTIO_CONFIG_S_NEEDS_RESET,
    VIRTIO_F_VERSION_1,
    bit,
)

JUNK = 40
"""So many requests without meaning go to each queue, if they fit."""

SHAPES = ((1, 0), (0, 1), (1, 1), (2, 1), (1, 2), (3, 0), (0, 3))
"""How many buffers are readable and writable."""

LENGTHS = (1, 2, 8, 15, 16, 17, 512, 4096, 70_000)


async def check_model(
    make_model: Callable[[], DeviceModel], make: Make, *, holds: Collection[int] | None = None
) -> None:
    """Check a model: how it describes itself, and that no request can upset it.

    Args:
        make_model: returns a new model each time; what it does to its backing is lost.
        make: presents a model; see ``Make``.
        holds: indexes of queues where the model may keep a buffer for as long as it likes (to
            receive into, for example). On all others it must use each one. Default: as the model
            says.

    Raises:
        Failed: a rule does not hold.
    """
    describe(make_model())
    model = make_model()
    holds = model.held_queues if holds is None else holds
    wanted = model.device_features | bit(*RESERVED_FEATURES)
    async with make(model) as device:
        for life in range(2):
            with soon("the device starts"):
                await device.initialize(wanted)
                same(await device.read_config(0, len(model.config())), model.config(), "config")
                vqs = await device.find_vqs([VirtqueueInfo("junk") for _ in model.queue_sizes])
                await device.ready()
            same([vq.num_max for vq in vqs], list(model.queue_sizes), "queue sizes")
            given = [add_junk(vq, device.pool, random.Random(life)) for vq in vqs]
            back = [
                await answers(vq, 0 if vq.index in holds else len(given[vq.index])) for vq in vqs
            ]
            with soon("the device resets while it has requests"):
                status = await device.get_status()
                expect(not status & VIRTIO_CONFIG_S_NEEDS_RESET, "a request asks for no reset")
                await device.reset()
            for vq in vqs:
                exactly_once(back[vq.index] + detached(vq), given[vq.index], f"queue {vq.index}")


def describe(model: DeviceModel) -> None:
    """Check what a new model says of itself."""
    expect(bool(model.device_features & bit(VIRTIO_F_VERSION_1)), "VIRTIO_F_VERSION_1 is offered")
    expect(model.device_id > 0, "device_id is a device type")
    expect(0 <= model.vendor_id < 1 << 32, "vendor_id has 32 bits")
    for size in model.queue_sizes:
        expect(0 < size <= 1 << 15, f"a queue has 1 to 32768 places, not {size}")
    same(len(model.config()), len(model.config()), "length of the configuration")
    expect(
        set(model.held_queues) <= {*range(len(model.queue_sizes))}, "only queues can hold buffers"
    )
    for status in (1, 3, 11, 15, 0):
        model.status_changed(status)
    model.close()


def add_junk(vq: Virtqueue, pool: Pool, rng: random.Random) -> list[object]:
    """Offer chains of random shape and content and return their tokens: all that fit, or JUNK."""
    tokens: list[object] = []
    for _ in range(JUNK):
        outs, ins = rng.choice(SHAPES)
        buffers = [pool.alloc(rng.choice(LENGTHS)) for _ in range(outs + ins)]
        for buffer in buffers[:outs]:
            buffer[:] = rng.randbytes(len(buffer)) if rng.random() < 0.5 else bytes(len(buffer))
        token = Junk(sum(map(len, buffers[outs:])))
        try:
            vq.add_sgs(buffers, outs, ins, token)
        except QueueFull:
            break
        tokens.append(token)
    vq.kick()
    return tokens


async def answers(vq: Virtqueue, count: int) -> list[object]:
    """Wait for ``count`` used buffers and return their tokens."""
    tokens: list[object] = []
    while len(tokens) < count:
        with soon(f"queue {vq.index} answers a request without meaning"):
            await vq.wait_used()
        expect(not vq.is_broken, "a request without meaning breaks no queue")
        while used := vq.get_buf():
            token, written = used
            if not isinstance(token, Junk) or not 0 <= written <= token.room:
                raise Failed(f"{written} bytes written to {token!r}")
            tokens.append(token)
    return tokens


class Junk:
    """The token of a request without meaning.

    Attributes:
        room: how many bytes the device may write.
    """

    def __init__(self, room: int) -> None:
        self.room = room

    def __repr__(self) -> str:
        return f"a request with room for {self.room} bytes"
