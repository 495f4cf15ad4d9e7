# SPDX-License-Identifier: BSD-3-Clause
"""``vof disconnect``: end associations of a running target at once."""

import argparse

from vof.cli import admin
from vof.cli.output import print_json

EPILOG = """Requests in flight are cut. The initiator may connect again: this is no ban."""


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    parser.epilog = EPILOG
    parser.add_argument(
        "who",
        metavar="IVQN|ID",
        help="an association by its number, or all of an initiator by its name",
    )
    parser.add_argument("--ivqn", action="store_true", help="it is a name, even if all digits")
    admin.configure(parser)


def run(args: argparse.Namespace) -> int:
    """Ask and print."""
    number = args.who.isdecimal() and not args.ivqn
    with admin.Admin(args.socket) as target:
        who = {"id": int(args.who)} if number else {"ivqn": args.who}
        reply = target.ask("disconnect", **who)
    if args.json:
        print_json("disconnect", reply)
    else:
        print("\n".join(f"ended {ident}" for ident in reply["ids"]))
    return 0
