# SPDX-License-Identifier: BSD-3-Clause
"""What every transport has: the URL that names a target, and a listener of connections."""

from abc import ABC, abstractmethod
from typing import NamedTuple
from urllib.parse import quote

from vof.protocol.dialects import DIALECTS, NATIVE, Dialect
from vof.transport.connection import Connection

SAFE = "/:@,;=-._~"
"""What stands in a name or a path as it is."""


class Url(NamedTuple):
    """A parsed URL. ``str()`` gives the text back.

    Attributes:
        scheme: key of the table of schemes: "vof+tcp", ...
        host: name or address; of a loopback URL, the listener's name.
        port: TCP port; 0 where there is none, or any will do.
        path: socket path of "vof+unix".
        tvqn: name of the target device, "" where none is named.
        options: what follows the question mark, but for the tvqn of a unix URL.
    """

    scheme: str
    host: str = ""
    port: int = 0
    path: str = ""
    tvqn: str = ""
    options: tuple[tuple[str, str], ...] = ()

    def __str__(self) -> str:
        options = [f"{quote(key)}={quote(value)}" for key, value in self.options]
        tvqn = quote(self.tvqn, SAFE)
        if self.scheme == "vof+unix":
            options = ([f"tvqn={tvqn}"] if tvqn else []) + options
            text = f"{self.scheme}://{quote(self.path, SAFE)}"
        else:
            host = f"[{self.host}]" if ":" in self.host else self.host
            port = f":{self.port}" if self.scheme == "vof+tcp" else ""
            text = f"{self.scheme}://{host}{port}" + (f"/{tvqn}" if tvqn else "")
        return text + ("?" + "&".join(options) if options else "")

    @property
    def named_dialect(self) -> Dialect | None:
        """What is spoken there, if the URL says so."""
        name = dict(self.options).get("dialect")
        return DIALECTS[name] if name else None

    @property
    def dialect(self) -> Dialect:
        """What an initiator speaks there."""
        return self.named_dialect or DIALECTS[NATIVE]

    def with_tvqn(self, tvqn: str) -> "Url":
        """Return the same URL for another device."""
        return self._replace(tvqn=tvqn)


class Listener(ABC):
    """A place where initiators connect.

    Attributes:
        url: where it listens, with the real port, without a device.
    """

    url: Url

    @abstractmethod
    async def accept(self) -> Connection:
        """Wait for the next connection. Suspends. Raises OSError when the system refuses one."""

    @abstractmethod
    def close(self) -> None:
        """Stop listening. Idempotent."""
