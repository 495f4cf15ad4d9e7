# SPDX-License-Identifier: BSD-3-Clause
"""Mutants: notifications."""

import trio

from tests.conformance.memory_device import MemoryEnd, MemoryQueue
from tests.conformance.mutants.table import mutant


@mutant("kick_in_two_halves")
class PrepareForgets(MemoryQueue):
    prepared = 0

    def kick_prepare(self):
        news = len(self.added) > self.prepared
        self.prepared = len(self.added)
        return news

    def notify(self):
        self.prepared = 0
        return super().notify()


@mutant("kick_in_two_halves", "kick_of_nothing", "kick_while_busy")
class NeverNeedsNotify(MemoryQueue):
    def kick_prepare(self):
        return False


@mutant("kick_of_nothing")
class AlwaysNeedsNotify(MemoryQueue):
    def kick_prepare(self):
        return True


@mutant("kick_while_busy", "kick_in_two_halves", "wrappers")
class OneBufferAKick(MemoryQueue):
    def notify(self):
        rest = self.added[1:]
        del self.added[1:]
        told = super().notify()
        self.added = rest
        return told


@mutant("kick_while_busy", "out_of_order")
class NewestBufferFirst(MemoryQueue):
    def notify(self):
        self.added.reverse()
        return super().notify()


@mutant("kick_while_busy", "device_receive_cancelled")
class KickOverwritesKick(MemoryEnd):
    def arrive(self, batch):
        self.available = list(batch)
        self.bell.ring()


@mutant("callback_comes")
class CallsOnce(MemoryQueue):
    def complete(self, end, batch):
        super().complete(end, batch)
        self.callbacks = False


@mutant("callback_comes", "delayed_callback")
class NeverCalls(MemoryQueue):
    def complete(self, end, batch):
        self.callbacks = False
        super().complete(end, batch)


@mutant("polling", "interrupt_driver")
class DisabledMeansDeaf(MemoryQueue):
    deaf = False

    def disable_cb(self):
        super().disable_cb()
        self.deaf = True

    def enable_cb_prepare(self):
        self.deaf = False
        return super().enable_cb_prepare()

    def get_buf_ctx(self):
        return None if self.deaf else super().get_buf_ctx()


@mutant("poll_sees")
class PollIsBlind(MemoryQueue):
    def poll(self, last_used_idx):
        return False


@mutant("poll_sees")
class PollTakes(MemoryQueue):
    def poll(self, last_used_idx):
        return super().poll(last_used_idx) and self.get_buf_ctx() is not None


@mutant("pending_at_enable", "poll_sees", "race_at_enable", "interrupt_driver")
class EnableForgetsWhatIsPending(MemoryQueue):
    def enable_cb_prepare(self):
        super().enable_cb_prepare()
        return self.used_idx


@mutant("race_at_enable")
class EnablesAtPoll(MemoryQueue):
    def enable_cb_prepare(self):
        return max(self.last_used_idx, self.used_idx)

    def poll(self, last_used_idx):
        super().enable_cb_prepare()
        return False


@mutant("interrupt_driver", "race_at_enable", "polling")
class EnableDoesNothing(MemoryQueue):
    def enable_cb_prepare(self):
        return self.last_used_idx


@mutant("delayed_callback")
class DelayedForEver(MemoryQueue):
    def enable_cb_delayed(self):
        enabled = super().enable_cb_delayed()
        self.used_event = self.last_used_idx + len(self.entries)
        return enabled


@mutant("delayed_when_pending")
class DelayedNeverPending(MemoryQueue):
    def enable_cb_delayed(self):
        super().enable_cb_delayed()
        return True


@mutant("wait_for_used", "pending_at_enable")
class WaitsForTheNext(MemoryQueue):
    async def wait_used(self):
        await self.bell.wait()


@mutant("wait_for_used")
class DoesNotWait(MemoryQueue):
    async def wait_used(self):
        await trio.lowlevel.checkpoint()


@mutant("wait_cancelled")
class CancelledWaitLoses(MemoryQueue):
    async def wait_used(self):
        await super().wait_used()
        taken, self.used = self.used, type(self.used)()
        await trio.lowlevel.checkpoint()
        self.used = taken
