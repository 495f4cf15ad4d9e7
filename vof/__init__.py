# SPDX-License-Identifier: BSD-3-Clause
"""Virtio over Fabrics: virtqueues as command capsules, and rings, behind one ops table.

``connect(url)`` gives a remote device; everything else is in the sub-packages.
"""

from typing import TYPE_CHECKING

__version__ = "0.1.0"
__all__ = ["__version__", "connect"]

if TYPE_CHECKING:
    from vof.initiator.connect import connect


def __getattr__(name: str) -> object:
    """Load ``connect`` on first use, so that ``import vof`` stays cheap."""
    if name == "connect":
        from vof.initiator.connect import connect

        return connect
    raise AttributeError(f"module 'vof' has no attribute {name!r}")
