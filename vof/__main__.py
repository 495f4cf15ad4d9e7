# SPDX-License-Identifier: BSD-3-Clause
"""``python -m vof``."""

import sys

from vof.cli import main

sys.exit(main())
