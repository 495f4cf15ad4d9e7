# SPDX-License-Identifier: BSD-3-Clause
"""Fewer requests, where another variant of the same medium passes with all of them."""

from functools import partial

from vof.conformance.transfer import WILD, many_requests

BRIEF = {many_requests: partial(many_requests, requests=2 * WILD + 1000)}


def brief(check):
    """Return what to run in place of a check that takes long; of any other, itself."""
    return BRIEF.get(check, check)
