# SPDX-License-Identifier: BSD-3-Clause
"""A transfer that is larger than a request."""

from collections.abc import Awaitable, Callable, Iterator

import trio

from vof.errors import VofError

PIECES = 8
"""Requests that one call has under way at a time."""


async def in_pieces(
    length: int,
    size: int,
    piece: Callable[[int, int], Awaitable[None]],
    failures: tuple[type[Exception], ...] = (VofError,),
) -> None:
    """Do a transfer in pieces, several at a time. Suspends.

    After an error no piece is begun any more; it is raised when those under way have ended.

    Args:
        length: bytes of all.
        size: bytes of the largest piece.
        piece: ``await piece(start, stop)`` does one.
        failures: what a piece may raise.
    """
    if length <= size:
        if length:
            await piece(0, length)
        else:
            await trio.lowlevel.checkpoint()
        return
    places: Iterator[int] = iter(range(0, length, size))
    errors: list[Exception] = []

    async def work() -> None:
        for start in places:
            try:
                await piece(start, min(start + size, length))
            except failures as error:
                errors.append(error)
            if errors:
                return

    async with trio.open_nursery() as nursery:
        for _ in range(PIECES):
            nursery.start_soon(work)
    if errors:
        raise errors[0]
