# SPDX-License-Identifier: BSD-3-Clause
"""A pair of eventfds as the bell between a ring's two sides."""

import os
from collections.abc import Callable

import trio

from vof.transport.polling import Spin, attend, leave

ONE = (1).to_bytes(8, "little")
FLAGS = os.EFD_NONBLOCK | os.EFD_CLOEXEC


class EventfdBell:
    """See ``vof.virtio.layout.Bell``. Both descriptors are its own; the device gets duplicates.

    Attributes:
        kick: written by this side.
        call: written by the device.
    """

    def __init__(self) -> None:
        self.kick = os.eventfd(0, FLAGS)
        self.call = os.eventfd(0, FLAGS)
        self._spin = Spin(self.call)
        self._spins = True
        self._look: Callable[[], bool] | None = None
        self._open = True

    def ring(self) -> None:
        """Kick."""
        _count(self.kick)

    def wake(self) -> None:
        """Let ``wait`` return."""
        if self._open:
            _count(self.call)

    async def wait(self) -> None:
        """Sleep until the device called; spin a little before, unless somebody attends."""
        if not self._spins:
            await trio.lowlevel.wait_readable(self.call)
        elif not self._spin():
            await trio.lowlevel.wait_readable(self.call)
            self._spin.slept()
        try:
            os.read(self.call, 8)
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
        """Close both descriptors; nobody waits any more. Idempotent."""
        if self._open:
            self._open = False
            self.attend(None)
            trio.lowlevel.notify_closing(self.call)
            os.close(self.call)
            os.close(self.kick)


def _count(fd: int) -> None:
    """Write to an eventfd. One that is full has not been read: its reader knows already."""
    try:
        os.write(fd, ONE)
    except BlockingIOError:
        pass
