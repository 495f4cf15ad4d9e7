# SPDX-License-Identifier: BSD-3-Clause
"""The benchmark of rings runs, briefly."""

import subprocess
import sys


def test_a_row_for_each_variant():
    words = [sys.executable, "-m", "tests.bench.rings", "--seconds", "0.01"]
    run = subprocess.run(words, capture_output=True, text=True, check=True)
    rows = [line.split(" | ") for line in run.stdout.splitlines() if line.startswith("| ")]
    assert len(rows) == 1 + 2 * 2 * 2 * 2
    assert {row[0] for row in rows[1:]} == {"| split", "| packed"}
    for row in rows[1:]:
        assert 0 < float(row[4]) < 1000
        assert 0 < float(row[6].rstrip(" |")) < 1000
