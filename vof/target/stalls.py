# SPDX-License-Identifier: BSD-3-Clause
"""Peers that begin a message and do not end it, without a timer for each request.

A connection that sleeps inside a message says so; only while there are such does a task look at
them now and then. An idle process is not woken. Looks are counted, not the clock: while this
process was stopped, or at work elsewhere, nobody could be heard.
"""

from collections.abc import Callable, Mapping

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
        self._waited: dict[Connection, tuple[int, float]] = {}
        self._some = trio.Event()

    def note(self, connection: Connection) -> None:
        """A connection sleeps inside a message."""
        stream = self._streams.get(connection)
        if stream is None or not stream.unfinished:
            return
        known = self._waited.get(connection)
        if known is None or known[0] != stream.taken:
            self._waited[connection] = stream.taken, 0.0
            self._some.set()

    async def run(self) -> None:
        """Look for ever; sleeps as long as no message is under way. Suspends."""
        while True:
            await self._some.wait()
            limit = self._seconds()
            period = min(limit / 4, LONGEST_PERIOD_S)
            await trio.sleep(period)
            for connection, (message, waited) in list(self._waited.items()):
                stream = self._streams.get(connection)
                if stream is None or not stream.unfinished or stream.taken != message:
                    del self._waited[connection]
                elif connection.blocked or not connection.asleep:
                    pass  # we may be the one who does not read
                elif waited + period <= limit:
                    self._waited[connection] = message, waited + period
                else:
                    del self._waited[connection]
                    self._cut()
                    connection.fail(
                        RemoteProtocolError(
                            f"a message was begun and not finished in {limit:g} s "
                            "(limits.command_seconds)"
                        )
                    )
            if not self._waited:
                self._some = trio.Event()
