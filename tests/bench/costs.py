# SPDX-License-Identifier: BSD-3-Clause
"""What vof costs by itself: idle associations, and the ops of a queue. Nothing is compared."""

import os
import resource
import statistics
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from functools import partial
from pathlib import Path
from time import perf_counter_ns
from typing import NamedTuple

import trio

import vof
from tests.bench.rings import AIM, NUM, SEGMENTS, measure
from tests.bench.sides import MINE, Load, Server
from tests.virtio.rings import KINDS, Ring
from vof.virtio.blk import REQUEST, SECTOR, VIRTIO_BLK_T_IN
from vof.virtio.device import VirtioDevice, VirtqueueInfo
from vof.virtio.virtqueue import Virtqueue

ASSOCIATIONS = 500
SIZE = 4096
BURST = 32
TURNS = 300
SETTLE_S = 0.002
CALM_S = 3.0
MIB = 1 << 20
IDLE = Load("randread", SIZE, 1)


class Cost(NamedTuple):
    """One figure.

    Attributes:
        name: for ``--only``.
        title: what it is.
        value: the figure.
        unit: its unit.
        aim: it should be at most this; None: for information.
    """

    name: str
    title: str
    value: float
    unit: str
    aim: float | None = None


async def start(device: VirtioDevice) -> Virtqueue:
    """Bring a block device up with one queue."""
    await device.initialize(0)
    [vq] = await device.find_vqs([VirtqueueInfo("requests")])
    await device.ready()
    return vq


def read(offset: int) -> tuple[bytes, bytearray]:
    """Return the buffers of a read of ``SIZE`` bytes, the status byte last."""
    return REQUEST.pack(VIRTIO_BLK_T_IN, 0, offset // SECTOR), bytearray(SIZE + 1)


def status(pid: int, key: str) -> int:
    """Return a number of ``/proc/PID/status``."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        name, _, value = line.partition(":")
        if name == key:
            return int(value.split()[0])
    raise KeyError(key)


def wakeups(pid: int) -> int:
    """Return how often threads of a process have gone to sleep by themselves."""
    return sum(
        int(line.split()[1])
        for task in Path(f"/proc/{pid}/task").iterdir()
        for line in (task / "status").read_text().splitlines()
        if line.startswith("voluntary_ctxt_switches")
    )


async def idle_memory(server: Server, seconds: float) -> list[Cost]:
    """Open many devices, each a control queue and one virtqueue, and leave them alone."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    async with vof.connect(server.url) as first:
        await start(first)
        before = status(server.pid, "VmRSS")
        async with AsyncExitStack() as stack:
            for _ in range(ASSOCIATIONS):
                await start(await stack.enter_async_context(vof.connect(server.url)))
            after = status(server.pid, "VmRSS")
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    each = (after - before) / ASSOCIATIONS
    title = f"the target's memory with {2 * ASSOCIATIONS:,} idle connections"
    return [
        Cost("memory", "memory of an idle association, at the target", each, "KiB", 64),
        Cost("memory", title, after / 1024, "MiB"),
    ]


async def idle_wakeups(server: Server, seconds: float) -> list[Cost]:
    """Connect, do one request, and then nothing."""
    async with vof.connect(server.url) as device:
        vq = await start(device)
        vq.add_sgs(read(0), 1, 1, "it")
        vq.kick()
        await vq.wait_used()
        vq.get_buf()
        await trio.sleep(CALM_S)
        before = wakeups(server.pid), wakeups(os.getpid())
        await trio.sleep(seconds)
        after = wakeups(server.pid), wakeups(os.getpid())
    own = 1  # by the sleep above
    return [
        Cost("wakeups", "idle target's wake-ups", (after[0] - before[0]) / seconds, "/s", 0),
        Cost(
            "wakeups", "idle initiator's wake-ups", (after[1] - before[1] - own) / seconds, "/s", 0
        ),
    ]


async def operations(server: Server, seconds: float) -> list[Cost]:
    """Time the ops of a queue, in bursts of 4 KiB reads."""
    add, kick, get, kick_one = [], [], [], []
    async with vof.connect(server.url) as device:
        vq = await start(device)
        chains = [read(i * SIZE) for i in range(min(BURST, vq.num_free))]

        async def drain(count: int) -> int:
            """Take ``count`` used buffers, once all came; return the time in ``get_buf``."""
            await trio.sleep(SETTLE_S)
            started = perf_counter_ns()
            while count:
                count -= vq.get_buf() is not None
            return perf_counter_ns() - started

        for _ in range(TURNS):
            started = perf_counter_ns()
            for chain in chains:
                vq.add_sgs(chain, 1, 1, chain)
            added = perf_counter_ns()
            vq.kick()
            kicked = perf_counter_ns()
            add.append((added - started) / len(chains))
            kick.append(kicked - added)
            get.append(await drain(len(chains)) / len(chains))
            vq.add_sgs(chains[0], 1, 1, "one")
            started = perf_counter_ns()
            vq.kick()
            kick_one.append(perf_counter_ns() - started)
            await drain(1)
    rows = (
        ("add_sgs", add),
        ("kick, of one", kick_one),
        (f"kick, of {len(chains)}", kick),
        (f"get_buf, of {len(chains)} that came, receiving included", get),
    )
    return [Cost("ops", title, statistics.median(times), "ns") for title, times in rows]


def rings(image: Path, seconds: float) -> list[Cost]:
    """Time a chain on a ring in memory, as its driver. See ``rings.measure``."""
    found = []
    for kind in KINDS:
        ring = Ring(kind, NUM, size=MIB, event_idx=True, num_max=NUM)
        driver, _ = measure(ring, BURST, seconds / len(KINDS))
        title = (
            f"{kind.name} ring: add_sgs, kick and get_buf of a chain of {len(SEGMENTS)} segments"
        )
        found.append(Cost("rings", title, driver, "µs", AIM))
    return found


def served(
    ask: Callable[[Server, float], Awaitable[list[Cost]]], image: Path, seconds: float
) -> list[Cost]:
    """Measure what a target of its own costs."""
    with MINE.serve(image, IDLE) as server:
        return trio.run(ask, server, seconds)


COSTS: dict[str, Callable[[Path, float], list[Cost]]] = {
    "memory": partial(served, idle_memory),
    "wakeups": partial(served, idle_wakeups),
    "ops": partial(served, operations),
    "rings": rings,
}
