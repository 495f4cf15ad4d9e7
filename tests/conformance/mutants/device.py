# SPDX-License-Identifier: BSD-3-Clause
"""Mutants: devices."""

from contextlib import asynccontextmanager

import trio

from tests.conformance.memory_device import MemoryDevice, MemoryQueue, maker
from tests.conformance.mutants.table import mutant
from vof.memory import HEAP, Pool


@mutant("identity")
class AnotherVendor(MemoryDevice):
    def __init__(self, model, nursery):
        super().__init__(model, nursery)
        self.vendor_id += 1


@mutant("identity", "the_end")
@asynccontextmanager
async def closes_twice(model):
    async with maker()(model) as device:
        yield device
    model.close()


@mutant("status_walk")
class StatusIsNotRead(MemoryDevice):
    async def get_status(self):
        return await super().get_status() & ~1


@mutant("status_walk", "reset")
class ModelHearsNoStatus(MemoryDevice):
    def __init__(self, model, nursery):
        super().__init__(model, nursery)
        model.status_changed = lambda status: None


@mutant("status_refused")
class AnyStatusWillDo(MemoryDevice):
    async def set_status(self, status):
        await trio.lowlevel.checkpoint()
        self.status = status


@mutant("features")
class ChoiceIgnored(MemoryDevice):
    async def finalize_features(self, features):
        await super().finalize_features(self.model.device_features)


@mutant("features")
class ModelHearsNoFeatures(MemoryDevice):
    async def finalize_features(self, features):
        await super().finalize_features(features)
        self.model.features = 0


@mutant("features_refused")
class AnyFeatureWillDo(MemoryDevice):
    async def finalize_features(self, features):
        self.features = features


@mutant("config")
class ConfigWithoutOffset(MemoryDevice):
    async def get(self, offset, length):
        return await super().get(0, length)


@mutant("config")
class ConfigWritesEverywhere(MemoryDevice):
    async def set(self, offset, value):
        self.model.space[offset : offset + len(value)] = value


@mutant("config_changes")
class GenerationStandsStill(MemoryDevice):
    async def generation(self):
        return 7


@mutant("config_changes")
class TellsNoChange(MemoryDevice):
    def config_change(self):
        self.config_generation += 1


@mutant("config_changes", "config_changes_together")
class TellsOneChange(MemoryDevice):
    def config_change(self):
        super().config_change()
        self.model.config_changed = self.advance

    def advance(self):
        self.config_generation += 1


@mutant("config_changes_together")
class ReadsTheConfigurationAhead(MemoryDevice):
    seen = None

    async def set_status(self, status):
        await super().set_status(status)
        self.seen = None

    async def get(self, offset, length):
        if self.seen is None:
            self.seen = await super().get(0, 24)
        await trio.lowlevel.checkpoint()
        return self.seen[offset : offset + length]


@mutant("queue_sizes")
class QueuesWithoutEnd(MemoryDevice):
    async def get_vq_size(self, index):
        return self.model.queue_sizes[min(index, 1)]


@mutant("queue_sizes")
class FindsFewer(MemoryDevice):
    async def find_vqs(self, infos):
        return await super().find_vqs(infos[: len(self.model.queue_sizes)])


@mutant("queues_apart")
class QueuesBreakTogether(MemoryQueue):
    def break_(self, cause=None):
        super().break_(cause)
        for vq in self.device.vqs:
            vq._broken = True


@mutant("queues_apart")
class QueuesMixed(MemoryDevice):
    async def find_vqs(self, infos):
        vqs = await super().find_vqs(infos)
        for vq in vqs:
            vq.entries = vqs[0].entries
            vq.used = vqs[0].used
        return vqs


@mutant("break_device")
class BreaksTheFirst(MemoryDevice):
    def break_device(self, cause=None):
        self.vqs[0].break_(cause)


@mutant("break_device")
class UnbreaksTheFirst(MemoryDevice):
    def unbreak_device(self):
        self.vqs[0].unbreak()


@mutant("reset", "detach_after_reset", "detach_after_del_vqs", "del_vqs")
class ServesOn(MemoryDevice):
    async def stop(self, index):
        await trio.lowlevel.checkpoint()
        self.ends.pop(index, None)


@mutant("del_vqs")
class QueuesStay(MemoryDevice):
    async def del_vqs(self):
        vqs = self.vqs
        await super().del_vqs()
        self.vqs = vqs


@mutant("reset_lets_go")
class WritesAfterReset(MemoryQueue):
    def die(self):
        super().die()
        self.device.nursery.start_soon(self.write, [entry.chain for entry in self.entries])

    async def write(self, chains):
        await trio.lowlevel.checkpoint()
        for chain in chains:
            chain.writable[0][:1] = b"\xff"


@mutant("identity")
class DirtyPool(MemoryDevice):
    class Dirt(Pool):
        def alloc(self, size):
            buffer = HEAP.alloc(size)
            buffer[-1] = 1
            return buffer

    pool = Dirt()
