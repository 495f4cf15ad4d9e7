# SPDX-License-Identifier: BSD-3-Clause
"""The comparison reads its programs aright. It times nothing."""

import json
import os
import statistics

import pytest

from tests.bench.compare import CPU, ROWS, Result, Row, line, verdict
from tests.bench.sides import (
    BRIDGED,
    DAEMON_NBD,
    NBDKIT,
    Figure,
    Load,
    cpu_seconds,
    fio_figure,
    measure,
    placed,
    vof_figure,
)

READ = Load("randread", 4096, 4)
FIGURE = Figure(total=2000, requests=1000, bytes=4096000, cpu_us=5, p50_us=20, p99_us=40)


def row(name: str) -> Row:
    return next(row for row in ROWS if row.name == name)


def test_fio_is_read():
    times = {"50.000000": 7000, "99.000000": 9000}
    idle = {"iops": 0.0, "bw_bytes": 0, "total_ios": 0, "clat_ns": {}}
    busy = {
        "iops": 500.0,
        "bw_bytes": 2048000,
        "total_ios": 1000,
        "clat_ns": {"percentile": times},
    }
    job = {"error": 0, "usr_cpu": 10.0, "sys_cpu": 30.0, "job_runtime": 2000, "write": busy}
    text = "fio: connected to NBD server\n" + json.dumps({"jobs": [{**job, "read": idle}]})
    assert fio_figure(text, READ._replace(mix="write")) == Figure(
        1000, 500.0, 2048000, 800.0, 7.0, 9.0
    )
    with pytest.raises(SystemExit, match="error 5"):
        fio_figure(json.dumps({"jobs": [{**job, "read": idle, "error": 5}]}), READ)


def test_vof_is_read():
    found = {
        "schema": 1,
        "command": "bench",
        "requests": 30,
        "iops": 10.0,
        "bytes_per_second": 40960.0,
        "cpu_us_per_request": 3.5,
        "latency_us": {"p50": 1.5, "p99": 2.5},
    }
    assert vof_figure(json.dumps(found)) == Figure(30, 10.0, 40960.0, 3.5, 1.5, 2.5)


@pytest.mark.parametrize(
    ("name", "ratio", "reached"),
    [
        ("depth32", 2.0, "aim"),
        ("depth32", 1.3, "floor"),
        ("depth32", 1.29, "BELOW"),
        ("connections", 1.1, "aim"),
        ("connections", 1.3, "floor"),
        ("connections", 1.31, "BELOW"),
    ],
)
def test_a_verdict(name, ratio, reached):
    assert verdict(ratio, row(name)) == reached


def test_ratios_are_of_one_round():
    rates = [(100, 50), (300, 100), (90, 90)]
    result = Result(
        row("depth32"),
        [FIGURE._replace(requests=mine) for mine, _ in rates],
        [FIGURE._replace(requests=peer) for _, peer in rates],
    )
    assert result.ratios == [2.0, 3.0, 1.0]
    assert statistics.median(result.ratios) == 2.0
    assert "2.00   (1.00-3.00)" in line(result)
    assert "100/s" in line(result)


def test_every_row_can_be_reached():
    for each in ROWS:
        assert verdict(each.aim, each) == "aim"
        assert verdict(each.floor, each) == "floor"
        assert (each.aim < each.floor) is (each.unit is CPU)


def test_pinned_is_one_cpu():
    assert placed(["it"], pinned=False) == ["it"]
    command = placed(["it"], pinned=True)
    assert command[0] == "taskset"
    assert int(command[-2]) in os.sched_getaffinity(0)


def test_processor_time_of_a_process():
    before = cpu_seconds(os.getpid())
    sum(range(100_000))
    after = cpu_seconds(os.getpid())
    assert 0 < before < after


@pytest.mark.parametrize("pinned", [False, True])
def test_the_peer_runs(require, tmp_path, pinned):
    for program in ("nbdkit", "fio"):
        require(program, program)
    image = tmp_path / "disk.img"
    image.write_bytes(bytes(1 << 20))
    figure = measure(NBDKIT, READ._replace(pinned=pinned), image, 0.2)
    check(figure)


def check(figure):
    assert figure.bytes == pytest.approx(figure.requests * READ.size, rel=0.01)
    assert figure.cpu_us > 0
    assert 0 < figure.p50_us <= figure.p99_us


@pytest.mark.parametrize("side", [DAEMON_NBD, BRIDGED], ids=lambda side: side.name)
def test_a_daemon_runs_by_itself_and_behind_a_bridge(require, tmp_path, side):
    require("qemu-storage-daemon", "qemu-system-common")
    require("fio", "fio")
    image = tmp_path / "disk.img"
    image.write_bytes(bytes(1 << 20))
    check(measure(side, READ, image, 0.2))
