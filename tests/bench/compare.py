# SPDX-License-Identifier: BSD-3-Clause
"""Print what vof does beside what nbdkit and fio do, as ratios taken in one run.

Every row is measured in rounds; in each, one side follows the other at once, and who begins
changes from round to round. A ratio is taken within a round.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from tests.bench.costs import COSTS, Cost
from tests.bench.sides import (
    BRIDGED,
    DAEMON_NBD,
    MINE,
    NBDKIT,
    Figure,
    Load,
    Side,
    aio,
    measure,
)

IMAGE_MIB = 256
SCHEMA = 1
PEERS = "nbdkit", "fio", "qemu-storage-daemon"
KIB = 1024


class Unit(NamedTuple):
    """How a figure is read.

    Attributes:
        field: of ``Figure``.
        scale: to divide by.
        form: how to print it.
        less_is_better: whether floor and aim are upper bounds.
    """

    field: str
    scale: float
    form: str
    less_is_better: bool = False


RATE = Unit("requests", 1, "{:,.0f}/s")
BANDWIDTH = Unit("bytes", 1e6, "{:,.0f} MB/s")
CPU = Unit("cpu_us", 1, "{:.1f} µs", less_is_better=True)


class Row(NamedTuple):
    """A comparison: ``load`` on ``mine`` against ``peer_load`` (None: the same) on ``peer``."""

    name: str
    title: str
    unit: Unit
    load: Load
    floor: float
    aim: float
    peer: Side = NBDKIT
    peer_load: Load | None = None
    mine: Side = MINE


SMALL = Load("randread", 4 * KIB, 32)
LARGE = Load("read", 128 * KIB, 8)
ROWS = (
    Row("depth32", "4 KiB random read, depth 32", RATE, SMALL, 1.3, 2.0),
    Row(
        "await",
        "4 KiB random read, 32 concurrent await disk.read()",
        RATE,
        SMALL._replace(awaited=True),
        0.8,
        1.3,
    ),
    Row("depth1", "4 KiB random read, depth 1", RATE, SMALL._replace(depth=1), 1.0, 2.5),
    Row(
        "pinned",
        "4 KiB random read, depth 1, both on one CPU",
        RATE,
        SMALL._replace(depth=1, pinned=True),
        0.4,
        0.7,
    ),
    Row("seqread", "128 KiB sequential read, depth 8", BANDWIDTH, LARGE, 1.0, 1.5),
    Row(
        "seqwrite",
        "128 KiB sequential write, depth 8",
        BANDWIDTH,
        LARGE._replace(mix="write"),
        1.0,
        1.5,
    ),
    Row(
        "connections",
        "CPU per request, 256 connections against 1, depth 32 on each",
        CPU,
        SMALL._replace(connections=256),
        1.3,
        1.1,
        MINE,
        SMALL,
    ),
    *(
        Row(f"bridge{name}", f"bridged, {title}", unit, load, *marks, DAEMON_NBD, mine=BRIDGED)
        for name, title, unit, load, *marks in (
            ("32", "4 KiB random read, depth 32", RATE, SMALL, 1.0, 1.5),
            ("seq", "128 KiB sequential read, depth 8", BANDWIDTH, LARGE, 0.9, 1.2),
            ("1", "4 KiB random read, depth 1", RATE, SMALL._replace(depth=1), 0.0, 1.0),
        )
    ),
)


class Result(NamedTuple):
    """A row's figures, one of each side a round."""

    row: Row
    mine: list[Figure]
    peer: list[Figure]

    def values(self, figures: list[Figure]) -> list[float]:
        """Return the field that the row compares, in its unit."""
        unit = self.row.unit
        return [getattr(figure, unit.field) / unit.scale for figure in figures]

    @property
    def ratios(self) -> list[float]:
        """One a round."""
        return [
            mine / peer
            for mine, peer in zip(self.values(self.mine), self.values(self.peer), strict=True)
        ]

    @property
    def verdict(self) -> str:
        """What the median ratio reaches."""
        return verdict(statistics.median(self.ratios), self.row)


def verdict(ratio: float, row: Row) -> str:
    """Name what a ratio reaches."""
    for bound, name in ((row.aim, "aim"), (row.floor, "floor")):
        if ratio <= bound if row.unit.less_is_better else ratio >= bound:
            return name
    return "BELOW"


def run(row: Row, image: Path, rounds: int, seconds: float) -> Result:
    """Measure a row."""
    result = Result(row, [], [])
    sides = [
        (row.mine, row.load, result.mine),
        (row.peer, row.peer_load or row.load, result.peer),
    ]
    for number in range(rounds):
        for side, load, figures in sides if number % 2 == 0 else reversed(sides):
            figures.append(measure(side, load, image, seconds))
    return result


# -- what is printed ------------------------------------------------------------------------------


def machine(image: Path, peer: str = "") -> dict[str, object]:
    """Return what the figures depend on; ``peer`` says what vof is put beside, if not ``PEERS``."""

    def first(*command: str) -> str:
        return subprocess.run(command, capture_output=True, text=True).stdout.split("\n")[0]

    model = next(
        (
            line.partition(":")[2].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if line.startswith("model name")
        ),
        platform.machine(),
    )
    cpus = sorted(os.sched_getaffinity(0))
    return {
        "cpu": model,
        "cpus": cpus,
        "kernel": platform.release(),
        "python": platform.python_version(),
        "peer": peer or ", ".join(first(name, "--version") for name in PEERS) + f" aio={aio()}",
        "file_system": first("stat", "--file-system", "--format=%T", str(image)),
        "load": os.getloadavg()[0],
        "placement": f"left to the scheduler, CPUs {cpus}; 'on one CPU': both on CPU {cpus[0]}",
        "vof_poll_us": os.environ.get("VOF_POLL_US", "default"),
    }


def head(facts: dict[str, object], rounds: int, seconds: float) -> str:
    """Return what stands above the table."""
    return (
        f"{facts['cpu']}, {len(facts['cpus'])} CPUs, Linux {facts['kernel']}, "
        f"load {facts['load']:.2f}\n"
        f"Python {facts['python']}; {facts['peer']}; VOF_POLL_US {facts['vof_poll_us']}\n"
        f"TCP loopback, {IMAGE_MIB} MiB in the page cache ({facts['file_system']}); "
        f"placement {facts['placement']}\n"
        f"{rounds} rounds of {seconds:g} s a side, alternating; medians; "
        "beside each figure the CPU time per request of both processes\n"
    )


LINE = "{:<12} {:>13} {:>9}  {:>13} {:>9}  {:>5} {:>13}  {:>5} {:>5}  {:<6} {}"


def line(result: Result) -> str:
    """Return a row of the table."""
    row = result.row

    def cells(figures: list[Figure]) -> tuple[str, str]:
        value = statistics.median(result.values(figures))
        cpu = statistics.median(figure.cpu_us for figure in figures)
        return row.unit.form.format(value), f"{cpu:.1f} µs"

    low, high = min(result.ratios), max(result.ratios)
    less = "≤" if row.unit.less_is_better else ""
    return LINE.format(
        row.name,
        *cells(result.mine),
        *cells(result.peer),
        f"{statistics.median(result.ratios):.2f}",
        f"({low:.2f}-{high:.2f})",
        f"{less}{row.floor:g}",
        f"{less}{row.aim:g}",
        result.verdict,
        row.title,
    )


def cost_line(cost: Cost) -> str:
    """Return a line of the costs."""
    reached = "" if cost.aim is None else "aim" if cost.value <= cost.aim else "BELOW"
    aim = "" if cost.aim is None else f"≤{cost.aim:g}"
    value = f"{cost.value:,.1f} {cost.unit}"
    return f"{cost.name:<12} {value:>13} {aim:>5}  {reached:<6} {cost.title}"


def as_json(result: Result) -> dict[str, object]:
    """Return a row for ``--json``."""
    row = result.row
    return {
        "name": row.name,
        "title": row.title,
        "compared": row.unit.field,
        "vof": [figure._asdict() for figure in result.mine],
        "peer": [figure._asdict() for figure in result.peer],
        "peer_name": row.peer.name,
        "ratio": {
            "median": statistics.median(result.ratios),
            "min": min(result.ratios),
            "max": max(result.ratios),
        },
        "floor": row.floor,
        "aim": row.aim,
        "verdict": result.verdict,
    }


def arguments(
    prog: str, about: str | None, names: Sequence[str], rounds: int, seconds: float
) -> argparse.Namespace:
    """Read the command line of a comparison, whose rows have these names."""
    parser = argparse.ArgumentParser(prog=prog, description=about)
    parser.add_argument("--rounds", type=int, default=rounds, help="of each row; %(default)s")
    parser.add_argument(
        "--seconds", type=float, default=seconds, help="a side in a round; %(default)s"
    )
    parser.add_argument("--only", action="append", choices=names, help="this row; may be repeated")
    parser.add_argument("--json", action="store_true", help="print one JSON document instead")
    options = parser.parse_args()
    options.only = options.only or names
    return options


def main() -> None:
    """Measure and print."""
    names = [*(row.name for row in ROWS), *COSTS]
    options = arguments("tests/bench/compare", __doc__, names, 5, 3.0)
    with tempfile.TemporaryDirectory(prefix="vof-compare-", dir="/var/tmp") as folder:
        image = Path(folder, "disk.img")
        with image.open("wb") as file:
            for _ in range(IMAGE_MIB):
                file.write(os.urandom(KIB * KIB))
            os.fsync(file.fileno())
        facts = machine(image)
        say = (lambda text: None) if options.json else (lambda text: print(text, flush=True))
        say(head(facts, options.rounds, options.seconds))
        say(
            LINE.format(
                "row",
                "vof",
                "CPU",
                "peer",
                "CPU",
                "ratio",
                "(min-max)",
                "floor",
                "aim",
                "meets",
                "what",
            )
        )
        results = []
        for row in ROWS:
            if row.name in options.only:
                results.append(run(row, image, options.rounds, options.seconds))
                say(line(results[-1]))
        found = []
        for name in COSTS:
            if name in options.only:
                found += (more := COSTS[name](image, options.seconds))
                say("\n".join(map(cost_line, more)))
    if options.json:
        document = {
            "schema": SCHEMA,
            "command": "compare",
            "machine": facts,
            "rounds": options.rounds,
            "seconds": options.seconds,
            "rows": [as_json(result) for result in results],
            "costs": [cost._asdict() for cost in found],
        }
        json.dump(document, sys.stdout, indent=2)
        print()


if __name__ == "__main__":
    main()
