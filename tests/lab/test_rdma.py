# SPDX-License-Identifier: BSD-3-Clause
"""All tests of ``rdma``, in one virtual machine. Minutes in emulation."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.lab.conftest import ADDRESSES

ROOT = Path(__file__).parents[2]
SECONDS = 1500
"""Five times what it takes where nothing else runs; and each test, what it may."""
EACH_S = 300


@pytest.mark.skipif(bool(ADDRESSES), reason="they run here")
@pytest.mark.timeout(SECONDS + 60)
def test_in_the_lab(require):
    require("qemu-system-x86_64", "qemu-system-x86")
    tests = ["-m", "pytest", "-q", "--tb", "short", "--timeout", str(EACH_S), "--durations", "10"]
    tests += ["-p", "no:cacheprovider", "tests/lab/rdma"]
    done = subprocess.run(
        [sys.executable, "-m", "tests.lab", "--seconds", str(SECONDS), sys.executable, *tests],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=SECONDS + 50,
    )
    assert done.returncode == 0, f"exit status {done.returncode}\n{done.stdout}"
    print(done.stdout)
