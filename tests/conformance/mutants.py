# SPDX-License-Identifier: BSD-3-Clause
"""Wrong implementations: each breaks one rule of the interfaces and names checks that see it."""

import copy
from contextlib import asynccontextmanager

import trio

from tests.conformance.memory_device import MemoryDevice, MemoryEnd, MemoryQueue, maker
from vof.conformance.rig import FILL
from vof.errors import NotSupported, QueueFull, VofError

MUTANTS = {}
"""Name -> (make, names of checks that must fail)."""


def mutant(*checks):
    """Enter a broken queue, device's end, device, or ``make``."""

    def enter(broken):
        make = broken
        for base, option in ((MemoryQueue, "queue"), (MemoryEnd, "end")):
            if isinstance(broken, type) and issubclass(broken, base):
                make = maker(MemoryDevice, **{option: broken})
        if isinstance(broken, type) and issubclass(broken, MemoryDevice):
            make = maker(broken)
        MUTANTS[broken.__name__] = make, checks
        return broken

    return enter


# -- bytes, lengths, tokens -----------------------------------------------------------------------


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


@mutant("used_length")
class ClearsWhatWasNotWritten(MemoryEnd):
    def push(self, chain, written, filled=None):
        left = written if filled is None else filled
        for segment in chain.writable:
            segment[left:] = bytes(len(segment[left:]))
            left = max(0, left - len(segment))
        super().push(chain, written)


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


# -- notifications --------------------------------------------------------------------------------


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


# -- life and death -------------------------------------------------------------------------------


@mutant("broken_refuses")
class CauseIsLost(MemoryQueue):
    def break_(self, cause=None):
        super().break_()


@mutant("broken_refuses")
class LastCauseWins(MemoryQueue):
    def break_(self, cause=None):
        super().break_(cause)
        self._cause = cause


@mutant("broken_refuses", "detach_after_reset", "reset", "del_vqs", "break_device")
class BrokenAccepts(MemoryQueue):
    def check_usable(self):
        pass


@mutant("broken_refuses", "unbreak")
class BrokenGives(MemoryQueue):
    def get_buf_ctx(self):
        broken, self._broken = self._broken, False
        used = super().get_buf_ctx()
        self._broken = broken
        return used


@mutant("broken_refuses")
class BrokenNotifies(MemoryQueue):
    def notify(self):
        super().notify()
        return True


@mutant("broken_refuses")
class BrokenPolls(MemoryQueue):
    def poll(self, last_used_idx):
        return self.used_idx != last_used_idx


@mutant("break_wakes", "reset_while_waiting")
class BreakWakesNobody(MemoryQueue):
    async def wait_used(self):
        await trio.lowlevel.checkpoint()
        while not self.used:
            await self.bell.wait()


@mutant("detach_after_break", "detach_after_reset", "detach_after_del_vqs", "reset")
class DetachOnlyUnused(MemoryQueue):
    def detach_unused_buf(self):
        while self.used:
            self.forget(self.used.popleft())
        return super().detach_unused_buf()


@mutant("detach_after_break", "detach_after_reset")
class DetachRepeats(MemoryQueue):
    extra = None

    def detach_unused_buf(self):
        token = super().detach_unused_buf()
        if token is None:
            token, self.extra = self.extra, None
        else:
            self.extra = token
        return token


@mutant("detach_after_reset", "detach_after_del_vqs", "reset", "reset_while_waiting")
class DeathTakesTheTokens(MemoryQueue):
    def die(self):
        super().die()
        self.entries.clear()


@mutant("detach_when_live")
class DetachFromLive(MemoryQueue):
    def detach_unused_buf(self):
        broken, self._broken = self._broken, True
        try:
            return super().detach_unused_buf()
        finally:
            self._broken = broken


@mutant("unbreak", "break_device")
class UnbreakDoesNothing(MemoryQueue):
    def unbreak(self):
        pass


@mutant("unbreak")
class UnbreakLosesWhatWasUsedMeanwhile(MemoryQueue):
    def complete(self, end, batch):
        super().complete(end, [] if self._broken else batch)


@mutant("unbreak")
class UnbreakKeepsTheCause(MemoryQueue):
    def unbreak(self):
        super().unbreak()
        self._cause = VofError("was broken")


@mutant("unbreak_after_detach")
class UnbreaksWithDetachedInFlight(MemoryQueue):
    def unbreak(self):
        self._broken, self._cause = False, None

    def forget(self, entry):
        if entry in self.entries:
            super().forget(entry)


@mutant("callbacks_survive")
class ResizeDisablesCallbacks(MemoryQueue):
    async def resize(self, num, recycle):
        await super().resize(num, recycle)
        self.callbacks = False


@mutant("callbacks_survive")
class BreakDisablesCallbacks(MemoryQueue):
    def break_(self, cause=None):
        super().break_(cause)
        self.callbacks = False


@mutant("resize")
class RecyclesTwice(MemoryQueue):
    async def resize(self, num, recycle):
        def twice(vq, token):
            recycle(vq, token)
            recycle(vq, token)

        await super().resize(num, twice)


@mutant("resize")
class RecyclesNothing(MemoryQueue):
    async def resize(self, num, recycle):
        await super().resize(num, lambda vq, token: None)


@mutant("resize")
class ResizeKeepsTheSize(MemoryQueue):
    async def resize(self, num, recycle):
        size = self.size
        await super().resize(num, recycle)
        self.size = self.free = size


@mutant("resize")
class ResizeOnlyOnce(MemoryQueue):
    resized = False

    async def resize(self, num, recycle):
        if self.resized:
            raise NotSupported("resize")
        await super().resize(num, recycle)
        self.resized = True


@mutant("resize_refused")
class AnySizeWillDo(MemoryQueue):
    async def resize(self, num, recycle):
        await super().resize(max(1, min(num, self.num_max)), recycle)


@mutant("resize_refused")
class RecyclesBeforeItRefuses(MemoryQueue):
    async def resize(self, num, recycle):
        for entry in self.entries:
            recycle(self, entry.token)
        await super().resize(num, recycle)


# -- devices --------------------------------------------------------------------------------------


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
