# SPDX-License-Identifier: BSD-3-Clause
"""Target processes that end with the test."""

import pytest

from tests.daemon import Daemon


@pytest.fixture
def start():
    started = []

    def start(*words, **options):
        started.append(Daemon(words, **options))
        return started[-1]

    yield start
    for one in started:
        if one.process.poll() is None:
            one.process.kill()
        one.process.communicate()
