# SPDX-License-Identifier: BSD-3-Clause
"""``vof blk``: read, write, copy or zero a remote disk."""

import argparse
import os
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from typing import TYPE_CHECKING, BinaryIO, NamedTuple

from vof.cli.output import Progress
from vof.errors import ConfigError
from vof.sizes import parse_size

if TYPE_CHECKING:
    from vof.initiator.drivers.blk import Blk

STEP = 1 << 20
TASKS = 8
SECTOR = 512


class End(NamedTuple):
    """One end of a copy.

    Attributes:
        read: ``await read(offset, length)``; fewer bytes only at the end.
        write: ``await write(offset, data)``.
        length: bytes there are, or None where that is not known.
        ordered: must be read, or written, from front to back.
        flush: make what was written stable.
    """

    read: Callable[[int, int], Awaitable[bytes | bytearray]]
    write: Callable[[int, bytes | bytearray], Awaitable[None]]
    length: int | None
    ordered: bool
    flush: Callable[[], Awaitable[None]]


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    read = actions.add_parser("read", help="from a remote disk into a file")
    read.add_argument("source", metavar="URL")
    read.add_argument("target", metavar="FILE", help="- is stdout")
    write = actions.add_parser("write", help="from a file onto a remote disk")
    write.add_argument("target", metavar="URL")
    write.add_argument(
        "source", metavar="FILE", help="- is stdin; a last odd sector is zero-filled"
    )
    copy = actions.add_parser("copy", help="from anywhere to anywhere")
    copy.add_argument("source", metavar="SOURCE", help="URL or file")
    copy.add_argument("target", metavar="TARGET", help="URL or file")
    zero = actions.add_parser("zero", help="write zeroes onto a remote disk")
    zero.add_argument("target", metavar="URL")
    zero.add_argument("--unmap", action="store_true", help="allow the disk to free the space")
    for action in (read, write, copy, zero):
        action.add_argument("--offset", default="0", help="on the remote disk (copy: the source)")
        action.add_argument("--length", help="bytes (default: all there is)")
        action.add_argument("--queues", type=int, default=1)


def run(args: argparse.Namespace) -> int:
    """Move bytes."""
    import trio

    offset = parse_size("--offset", args.offset)
    length = None if args.length is None else parse_size("--length", args.length)
    if offset % SECTOR or (length or 0) % SECTOR:
        raise ConfigError("command line", "", f"offset and length are multiples of {SECTOR}")
    if args.action == "zero":
        trio.run(_zero, args, offset, length)
    else:
        trio.run(_move, args, offset, length)
    return 0


@asynccontextmanager
async def _disk(url: str, queues: int) -> "AsyncIterator[Blk]":
    import vof
    from vof.initiator.drivers.blk import Blk

    async with vof.connect(url) as device, Blk(device, queues=queues) as disk:
        yield disk


async def _zero(args: argparse.Namespace, offset: int, length: int | None) -> None:
    """Write zeroes, in steps that a progress bar can show."""
    async with _disk(args.target, args.queues) as disk:
        stop = disk.capacity if length is None else offset + length
        progress = Progress("zero", stop - offset)
        for start in range(offset, stop, 64 * STEP):
            count = min(64 * STEP, stop - start)
            await disk.write_zeroes(start, count, unmap=args.unmap)
            progress.add(count)
        await disk.flush()
        progress.close()


async def _move(args: argparse.Namespace, offset: int, length: int | None) -> None:
    """Copy from one end to the other, several pieces at a time."""
    async with AsyncExitStack() as stack:
        source = await _open(stack, args.source, args.queues, write=False)
        target = await _open(stack, args.target, args.queues, write=True)
        at = offset if args.action != "write" else 0
        shift = offset if args.action == "write" else -at
        stop = None if source.length is None else source.length
        if length is not None:
            stop = at + length if stop is None else min(at + length, stop)
        await _copy(source, target, at, shift, stop)
        await target.flush()


async def _copy(source: End, target: End, start: int, shift: int, stop: int | None) -> None:
    """Copy bytes ``start`` to ``stop`` of the source, or all, to places ``shift`` further."""
    import trio

    progress = Progress("copy", (stop or start) - start)
    position = start
    ended = stop is not None and start >= stop
    one_reader = trio.Lock()
    turn = trio.Condition()
    written = start

    async def work() -> None:
        nonlocal position, ended, written
        while True:
            async with one_reader:
                if ended:
                    return
                here = position
                count = STEP if stop is None else min(STEP, stop - here)
                if not source.ordered:
                    position, ended = here + count, here + count == stop
                else:
                    data = await source.read(here, count)
                    position = here + len(data)
                    ended = len(data) < count or position == stop
            if not source.ordered:
                data = await source.read(here, count)
            if target.ordered:
                async with turn:
                    while written != here:
                        await turn.wait()
                    await target.write(here + shift, data)
                    written = here + len(data)
                    turn.notify_all()
            elif data:
                await target.write(here + shift, data)
            progress.add(len(data))

    async with trio.open_nursery() as nursery:
        for _ in range(TASKS):
            nursery.start_soon(work)
    progress.close()


async def _open(stack: AsyncExitStack, name: str, queues: int, write: bool) -> End:
    """Open a URL, a file, or - for the standard streams."""
    if "://" in name:
        return await _open_disk(await stack.enter_async_context(_disk(name, queues)))
    if name == "-":
        return _open_stream(sys.stdout.buffer if write else sys.stdin.buffer)
    mode = os.O_RDWR | os.O_CREAT if write else os.O_RDONLY
    fd = os.open(name, mode | os.O_CLOEXEC, 0o666)
    stack.callback(os.close, fd)
    return _open_file(fd)


async def _open_disk(disk: "Blk") -> End:
    async def write(offset: int, data: bytes | bytearray) -> None:
        rest = -len(data) % SECTOR
        await disk.write(offset, data + bytes(rest) if rest else data)

    return End(disk.read, write, disk.capacity, ordered=False, flush=disk.flush)


def _open_stream(file: BinaryIO) -> End:
    import trio

    async def read(offset: int, length: int) -> bytes:
        return await trio.to_thread.run_sync(file.read, length)

    async def write(offset: int, data: bytes | bytearray) -> None:
        await trio.to_thread.run_sync(file.write, data)

    async def flush() -> None:
        await trio.to_thread.run_sync(file.flush)

    return End(read, write, None, ordered=True, flush=flush)


def _open_file(fd: int) -> End:
    import trio

    async def read(offset: int, length: int) -> bytes:
        return await trio.to_thread.run_sync(os.pread, fd, length, offset)

    async def write(offset: int, data: bytes | bytearray) -> None:
        def whole() -> None:
            view, at = memoryview(data), offset
            while view:
                count = os.pwrite(fd, view, at)
                view, at = view[count:], at + count

        await trio.to_thread.run_sync(whole)

    async def flush() -> None:
        await trio.to_thread.run_sync(os.fsync, fd)

    return End(read, write, os.lseek(fd, 0, os.SEEK_END), ordered=False, flush=flush)
