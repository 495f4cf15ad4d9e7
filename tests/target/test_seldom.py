# SPDX-License-Identifier: BSD-3-Clause
"""What is said once a second."""

import logging

from vof.target.seldom import Seldom


def test_each_kind_once_a_second_with_what_was_not_said(caplog):
    now = 100.0
    seldom = Seldom(logging.getLogger("test"), clock=lambda: now)
    for _ in range(5):
        seldom.error("a", "%s failed", "it")
    seldom.error("b", "other")
    now = 100.9
    seldom.error("a", "%s failed", "it")
    now = 101.0
    for _ in range(2):
        seldom.error("a", "%s failed", "it")
    now = 103.0
    seldom.error("a", "%s failed", "it", trace=ValueError("why"))
    now = 105.0
    seldom.error("a", "%s failed", "it")
    assert [record.getMessage() for record in caplog.records] == [
        "it failed",
        "other",
        "it failed (and 5 times since this was last said)",
        "it failed (and 1 times since this was last said)",
        "it failed",
    ]
    assert "ValueError: why" in caplog.text
