# SPDX-License-Identifier: BSD-3-Clause
"""How a check says what it demands. Not ``assert``: ``python -O`` must not make a suite pass."""

from collections.abc import Iterator
from contextlib import contextmanager

import trio

LIMIT = 5.0
"""Seconds that anything may take before a check calls it lost. Set it where all is slow."""


class Failed(AssertionError):
    """The implementation broke a rule of its interface."""


class Refusal:
    """What ``refuses`` caught.

    Attributes:
        error: the exception, once the block has ended.
    """

    error: Exception


def expect(condition: bool, rule: str) -> None:
    """Demand ``condition``.

    Raises:
        Failed: it does not hold.
    """
    if not condition:
        raise Failed(rule)


def same(actual: object, wanted: object, rule: str) -> None:
    """Demand that two values are equal.

    Raises:
        Failed: they are not.
    """
    if actual != wanted:
        raise Failed(f"{rule}: {_short(actual)} instead of {_short(wanted)}")


@contextmanager
def refuses(rule: str, *errors: type[Exception]) -> Iterator[Refusal]:
    """Demand that the block raises one of ``errors``; any other exception passes through.

    Raises:
        Failed: it raised nothing.
    """
    refusal = Refusal()
    try:
        yield refusal
    except errors as error:
        refusal.error = error
    else:
        raise Failed(f"{rule}: {' or '.join(error.__name__ for error in errors)} was not raised")


@contextmanager
def soon(what: str, times: float = 1) -> Iterator[None]:
    """Demand that the block, which may suspend, ends within ``times`` the LIMIT.

    Raises:
        Failed: it did not; it was cancelled.
    """
    limit = times * LIMIT
    with trio.move_on_after(limit) as scope:
        yield
    if scope.cancelled_caught:
        raise Failed(f"{what}: not within {limit:g} s")


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
