# SPDX-License-Identifier: BSD-3-Clause
"""The bell between a ring's two sides: one way to kick, an eventfd to be called by.

A backend may do anything to what it shares: let a counter overflow, read what it should write,
make a descriptor block for everybody who has it. So nothing here waits in a system call. Kicks go
through a pair of sockets, whose ends are no business of each other; a call is read without waiting.
"""

import os
import socket
from collections.abc import Callable

import trio

from vof.transport.polling import Spin, attend, leave

ONE = (1).to_bytes(8, "little")
FLAGS = os.EFD_NONBLOCK | os.EFD_CLOEXEC


class EventfdBell:
    """See ``vof.virtio.layout.Bell``. All descriptors are its own; the device gets duplicates.

    Attributes:
        kick: readable when this side kicked.
        call: written by the device.
    """

    def __init__(self) -> None:
        self._ours, self._theirs = socket.socketpair()
        self._ours.setblocking(False)
        self.kick = self._theirs.fileno()
        self.call = os.eventfd(0, FLAGS)
        self._counter = [bytearray(8)]
        self._spin = Spin(self.call)
        self._spins = True
        self._look: Callable[[], bool] | None = None
        self._woken = False
        self._open = True

    def ring(self) -> None:
        """Kick. What is full has not been read: the device knows already."""
        try:
            self._ours.send(ONE)
        except (BlockingIOError, ConnectionError):
            pass

    def wake(self) -> None:
        """Let ``wait`` return."""
        if self._open:
            self._woken = True
            trio.lowlevel.notify_closing(self.call)

    async def wait(self) -> None:
        """Sleep until the device called; spin a little before, unless somebody attends."""
        if not self._woken and not (self._spins and self._spin()):
            try:
                await trio.lowlevel.wait_readable(self.call)
            except trio.ClosedResourceError:
                if not self._woken:
                    raise
            if self._spins:
                self._spin.slept()
        self._woken = False
        if self._open:
            try:
                os.preadv(self.call, self._counter, -1, os.RWF_NOWAIT)
            except BlockingIOError:
                pass

    def attend(self, look: Callable[[], bool] | None) -> None:
        """See ``Virtqueue.attend``. A ring that somebody attended once never spins by itself."""
        self._spin.close()
        self._spins = False
        if self._look is not None:
            leave(self._look)
        self._look = look
        if look is not None:
            attend(look)

    async def checkpoint(self) -> None:
        """Let other tasks run, once."""
        await trio.lowlevel.checkpoint()

    def close(self) -> None:
        """Close all descriptors; nobody waits any more. Idempotent."""
        if self._open:
            self._open = False
            self.attend(None)
            trio.lowlevel.notify_closing(self.call)
            os.close(self.call)
            self._ours.close()
            self._theirs.close()
