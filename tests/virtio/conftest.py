# SPDX-License-Identifier: BSD-3-Clause
"""Rings of every kind."""

import pytest

from tests.virtio.rings import KINDS


@pytest.fixture(params=KINDS, ids=lambda kind: kind.name)
def kind(request):
    return request.param


@pytest.fixture(params=[False, True], ids=["direct", "indirect"])
def indirect(request):
    return request.param


@pytest.fixture(params=[False, True], ids=["flags", "event"])
def event_idx(request):
    return request.param
