# SPDX-License-Identifier: BSD-3-Clause
"""Peers that begin a message and do not end it, without a timer for each request.

A connection that sleeps inside a message says so; only while there are such does a task look at
them now and then. An idle process is not woken.
"""

from collections.abc import Callable, Mapping
from time import monotonic

import trio

from vof.errors import RemoteProtocolError
from vof.protocol.target_stream import TargetStream
from vof.transport import Connection

LONGEST_PERIOD_S = 1.0


class Stalls:
    """Ends connections whose peer takes too long to finish a message."""

    def __init__(
        self,
        streams: Mapping[Connection, TargetStream | None],
        seconds: Callable[[], float],
        cut: Callable[[], None],
    ) -> None:
        """Begin.

        Args:
            streams: on each connection.
            seconds: how long a message may take.
            cut: called for each connection that is ended.
        """
        self._streams = streams
        self._seconds = seconds
        self._cut = cut
        self._since: dict[Connection, tuple[int, float]] = {}
        self._some = trio.Event()

    def note(self, connection: Connection) -> None:
        """A connection sleeps inside a message."""
        stream = self._streams.get(connection)
        if stream is None or not stream.unfinished:
            return
        known = self._since.get(connection)
        if known is None or known[0] != stream.taken:
            self._since[connection] = stream.taken, monotonic()
            self._some.set()

    async def run(self) -> None:
        """Look for ever; sleeps as long as no message is under way. Suspends."""
        while True:
            await self._some.wait()
            await trio.sleep(min(self._seconds() / 4, LONGEST_PERIOD_S))
            for connection, (message, since) in list(self._since.items()):
                stream = self._streams.get(connection)
                if stream is None or not stream.unfinished or stream.taken != message:
                    del self._since[connection]
                elif connection.blocked:  # we may be the one who does not read
                    self._since[connection] = message, monotonic()
                elif monotonic() - since > self._seconds():
                    del self._since[connection]
                    self._cut()
                    connection.fail(
                        RemoteProtocolError(
                            f"a message was begun and not finished in {self._seconds():g} s "
                            "(limits.command_seconds)"
                        )
                    )
            if not self._since:
                self._some = trio.Event()
