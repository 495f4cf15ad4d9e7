# SPDX-License-Identifier: BSD-3-Clause
"""Rings in shared memory pass the suite, as the fabric queue does."""

import pytest

from tests.conformance.brief import brief
from tests.conformance.memory_device import maker
from tests.conformance.vring_device import Packed, Split, VringDevice
from vof.conformance import CHECKS

WRAP = 0xFFFE
"""A base from which the first requests of any check go about the wrap of 16-bit indexes."""
VARIANTS = {
    f"{kind.__name__.lower()}{'-indirect' * indirect}{'-event' * event}{'-late' * bool(late)}": (
        {"kind": kind, "indirect": indirect, "event_idx": event, "late": late}
        | {"base": WRAP * (indirect or bool(late))}
    )
    for kind in (Split, Packed)
    for indirect in (False, True)
    for event in (False, True)
    for late in (0, 3)
}


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
async def test_virtqueue(variant, check):
    options = VARIANTS[variant]
    await (brief(check) if options["base"] else check)(maker(VringDevice, **options))
