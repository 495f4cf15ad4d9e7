# SPDX-License-Identifier: BSD-3-Clause
"""``vof bench``: how fast a remote device is."""

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from vof.cli.output import human_bytes, print_json, table
from vof.errors import ConfigError
from vof.sizes import parse_size

if TYPE_CHECKING:
    from vof.cli.load import Job, Result

MIXES = ("randread", "randwrite", "read", "write")
PERCENTILES = (50, 90, 99, 99.9)

EPILOG = """\
mixes: randread, randwrite, read, write (from front to back), randrw:PERCENT of reads.
Writing destroys what is on the disk. On a source of random bytes, each request asks for --size.
With --raw, each request is 16 readable bytes, all zero, and --size writable ones: good for a device
of your own that does nothing, and for what it costs to get there and back.

The latency of a request runs from the kick that sent it to the moment it was taken. CPU time is
that of this process alone, spinning included; VOF_POLL_US=0 turns spinning off."""


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    parser.epilog = EPILOG
    parser.add_argument("url")
    parser.add_argument(
        "--depth", type=int, default=32, help="requests in flight on each queue (32)"
    )
    parser.add_argument("--size", default="4k", help="bytes of each request (4k)")
    parser.add_argument("--mix", default="randread", help="what to do, see below (randread)")
    parser.add_argument("--queues", type=int, default=1, help="of each connected device")
    parser.add_argument(
        "--connections", type=int, default=1, metavar="N", help="connect to the device N times"
    )
    parser.add_argument("--seconds", type=float, default=5.0, help="how long at most (5)")
    parser.add_argument("--requests", type=int, help="stop after so many")
    parser.add_argument(
        "--await",
        dest="awaited",
        action="store_true",
        help="by as many tasks that await disk.read() or write(), not by the queue's operations",
    )
    parser.add_argument(
        "--raw", action="store_true", help="requests that mean nothing, to a device of any type"
    )
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--plot", metavar="FILE.svg", help="draw the distribution of latencies")


def run(args: argparse.Namespace) -> int:
    """Measure and print."""
    import trio

    from vof.cli import load

    result = trio.run(load.measure, args.url, _job(args))
    facts = _facts(args, result)
    if args.json:
        print_json("bench", facts)
    else:
        _show(facts)
    if args.plot:
        from vof.cli.plot import distribution

        title = f"{args.mix}, {args.size}, depth {args.depth}, {result.rate:,.0f} a second"
        Path(args.plot).write_text(distribution(result.latency, title), encoding="utf-8")
    if result.errors:
        print(f"vof: the device failed {result.errors} requests", file=sys.stderr)
    return 1 if result.errors else 0


def _job(args: argparse.Namespace) -> "Job":
    """Check the options. Raises ConfigError."""
    from vof.cli.load import Job

    name, _, share = args.mix.partition(":")
    reads = {"randread": 100, "read": 100, "randwrite": 0, "write": 0}.get(name, -1)
    if name == "randrw" and share.isdecimal():
        reads = int(share)
    elif share:
        reads = -1
    if not 0 <= reads <= 100:
        raise ConfigError("command line", "--mix", f"expected {', '.join(MIXES)} or randrw:PERCENT")
    for option in ("depth", "queues", "connections"):
        if not 1 <= getattr(args, option) <= 32768:
            raise ConfigError("command line", f"--{option}", "expected 1 to 32768")
    size = parse_size("--size", args.size)
    if not 0 < size <= 1 << 24:
        raise ConfigError("command line", "--size", "expected 1 byte to 16 MiB")
    if not 0 < args.seconds < 1e6:
        raise ConfigError("command line", "--seconds", "expected more than 0")
    if args.requests is not None and args.requests < 1:
        raise ConfigError("command line", "--requests", "expected 1 or more")
    return Job(
        size=size,
        depth=args.depth,
        queues=args.queues,
        seconds=args.seconds,
        requests=1 << 62 if args.requests is None else args.requests,
        reads=reads,
        random=name.startswith("rand"),
        awaited=args.awaited,
        connections=args.connections,
        raw=args.raw,
    )


def _facts(args: argparse.Namespace, result: "Result") -> dict[str, object]:
    latency = result.latency
    return {
        "url": args.url,
        "mix": args.mix,
        "size": parse_size("--size", args.size),
        "depth": args.depth,
        "queues": args.queues,
        "connections": args.connections,
        "awaited": args.awaited,
        "raw": args.raw,
        "seconds": round(result.seconds, 6),
        "requests": result.requests,
        "errors": result.errors,
        "iops": round(result.rate, 1),
        "bytes_per_second": round(result.bytes / result.seconds, 1),
        "cpu_us_per_request": round(result.cpu_us, 3),
        "latency_us": {
            "min": latency.least / 1000,
            "mean": round(latency.mean() / 1000, 3),
            **{f"p{p:g}": latency.percentile(p) / 1000 for p in PERCENTILES},
            "max": latency.largest / 1000,
        },
        "polling": result.polling,
    }


def _show(facts: dict[str, object]) -> None:
    latency = facts["latency_us"]
    assert isinstance(latency, dict)
    print(
        table(
            [
                ("IOPS", f"{facts['iops']:,.0f}"),
                ("throughput", f"{human_bytes(float(str(facts['bytes_per_second'])))}/s"),
                ("requests", f"{facts['requests']:,}"),
                ("errors", f"{facts['errors']}"),
                ("CPU per request", f"{facts['cpu_us_per_request']} µs (this process)"),
                *((f"latency {name}", f"{value:,.1f} µs") for name, value in latency.items()),
            ]
        )
    )
