# SPDX-License-Identifier: BSD-3-Clause
"""Devices that do nothing, and what remains: the way there and back.

python -m tests.bench.null [--rounds N] [--seconds S]
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from functools import partial

from vof.target import DeviceModel, RequestModel

WORDS = (sys.executable, "-m", "vof")
DEPTHS = (1, 32)


class Null(RequestModel):
    """As anybody would write it."""

    device_id = 1000

    def handle(self, request: bytes, room: int) -> bytes:
        return b""


class Later(RequestModel):
    """The same, with a task for each request."""

    device_id = 1000

    async def handle(self, request: bytes, room: int) -> bytes:
        return b""


class Least(DeviceModel):
    """The least that a model can do: no call and no copy for each request."""

    device_id = 1000
    queue_sizes = (128,)

    async def serve(self, index, queue):
        push = queue.push
        while True:
            for chain in await queue.receive():
                push(chain, 0)
            queue.flush()


MODELS = (Null, Later, Least)


def pin(cpu):
    """What a new process does to have one CPU, of those that this one may use."""
    return partial(os.sched_setaffinity, 0, {sorted(os.sched_getaffinity(0))[cpu]})


def bench(url, depth, seconds):
    """Requests a second."""
    words = ["bench", "--raw", "--size", "16", "--depth", str(depth), "--seconds", str(seconds)]
    done = subprocess.run(
        [*WORDS, *words, "--json", url], check=True, stdout=subprocess.PIPE, preexec_fn=pin(-1)
    )
    return json.loads(done.stdout)["iops"]


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=2.0)
    args = parser.parse_args()
    figures = {}
    with tempfile.TemporaryDirectory() as directory:
        words = ["--listen", "vof+tcp://127.0.0.1:0", "--listen", f"vof+unix://{directory}/s"]
        for model in MODELS:
            words += ["--model", f"tests.bench.null:{model.__name__}"]
        target = subprocess.Popen(
            [*WORDS, "target", *words],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            preexec_fn=pin(0),
            text=True,
        )
        try:
            urls = [target.stdout.readline().strip() for _ in range(2 * len(MODELS))]
            for _ in range(args.rounds):
                for url in urls:
                    for depth in DEPTHS:
                        rate = bench(url, depth, args.seconds)
                        figures.setdefault((url, depth), []).append(rate)
        finally:
            target.terminate()
            target.communicate()
    for (url, depth), rates in figures.items():
        scheme, name = url.partition(":")[0], url.rpartition("/")[2]
        middle, least, most = statistics.median(rates), min(rates), max(rates)
        print(f"| {name} | {scheme} | {depth} | {middle:,.0f} | {least:,.0f} to {most:,.0f} |")


if __name__ == "__main__":
    main()
