# SPDX-License-Identifier: BSD-3-Clause
"""Carriers of the fabric protocol: the table of URL schemes, and how to get a connection."""

import importlib
import socket
from typing import NamedTuple
from urllib.parse import parse_qsl, unquote, urlsplit

from vof.errors import ConfigError
from vof.protocol.dialects import DIALECTS
from vof.transport.base import WITH_PORT, Connection, Listener, Url

__all__ = [
    "SCHEMES",
    "Connection",
    "Listener",
    "Scheme",
    "Url",
    "adopt",
    "connect",
    "listen",
    "parse_url",
]


class Scheme(NamedTuple):
    """One row of the table of schemes.

    Attributes:
        module: has ``async connect(url, beside)`` and ``async listen(url)``; imported on first use.
        form: what a URL looks like.
    """

    module: str
    form: str


SCHEMES = {
    "vof+tcp": Scheme("vof.transport.tcp", "vof+tcp://host[:port]/TVQN"),
    "vof+rdma": Scheme("vof.transport.rdma", "vof+rdma://host[:port]/TVQN"),
    "vof+unix": Scheme("vof.transport.unix", "vof+unix:///path?tvqn=TVQN"),
    "vof+loopback": Scheme("vof.transport.loopback", "vof+loopback://name/TVQN"),
    "vof+loopback+keyed": Scheme("vof.transport.loopback", "vof+loopback+keyed://name/TVQN"),
}
FAMILIES = {
    socket.AF_INET: "vof+tcp",
    socket.AF_INET6: "vof+tcp",
    socket.AF_UNIX: "vof+unix",
}
"""The scheme of a socket that somebody else made."""
OPTIONS = {"dialect": tuple(DIALECTS)}
"""Options that any URL may have, and their values."""


def parse_url(text: str) -> Url:
    """Parse a URL.

    Raises:
        ConfigError: it is not of a known form; the message shows the form.
    """
    try:
        parts = urlsplit(text)
        port = parts.port
    except ValueError as error:
        raise ConfigError(text, "", f"not a URL: {error}") from None
    scheme = SCHEMES.get(parts.scheme)
    if scheme is None:
        forms = ", ".join(row.form for row in SCHEMES.values())
        raise ConfigError(text, "", f"unknown scheme; expected one of {forms}")
    given = parse_qsl(parts.query, keep_blank_values=True)
    options = dict(given)
    if len(options) < len(given):
        raise ConfigError(text, "", "an option is given twice")
    url = Url(parts.scheme, host=unquote(parts.hostname or "").lower())
    strange = "@" in parts.netloc or bool(parts.fragment)
    strange = strange or (":" in url.host and "[" not in parts.netloc)
    if parts.scheme == "vof+unix":
        url = Url(parts.scheme, path=unquote(parts.path), tvqn=options.pop("tvqn", ""))
        strange = strange or bool(parts.netloc) or not url.path.startswith("/")
    else:
        url = url._replace(tvqn=unquote(parts.path.removeprefix("/")))
        if parts.scheme in WITH_PORT:
            url = url._replace(port=-1 if port is None else port)
        else:
            strange = strange or port is not None
    if strange or not (url.host or url.path):
        raise ConfigError(text, "", f"expected {scheme.form}")
    for key, value in options.items():
        if value not in OPTIONS.get(key, ()):
            known = ", ".join(f"{k}={'|'.join(v)}" for k, v in OPTIONS.items())
            raise ConfigError(text, key, f"unknown option or value {value!r}; known: {known}")
    url = url._replace(options=tuple(options.items()))
    return url._replace(port=url.dialect.port) if url.port < 0 else url


async def connect(url: Url, beside: Connection | None = None) -> Connection:
    """Open one connection. Suspends; raises OSError.

    Args:
        url: where to.
        beside: another connection to there, for the same device, which knows the same buffers.
    """
    module = importlib.import_module(SCHEMES[url.scheme].module)
    connection: Connection = await module.connect(url, beside)
    return connection


async def listen(url: Url) -> list[Listener]:
    """Start listening; a name may stand for several addresses. Suspends; raises OSError."""
    found: list[Listener] = await importlib.import_module(SCHEMES[url.scheme].module).listen(url)
    return found


def adopt(sock: socket.socket) -> Listener:
    """Make a listener of a listening socket that somebody else made, such as systemd.

    The listener owns the socket, but not the file of a unix socket. It names no dialect.

    Raises:
        ConfigError: no transport has such sockets, or no URL can name it; it is closed then.
    """
    try:
        scheme = FAMILIES.get(sock.family)
        if scheme is None:
            raise ConfigError("LISTEN_FDS", "", f"no transport for sockets of {sock.family!r}")
        found: Listener = importlib.import_module(SCHEMES[scheme].module).adopt(sock)
        return found
    except ConfigError:
        sock.close()
        raise
