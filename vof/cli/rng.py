# SPDX-License-Identifier: BSD-3-Clause
"""``vof rng``: random bytes from a remote device."""

import argparse
import sys
from contextlib import ExitStack
from typing import BinaryIO

from vof.sizes import parse_size

STEP = 1 << 20


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    parser.add_argument("url", help="of a device of type rng")
    parser.add_argument("count", help='how many bytes, such as 32 or "1M"')
    parser.add_argument("-o", "--output", default="-", metavar="FILE", help="- is stdout")
    parser.add_argument("--hex", action="store_true", help="print hexadecimal digits")


def run(args: argparse.Namespace) -> int:
    """Read and write out."""
    import trio

    count = parse_size("count", args.count)
    with ExitStack() as stack:
        file: BinaryIO = sys.stdout.buffer
        if args.output != "-":
            file = stack.enter_context(open(args.output, "wb"))
        trio.run(_copy, args.url, count, file, args.hex)
    return 0


async def _copy(url: str, count: int, file: BinaryIO, digits: bool) -> None:
    """Read ``count`` bytes and write them out, piece by piece."""
    import trio

    import vof
    from vof.initiator.drivers import Rng

    async with vof.connect(url) as device, Rng(device) as rng:
        for start in range(0, count, STEP):
            data = await rng.read(min(STEP, count - start))
            await trio.to_thread.run_sync(file.write, data.hex().encode() if digits else data)
    if digits:
        file.write(b"\n")
