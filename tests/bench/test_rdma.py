# SPDX-License-Identifier: BSD-3-Clause
"""The comparison over RDMA can say what it is to say. A command runs it where there is RDMA."""

import subprocess
from pathlib import Path
from types import SimpleNamespace

import pytest

from tests.bench.compare import verdict
from tests.bench.floor import WC_RECV, received
from tests.bench.rdma import ROWS


def test_every_row_can_be_reached_and_missed():
    assert len({row.name for row in ROWS}) == len(ROWS)
    for row in ROWS:
        assert verdict(row.aim, row) == "aim"
        worse = 1.01 if row.unit.less_is_better else 0.99
        assert verdict(row.aim * worse, row) != "aim"


def completion(**fields: int) -> SimpleNamespace:
    return SimpleNamespace(**{"status": 0, "opcode": 0, "byte_len": 0, **fields})


def test_a_message_is_found_among_completions():
    came = completion(opcode=WC_RECV, byte_len=80)
    assert received([completion(), came, completion()]) == [80]
    assert received([completion()]) == []
    with pytest.raises(SystemExit, match="status 5"):
        received([completion(status=5)])


def test_it_says_what_it_can_do_without_rdma():
    done = subprocess.run(
        ["tests/bench/rdma", "--help"],
        cwd=Path(__file__).parents[2],
        env={"VOF_RDMA_ADDRESSES": "none", "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert "--only" in done.stdout
