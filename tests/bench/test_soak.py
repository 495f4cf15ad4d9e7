# SPDX-License-Identifier: BSD-3-Clause
"""A target keeps nothing of who is gone; ``tests.bench.soak`` does the same for longer."""

import pytest

from tests.bench.soak import GROWTH_KIB, State, cycles, grown, soaked

WARM = 1000
CYCLES = 10_000
WORKERS = 3


@pytest.mark.slow
def test_connecting_again_and_again():
    with soaked() as target:
        cycles(target.address, WARM, WORKERS)
        first = target.state()
        cycles(target.address, CYCLES - WARM, WORKERS)
        last = target.state()
    assert not grown(first, last)


def test_growth_is_named():
    first = State(10, 6, 28_000)
    assert grown(first, State(9, 6, 28_000 + GROWTH_KIB)) == []
    assert grown(first, State(11, 6, 28_000)) == ["descriptors: 10 became 11"]
    assert len(grown(first, State(11, 7, 29_000 + GROWTH_KIB))) == 3
