# SPDX-License-Identifier: BSD-3-Clause
"""``vof drain``: end a target, or one of its devices, when its requests in flight are done."""

import argparse
import sys

from vof.cli import admin
from vof.cli.output import print_json

EPILOG = """Without TVQN the target ends, as by SIGTERM. With it, that device alone is removed: new
initiators find it no more, its requests in flight end, then its associations end. A reload brings
a device back that the configuration still has.

exit codes: 0 all requests ended in time, 1 some were cut, or it failed, 2 no target is there"""


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    parser.epilog = EPILOG
    parser.add_argument("tvqn", nargs="?", metavar="TVQN", help="the device; by default all")
    parser.add_argument(
        "--seconds", type=float, help="for requests in flight (default: limits.drain_seconds)"
    )
    admin.configure(parser)


def run(args: argparse.Namespace) -> int:
    """Ask, wait, print."""
    with admin.Admin(args.socket) as target:
        reply = target.ask("drain", tvqn=args.tvqn, seconds=args.seconds)
    if args.json:
        print_json("drain", {"tvqn": args.tvqn or "", **reply})
    elif not reply["in_time"]:
        print("vof: requests in flight were cut: the time was over", file=sys.stderr)
    return 0 if reply["in_time"] else 1
