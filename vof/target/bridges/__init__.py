# SPDX-License-Identifier: BSD-3-Clause
"""Local devices that are somebody else's, as ``VirtioDevice``: what a bridge stands on."""
