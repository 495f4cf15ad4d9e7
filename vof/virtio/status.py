# SPDX-License-Identifier: BSD-3-Clause
"""The device status byte: one table of legal driver writes (virtio 1.2, 2.1 and 3.1.1).

Two rules of this file: every transition is in ``TRANSITIONS``, and nothing here knows which side
we play. A driver sets bits one step after another and clears them only by reset. The device sets
DEVICE_NEEDS_RESET by itself; the driver then can only give up or reset.
"""

from enum import Enum

from vof.errors import LocalProtocolError
from vof.virtio.constants import (
    VIRTIO_CONFIG_S_ACKNOWLEDGE,
    VIRTIO_CONFIG_S_DRIVER,
    VIRTIO_CONFIG_S_DRIVER_OK,
    VIRTIO_CONFIG_S_FAILED,
    VIRTIO_CONFIG_S_FEATURES_OK,
    VIRTIO_CONFIG_S_NEEDS_RESET,
)


class Phase(Enum):
    """Where initialisation stands; the value is the status byte without DEVICE_NEEDS_RESET."""

    RESET = 0
    ACKNOWLEDGE = VIRTIO_CONFIG_S_ACKNOWLEDGE
    DRIVER = ACKNOWLEDGE | VIRTIO_CONFIG_S_DRIVER
    FEATURES_OK = DRIVER | VIRTIO_CONFIG_S_FEATURES_OK
    DRIVER_OK = FEATURES_OK | VIRTIO_CONFIG_S_DRIVER_OK
    FAILED = VIRTIO_CONFIG_S_FAILED


TRANSITIONS: dict[Phase, frozenset[Phase]] = {
    Phase.RESET: frozenset({Phase.RESET, Phase.ACKNOWLEDGE, Phase.FAILED}),
    Phase.ACKNOWLEDGE: frozenset({Phase.RESET, Phase.ACKNOWLEDGE, Phase.DRIVER, Phase.FAILED}),
    Phase.DRIVER: frozenset({Phase.RESET, Phase.DRIVER, Phase.FEATURES_OK, Phase.FAILED}),
    Phase.FEATURES_OK: frozenset({Phase.RESET, Phase.FEATURES_OK, Phase.DRIVER_OK, Phase.FAILED}),
    Phase.DRIVER_OK: frozenset({Phase.RESET, Phase.DRIVER_OK, Phase.FAILED}),
    Phase.FAILED: frozenset({Phase.RESET, Phase.FAILED}),
}

_PHASES = {phase.value: phase for phase in Phase}


def phase_of(status: int) -> Phase | None:
    """Return the phase that a status byte shows, or None for a byte that no phase has."""
    if status & VIRTIO_CONFIG_S_FAILED:
        return Phase.FAILED
    return _PHASES.get(status & ~VIRTIO_CONFIG_S_NEEDS_RESET)


def next_status(current: int, written: int) -> int:
    """Return the status after the driver wrote ``written``.

    DEVICE_NEEDS_RESET in ``written`` is ignored (it is the device's bit) and kept from ``current``
    until a reset.

    Raises:
        LocalProtocolError: the write is not legal now; it changes nothing.
    """
    old, new = phase_of(current), phase_of(written & 0xFF)
    half_reset = new is Phase.RESET and written != 0
    if old is None or new is None or written > 0xFF or new not in TRANSITIONS[old] or half_reset:
        raise LocalProtocolError(
            f"status 0x{written:02x} may not be written over 0x{current:02x}: "
            "set ACKNOWLEDGE, DRIVER, FEATURES_OK and DRIVER_OK in this order, or 0 to reset"
        )
    if new is Phase.RESET:
        return 0
    kept = current & VIRTIO_CONFIG_S_NEEDS_RESET
    if new is Phase.FAILED:
        return current | VIRTIO_CONFIG_S_FAILED
    if kept and new is not old:
        raise LocalProtocolError("the device needs a reset: write status 0 first")
    return int(new.value) | kept
