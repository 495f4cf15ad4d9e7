# SPDX-License-Identifier: BSD-3-Clause
"""Tests in ``rdma`` need RDMA: without, ``test_rdma.py`` runs them where there is some."""

import os

ADDRESSES = os.environ.get("VOF_RDMA_ADDRESSES", "").split()

collect_ignore = [] if ADDRESSES else ["rdma"]
