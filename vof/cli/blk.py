# SPDX-License-Identifier: BSD-3-Clause
"""``vof blk``: read, write, copy or zero a remote disk."""

import argparse
import os
import stat
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from typing import TYPE_CHECKING, BinaryIO, NamedTuple

from vof.cli.output import Progress, print_json
from vof.errors import ConfigError, InvalidArgument, NotSupported, VofError
from vof.sizes import parse_size

if TYPE_CHECKING:
    from vof.initiator.drivers.blk import Blk

STEP = 1 << 20
ZERO_STEP = 64 * STEP
TASKS = 8
SECTOR = 512


REMOTE = {"read": "source", "write": "target", "zero": "target"}
"""Which end of an action is a remote disk; a file there is a mistake, and might be overwritten."""


class End(NamedTuple):
    """One end of a copy.

    Attributes:
        name: for messages.
        read: ``await read(offset, length)``; fewer bytes only at the end.
        write: ``await write(offset, data)``.
        finish: ``await finish(length)`` when all is written: that long it is, and make it stable.
        length: bytes there are, or None where that is not known.
        room: bytes that fit, or None where that is not known.
        ordered: must be read, or written, from front to back.
    """

    name: str
    read: Callable[[int, int], Awaitable[bytes | bytearray]]
    write: Callable[[int, bytes | bytearray], Awaitable[None]]
    finish: Callable[[int], Awaitable[None]]
    length: int | None = None
    room: int | None = None
    ordered: bool = False


class Plan(NamedTuple):
    """What to copy.

    Attributes:
        start: first byte of the source.
        stop: end in the source, or None: all there is.
        shift: what to add for the place in the target.
    """

    start: int
    stop: int | None
    shift: int


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
    copy.add_argument("source", metavar="SOURCE", help="URL, file, or - for stdin")
    copy.add_argument("target", metavar="TARGET", help="URL, file, or - for stdout")
    zero = actions.add_parser("zero", help="write zeroes onto a remote disk")
    zero.add_argument("target", metavar="URL")
    zero.add_argument("--unmap", action="store_true", help="allow the disk to free the space")
    for action in (read, write, copy, zero):
        action.add_argument("--offset", default="0", help="on the remote disk (copy: the source)")
        action.add_argument("--length", help="bytes (default: all there is)")
        action.add_argument("--queues", type=int, default=1, help="of each disk (default 1)")
        action.add_argument("--json", action="store_true", help="print JSON at the end")


def run(args: argparse.Namespace) -> int:
    """Move bytes."""
    import trio

    offset = parse_size("--offset", args.offset)
    length = None if args.length is None else parse_size("--length", args.length)
    if offset % SECTOR or (length or 0) % SECTOR:
        raise ConfigError("command line", "", f"offset and length are multiples of {SECTOR}")
    remote = REMOTE.get(args.action)
    if remote and "://" not in (name := getattr(args, remote)):
        raise ConfigError("command line", "URL", f"expected a URL, not {name!r}; see --help")
    if args.json and args.target == "-":
        raise ConfigError("command line", "--json", "stdout is taken by the data")
    begin = time.perf_counter()
    work = _zero if args.action == "zero" else _move
    count = trio.run(work, args, offset, length)
    if args.json:
        seconds = round(time.perf_counter() - begin, 6)
        print_json("blk", {"action": args.action, "bytes": count, "seconds": seconds})
    return 0


@asynccontextmanager
async def _disk(url: str, queues: int) -> "AsyncIterator[Blk]":
    import vof
    from vof.initiator.drivers.blk import Blk

    async with vof.connect(url) as device, Blk(device, queues=queues) as disk:
        yield disk


async def _zero(args: argparse.Namespace, offset: int, length: int | None) -> int:
    """Write zeroes, in steps that a progress bar can show. Return how many."""
    async with _disk(args.target, args.queues) as disk:
        stop = disk.capacity if length is None else offset + length
        if not offset <= stop <= disk.capacity:
            raise InvalidArgument(f"{args.target} has only {disk.capacity} bytes")
        progress = Progress("zero", stop - offset)
        for start in range(offset, stop, ZERO_STEP):
            count = min(ZERO_STEP, stop - start)
            try:
                await disk.write_zeroes(start, count, unmap=args.unmap)
            except NotSupported:
                await disk.write(start, bytes(count))
            progress.add(count)
        await disk.flush()
        progress.close()
        return stop - offset


async def _move(args: argparse.Namespace, offset: int, length: int | None) -> int:
    """Copy from one end to the other. Return how many bytes."""
    async with AsyncExitStack() as stack:
        source = await _open(stack, args.source, args.queues, write=False)
        target = await _open(stack, args.target, args.queues, write=True)
        plan = _plan(source, target, offset, length, args.action == "write")
        stop = await _copy(source, target, plan)
        await target.finish(stop + plan.shift)
        return stop - plan.start


def _plan(source: End, target: End, offset: int, length: int | None, into: bool) -> Plan:
    """Decide what is copied, before anything is.

    Args:
        source: from here.
        target: to here.
        offset: in the target if ``into``, else in the source.
        length: bytes, or None: all there is.
        into: see ``offset``.

    Raises:
        InvalidArgument: that much is not there, or does not fit.
    """
    start, place = (0, offset) if into else (offset, 0)
    stop = None if length is None else start + length
    if source.ordered and start:
        raise InvalidArgument(f"{source.name} is a stream and has no --offset")
    if source.length is not None:
        stop = source.length if stop is None else stop
        if not start <= stop <= source.length:
            raise InvalidArgument(f"{source.name} has only {source.length} bytes")
    end = place if stop is None else place + stop - start
    if target.room is not None and end > target.room:
        raise InvalidArgument(f"{target.name} has only room for {target.room} bytes")
    return Plan(start, stop, place - start)


async def _copy(source: End, target: End, plan: Plan) -> int:
    """Copy, several pieces at a time. Return where in the source it ended."""
    import trio

    start, stop, shift = plan
    progress = Progress("copy", (stop or start) - start)
    position = written = start
    ended = stop is not None and start >= stop
    one_reader = trio.Lock()
    turn = trio.Condition()
    errors: list[Exception] = []

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
                if len(data) < count:
                    raise VofError(f"{source.name} became shorter meanwhile")
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

    async def guarded(scope: trio.CancelScope) -> None:
        """All tasks fail when a connection does; the first error says why."""
        try:
            await work()
        except (VofError, OSError) as error:
            errors.append(error)
            scope.cancel()

    async with trio.open_nursery() as nursery:
        for _ in range(TASKS):
            nursery.start_soon(guarded, nursery.cancel_scope)
    progress.close()
    if errors:
        raise errors[0]
    return position


async def _open(stack: AsyncExitStack, name: str, queues: int, write: bool) -> End:
    """Open a URL, a file, or - for the standard streams."""
    if "://" in name:
        return _open_disk(name, await stack.enter_async_context(_disk(name, queues)))
    if name == "-":
        return _open_stream(name, sys.stdout.buffer if write else sys.stdin.buffer)
    fd = os.open(name, (os.O_WRONLY | os.O_CREAT if write else os.O_RDONLY) | os.O_CLOEXEC, 0o666)
    mode = os.fstat(fd).st_mode
    if stat.S_ISREG(mode) or stat.S_ISBLK(mode):
        stack.callback(os.close, fd)
        return _open_file(name, fd, stat.S_ISREG(mode))
    return _open_stream(name, stack.enter_context(os.fdopen(fd, "wb" if write else "rb")))


def _open_disk(name: str, disk: "Blk") -> End:
    async def write(offset: int, data: bytes | bytearray) -> None:
        rest = -len(data) % SECTOR
        await disk.write(offset, data + bytes(rest) if rest else data)

    async def finish(_: int) -> None:
        await disk.flush()

    return End(name, disk.read, write, finish, length=disk.capacity, room=disk.capacity)


def _open_stream(name: str, file: BinaryIO) -> End:
    import trio

    async def read(offset: int, length: int) -> bytes:
        return await trio.to_thread.run_sync(file.read, length)

    async def write(offset: int, data: bytes | bytearray) -> None:
        await trio.to_thread.run_sync(file.write, data)

    async def finish(_: int) -> None:
        await trio.to_thread.run_sync(file.flush)

    return End(name, read, write, finish, ordered=True)


def _open_file(name: str, fd: int, regular: bool) -> End:
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

    async def finish(length: int) -> None:
        if regular:
            os.ftruncate(fd, length)
        await trio.to_thread.run_sync(os.fsync, fd)

    size = os.lseek(fd, 0, os.SEEK_END)
    return End(name, read, write, finish, length=size, room=None if regular else size)
