# SPDX-License-Identifier: BSD-3-Clause
"""Entropy device: no features, no configuration, one queue (virtio 1.2, 5.4)."""

FEATURES: dict[int, str] = {}
REQUESTQ = 0
