# SPDX-License-Identifier: BSD-3-Clause
"""What a running daemon is told: by signals, and by the verbs of the admin socket.

SIGTERM and SIGINT, or ``drain``, end it when nothing is in flight any more; a second signal does
not wait. SIGHUP, or ``reload``, makes it what its configuration file says now.
"""

import logging
import math
import signal
from collections.abc import AsyncIterator, Callable

import trio

from vof.errors import ConfigError, InvalidArgument, NotSupported
from vof.target import systemd
from vof.target.admin import Fields, Verb
from vof.target.config import Config
from vof.target.reload import reload
from vof.target.running import Running
from vof.target.status import status

log = logging.getLogger("vof.target")

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


class Life:
    """From the first announcement to the end.

    Attributes:
        verbs: of the admin socket.
    """

    def __init__(self, running: Running, load: Callable[[], Config] | None, version: str) -> None:
        """Begin.

        Args:
            running: what is served.
            load: reads the configuration again; None where there is no file.
            version: of the program.
        """
        self._version = version
        self._running = running
        self._load = load
        self._reloading = trio.Lock()
        self._stop = trio.Event()
        self._hurry = trio.CancelScope()
        self._seconds: float | None = None
        self._in_time = False
        self._ended = trio.Event()
        self.verbs = {
            "status": Verb(self._status, {}),
            "drain": Verb(self._drain, {"tvqn": str, "seconds": float}),
            "reload": Verb(self._reload, {}),
            "disconnect": Verb(self._disconnect, {"id": int, "ivqn": str}),
        }

    # -- signals ------------------------------------------------------------------------------

    async def obey(self, signals: AsyncIterator[int], nursery: trio.Nursery) -> None:
        """Do what signals say, for ever. Suspends."""
        async for number in signals:
            if number == signal.SIGHUP:
                if not self._reloading.statistics().tasks_waiting:
                    nursery.start_soon(self._hangup)
            elif not self._stop.is_set():
                log.info("%s: draining", signal.Signals(number).name)
                self._stop.set()
            else:
                self._hurry.cancel()

    async def until_drained(self) -> bool:
        """Wait for the end, then drain. Suspends.

        Returns:
            Whether all requests in flight ended in time.
        """
        await self._stop.wait()
        limits = self._running.server.limits
        seconds = limits.drain_seconds if self._seconds is None else self._seconds
        systemd.stopping(seconds)
        with self._hurry:
            self._in_time = await self._running.server.drain(seconds)
        self._ended.set()
        return self._in_time

    async def _hangup(self) -> None:
        try:
            await self._reload({})
        except (ConfigError, NotSupported):
            pass  # the log says it

    # -- verbs --------------------------------------------------------------------------------

    async def _status(self, fields: Fields) -> Fields:
        state = "draining" if self._stop.is_set() else "serving"
        known = status(self._running.server, self._running.entries)
        return {"vof_version": self._version, "state": state, **known}

    async def _drain(self, fields: Fields) -> Fields:
        seconds = fields.get("seconds")
        if seconds is not None and not 0 <= seconds < math.inf:
            raise InvalidArgument(f"seconds is {seconds}: expected 0 or more")
        if "tvqn" in fields:
            tvqn = fields["tvqn"]
            if seconds is None:
                seconds = self._running.server.limits.drain_seconds
            return {"in_time": await self._running.remove(tvqn, seconds)}
        if not self._stop.is_set():
            log.info("draining on request")
            self._seconds = seconds
            self._stop.set()
        await self._ended.wait()
        return {"in_time": self._in_time}

    async def _reload(self, fields: Fields) -> Fields:
        if self._load is None:
            text = "cannot reload: it was started without --config, so there is no file to read"
            log.warning(text)
            raise NotSupported(text)
        async with self._reloading:
            if self._stop.is_set():
                raise NotSupported("cannot reload: the target is ending")
            systemd.reloading()
            try:
                done = await reload(self._running, self._load())
            except ConfigError as error:
                log.error("reload: nothing has changed: %s", error)
                raise
            finally:
                systemd.ready()
        told = ", ".join(f"{key} {' '.join(value)}" for key, value in done.items() if value)
        log.info("reloaded: %s", told)
        return done

    async def _disconnect(self, fields: Fields) -> Fields:
        if len(fields) != 1:
            raise InvalidArgument("expected an id or an ivqn")
        [who] = fields.values()
        ids = self._running.server.disconnect(who)
        if not ids:
            raise InvalidArgument(f"no association of {who!r} exists")
        return {"ids": ids}
