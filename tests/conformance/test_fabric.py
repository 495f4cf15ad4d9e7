# SPDX-License-Identifier: BSD-3-Clause
"""The fabric virtqueue passes the suite on every stream transport, in every dialect."""

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conformance.fabric import Make, fabric
from vof.conformance import CHECKS, DEVICE_CHECKS
from vof.protocol.dialects import DIALECTS


@pytest.fixture(params=DIALECTS)
def dialect(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(params=["loopback", "unix", "tcp"])
def make(request: pytest.FixtureRequest, tmp_path: Path, dialect: str) -> Make:
    url = {
        "loopback": "vof+loopback://conformance",
        "unix": f"vof+unix://{tmp_path}/s",
        "tcp": "vof+tcp://127.0.0.1:0",
    }[request.param]
    return fabric(url, dialect)


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
async def test_virtqueue(make: Make, check: Callable) -> None:
    await check(make)


@pytest.mark.parametrize("check", DEVICE_CHECKS, ids=lambda check: check.__name__)
async def test_device(make: Make, check: Callable) -> None:
    await check(make)
