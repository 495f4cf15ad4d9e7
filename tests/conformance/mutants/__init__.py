# SPDX-License-Identifier: BSD-3-Clause
"""Wrong implementations, by what they are wrong in."""

from tests.conformance.mutants import device, lifecycle, notification, transfer
from tests.conformance.mutants.table import MUTANTS

__all__ = ["MUTANTS", "device", "lifecycle", "notification", "transfer"]
