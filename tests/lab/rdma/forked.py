# SPDX-License-Identifier: BSD-3-Clause
"""Processes of this project, forked from one that has imported all of it.

In emulation, a program that is started spends most of its time on imports; a fork has none to do.
"""

import multiprocessing
import os
import signal
import sys
import warnings
from collections.abc import Callable
from multiprocessing.connection import Connection

import trio

import vof
import vof.cli.target
import vof.target.daemon
import vof.transport.rdma
from tests.daemon import LONGEST_S
from vof.cli import main
from vof.errors import VofError
from vof.initiator.drivers import Blk

FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload([__name__])
vof.transport.rdma.load()

KIB = 1024


class Process:
    """A process that runs a function of a module. What it says on stderr is pytest's to show.

    Attributes:
        pid: of it.
    """

    def __init__(self, run: Callable[..., object], *args: object) -> None:
        self._out, out = FORKS.Pipe(duplex=False)
        self._process = FORKS.Process(target=_enter, args=(out, run, args))
        self._process.start()
        out.close()
        self._read = b""
        self.pid = self._process.pid

    def line(self) -> str:
        """Return the next line of its stdout; one that does not come is a failure."""
        while b"\n" not in self._read:
            assert self._out.poll(LONGEST_S), "it says nothing"
            data = os.read(self._out.fileno(), 4096)
            assert data, f"it ended: {self.end()}"
            self._read += data
        line, _, self._read = self._read.partition(b"\n")
        return line.decode()

    def signal(self, number: int = signal.SIGTERM) -> None:
        os.kill(self.pid, number)

    def end(self) -> int:
        """Wait for its end; return its exit status."""
        self._process.join(LONGEST_S)
        assert self._process.exitcode is not None, "it does not end"
        return self._process.exitcode

    def close(self) -> None:
        self._process.kill()
        self._process.join()
        self._process.close()
        self._out.close()


def _enter(out: Connection, run: Callable[..., object], args: tuple) -> None:
    os.dup2(out.fileno(), 1)
    out.close()
    warnings.simplefilter("error")
    sys.exit(run(*args))


def program(*words: str) -> int:
    """Be ``vof``."""
    return main(words)


def load(url: str) -> None:
    """Write to a disk all the time, on two queues; say "loading", and later why that ended."""
    trio.run(_load, url)


async def _load(url: str) -> None:
    async def write(disk: Blk, place: int) -> None:
        while True:
            await disk.write(place * 64 * KIB, bytes(64 * KIB))

    try:
        async with vof.connect(url) as device, Blk(device, queues=2) as disk:
            async with trio.open_nursery() as nursery:
                for place in range(16):
                    nursery.start_soon(write, disk, place)
                await disk.write(0, bytes(64 * KIB))
                print("loading", flush=True)
    except* VofError as group:
        print(*{str(error) for error in group.exceptions}, sep="; ", flush=True)
    await trio.sleep_forever()
