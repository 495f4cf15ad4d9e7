# SPDX-License-Identifier: BSD-3-Clause
"""The daemon's life: open, listen, announce, serve, drain. Signals and exit codes live here.

Everything that can be wrong is found before the first line is announced, and said on stderr.
"""

import ipaddress
import logging
import os
import signal
import sys
from collections.abc import AsyncIterator
from typing import NamedTuple

import trio

from vof.errors import ConfigError
from vof.target import systemd
from vof.target.config import Config
from vof.target.devices import FileBacking, watch
from vof.target.exports import Opened, close_all, open_all, probe
from vof.target.server import Server
from vof.transport import Listener, Url, adopt, listen, polling

log = logging.getLogger("vof.target")

EXIT_OK = 0
EXIT_CONFIG = 2
EXIT_DEVICE = 3
EXIT_LISTEN = 4
EXIT_DRAIN = 5
EXIT_INTERNAL = 70

EXIT_CODES = {
    EXIT_OK: "ended as asked, nothing in flight was cut",
    EXIT_CONFIG: "wrong configuration or command line",
    EXIT_DEVICE: "a device cannot be opened",
    EXIT_LISTEN: "cannot listen",
    EXIT_DRAIN: "the drain deadline passed: requests in flight were cut",
    EXIT_INTERNAL: "internal error",
}


class _Failed(NamedTuple):
    """Why it did not start."""

    code: int
    message: str


def announce(opened: list[Opened], listeners: list[Listener]) -> None:
    """Print the full URL of each device on each listener."""
    try:
        for one in opened:
            for listener in listeners:
                print(listener.url.with_tvqn(one.export.tvqn), flush=True)  # noqa: T201
    except BrokenPipeError:
        log.warning("nobody reads the announcements")
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    systemd.ready()


def warn(url: Url) -> None:
    """Say so where others than this machine can connect."""
    if url.scheme == "vof+tcp" and not ipaddress.ip_address(url.host).is_loopback:
        log.warning("%s can be reached from other machines, by whoever knows a name", url)


async def _listen(config: Config) -> list[Listener] | _Failed:
    """Take the listeners that the service manager passed, or open all, or none."""
    listeners: list[Listener] = []
    try:
        if inherited := systemd.listen_fds():
            return [adopt(sock) for sock in inherited]
    except ConfigError as error:
        return _Failed(EXIT_CONFIG, str(error))
    for url in config.listen:
        try:
            listeners += await listen(url)
        except (OSError, UnicodeError) as error:
            for listener in listeners:
                listener.close()
            return _Failed(EXIT_LISTEN, f"cannot listen on {url}: {error}")
    return listeners


async def _serve(config: Config, opened: list[Opened]) -> int:
    """Serve until a signal, then drain."""
    polling.configure(config.poll_us)
    with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
        listeners = await _listen(config)
        if isinstance(listeners, _Failed):
            log.error("%s", listeners.message)
            return listeners.code
        server = Server({one.export.tvqn: one.export for one in opened}, config.limits)
        async with trio.open_nursery() as nursery:
            await nursery.start(server.serve, listeners)
            for one in opened:
                if isinstance(one.backing, FileBacking):
                    nursery.start_soon(watch, one.backing)
            for listener in listeners:
                warn(listener.url)
            announce(opened, listeners)
            nursery.start_soon(systemd.watchdog)
            number = await anext(signals)
            log.info("%s: draining", signal.Signals(number).name)
            systemd.stopping(config.limits.drain_seconds)
            in_time = await _drain(server, config.limits.drain_seconds, signals)
            nursery.cancel_scope.cancel()
    return EXIT_OK if in_time else EXIT_DRAIN


async def _drain(server: Server, seconds: float, signals: AsyncIterator[int]) -> bool:
    """Drain; a second signal ends it at once. Return whether it ended in time."""
    done = False
    async with trio.open_nursery() as nursery:

        async def hurry() -> None:
            await anext(signals)
            nursery.cancel_scope.cancel()

        nursery.start_soon(hurry)
        done = await server.drain(seconds)
        nursery.cancel_scope.cancel()
    return done


def _log() -> None:
    logging.basicConfig(
        stream=sys.stderr, level=logging.INFO, format="%(levelname)s %(message)s", force=True
    )


def check(config: Config) -> int:
    """See whether the devices could be opened, and change nothing; return the exit code."""
    _log()
    try:
        probe(config.devices)
    except ConfigError as error:
        log.error("%s", error)
        return EXIT_DEVICE
    return EXIT_OK


def run(config: Config) -> int:
    """Run a target until SIGTERM or SIGINT; return the exit code."""
    _log()
    opened: list[Opened] = []
    try:
        opened = open_all(config.devices)
        return trio.run(_serve, config, opened)
    except ConfigError as error:
        log.error("%s", error)
        return EXIT_DEVICE
    except Exception:
        log.exception("internal error")
        return EXIT_INTERNAL
    finally:
        close_all(opened)
