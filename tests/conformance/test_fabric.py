# SPDX-License-Identifier: BSD-3-Clause
"""The fabric virtqueue passes the suite on every carrier, in every dialect."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.conformance.brief import brief
from tests.conformance.fabric import Make, fabric
from vof.conformance import CHECKS, DEVICE_CHECKS
from vof.protocol.dialects import DIALECTS
from vof.transport.loopback_pairs import faults


@pytest.fixture(params=DIALECTS)
def dialect(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(params=["loopback", "keyed", "unix", "tcp"])
def carrier(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def make(carrier: str, tmp_path: Path, dialect: str) -> Make:
    url = {
        "loopback": "vof+loopback://conformance",
        "keyed": "vof+loopback+keyed://conformance",
        "unix": f"vof+unix://{tmp_path}/s",
        "tcp": "vof+tcp://127.0.0.1:0",
    }[carrier]
    return fabric(url, dialect)


@pytest.fixture(autouse=True)
def no_fault() -> Iterator[None]:
    """No adapter would have had to refuse anything."""
    faults.clear()
    yield
    assert not faults


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
async def test_virtqueue(make: Make, carrier: str, check: Callable) -> None:
    # Sockets carry the same bytes as loopback: what counts requests counts the same.
    await (brief(check) if carrier in {"unix", "tcp"} else check)(make)


@pytest.mark.parametrize("check", DEVICE_CHECKS, ids=lambda check: check.__name__)
async def test_device(make: Make, check: Callable) -> None:
    await check(make)
