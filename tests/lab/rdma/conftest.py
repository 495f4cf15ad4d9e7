# SPDX-License-Identifier: BSD-3-Clause
"""What tests over RDMA share."""

import re
import subprocess

import pytest

from tests.daemon import Daemon
from tests.lab.conftest import ADDRESSES


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
    """All that a test took of the devices is given back at its end."""
    before = resources()
    yield before
    assert resources() == before


@pytest.fixture
def start(address: str):
    """Return ``start(*words)``: a target process that listens on RDMA, and its first URL."""
    started = []

    def start(*words: str, host: str = address) -> tuple[Daemon, str]:
        listen = ("--listen", f"vof+rdma://{host}:0", "--allow", "*@any")
        started.append(Daemon((*listen, *words)))
        return started[-1], started[-1].line()

    yield start
    for one in started:
        if one.process.poll() is None:
            one.process.kill()
        one.process.communicate()
