# SPDX-License-Identifier: BSD-3-Clause
"""``vof status``: what a running target serves, to whom, what waits and where."""

import argparse
import sys
import time
from collections.abc import Mapping
from typing import Any

from vof.cli import admin
from vof.cli.output import human_bytes, print_json, table
from vof.errors import InvalidArgument

EPILOG = """OLDEST is how long the oldest request in flight has been there, and WAITS where: for the
driver (DRIVER_OK), at the device, for data to come in, or for the peer, which takes no completions.
A * behind it: a limit keeps the queue from reading more.

exit codes: 0 done, 1 the target is gone, 2 no target is there"""

CLEAR = "\x1b[H\x1b[2J"


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    parser.epilog = EPILOG
    parser.add_argument("--watch", action="store_true", help="again and again, until Ctrl-C")
    parser.add_argument(
        "--interval", type=float, default=1.0, metavar="SECONDS", help="of --watch (default 1)"
    )
    admin.configure(parser)


def run(args: argparse.Namespace) -> int:
    """Ask and print, once or again and again."""
    if not 0.05 <= args.interval <= 86400:
        raise InvalidArgument(f"--interval {args.interval:g}: expected 0.05 to 86400 seconds")
    clear = args.watch and not args.json and sys.stdout.isatty()
    try:
        with admin.Admin(args.socket) as target:
            while True:
                reply = target.ask("status")
                if args.json:
                    print_json("status", reply)
                else:
                    print(CLEAR * clear + plain(text(reply)))
                if not args.watch:
                    return 0
                sys.stdout.flush()
                time.sleep(args.interval)
    except KeyboardInterrupt:
        if not args.watch:
            raise
        return 0


def plain(words: str) -> str:
    """Return text that does nothing to a terminal."""
    return "".join(one if one.isprintable() or one == "\n" else "?" for one in words)


def duration(seconds: float | None) -> str:
    """Return a time as a person says it."""
    if seconds is None:
        return "-"
    if seconds < 1:
        return f"{seconds * 1000:.3g} ms"
    if seconds < 120:
        return f"{seconds:.1f} s"
    minutes, hours = seconds / 60, seconds / 3600
    return f"{minutes:.0f} min" if minutes < 120 else f"{hours:.0f} h"


def text(reply: Mapping[str, Any]) -> str:
    """Return a status for people."""
    totals = reply["totals"]
    head = (
        f"vof {reply['vof_version']}, process {reply['pid']}, {reply['state']} for "
        f"{duration(reply['uptime_seconds'])}\n"
        f"{totals['requests']} requests, {totals['errors']} errors, "
        f"{human_bytes(totals['bytes_in'])} in, {human_bytes(totals['bytes_out'])} out, "
        f"{totals['connections']} connections"
    )
    blocks = [
        head,
        "\n".join(f"listens on {url}" for url in reply["listeners"]),
        table([_device(one) for one in reply["devices"]], DEVICE),
    ]
    if bridges := [one for one in reply["devices"] if one["bridge"]]:
        blocks.append(table([_bridge(one["tvqn"], one["bridge"]) for one in bridges], BRIDGE))
    if associations := reply["associations"]:
        blocks.append(table([_association(one) for one in associations], ASSOCIATION))
    rows = [_queue(one, queue) for one in associations for queue in one["queues"]]
    if rows:
        blocks.append(table(rows, QUEUE))
    if refusals := reply["refusals"]:
        blocks.append(table(sorted(refusals.items()), ("REFUSED", "TIMES")))
    limits = " ".join(f"{key}={value}" for key, value in reply["limits"].items())
    polling = " ".join(f"{key}={value}" for key, value in reply["polling"].items())
    blocks.append(f"limits: {limits}\npolling: {polling}")
    return "\n\n".join(block for block in blocks if block)


DEVICE = ("DEVICE", "TYPE", "STATE", "ASSOCIATIONS", "WHAT")
BRIDGE = ("DEVICE", "BACKEND", "PROCESS", "RINGS", "LOSSES", "REPLAYED", "FAILED", "LAST LOSS")
ASSOCIATION = ("ID", "DEVICE", "INITIATOR", "PEER", "DIALECT", "STATUS", "FEATURES", "AGE")
QUEUE = ("ID", "QUEUE", "SIZE", "IN FLIGHT", "OLDEST", "WAITS", "REQUESTS", "ERRORS", "IN", "OUT")


def _device(one: Mapping[str, Any]) -> tuple[object, ...]:
    what = one["path"] + " (read-only)" * one["read_only"]
    return one["tvqn"], one["type"], one["state"], one["associations"], what


def _bridge(tvqn: str, one: Mapping[str, Any]) -> tuple[object, ...]:
    lost = one["lost_seconds"]
    return (
        tvqn,
        one["state"] if lost is None else f"lost for {duration(lost)}",
        one["pid"] or "-",
        one["rings"],
        one["losses"],
        one["replayed"],
        one["failed"],
        one["why"] or "-",
    )


def _association(one: Mapping[str, Any]) -> tuple[object, ...]:
    return (
        one["id"],
        one["tvqn"],
        one["ivqn"] if one["ivqn"].isprintable() else ascii(one["ivqn"]),
        one["peer"],
        one["dialect"],
        f"0x{one['status']:02x}",
        f"0x{one['features']:x}",
        duration(one["age_seconds"]),
    )


def _queue(one: Mapping[str, Any], queue: Mapping[str, Any]) -> tuple[object, ...]:
    stuck = queue["stuck_seconds"]
    return (
        one["id"],
        queue["index"],
        queue["size"],
        queue["in_flight"],
        duration(queue["oldest_seconds"] if stuck is None else stuck),
        (queue["waits"] or "-") + "*" * queue["paused"],
        queue["requests"],
        queue["errors"],
        human_bytes(queue["bytes_in"]),
        human_bytes(queue["bytes_out"]),
    )
