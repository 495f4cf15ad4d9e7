# SPDX-License-Identifier: BSD-3-Clause
"""``tests/lab/run``: its options."""

import argparse
import sys

from tests.lab import native, qemu
from tests.lab.errors import LabError

FAILED = 125


def main() -> int:
    """Read the options and run the command. Returns the exit status."""
    parser = argparse.ArgumentParser(
        "tests/lab/run",
        description="Run a command in a virtual machine that has soft-RoCE and this project.",
        epilog="VOF_RDMA_ADDRESSES are addresses with RDMA there. Exit codes: the command's; "
        f"{qemu.TIMED_OUT}: no time left; {FAILED}: the lab itself failed.",
    )
    default = qemu.Options()
    parser.add_argument("--native", action="store_true", help="use this machine's RDMA device")
    parser.add_argument("--iwarp", action="store_true", help="have soft-iWARP, not soft-RoCE")
    parser.add_argument("--module", action="append", default=[], help="insert this one too")
    parser.add_argument("--qemu", action="append", default=[], help="more arguments of QEMU")
    parser.add_argument("--memory", type=int, default=default.memory, metavar="MiB")
    parser.add_argument("--seconds", type=float, default=default.seconds, help="it may take")
    parser.add_argument(
        "--steady",
        action="store_true",
        help="let time pass by instructions",
    )
    parser.add_argument("--console", action="store_true", help="show the kernel's messages")
    parser.add_argument(
        "command", nargs=argparse.REMAINDER, help="one word is a command line of the shell"
    )
    args = parser.parse_args()
    if not args.command:
        parser.error("no command")
    try:
        if args.native:
            return native.run(args.command)
        device = "siw" if args.iwarp else "rxe"
        options = qemu.Options(
            args.module, args.qemu, args.memory, args.seconds, args.console, device, args.steady
        )
        return qemu.run(args.command, options)
    except LabError as error:
        print(f"lab: {error}", file=sys.stderr)
        return FAILED


sys.exit(main())
