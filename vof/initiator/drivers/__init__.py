# SPDX-License-Identifier: BSD-3-Clause
"""Drivers over any ``VirtioDevice``."""

from vof.initiator.drivers.blk import Blk
from vof.initiator.drivers.console import Console
from vof.initiator.drivers.fs import Fs
from vof.initiator.drivers.net import Net
from vof.initiator.drivers.rng import Rng

__all__ = ["Blk", "Console", "Fs", "Net", "Rng"]
