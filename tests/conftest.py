# SPDX-License-Identifier: BSD-3-Clause
"""What all tests share: the profile of hypothesis, and parts from outside."""

import gc
import os
import shutil
import sys

import hypothesis
import pytest

REQUIRE_ALL = bool(os.environ.get("VOF_REQUIRE_ALL"))

hypothesis.settings.register_profile(
    "vof", deadline=None, derandomize=bool(os.environ.get("CI")), print_blob=True
)
hypothesis.settings.load_profile("vof")

# Tests start vof hundreds of times: it is compiled once, and so are the tests themselves.
sys.dont_write_bytecode = False
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)


@pytest.hookimpl(wrapper=True)
def pytest_collection():
    """Collect without searches for garbage: what comes of it stays."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.enable()


@pytest.fixture(scope="module", autouse=True)
def freeze():
    """What is there when a module begins stays: a search for garbage does not walk it again."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def require():
    """Return ``require(program, package)``: the program's path, or a skip with its reason."""

    def require(program: str, package: str) -> str:
        path = shutil.which(program)
        if path is None:
            pytest.skip(f"{program} is missing (Debian package {package})")
        return path

    return require


def fail_skipped(report: pytest.TestReport | pytest.CollectReport) -> None:
    """Where everything is required, a skip is a failure, whoever asked for it."""
    if REQUIRE_ALL and report.skipped and not hasattr(report, "wasxfail"):
        report.outcome = "failed"
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else report.longrepr
        report.longrepr = f"{report.nodeid}: {reason}; nothing may be skipped here"


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport():
    report = yield
    fail_skipped(report)
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report():
    report = yield
    fail_skipped(report)
    return report
