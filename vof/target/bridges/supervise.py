# SPDX-License-Identifier: BSD-3-Clause
"""A program that runs as long as the target does: started, started again, ended."""

import logging
import signal
import sys
from collections.abc import Sequence
from functools import partial
from time import monotonic

import trio

from vof.errors import ConfigError

log = logging.getLogger("vof.target")

FIRST_S, LONGEST_S = 0.1, 10.0
"""Before the program is started again: doubled each time, up to the second."""
CALM_S = 10.0
"""A program that ran so long begins with the first pause again."""


class Supervisor:
    """A supervised program.

    Attributes:
        restarts: how often it was started again.
        pid: of the running program, or None.
    """

    def __init__(self, name: str, command: Sequence[str]) -> None:
        """Name what is to be run; it gets no input, and its output goes to the log."""
        self.restarts = 0
        self.pid: int | None = None
        self._name = name
        self._command = list(command)
        self._process: trio.Process | None = None

    async def run(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Keep it running until cancelled; then end it: SIGTERM, and after 5 s SIGKILL. Suspends.

        Raises:
            ConfigError: it cannot be started at all.
        """
        pause = FIRST_S
        while True:
            began = monotonic()
            code = await self._once(task_status)
            if monotonic() - began > CALM_S:
                pause = FIRST_S
            log.warning("%s: %s %s; again in %g s", self._name, self._command[0], _how(code), pause)
            await trio.sleep(pause)
            pause = min(2 * pause, LONGEST_S)
            self.restarts += 1
            task_status = trio.TASK_STATUS_IGNORED

    async def _once(self, task_status: trio.TaskStatus[None]) -> int:
        """Run it once; return its exit code. Raises ConfigError."""
        run = partial(
            trio.run_process,
            self._command,
            check=False,
            stdout=sys.stderr.fileno(),
            start_new_session=True,
        )
        failed: OSError | None = None
        try:
            async with trio.open_nursery() as nursery:
                try:
                    self._process = await nursery.start(run)
                except OSError as error:
                    failed = error
                else:
                    self.pid = self._process.pid
                    log.info("%s: %s runs as process %d", self._name, self._command[0], self.pid)
                    task_status.started()
        finally:
            self.pid = None
        if failed is not None:
            raise ConfigError(self._command[0], "", f"cannot be run: {failed.strerror}")
        assert self._process is not None
        code = self._process.returncode
        assert code is not None
        return code

    def kill(self) -> None:
        """End it at once, as it does not do what it should; it is started again."""
        if self._process is not None and self._process.returncode is None:
            self._process.kill()


def _how(code: int) -> str:
    """Say how a program ended."""
    if code < 0:
        return f"was ended by {signal.Signals(-code).name}"
    return f"ended with exit code {code}"
