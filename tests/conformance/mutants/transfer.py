# SPDX-License-Identifier: BSD-3-Clause
"""Mutants: bytes, lengths, tokens."""

import copy

import trio

from tests.conformance.memory_device import MemoryEnd, MemoryQueue
from tests.conformance.mutants.table import mutant
from vof.conformance.rig import FILL
from vof.errors import QueueFull


@mutant("bytes_in_order", "wrappers")
class ReadableReversed(MemoryQueue):
    def add_sgs(self, *args):
        super().add_sgs(*args)
        self.added[-1].chain.readable.reverse()


@mutant("bytes_in_order", "used_length")
class WritableReversed(MemoryQueue):
    def add_sgs(self, *args):
        super().add_sgs(*args)
        self.added[-1].chain.writable.reverse()


@mutant("all_large")
class LargeIsLost(MemoryQueue):
    def add_sgs(self, sgs, *args):
        super().add_sgs(sgs, *args)
        large = len(self.entries) > 2 and len(sgs[0]) > 400 << 10
        if large:
            self.added[-1].chain.readable[0] = memoryview(bytes(len(sgs[0])))


@mutant("used_length")
class ReportsAllAsWritten(MemoryEnd):
    def push(self, chain, written, filled=None):
        super().push(chain, sum(map(len, chain.writable)))


@mutant("used_length_below_data")
class CarriesOnlyWhatIsReported(MemoryEnd):
    def push(self, chain, written, filled=None):
        left = written
        for segment in chain.writable:
            segment[left:] = bytes([FILL]) * len(segment[left:])
            left = max(0, left - len(segment))
        super().push(chain, written)


@mutant("used_length_below_data")
class ReportsAllThatIsFilled(MemoryEnd):
    def push(self, chain, written, filled=None):
        super().push(chain, written if filled is None else filled)


@mutant("tokens_and_contexts")
class CopiesTokens(MemoryQueue):
    def get_buf_ctx(self):
        used = super().get_buf_ctx()
        return used and (copy.copy(used[0]), *used[1:])


@mutant("tokens_and_contexts", "wrappers")
class LosesContexts(MemoryQueue):
    def get_buf_ctx(self):
        used = super().get_buf_ctx()
        return used and (*used[:2], None)


@mutant("tokens_and_contexts", "wrappers", "full", "callback_comes", "wait_for_used")
class GivesTheLastTokenTwice(MemoryQueue):
    last = None

    def get_buf_ctx(self):
        if self.used or self.last is None:
            self.last = super().get_buf_ctx()
            return self.last
        again, self.last = self.last, None
        return again


@mutant("wrappers")
class OutbufIsWritable(MemoryQueue):
    def add_outbuf(self, sgs, data):
        self.add_sgs(sgs, 0, len(sgs), data)


@mutant("out_of_order", "tokens_and_contexts")
class LastUsedFirst(MemoryQueue):
    def get_buf_ctx(self):
        if self.used:
            self.used.rotate(1)
        return super().get_buf_ctx()


@mutant("out_of_order")
class CompletesInOrderOfAdding(MemoryQueue):
    def complete(self, end, batch):
        entries = sorted((entry for entry, _ in batch), key=self.entries.index)
        super().complete(end, [(entry, batch[i][1]) for i, entry in enumerate(entries)])


@mutant("full", "resize_refused")
class FullTooLate(MemoryQueue):
    def clear(self):
        super().clear()
        self.free += 1


@mutant("full", "resize_refused")
class FullTooEarly(MemoryQueue):
    def clear(self):
        super().clear()
        self.free -= 1


@mutant("full")
class RefusedChainStays(MemoryQueue):
    def add_sgs(self, *args):
        full = self.free == 0
        self.free += full
        super().add_sgs(*args)
        if full:
            raise QueueFull("full, but added")


@mutant("full", "many_requests", "out_of_order", "unbreak")
class PlacesLeak(MemoryQueue):
    def get_buf_ctx(self):
        used = super().get_buf_ctx()
        self.free -= used is not None and self.last_used_idx % 5 == 1
        return used


@mutant("arguments")
class NoneIsAToken(MemoryQueue):
    def add_sgs(self, sgs, out_sgs, in_sgs, data, ctx=None):
        super().add_sgs(sgs, out_sgs, in_sgs, "None" if data is None else data, ctx)


@mutant("arguments")
class CountsAreNotChecked(MemoryQueue):
    def add_sgs(self, sgs, out_sgs, in_sgs, data, ctx=None):
        super().add_sgs(sgs, len(sgs), 0, data, ctx)


@mutant("sizes")
class WantedSizeIgnored(MemoryQueue):
    def __init__(self, device, index, info, num_max):
        super().__init__(device, index, info._replace(size=0), num_max)


@mutant("many_requests")
class IndexDoesNotWrap(MemoryQueue):
    def complete(self, end, batch):
        if self.used_idx >> 16:
            self.used_idx &= 0xFFFF
            batch = batch[1:]
        super().complete(end, batch)


@mutant("device_receive_cancelled")
class CancelledReceiveLoses(MemoryEnd):
    async def receive(self):
        chains = await super().receive()
        await trio.lowlevel.checkpoint()
        return chains
