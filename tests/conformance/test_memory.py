# SPDX-License-Identifier: BSD-3-Clause
"""The suite holds for a correct implementation, whatever a chain costs and however late it is."""

import pytest

from tests.conformance.brief import brief
from tests.conformance.memory_device import maker
from vof import conformance

MAKES = {
    "plain": maker(),
    "ring-like": maker(count_buffers=True),
    "late": maker(late=3),
    "late-ring-like": maker(late=2, count_buffers=True),
    "fixed-size": maker(can_resize=False),
}


@pytest.mark.parametrize("make", MAKES.values(), ids=MAKES)
@pytest.mark.parametrize(
    "check", conformance.CHECKS + conformance.DEVICE_CHECKS, ids=lambda check: check.__name__
)
async def test_reference_passes(check, make, autojump_clock):
    await (check if make is MAKES["plain"] else brief(check))(make)
