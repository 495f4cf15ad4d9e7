# SPDX-License-Identifier: BSD-3-Clause
"""How often a byte of payload is copied inside processes: counted, by a library in between.

``copies.c`` stands in front of the C library's memcpy, memmove and their like, by which Python
copies whatever it copies: assigning to a view, making bytes of one, joining. It counts the bytes of
calls of 512 and more, whoever makes them; copies of zeroes apart, as payload here is random: they
overwrite. What the kernel moves in a system call, as for a disk that is a file, is the device's
doing, and is not seen here.

    python -m tests.bench.copies TARGET_COUNT URL…

loads the device at each URL, and prints a list of JSON. ``count`` runs it, and its target.
"""

import json
import os
import struct
import subprocess
import sys
from itertools import product
from pathlib import Path
from typing import NamedTuple

import trio

import vof
from tests.bench.sides import EXPORT, VOF, announced, daemon, output
from vof.initiator.drivers import Blk

KIB = 1024
SOURCE = Path(__file__).with_name("copies.c")
COUNT = "VOF_COPIES"
SIZES = 16 * KIB, 128 * KIB, 1024 * KIB
TIMES = 4
DISK = 32 << 20
SECONDS = 120


class Copies(NamedTuple):
    """What one case showed.

    Attributes:
        url: the device.
        size: bytes of a request.
        mix: "read" or "write".
        pooled: the buffers are of the device's pool; else of whoever asks.
        initiator: bytes copied there for each byte of payload.
        target: the same at the target.
        zeroed: bytes overwritten with zeroes there, in the same measure.
    """

    url: str
    size: int
    mix: str
    pooled: bool
    initiator: float
    target: float
    zeroed: float

    @property
    def right(self) -> bool:
        """Nothing is copied; but what is not in the pool is, or the count is of no use."""
        if self.pooled:
            return self.initiator == self.target == 0
        return self.initiator >= 1 and self.target == 0

    def __str__(self) -> str:
        kind = f"{self.size // KIB:,} KiB {self.mix}"
        where = "in the pool" if self.pooled else "elsewhere"
        numbers = f"{self.initiator:9.3f}  {self.target:6.3f}  {self.zeroed:6.3f}"
        wanted = "0 and 0" if self.pooled else "≥1 and 0"
        verdict = "aim" if self.right else "BELOW"
        return f"{kind:<15}  {where:<11}  {numbers}  {wanted}  {verdict:<6} {self.url}"


def library(folder: Path) -> Path:
    """Make the library in between. Raises CalledProcessError."""
    made = folder / "copies.so"
    words = ["-O2", "-fno-builtin", "-fno-tree-loop-distribute-patterns", "-shared", "-fPIC"]
    subprocess.run(["cc", *words, "-o", made, SOURCE], check=True)
    return made


def counting(made: Path, count: Path) -> list[str]:
    """Return how the command of a process begins that is counted, in a file of its own."""
    return ["env", f"LD_PRELOAD={made}", f"{COUNT}={count}"]


HEADERS = f"{'request':<15}  {'buffers':<11}  initiator  target  zeroed  wanted    meets  device"


def counted(count: Path) -> tuple[int, int]:
    """Return how many bytes a process has copied, and how many zeroes it has written so."""
    copied, zeroed = struct.unpack("@2L", count.read_bytes())
    return copied, zeroed


async def case(
    url: str, disk: Blk, buffer: memoryview | bytearray, mix: str, counts: tuple[Path, Path]
) -> Copies:
    """Ask for the same a few times, and count."""
    act = disk.read_into if mix == "read" else disk.write
    size = len(buffer)
    await act(0, buffer)  # what is made once was made
    before = [number for count in counts for number in counted(count)]
    for number in range(TIMES):
        await act(number * size, buffer)
    after = [number for count in counts for number in counted(count)]
    each = [(b - a) / TIMES / size for a, b in zip(before, after, strict=True)]
    initiator, _, target, zeroed = each
    return Copies(url, size, mix, type(buffer) is memoryview, initiator, target, zeroed)


async def cases(counts: tuple[Path, Path], urls: list[str]) -> list[Copies]:
    """Count for all sizes, and for the smallest also with buffers that are not in the pool."""
    found = []
    for url in urls:
        async with vof.connect(url) as device, Blk(device) as disk:
            buffers = [*map(device.pool.alloc, SIZES), bytearray(SIZES[0])]
            for buffer, mix in product(buffers, ("write", "read")):
                buffer[:] = os.urandom(len(buffer))
                found.append(await case(url, disk, buffer, mix, counts))
    return found


def count(listen: str, folder: Path) -> list[Copies]:
    """Run a target of a disk in memory and of a bridged one, and count. Raises SystemExit."""
    made = library(folder)
    initiator, target = folder / "initiator.count", folder / "target.count"
    image, socket = folder / "bridged", folder / "vhost.sock"
    with image.open("wb") as file:
        file.truncate(DISK)
    export = f"type=vhost-user-blk,addr.type=unix,addr.path={socket},{EXPORT}"
    command = [*counting(made, target), str(VOF), "target", "--admin", "none", "--listen", listen]
    command += ["--mem", f"{DISK},tvqn=memory"]
    command += ["--vhost-user", f"{socket},tvqn=bridged"]
    with daemon(image, False, "--export", export), announced(command, folder / "copied", 2) as two:
        command = [*counting(made, initiator), sys.executable, "-m", "tests.bench.copies"]
        text = output([*command, str(target), *(server.url for server in two)], SECONDS)
    return [Copies(**one) for one in json.loads(text)]


def main() -> None:
    """Count, as a process that is counted."""
    target, *urls = sys.argv[1:]
    counts = Path(os.environ[COUNT]), Path(target)
    json.dump([one._asdict() for one in trio.run(cases, counts, urls)], sys.stdout)


if __name__ == "__main__":
    main()
