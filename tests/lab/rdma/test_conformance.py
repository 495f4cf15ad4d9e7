# SPDX-License-Identifier: BSD-3-Clause
"""The fabric virtqueue passes the suite over RDMA, in every dialect."""

from collections.abc import Callable
from functools import partial

import pytest

from tests.conformance.fabric import Make, fabric
from vof.conformance import CHECKS, DEVICE_CHECKS, rules
from vof.conformance.transfer import many_requests
from vof.protocol.dialects import DIALECTS

FEWER = {many_requests: partial(many_requests, requests=3000)}
"""No index of ours wraps at 2^16."""
LIMIT = 60
"""Seconds after which a check calls something lost: emulation on a busy machine is slow."""


@pytest.fixture(params=DIALECTS)
def make(request: pytest.FixtureRequest, address: str, monkeypatch: pytest.MonkeyPatch) -> Make:
    monkeypatch.setattr(rules, "LIMIT", LIMIT)
    return fabric(f"vof+rdma://{address}:0", request.param)


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
async def test_virtqueue(make: Make, check: Callable) -> None:
    await FEWER.get(check, check)(make)


@pytest.mark.parametrize("check", DEVICE_CHECKS, ids=lambda check: check.__name__)
async def test_device(make: Make, check: Callable) -> None:
    await check(make)
