# SPDX-License-Identifier: BSD-3-Clause
"""Backend processes that end with the test."""

import pytest

from tests.target.bridges.rig import Process


@pytest.fixture
def backends(tmp_path):
    """Start a backend; ``ready`` when the test says so."""
    started = []

    def backends(*words, **options):
        started.append(Process(tmp_path, *words, **options))
        return started[-1]

    yield backends
    for one in started:
        one.end()
