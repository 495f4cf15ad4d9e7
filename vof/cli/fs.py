# SPDX-License-Identifier: BSD-3-Clause
"""``vof fs``: look at, read and change the files of a remote file system."""

import argparse
import os
import stat
import sys
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, BinaryIO, cast

from vof.cli.output import print_json, table

if TYPE_CHECKING:
    from vof.initiator.drivers import Fs
    from vof.virtio.fs import Attr

STEP = 1 << 22
"""Bytes of a local file that are read at a time."""
TASKS = 32

EPILOG = """Paths begin at the root of the file system, with or without /. Symbolic links are
followed with --follow only, and never lead out. FILE may be -, for standard input or output."""


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    parser.epilog = EPILOG
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    for name, (_, summary) in ACTIONS.items():
        action = actions.add_parser(name, help=summary)
        action.add_argument("url", metavar="URL", help="of a device of type fs")
        if name == "ls":
            action.add_argument("path", metavar="PATH", nargs="?", default="/")
        else:
            action.add_argument("path", metavar="PATH")
        action.add_argument("--follow", action="store_true", help="follow symbolic links")
        action.add_argument("--json", action="store_true", help="print JSON at the end")
        if name == "ls":
            action.add_argument("-l", "--long", action="store_true", help="with attributes")
        elif name == "get":
            action.add_argument("file", metavar="FILE", nargs="?", help="(default: its name, here)")
        elif name == "put":
            action.add_argument("file", metavar="FILE", nargs="?", default="-", help="(default: -)")
        elif name == "rm":
            action.add_argument("-d", "--dir", action="store_true", help="an empty directory")
        elif name == "mkdir":
            action.add_argument("-p", "--parents", action="store_true", help="all that are missing")
        elif name == "mv":
            action.add_argument("to", metavar="NEW")


def run(args: argparse.Namespace) -> int:
    """Do one thing."""
    import trio

    from vof.errors import ConfigError

    if "://" not in args.url:
        raise ConfigError("command line", "URL", f"expected a URL, not {args.url!r}; see --help")
    to_stdout = args.action == "cat" or (args.action == "get" and args.file == "-")
    if args.json and to_stdout:
        raise ConfigError("command line", "--json", "stdout is taken by the data")
    begin = time.perf_counter()
    facts = trio.run(_do, args)
    if args.json:
        seconds = round(time.perf_counter() - begin, 6)
        print_json("fs", {"action": args.action, "path": args.path, **facts, "seconds": seconds})
    else:
        _show(args, facts["entries"])
    return 0


async def _do(args: argparse.Namespace) -> dict[str, Any]:
    """Return what is to be shown: how many bytes were moved, and entries."""
    import vof
    from vof.initiator.drivers import Fs

    async with vof.connect(args.url) as device, Fs(device, follow=args.follow) as fs:
        return {"bytes": 0, "entries": [], **await ACTIONS[args.action][0](fs, args)}


# -- looking --------------------------------------------------------------------------------------


def _facts(name: str, attr: "Attr") -> dict[str, object]:
    """Return one entry for JSON."""
    return {
        "name": name,
        "kind": attr.kind,
        "size": attr.size,
        "mode": attr.mode,
        "nlink": attr.nlink,
        "uid": attr.uid,
        "gid": attr.gid,
        "mtime": attr.mtime,
        "ino": attr.ino,
    }


async def _stat(fs: "Fs", args: argparse.Namespace) -> dict[str, object]:
    return {"entries": [_facts(args.path, await fs.stat(args.path))]}


async def _list(fs: "Fs", args: argparse.Namespace) -> dict[str, object]:
    """List a directory; attributes only where they are shown, many at a time."""
    import trio

    if (await fs.stat(args.path)).kind != "directory":
        return await _stat(fs, args)
    names = sorted(await fs.listdir(args.path))
    if not (args.long or args.json):
        return {"entries": [{"name": name} for name in names]}
    found: dict[str, dict[str, object]] = {}
    rest = iter(names)

    async def look() -> None:
        for name in rest:
            try:
                found[name] = _facts(name, await fs.stat(f"{args.path}/{name}"))
            except FileNotFoundError:
                pass  # removed meanwhile, or a link to nothing

    async with trio.open_nursery() as nursery:
        for _ in range(TASKS):
            nursery.start_soon(look)
    return {"entries": [found[name] for name in names if name in found]}


def _shown(name: str) -> str:
    """Return a name that does nothing to a terminal, and is one line."""
    if name.isprintable():
        return name
    return "".join(chr(byte) if 32 < byte < 127 else f"\\x{byte:02x}" for byte in os.fsencode(name))


def _show(args: argparse.Namespace, entries: list[dict[str, Any]]) -> None:
    if args.action == "ls" and args.long and entries:
        print(table([(*_attributes(one), _shown(one["name"])) for one in entries]))
    elif args.action == "ls":
        for one in entries:
            print(_shown(one["name"]))
    elif args.action == "stat":
        (one,) = entries
        shown = {**one, "name": _shown(one["name"]), "mode": stat.filemode(one["mode"])}
        shown["mtime"] = _time(one["mtime"])
        print(table([(key, str(value)) for key, value in shown.items()]))


def _attributes(one: dict[str, Any]) -> tuple[object, ...]:
    """Return an entry as ``ls -l`` shows it, without its name."""
    owner = f"{one['uid']}:{one['gid']}"
    return stat.filemode(one["mode"]), one["nlink"], owner, one["size"], _time(one["mtime"])


def _time(seconds: int) -> str:
    try:
        return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(seconds))
    except (OverflowError, ValueError, OSError):
        return f"{seconds} s"  # a device may say anything


# -- moving bytes ---------------------------------------------------------------------------------


@contextmanager
def _local(name: str, mode: str) -> Iterator[BinaryIO]:
    """Open a local file, or a standard stream for -."""
    if name == "-":
        yield sys.stdout.buffer if mode == "wb" else sys.stdin.buffer
        return
    with open(name, mode) as file:
        yield cast("BinaryIO", file)


async def _read(fs: "Fs", args: argparse.Namespace) -> dict[str, object]:
    """Copy a remote file; where it cannot be read, nothing here is overwritten."""
    import trio

    name = "-" if args.action == "cat" else args.file or os.path.basename(args.path.rstrip("/"))
    count = 0
    async with await fs.open(args.path) as source:
        with _local(name, "wb") as file:
            async for part in source.stream():
                await trio.to_thread.run_sync(file.write, part)
                count += len(part)
            await trio.to_thread.run_sync(file.flush)
    return {"bytes": count}


async def _put(fs: "Fs", args: argparse.Namespace) -> dict[str, object]:
    """Write a local file; it is stable at the end. A new one gets the permissions it has here."""
    import trio

    count = 0
    with _local(args.file, "rb") as source:
        mode = 0o644 if args.file == "-" else os.fstat(source.fileno()).st_mode & 0o777
        async with await fs.open(args.path, "w", mode) as file:
            while part := await trio.to_thread.run_sync(source.read, STEP):
                await file.write(count, part)
                count += len(part)
            await file.sync()
    return {"bytes": count}


# -- names ----------------------------------------------------------------------------------------


async def _remove(fs: "Fs", args: argparse.Namespace) -> dict[str, object]:
    await (fs.rmdir if args.dir else fs.remove)(args.path)
    return {}


async def _mkdir(fs: "Fs", args: argparse.Namespace) -> dict[str, object]:
    names = args.path.strip("/").split("/")
    for number in range(1 if args.parents else len(names), len(names) + 1):
        try:
            await fs.mkdir("/".join(names[:number]))
        except FileExistsError:
            if not args.parents or (await fs.stat("/".join(names[:number]))).kind != "directory":
                raise
    return {}


async def _move(fs: "Fs", args: argparse.Namespace) -> dict[str, object]:
    await fs.rename(args.path, args.to)
    return {}


Action = Callable[["Fs", argparse.Namespace], Awaitable[dict[str, object]]]
ACTIONS: dict[str, tuple[Action, str]] = {
    "ls": (_list, "list a directory"),
    "stat": (_stat, "show what is there"),
    "cat": (_read, "print a file"),
    "get": (_read, "copy a remote file to a local one"),
    "put": (_put, "copy a local file to a remote one"),
    "rm": (_remove, "remove a file, a link, or with -d an empty directory"),
    "mkdir": (_mkdir, "make a directory"),
    "mv": (_move, "call a file or directory otherwise"),
}
