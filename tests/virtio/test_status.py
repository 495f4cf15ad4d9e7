# SPDX-License-Identifier: BSD-3-Clause
"""The status byte: every status times every written byte, and what virtio asks for in words."""

import pytest

from vof.errors import LocalProtocolError
from vof.virtio.status import TRANSITIONS, Phase, next_status, phase_of

ACKNOWLEDGE, DRIVER, DRIVER_OK, FEATURES_OK, NEEDS_RESET, FAILED = 1, 2, 4, 8, 0x40, 0x80
STEPS = [0, ACKNOWLEDGE, ACKNOWLEDGE | DRIVER, 0x0B, 0x0F]
LIVE = {*STEPS, *(step | NEEDS_RESET for step in STEPS)}


def model(current: int, written: int) -> int | None:
    """Say the rules another way: return the status afterwards, or None for refused."""
    if written > 0xFF:
        return None
    asked = written & ~NEEDS_RESET
    if asked == 0:
        return None if written else 0
    if current & FAILED:
        return current if asked & FAILED else None
    if current & ~NEEDS_RESET not in STEPS:
        return None
    if asked & FAILED:
        return current | FAILED
    if asked not in STEPS:
        return None
    steps = STEPS.index(asked) - STEPS.index(current & ~NEEDS_RESET)
    if steps == 0:
        return current
    if current & NEEDS_RESET:
        return None
    return asked if steps == 1 else None


def reachable() -> set[int]:
    """Return every status that a device can have."""
    found, frontier = {0}, [0]
    while frontier:
        current = frontier.pop()
        following = {current | NEEDS_RESET}
        for written in range(0x100):
            if (status := model(current, written)) is not None:
                following.add(status)
        frontier.extend(following - found)
        found |= following
    return found


@pytest.mark.parametrize("current", sorted(reachable()), ids=hex)
def test_every_write_over(current):
    for written in [*range(0x104), 0x10F, 1 << 31]:
        expected = model(current, written)
        if expected is None:
            with pytest.raises(LocalProtocolError):
                next_status(current, written)
        else:
            assert next_status(current, written) == expected, hex(written)


def test_reachable_statuses_are_phases():
    assert len(reachable()) == 20
    assert all(phase_of(status) is not None for status in reachable())


@pytest.mark.parametrize("current", sorted(set(range(0x80)) - LIVE), ids=hex)
def test_a_status_that_no_phase_has_takes_no_write(current):
    assert phase_of(current) is None
    for written in STEPS:
        with pytest.raises(LocalProtocolError):
            next_status(current, written)


def test_the_way_up():
    status = 0
    for step in STEPS[1:]:
        status = next_status(status, step)
        assert status == step
    assert next_status(status, 0) == 0


def test_failed_ends_in_reset_alone():
    status = next_status(0x0F, FAILED)
    assert status == 0x8F
    assert phase_of(status) is Phase.FAILED
    with pytest.raises(LocalProtocolError):
        next_status(status, 0x0F)
    assert next_status(status, 0) == 0


def test_needs_reset_is_the_devices_bit():
    assert next_status(0x0B, 0x0F | NEEDS_RESET) == 0x0F
    assert next_status(0x0F | NEEDS_RESET, 0x0F) == 0x0F | NEEDS_RESET
    with pytest.raises(LocalProtocolError, match="write status 0 first"):
        next_status(0x0B | NEEDS_RESET, 0x0F)


def test_the_message_names_both():
    with pytest.raises(LocalProtocolError, match=r"0x0f may not be written over 0x01"):
        next_status(0x01, 0x0F)


def test_the_table_is_about_phases():
    assert set(TRANSITIONS) == set(Phase)
    assert all(Phase.RESET in row and phase in row for phase, row in TRANSITIONS.items())
