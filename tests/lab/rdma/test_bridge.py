# SPDX-License-Identifier: BSD-3-Clause
"""A disk of another program behind a target: the adapter moves payload into the rings' memory."""

from pathlib import Path

import pytest

from tests.conformance.fabric import fabric
from tests.e2e.test_bridge import backend
from tests.e2e.test_keyed_bridge import payload_lands
from vof.protocol.dialects import DIALECTS
from vof.transport.verbs_pair import Endpoint


@pytest.fixture
def moved(monkeypatch: pytest.MonkeyPatch) -> list[tuple]:
    """Transfers that this process posted: which way, address on the side that posted, size."""
    seen = []
    post = Endpoint.post

    def spy(self, posts) -> None:
        seen.extend(one[:3] for one in posts if type(one) is not bytes)
        post(self, posts)

    monkeypatch.setattr(Endpoint, "post", spy)
    return seen


@pytest.mark.parametrize("dialect", DIALECTS)
async def test_payload_lands_where_the_device_reads_it(
    require, tmp_path: Path, address: str, flat, moved, dialect: str
):
    with backend(require, tmp_path) as (path, _):
        await payload_lands(path, fabric(f"vof+rdma://{address}:0", dialect), moved)
