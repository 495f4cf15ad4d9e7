# SPDX-License-Identifier: BSD-3-Clause
"""The conformance suite over RDMA, in one virtual machine.

The other tests of ``rdma`` take minutes more in emulation, and are run by a command: README.md.
"""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.lab.conftest import ADDRESSES

ROOT = Path(__file__).parents[2]
SECONDS = 600


@pytest.mark.skipif(bool(ADDRESSES), reason="they run here")
@pytest.mark.timeout(SECONDS + 30)
def test_in_the_lab(require):
    require("qemu-system-x86_64", "qemu-system-x86")
    tests = ["-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/lab/rdma/test_conformance.py"]
    done = subprocess.run(
        [sys.executable, "-m", "tests.lab", "--seconds", str(SECONDS), sys.executable, *tests],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=SECONDS + 20,
    )
    assert done.returncode == 0, done.stdout
    print(done.stdout)
