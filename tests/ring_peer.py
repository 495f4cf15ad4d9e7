# SPDX-License-Identifier: BSD-3-Clause
"""A process at the other side of a ring: ``python -m tests.ring_peer ROLE JSON``."""

import json
import mmap
import os
import random
import subprocess
import sys
import zlib
from pathlib import Path

from tests.virtio.rings import KINDS
from vof.errors import RingError

SPINS = 200


class Peer:
    """Runs it, and ends it.

    Attributes:
        kick: eventfd that it sleeps on.
        call: eventfd that it rings.
    """

    def __init__(self, role, ring):
        self.kick, self.call = os.eventfd(0), os.eventfd(0)
        region = ring.region
        options = {
            "kind": ring.kind.name,
            "num": ring.layout.num,
            "event_idx": ring.event_idx,
            "fd": region.fd,
            "size": region.size,
            "address": region.address,
            "at": region.offset_of(ring.vq.memory),
            "kick": self.kick,
            "call": self.call,
        }
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.ring_peer", role, json.dumps(options)],
            pass_fds=[region.fd, self.kick, self.call],
            cwd=Path(__file__).parent.parent,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        assert self.process.stdout.readline() == b"ready\n"

    def end(self):
        self.process.kill()
        self.process.communicate()
        os.close(self.kick)
        os.close(self.call)

    def __enter__(self):
        return self

    def __exit__(self, *args):
        self.end()


def answer(question, room):
    """Return what the device writes: a checksum, and as much of the question as fits."""
    return zlib.crc32(question).to_bytes(4, "little") + bytes(question)[: room - 4]


def device(view, options):
    """Serve: poll a little, then sleep until kicked."""
    kind = next(kind for kind in KINDS if kind.name == options["kind"])
    address, size, at = options["address"], options["size"], options["at"]

    def translate(where, length):
        if not 0 <= where - address <= size - length:
            raise RingError("outside")
        return view[where - address : where - address + length]

    num = options["num"]
    layout = kind.layout(num, view[at : at + kind.layout.bytes_of(num)])
    vringh = kind.device(layout, translate, options["event_idx"])
    rng, idle = random.Random(3), 0
    while True:
        chains = vringh.receive()
        if not chains:
            idle += 1
            if idle > SPINS and vringh.notify_enable():
                os.eventfd_read(options["kick"])
                idle = 0
            continue
        if idle > SPINS:
            idle = 0
        vringh.notify_disable()
        rng.shuffle(chains)
        for number, chain in enumerate(chains):
            data = answer(b"".join(chain.readable), sum(map(len, chain.writable)))
            at = 0
            for segment in chain.writable:
                segment[:] = data[at : at + len(segment)]
                at += len(segment)
            vringh.push(chain, len(data))
            if number % 16 and vringh.flush():
                os.eventfd_write(options["call"], 1)
        if vringh.flush():
            os.eventfd_write(options["call"], 1)


def liar(view, options):
    """Write anything anywhere in the ring, for ever."""
    ring = view[options["at"] : options["at"] + options["ring"]]
    words = ring[: len(ring) & ~1].cast("H")
    rng = random.Random(4)
    first = (6, 7, 14, 15)  # flags, ids and links of the first two descriptors
    likely = (0, 1, 2, 3, 4, 0x80, 0x8000, 0x8080, 0x81, 0x8001, 0xFFFF)
    while True:
        for _ in range(100):
            index = rng.choice(first) if rng.random() < 0.3 else rng.randrange(len(words))
            words[index] = rng.choice(likely) if rng.random() < 0.7 else rng.randrange(1 << 16)
            words[rng.randrange(len(words))] = words[rng.randrange(len(words))]


def main():
    role, text = sys.argv[1:]
    options = json.loads(text)
    view = memoryview(mmap.mmap(options["fd"], options["size"]))
    kind = next(kind for kind in KINDS if kind.name == options["kind"])
    options["ring"] = kind.layout.bytes_of(options["num"])
    print("ready", flush=True)
    {"device": device, "liar": liar}[role](view, options)


if __name__ == "__main__":
    main()
