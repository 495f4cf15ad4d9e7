# SPDX-License-Identifier: BSD-3-Clause
"""One conformance suite for every medium of virtqueues.

It is written against the interfaces of ``vof.virtio`` alone and knows no implementation. Whoever
implements ``VirtioDevice`` and ``Virtqueue`` supplies one function::

    @asynccontextmanager
    async def make(model: DeviceModel) -> AsyncIterator[VirtioDevice]:
        async with present(model) as address, connect(address) as device:
            yield device

    @pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
    async def test_virtqueue(check):
        await check(make)

Each check is an ``async`` function of ``make`` and makes its own device. When a rule does not hold
it raises ``Failed``, or lets through what the implementation raised where it must not; a nursery in
``make`` may wrap either in an exception group. Nothing waits without a limit.

A model is checked the other way round: ``check_model(make_model, make)``.
"""

from collections.abc import Awaitable, Callable
from typing import TypeAlias

from vof.conformance import device, lifecycle, notification, transfer
from vof.conformance.model import check_model
from vof.conformance.rig import Make
from vof.conformance.rules import Failed
from vof.conformance.script import Lane, ScriptModel

__all__ = [
    "CHECKS",
    "DEVICE_CHECKS",
    "Check",
    "Failed",
    "Lane",
    "Make",
    "ScriptModel",
    "check_device",
    "check_model",
    "check_virtqueue",
]

Check: TypeAlias = Callable[[Make], Awaitable[None]]

CHECKS: tuple[Check, ...] = transfer.CHECKS + notification.CHECKS + lifecycle.CHECKS
"""What a ``Virtqueue`` must pass."""

DEVICE_CHECKS: tuple[Check, ...] = device.CHECKS
"""What a ``VirtioDevice`` must pass."""


async def check_virtqueue(make: Make) -> None:
    """Run every check of ``CHECKS``.

    Raises:
        Failed: a rule does not hold (also inside an exception group).
    """
    for check in CHECKS:
        await check(make)


async def check_device(make: Make) -> None:
    """Run every check of ``DEVICE_CHECKS``.

    Raises:
        Failed: a rule does not hold (also inside an exception group).
    """
    for check in DEVICE_CHECKS:
        await check(make)
