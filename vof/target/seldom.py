# SPDX-License-Identifier: BSD-3-Clause
"""What may go wrong a thousand times a second, said once a second."""

import logging
import threading
import time
from collections.abc import Callable


class Seldom:
    """Logs errors, each kind once in a while, and then also how often it was not said.

    Remembers each kind for good, so there must not be many. From any thread.
    """

    def __init__(
        self,
        log: logging.Logger,
        seconds: float = 1.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._log = log
        self._seconds = seconds
        self._clock = clock
        self._lock = threading.Lock()
        self._kinds: dict[object, tuple[float, int]] = {}

    def error(
        self, kind: object, message: str, *args: object, trace: BaseException | None = None
    ) -> None:
        """Log an error, or count it.

        Args:
            kind: what counts as the same; hashable.
            message: with its arguments, as for a logger.
            args: its arguments.
            trace: the exception whose traceback follows.
        """
        with self._lock:
            now = self._clock()
            said, unsaid = self._kinds.get(kind, (now - self._seconds, 0))
            if now - said < self._seconds:
                self._kinds[kind] = said, unsaid + 1
                return
            self._kinds[kind] = now, 0
        more = f" (and {unsaid} times since this was last said)" if unsaid else ""
        self._log.error(message + more, *args, exc_info=trace)
