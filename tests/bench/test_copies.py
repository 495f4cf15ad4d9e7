# SPDX-License-Identifier: BSD-3-Clause
"""What counts copies counts all there are. With RDMA, ``tests/bench/rdma`` shows both outcomes."""

import json
import os
import subprocess
import sys

import pytest

from tests.bench.copies import SIZES, Copies, counted, counting, library

SIZE = 100_000
BEGIN = "import os; size = 100_000; data, room = os.urandom(size), bytearray(size); "


@pytest.fixture(scope="module")
def made(require, tmp_path_factory):
    require("cc", "gcc")
    return library(tmp_path_factory.mktemp("copies"))


@pytest.mark.parametrize(
    ("code", "copies", "zeroes"),
    [
        ("pass", 0, 0),
        ("memoryview(room)[:] = data", 1, 0),
        ("room[:] = data", 2, 0),
        ("bytes(memoryview(data))", 1, 0),
        ("b''.join([data, data])", 2, 0),
        ("data + data", 2, 0),
        ("memoryview(room)[1:] = memoryview(room)[:-1]", 0, 1 - 1 / SIZE),
        ("[data[:512] for _ in range(10)]", 5120 / SIZE, 0),
        ("[data[:511] for _ in range(10)]", 0, 0),
        ("os.readv(os.open('/dev/zero', os.O_RDONLY), [room])", 0, 0),
    ],
)
def test_it_counts_what_python_copies(made, tmp_path, code, copies, zeroes):
    counts = []
    for number, line in enumerate((BEGIN, BEGIN + code)):
        count = tmp_path / str(number)
        command = [*counting(made, count), sys.executable, "-S", "-c", line]
        subprocess.run(command, check=True, env={"PATH": os.environ["PATH"], "PYTHONHASHSEED": "0"})
        counts.append(counted(count))
    more = [(b - a) / SIZE for a, b in zip(*counts, strict=True)]
    assert more == pytest.approx([copies, zeroes], abs=0.02)


def test_a_byte_is_moved_once_and_by_the_carrier(made, tmp_path):
    """In requests of 16 KiB and more; what is not in the pool is copied besides."""
    command = [*counting(made, tmp_path / "count"), sys.executable, "-m", "tests.bench.within"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    found = [Copies(**one) for one in json.loads(done.stdout)]
    assert {one.size for one in found if one.pooled} == set(SIZES)
    for one in found:
        more = 0 if one.pooled else 1 if one.mix == "write" else 2
        assert one.initiator == pytest.approx(1 + more, abs=0.01), one
        assert one.zeroed == 0


def test_what_is_wanted():
    row = Copies("url", 16384, "read", True, 0, 0, 0)
    assert row.right
    assert "aim" in str(row)
    assert not row._replace(initiator=0.001).right
    assert not row._replace(target=0.001).right
    assert "BELOW" in str(row._replace(target=1))
    outside = row._replace(pooled=False)
    assert not outside.right  # whatever counts is broken
    assert outside._replace(initiator=1).right
