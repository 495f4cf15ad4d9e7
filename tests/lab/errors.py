# SPDX-License-Identifier: BSD-3-Clause
"""What keeps the lab from working, in a sentence for a person."""


class LabError(Exception):
    """The lab cannot run here; the message says why and what to do."""
