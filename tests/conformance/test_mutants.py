# SPDX-License-Identifier: BSD-3-Clause
"""Every check can fail, and every broken rule of the list is seen by the checks it names."""

import pytest

from tests.conformance.mutants import MUTANTS
from vof.conformance import CHECKS, DEVICE_CHECKS, Failed
from vof.errors import VofError

CHECKS_BY_NAME = {check.__name__: check for check in CHECKS + DEVICE_CHECKS}
CASES = [(mutant, check) for mutant, (_, checks) in MUTANTS.items() for check in checks]


async def verdict(check, make):
    """Return what the check raises, out of the groups around it, or None."""
    try:
        await check(make)
    except Exception as error:
        while isinstance(error, ExceptionGroup):
            error = error.exceptions[0]
        return error


@pytest.mark.parametrize(("mutant", "check"), CASES, ids=lambda case: case)
async def test_mutant_is_caught(mutant, check, autojump_clock):
    make, _ = MUTANTS[mutant]
    assert isinstance(await verdict(CHECKS_BY_NAME[check], make), (Failed, VofError))


def test_every_check_catches_a_mutant():
    assert {check for _, check in CASES} == set(CHECKS_BY_NAME)
    assert len(CHECKS_BY_NAME) == len(CHECKS) + len(DEVICE_CHECKS)
