# SPDX-License-Identifier: BSD-3-Clause
"""What a request costs on a ring in shared memory, on either side: ``python -m tests.bench.rings``.

Both sides run in one process, in turns: what is measured is the code, not waking or caches.
"""

import argparse
import os
from itertools import product
from time import perf_counter_ns

from tests.virtio.rings import KINDS, Ring

SEGMENTS = 16, 4096, 1
"""A block request's chain: header, data to be read, status."""
NUM = 256
AIM = 6.0


def turn(ring: Ring, chains: list[list[memoryview]]) -> tuple[int, int]:
    """Send a batch through; return the nanoseconds of driver and device."""
    vq, device = ring.vq, ring.device
    first = perf_counter_ns()
    for chain in chains:
        vq.add_sgs(chain, 1, 2, chain)
    vq.kick()
    second = perf_counter_ns()
    for chain in device.receive():
        device.push(chain, 4097)
    device.flush()
    third = perf_counter_ns()
    for _ in chains:
        vq.get_buf()
    last = perf_counter_ns()
    return second - first + last - third, third - second


def measure(ring: Ring, depth: int, seconds: float) -> tuple[float, float]:
    """Return microseconds of a request for driver and device: the first quartile of all turns."""
    chains = [[ring.region.alloc(size) for size in SEGMENTS] for _ in range(depth)]
    end = perf_counter_ns() + seconds * 1e9
    turns = []
    while perf_counter_ns() < end:
        turns.append(turn(ring, chains))
    driver, device = (sorted(side)[len(turns) // 4] for side in zip(*turns, strict=True))
    assert ring.vq.num_free == NUM
    return driver / depth / 1e3, device / depth / 1e3


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=0.5, help="for each row (default 0.5)")
    seconds = parser.parse_args().seconds
    print(f"µs per chain of {len(SEGMENTS)} segments; load average {os.getloadavg()[0]:.1f}")
    print("| ring | descriptors | EVENT_IDX | depth | driver | aim | device |")
    print("|---|---|---|---|---|---|---|")
    for kind, indirect, event_idx, depth in product(KINDS, (False, True), (False, True), (1, 32)):
        ring = Ring(kind, NUM, size=1 << 20, indirect=indirect, event_idx=event_idx, num_max=NUM)
        driver, device = measure(ring, depth, seconds)
        how, event = "indirect" if indirect else "direct", "yes" if event_idx else "no"
        print(
            f"| {kind.name} | {how} | {event} | {depth} | {driver:.1f} | {AIM:g} | {device:.1f} |"
        )


if __name__ == "__main__":
    main()
