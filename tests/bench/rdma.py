# SPDX-License-Identifier: BSD-3-Clause
"""Print what vof does over RDMA beside what it does over TCP, and beside what bare verbs do.

One ``vof target`` serves a disk in memory by both; ``vof bench`` loads it as a process of its own.
Rows, rounds and ratios are those of ``tests/bench/compare``.
"""

import json
import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from functools import partial
from pathlib import Path

from tests.bench.compare import (
    BANDWIDTH,
    KIB,
    LINE,
    RATE,
    SCHEMA,
    Row,
    Unit,
    arguments,
    as_json,
    line,
    machine,
    run,
)
from tests.bench.copies import HEADERS, count
from tests.bench.sides import VOF, Figure, Load, Server, Vof, announced, output, vof_figure

DISK = "32M"
TURN = Unit("turn_us", 1, "{:,.0f} µs", less_is_better=True)


class Standing(Vof):
    """A transport of the one target, which runs as long as the comparison."""

    server: Server

    def __init__(self, name: str) -> None:
        self.name = name

    @contextmanager
    def serve(self, image: Path, load: Load) -> Iterator[Server]:
        """Name the server for the time of a block."""
        yield self.server


class Floor(Standing):
    """Bare verbs. See ``floor.py``."""

    @property
    def words(self) -> list[str]:
        """How a command begins."""
        return [sys.executable, "-m", "tests.bench.floor"]

    def load(self, server: Server, load: Load, seconds: float, size: int) -> Figure:
        """Take turns with a server."""
        command = [*self.words, "load", server.url, self.name, str(seconds), str(load.depth)]
        return vof_figure(output(command, seconds))


RDMA, TCP, BUSY, EVENTS = Standing("vof+rdma"), Standing("vof+tcp"), Floor("busy"), Floor("events")
ONE = Load("randread", 4 * KIB, 1)
LARGE = Load("read", 128 * KIB, 8)
Against = partial(Row, mine=RDMA, peer=TCP)
ROWS = (
    Against("tcp1", "4 KiB random read, depth 1, against TCP", RATE, ONE, 0.0, 1.0),
    Against("busy", "the same, against verbs that poll", TURN, ONE, 2.0, 2.0, peer=BUSY),
    Against("events", "the same, against verbs that sleep", TURN, ONE, 2.0, 2.0, peer=EVENTS),
    Against(
        "tcp32",
        "4 KiB random read, depth 32, against TCP",
        RATE,
        ONE._replace(depth=32),
        1.0,
        1.0,
    ),
    Against(
        "verbs32",
        "verbs that sleep at depth 32, against TCP: how fast RDMA can be here",
        RATE,
        ONE._replace(depth=32),
        0.0,
        1.0,
        mine=EVENTS,
    ),
    Against("read", "128 KiB sequential read, depth 8, against TCP", BANDWIDTH, LARGE, 0.0, 1.0),
    Against(
        "write",
        "128 KiB sequential write, depth 8, against TCP",
        BANDWIDTH,
        LARGE._replace(mix="write"),
        0.0,
        1.0,
    ),
)


@contextmanager
def servers(address: str, folder: Path) -> Iterator[None]:
    """Run all servers for the time of a block."""
    command = [str(VOF), "target", "--admin", "none"]
    command += [f"--listen={side.name}://{address}:0" for side in (RDMA, TCP)]
    command += ["--mem", f"{DISK},tvqn=disk"]
    with ExitStack() as stack:
        found = stack.enter_context(announced(command, folder / "target", 2))
        for side in (RDMA, TCP):
            [side.server] = [server for server in found if server.url.startswith(side.name)]
        for side in (BUSY, EVENTS):
            command = [*side.words, "serve", address, side.name]
            [side.server] = stack.enter_context(announced(command, folder / side.name))
        yield


def head(facts: dict[str, object], rounds: int, seconds: float) -> str:
    """Return what stands above the table."""
    return (
        f"{facts['cpu']}, {len(facts['cpus'])} CPUs, Linux {facts['kernel']}, "
        f"load {facts['load']:.2f}; Python {facts['python']}; VOF_POLL_US {facts['vof_poll_us']}\n"
        f"{facts['peer']}; a disk of {DISK} in memory; placement {facts['placement']}\n"
        f"{rounds} rounds of {seconds:g} s a side, alternating; medians; "
        "beside each figure the CPU time per request of both processes\n"
    )


def main() -> int:
    """Measure and print. Returns the exit status: 1 for a copy where there must be none."""
    names = [*(row.name for row in ROWS), "copies"]
    options = arguments("tests/bench/rdma", __doc__, names, 3, 2.0)
    address = os.environ["VOF_RDMA_ADDRESSES"].split()[0]
    say = (lambda text: None) if options.json else (lambda text: print(text, flush=True))
    with tempfile.TemporaryDirectory(prefix="vof-rdma-") as name:
        image = Path(name, "none")
        image.touch()
        facts = machine(image, f"RDMA and TCP at {address}")
        say(head(facts, options.rounds, options.seconds))
        headers = "row", "vof+rdma", "CPU", "peer", "CPU", "ratio", "(min-max)", "floor", "aim"
        say(LINE.format(*headers, "meets", "what"))
        results, copies = [], []
        wanted = [row for row in ROWS if row.name in options.only]
        with servers(address, Path(name)) if wanted else nullcontext():
            for row in wanted:
                results.append(run(row, image, options.rounds, options.seconds))
                say(line(results[-1]))
        if "copies" in options.only:
            copies = count(f"vof+rdma://{address}:0", Path(name))
            say("\ncopies of each byte of payload within initiator and target\n")
            say("\n".join(map(str, [HEADERS, *copies])))
    if options.json:
        document = {
            "schema": SCHEMA,
            "command": "rdma",
            "machine": facts,
            "rounds": options.rounds,
            "seconds": options.seconds,
            "rows": [as_json(result) for result in results],
            "copies": [one._asdict() for one in copies],
        }
        json.dump(document, sys.stdout, indent=2)
        print()
    return int(not all(one.right for one in copies))


if __name__ == "__main__":
    sys.exit(main())
