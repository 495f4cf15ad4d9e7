# SPDX-License-Identifier: BSD-3-Clause
"""The fabric virtqueue passes the suite over RDMA, in every dialect."""

from collections.abc import Callable

import pytest

from tests.conformance.fabric import Make, fabric
from vof.conformance import CHECKS, DEVICE_CHECKS, transfer
from vof.protocol.dialects import DIALECTS


@pytest.fixture(params=DIALECTS)
def make(request: pytest.FixtureRequest, address: str, monkeypatch: pytest.MonkeyPatch) -> Make:
    monkeypatch.setattr(transfer, "REQUESTS", 3000)  # no index of ours wraps at 2^16
    return fabric(f"vof+rdma://{address}:0", request.param)


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
async def test_virtqueue(make: Make, check: Callable) -> None:
    await check(make)


@pytest.mark.parametrize("check", DEVICE_CHECKS, ids=lambda check: check.__name__)
async def test_device(make: Make, check: Callable) -> None:
    await check(make)
