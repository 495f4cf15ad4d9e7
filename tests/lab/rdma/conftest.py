# SPDX-License-Identifier: BSD-3-Clause
"""What tests over RDMA share."""

import pytest

from tests.lab.conftest import ADDRESSES


@pytest.fixture(scope="session")
def address() -> str:
    """An IPv4 address with an RDMA device."""
    return ADDRESSES[0]
