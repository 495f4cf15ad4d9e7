# SPDX-License-Identifier: BSD-3-Clause
"""``vof reload``: make a running target be what its configuration file says now."""

import argparse
import sys

from vof.cli import admin
from vof.cli.output import print_json

EPILOG = """The file is read and checked whole, and its new devices are opened, before anything
changes. Devices that are the same keep their connections; those that are gone or changed are
drained first.

exit codes: 0 done, 1 nothing has changed, or a changed device could not be opened again,
2 no target is there"""


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    parser.epilog = EPILOG
    admin.configure(parser)


def run(args: argparse.Namespace) -> int:
    """Ask, wait, print."""
    with admin.Admin(args.socket) as target:
        reply = target.ask("reload")
    if args.json:
        print_json("reload", reply)
    else:
        failed = reply.pop("failed")
        for key, names in reply.items():
            if names:
                print(f"{key}: {', '.join(names)}")
        for tvqn, why in failed.items():
            print(f"vof: {tvqn}: {why}", file=sys.stderr)
        reply["failed"] = failed
    return 1 if reply["failed"] else 0
