# SPDX-License-Identifier: BSD-3-Clause
"""Mutants: life and death."""

import trio

from tests.conformance.memory_device import MemoryQueue
from tests.conformance.mutants.table import mutant
from vof.errors import NotSupported, VofError


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
