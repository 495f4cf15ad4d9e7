# SPDX-License-Identifier: BSD-3-Clause
"""The daemon's life: open, listen, announce, serve, drain. Exit codes live here.

Everything that can be wrong is found before the first line is announced, and said on stderr.
"""

import ipaddress
import logging
import os
import signal
import socket
import sys
from collections.abc import AsyncIterator, Callable, Iterable
from itertools import chain

import trio

from vof.errors import ConfigError
from vof.target import systemd
from vof.target.access import THIS_MACHINE
from vof.target.admin import NOWHERE, Admin, Place
from vof.target.admin import listen as listen_admin
from vof.target.config import Config, Device
from vof.target.exports import Opened, close_all, open_all, probe, start
from vof.target.life import SIGNALS, Life
from vof.target.running import Running
from vof.target.server import Server
from vof.transport import Listener, Url, adopt, listen, polling
from vof.transport.base import WITH_PORT

log = logging.getLogger("vof.target")

ANSWER_S = 1.0
"""For the last replies of the admin socket."""

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


class _Failed(Exception):
    """Why it did not start.

    Attributes:
        code: the exit code.
    """

    def __init__(self, code: int, message: str) -> None:
        super().__init__(message)
        self.code = code


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


def warn(url: Url, devices: Iterable[Device]) -> None:
    """Say it where other machines can connect: whom they may use, and which key changes that."""
    if url.scheme not in WITH_PORT or ipaddress.ip_address(url.host).is_loopback:
        return
    for device in devices:
        if device.allow == THIS_MACHINE:
            text = '%s: %s is for this machine alone; its key "allow" names others'
            log.warning(text, url, device.tvqn)


async def _listen(config: Config) -> dict[Url, list[Listener]]:
    """Open all listeners by their URLs, or none. Raises _Failed."""
    listeners: dict[Url, list[Listener]] = {}
    for url in config.listen:
        try:
            listeners[url] = await listen(url)
        except (OSError, UnicodeError) as error:
            for listener in chain.from_iterable(listeners.values()):
                listener.close()
            raise _Failed(EXIT_LISTEN, f"cannot listen on {url}: {error}") from None
    return listeners


def _inherit() -> list[Listener]:
    """Take the listeners that the service manager passed. Raises _Failed."""
    try:
        return [adopt(sock) for sock in systemd.listen_fds()]
    except ConfigError as error:
        raise _Failed(EXIT_CONFIG, str(error)) from None


def _admin(place: Place) -> socket.socket | None:
    """Open the admin socket, if there is to be one. Raises _Failed."""
    if not place.path:
        return None
    try:
        return listen_admin(place)
    except ConfigError as error:
        if not place.default:
            raise _Failed(EXIT_LISTEN, str(error)) from None
        log.warning("%s; this target goes on without; --admin PATH gives it its own", error)
        return None


async def _serve(
    config: Config,
    opened: list[Opened],
    load: Callable[[], Config] | None,
    place: Place,
    version: str,
) -> int:
    """Start what is behind the devices, serve until it is told to end, then drain.

    No signal ends this process before all that it started has ended.
    """
    polling.configure(config.poll_us)
    starting, watching = trio.CancelScope(), trio.CancelScope()
    with trio.open_signal_receiver(*SIGNALS) as signals:
        async with trio.open_nursery() as backends:
            backends.start_soon(_watch, signals, watching, starting)
            failed: _Failed | None = None
            try:
                with starting:
                    await start(opened, backends)
                if starting.cancel_called:
                    return EXIT_OK
                watching.cancel()
                return await _listen_and_serve(
                    config, opened, load, place, version, backends, signals
                )
            except ConfigError as error:
                failed = _Failed(EXIT_DEVICE, str(error))
            except _Failed as error:
                failed = error
            finally:
                watching.cancel()
                close_all(opened)
    raise failed


async def _watch(
    signals: AsyncIterator[int], watching: trio.CancelScope, starting: trio.CancelScope
) -> None:
    """Give up the start when told to end."""
    with watching:
        async for number in signals:
            if number != signal.SIGHUP:
                log.info("%s: ends before it serves", signal.Signals(number).name)
                starting.cancel()


async def _listen_and_serve(
    config: Config,
    opened: list[Opened],
    load: Callable[[], Config] | None,
    place: Place,
    version: str,
    backends: trio.Nursery,
    signals: AsyncIterator[int],
) -> int:
    """Serve until it is told to end, then drain."""
    inherited = _inherit()
    configured = {} if inherited else await _listen(config)
    listeners = [*inherited, *chain.from_iterable(configured.values())]
    try:
        asked = _admin(place)
    except _Failed:
        for listener in listeners:
            listener.close()
        raise
    server = Server({one.export.tvqn: one.export for one in opened}, config.limits)
    async with trio.open_nursery() as nursery:
        await nursery.start(server.serve, listeners)
        devices = zip(config.devices, opened, strict=True)
        running = Running(server, nursery, backends, devices, configured, bool(inherited))
        life = Life(running, load, version)
        administration = Admin(asked, life.verbs) if asked else None
        nursery.start_soon(life.obey, signals, nursery)
        if administration is not None:
            nursery.start_soon(administration.serve)
        for listener in listeners:
            warn(listener.url, config.devices)
        announce(opened, listeners)
        nursery.start_soon(systemd.watchdog)
        in_time = await life.until_drained()
        if administration is not None:
            with trio.move_on_after(ANSWER_S):
                await administration.calm()
        nursery.cancel_scope.cancel()
    running.close()
    return EXIT_OK if in_time else EXIT_DRAIN


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


def run(
    config: Config,
    load: Callable[[], Config] | None = None,
    place: Place = NOWHERE,
    version: str = "",
) -> int:
    """Run a target until it is told to end; return the exit code.

    Args:
        config: what to serve.
        load: reads the configuration again, for a reload; None where there is no file.
        place: of the admin socket.
        version: of the program.
    """
    _log()
    opened: list[Opened] = []
    try:
        opened = open_all(config.devices)
        return trio.run(_serve, config, opened, load, place, version)
    except _Failed as failed:
        log.error("%s", failed)
        return failed.code
    except ConfigError as error:
        log.error("%s", error)
        return EXIT_DEVICE
    except Exception:
        log.exception("internal error")
        return EXIT_INTERNAL
    finally:
        close_all(opened)
