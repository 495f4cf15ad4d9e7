# SPDX-License-Identifier: BSD-3-Clause
"""What tests over RDMA share."""

import re
import subprocess
import time

import pytest

from tests.lab.conftest import ADDRESSES
from tests.lab.rdma.forked import Process, program


@pytest.fixture(scope="session")
def address() -> str:
    """An IPv4 address with an RDMA device."""
    return ADDRESSES[0]


def resources() -> dict[str, int]:
    """Return how many of each thing the RDMA devices of this machine have given out."""
    shown = subprocess.run(["rdma", "resource", "show"], check=True, capture_output=True, text=True)
    found: dict[str, int] = {}
    for name, count in re.findall(r"(\w+) (\d+)", shown.stdout.replace(":", "")):
        if name in {"pd", "cq", "qp", "cm_id", "mr"}:
            found[name] = found.get(name, 0) + int(count)
    return found


@pytest.fixture
def flat():
    """All that a test took of the devices is given back at its end, or soon after."""
    before = resources()
    yield before
    for _ in range(100):
        if (now := resources()) == before:
            return
        time.sleep(0.05)  # the kernel tells nobody
    assert now == before


@pytest.fixture
def run():
    """Return ``run(function, *args)``: a ``Process``, which is ended at the end of the test."""
    started = []

    def run(function, *args) -> Process:
        started.append(Process(function, *args))
        return started[-1]

    yield run
    for one in started:
        one.close()


@pytest.fixture
def start(address: str, run):
    """Return ``start(*words)``: a target process that listens on RDMA, and its first URL."""

    def start(*words: str, host: str = address) -> tuple[Process, str]:
        listen = ("--listen", f"vof+rdma://{host}:0", "--allow", "*@any", "--admin", "none")
        target = run(program, "target", *listen, *words)
        return target, target.line()

    return start
