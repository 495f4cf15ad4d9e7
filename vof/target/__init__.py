# SPDX-License-Identifier: BSD-3-Clause
"""The target: presents device models to initiators over the fabric."""

from vof.target.server import Export, Limits, Server

__all__ = ["Export", "Limits", "Server"]
