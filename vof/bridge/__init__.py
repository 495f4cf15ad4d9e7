# SPDX-License-Identifier: BSD-3-Clause
"""From any device that somebody drives to a model that a server presents."""

from vof.bridge.model import Bridge
from vof.bridge.relay import Relay

__all__ = ["Bridge", "Relay"]
