# SPDX-License-Identifier: BSD-3-Clause
"""``vof rng``: random bytes from a remote device."""

import argparse
import sys


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    parser.add_argument("url", help="of a device of type rng")
    parser.add_argument("count", help='how many bytes, such as 32 or "1M"')
    parser.add_argument("-o", "--output", default="-", metavar="FILE", help="- is stdout")
    parser.add_argument("--hex", action="store_true", help="print hexadecimal digits")


def run(args: argparse.Namespace) -> int:
    """Read and write out."""
    import trio

    from vof.sizes import parse_size

    data = trio.run(_read, args.url, parse_size("count", args.count))
    if args.hex:
        data = data.hex().encode() + b"\n"
    if args.output == "-":
        sys.stdout.buffer.write(data)
    else:
        with open(args.output, "wb") as file:
            file.write(data)
    return 0


async def _read(url: str, count: int) -> bytes:
    import vof
    from vof.initiator.drivers.rng import Rng

    async with vof.connect(url) as device, Rng(device) as rng:
        return await rng.read(count)
