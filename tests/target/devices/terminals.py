# SPDX-License-Identifier: BSD-3-Clause
"""Whoever is attached to a console's port, for tests."""

import os
import random
import select
import socket

import trio
import trio.testing


def some(count):
    """Return so many bytes, each of any value, always the same."""
    return random.Random(count).randbytes(count)


class Somebody:
    """One who is attached, by a non-blocking descriptor."""

    def __init__(self, fd):
        self.fd = fd

    def send(self, data):
        """Send all of a little."""
        assert os.write(self.fd, data) == len(data)

    def room(self):
        """Whether more can be sent."""
        return bool(select.select((), (self.fd,), (), 0)[1])

    async def send_all(self, data):
        """Send as fast as it goes."""
        while data:
            await trio.lowlevel.wait_writable(self.fd)
            data = data[os.write(self.fd, data) :]

    async def receive(self, count, piece=65536):
        """Receive so many bytes."""
        data = bytearray()
        with trio.fail_after(10):
            while len(data) < count:
                await trio.lowlevel.wait_readable(self.fd)
                data += os.read(self.fd, min(piece, count - len(data)))
        return bytes(data)

    async def until(self, end):
        """Receive until what came ends so; return it."""
        data = b""
        with trio.fail_after(10):
            while not data.endswith(end):
                await trio.lowlevel.wait_readable(self.fd)
                data += os.read(self.fd, 65536)
        return data

    def leave(self):
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1


class Socket(Somebody):
    def __init__(self, path):
        sock = socket.socket(socket.AF_UNIX)
        sock.connect(path)
        sock.setblocking(False)
        super().__init__(sock.detach())


class Pty(Somebody):
    def __init__(self, path):
        super().__init__(os.open(path, os.O_RDWR | os.O_NOCTTY | os.O_NONBLOCK))


async def full():
    """Wait until nothing moves any more: who is attached takes nothing for now."""
    with trio.fail_after(5):
        await trio.testing.wait_all_tasks_blocked(0.05)
