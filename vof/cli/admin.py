# SPDX-License-Identifier: BSD-3-Clause
"""How commands talk to a running target: the client of its admin socket, and where that is."""

import argparse
import os
from collections.abc import Mapping
from typing import Any, Self

from vof.errors import CommandError, ConfigError, ConnectionLost

VERSION = 1
NAME = "target.sock"
SYSTEM = f"/run/vof/{NAME}"
"""Where a target that the service manager runs has it."""
MOST_BYTES = 256 * 1024 * 1024


def default_socket() -> str:
    """Return where a target has its socket when nobody says otherwise."""
    if directory := os.environ.get("RUNTIME_DIRECTORY", "").partition(":")[0]:
        return f"{directory}/{NAME}"
    if directory := os.environ.get("XDG_RUNTIME_DIR", ""):
        return f"{directory}/vof/{NAME}"
    return f"/tmp/vof-{os.geteuid()}/{NAME}"


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the options that all have."""
    parser.add_argument(
        "--socket",
        metavar="PATH",
        help=f"the target's admin socket (default {NAME} in $RUNTIME_DIRECTORY, else"
        f" $XDG_RUNTIME_DIR/vof, else /tmp/vof-UID; then {SYSTEM})",
    )
    parser.add_argument("--json", action="store_true", help="print JSON")


def find(path: str | None) -> str:
    """Return the path of the socket to use. Raises ConfigError where there is none."""
    if path:
        return path
    places = dict.fromkeys((default_socket(), SYSTEM))
    for place in places:
        if os.path.exists(place):
            return place
    raise ConfigError(
        " and ".join(places),
        "",
        "no target has its admin socket there; is one running? --socket PATH names another place",
    )


class Admin:
    """A connection to a target's admin socket. Blocks; to be used in one thread."""

    def __init__(self, path: str | None) -> None:
        """Connect. Raises ConfigError where no target listens."""
        import socket

        import msgpack  # type: ignore[import-untyped]

        self.path = find(path)
        self._packb = msgpack.packb
        self._unpacker = msgpack.Unpacker(max_buffer_size=MOST_BYTES)
        self._sock = socket.socket(socket.AF_UNIX)
        try:
            self._sock.connect(self.path)
        except OSError as error:
            self._sock.close()
            raise ConfigError(
                self.path, "", f"no target answers here: {error.strerror or error}"
            ) from None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._sock.close()

    def ask(self, verb: str, **fields: object) -> dict[str, Any]:
        """Return what the target replies. May block until it has done what is asked.

        Raises:
            CommandError: it refused.
            ConnectionLost: it is gone, or is no target.
        """
        given = {key: value for key, value in fields.items() if value is not None}
        try:
            self._sock.sendall(self._packb({"version": VERSION, "verb": verb, **given}))
            reply = self._receive()
        except OSError as error:
            raise ConnectionLost(f"{self.path}: {error.strerror}") from None
        if reply.pop("ok", False):
            reply.pop("version", None)
            return reply
        why = reply.get("error")
        message = why.get("message") if isinstance(why, Mapping) else None
        raise CommandError(str(message or f"{self.path}: an answer that is no reply"))

    def _receive(self) -> dict[str, Any]:
        while True:
            for reply in self._unpacker:
                if isinstance(reply, dict):
                    return reply
                raise ConnectionLost(f"{self.path}: this is no target's admin socket")
            data = self._sock.recv(1 << 16)
            if not data:
                raise ConnectionLost(f"{self.path}: the target closed the connection")
            self._unpacker.feed(data)
