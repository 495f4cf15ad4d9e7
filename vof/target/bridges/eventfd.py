# SPDX-License-Identifier: BSD-3-Clause
"""A pair of eventfds as the bell between a ring's two sides."""

import os

import trio

from vof.transport.polling import Spin

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
        self._open = True

    def ring(self) -> None:
        """Kick. A counter that is full has not been read: the device knows already."""
        try:
            os.write(self.kick, ONE)
        except BlockingIOError:
            pass

    def wake(self) -> None:
        """Let ``wait`` return."""
        if self._open:
            os.write(self.call, ONE)

    async def wait(self) -> None:
        """Spin a little, then sleep, until the device called."""
        if not self._spin():
            await trio.lowlevel.wait_readable(self.call)
            self._spin.slept()
        try:
            os.read(self.call, 8)
        except BlockingIOError:
            pass

    async def checkpoint(self) -> None:
        """Let other tasks run, once."""
        await trio.lowlevel.checkpoint()

    def close(self) -> None:
        """Close both descriptors; nobody waits any more. Idempotent."""
        if self._open:
            self._open = False
            self._spin.close()
            trio.lowlevel.notify_closing(self.call)
            os.close(self.call)
            os.close(self.kick)
