# SPDX-License-Identifier: BSD-3-Clause
"""What a frontend shares: memory by addresses, and rings."""

import mmap
import os

from vof.errors import RingError


class Refused(Exception):
    """The request is answered with a failure."""


class Memory:
    """The frontend's memory, region by region: guest address, user address, size, bytes."""

    def __init__(self):
        self.regions = []

    def add(self, guest, size, user, offset, fd):
        """Map one more; the descriptor is taken."""
        try:
            mapped = mmap.mmap(fd, offset + size)
        except (OSError, ValueError, OverflowError) as error:
            raise Refused(f"cannot map: {error}") from error
        finally:
            os.close(fd)
        self.regions.append((guest, user, size, memoryview(mapped)[offset:]))

    def remove(self, guest, size, user):
        """Forget one."""
        found = [r for r in self.regions if r[:3] == (guest, user, size)]
        if not found:
            raise Refused("no such region")
        self.regions.remove(found[0])

    def guest(self, address, length):
        """What a descriptor names."""
        return self._find(0, address, length)

    def user(self, address, length):
        """What an address in SET_VRING_ADDR names."""
        return self._find(1, address, length)

    def _find(self, column, address, length):
        for region in self.regions:
            at = address - region[column]
            if 0 <= at <= region[2] - length:
                return region[3][at : at + length]
        raise RingError(f"{length} bytes at 0x{address:x} are not shared")


class Ring:
    """What is known of one ring. It runs when it was kicked and is enabled."""

    def __init__(self, index):
        self.index = index
        self.num = self.base = 0
        self.addresses = self.vringh = None
        self.fds = {"KICK": None, "CALL": None, "ERR": None}
        self.kicked = self.enabled = False

    def signal(self, name):
        """Write to one of its eventfds, if it is there."""
        if self.fds[name] is not None:
            try:
                os.eventfd_write(self.fds[name], 1)
            except BlockingIOError:
                pass


def position(base, num):
    """From the 16 bits of a packed ring's index to a position."""
    return (base & 0x7FFF) + (0 if base >> 15 & 1 else num)


def indices(vringh, num):
    """Both of a packed ring's indices, as GET_VRING_BASE tells them."""
    value = 0
    for at, where in (0, vringh._last_avail_idx), (16, vringh._used_idx):
        lap, i = divmod(where, num)
        value |= (i | (~lap & 1) << 15) << at
    return value
