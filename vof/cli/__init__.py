# SPDX-License-Identifier: BSD-3-Clause
"""The command line: one module for each command, imported only when it is used.

A module has ``configure(parser)`` and ``run(args) -> exit code``; what is slow to import is
imported in ``run``. Exit codes: 0 done, 1 failed (said on stderr), 2 wrong usage or configuration.
"""

import argparse
import importlib
import os
import sys
from collections.abc import Sequence

from vof import __version__
from vof.errors import ConfigError, InvalidArgument, VofError

COMMANDS = {
    "target": ("vof.cli.target", "serve local devices over the fabric"),
    "status": ("vof.cli.status", "show what a running target serves, and what waits"),
    "reload": ("vof.cli.reload", "make a running target be what its file says now"),
    "drain": ("vof.cli.drain", "end a target, or one of its devices, without cutting requests"),
    "disconnect": ("vof.cli.disconnect", "end associations of a running target"),
    "info": ("vof.cli.info", "show what a remote device is"),
    "blk": ("vof.cli.blk", "read, write, copy or zero a remote disk"),
    "rng": ("vof.cli.rng", "read random bytes from a remote device"),
    "net": ("vof.cli.net", "look at a remote network device, and test it"),
    "console": ("vof.cli.console", "be the terminal of a remote console"),
    "fs": ("vof.cli.fs", "list, read and change files of a remote file system"),
    "bench": ("vof.cli.bench", "measure a remote device"),
    "demo": ("vof.cli.demo", "run a target and a client once, and check every byte"),
    "doctor": ("vof.cli.doctor", "say what this machine can do, and what to do about the rest"),
    "install": ("vof.cli.install", "install the service, its manual pages and a configuration"),
    "man": ("vof.cli.man", "print a manual page"),
}


def parsers(chosen: str | None) -> tuple[argparse.ArgumentParser, argparse.ArgumentParser | None]:
    """Return the parser of everything, and that of the chosen command: it alone has options."""
    parser = argparse.ArgumentParser(prog="vof", description="Virtio over Fabrics.")
    parser.add_argument("--version", action="version", version=f"vof {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    filled = None
    for name, (module, summary) in COMMANDS.items():
        command = commands.add_parser(
            name,
            help=summary,
            description=summary[0].upper() + summary[1:] + ".",
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        if name == chosen:
            importlib.import_module(module).configure(command)
            filled = command
    return parser, filled


def _leaves(error: BaseException) -> list[BaseException]:
    """Return what a group of errors is made of, in order; of a plain one, itself."""
    if not isinstance(error, BaseExceptionGroup):
        return [error]
    return [leaf for part in error.exceptions for leaf in _leaves(part)]


def _explain(error: BaseException) -> int | None:
    """Say what went wrong, where all of it is for the user; return the exit code.

    Of several errors of one kind, such as those of many queues that one cut ended, the first is
    said.
    """
    kinds: dict[type, BaseException] = {}
    for leaf in _leaves(error):
        kinds.setdefault(type(leaf), leaf)
    if not all(issubclass(kind, VofError | OSError | KeyboardInterrupt) for kind in kinds):
        return None
    if KeyboardInterrupt in kinds:
        return 130
    if kinds.pop(BrokenPipeError, None):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    for first in kinds.values():
        maybe = getattr(first, "maybe_executed", False)
        unsure = " (a request in flight may have been executed)" * maybe
        print(f"vof: {first}{unsure}", file=sys.stderr)
    wrong = any(issubclass(kind, ConfigError | InvalidArgument) for kind in kinds)
    return 2 if wrong else int(bool(kinds))


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; return the exit code."""
    words = list(sys.argv[1:] if argv is None else argv)
    chosen = next((word for word in words if word in COMMANDS), None)
    args = parsers(chosen)[0].parse_args(words)
    try:
        code: int = importlib.import_module(COMMANDS[args.command][0]).run(args)
        sys.stdout.flush()
    except BaseException as error:
        explained = _explain(error)
        if explained is None:
            raise
        return explained
    return code
