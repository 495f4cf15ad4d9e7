# SPDX-License-Identifier: BSD-3-Clause
"""The admin socket: how this machine's administrator asks a running target, and tells it.

A unix stream socket of mode 0600. Both directions carry msgpack maps, one after another:

    request  {"version": 1, "verb": "status", ...fields of the verb}
    reply    {"version": 1, "ok": True, ...what the verb says}
             {"version": 1, "ok": False, "error": {"code": "...", "message": "..."}}

Each request gets one reply, in order. A client that sends something else is told once, and its
connection ends; nobody else notices. What a client can make the target hold is bounded: so many
clients, so many bytes of a request, and no new request is read before the reply was taken.
"""

import logging
import os
import socket
import stat
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any, NamedTuple

import msgpack  # type: ignore[import-untyped]
import trio

from vof.errors import ConfigError, InvalidArgument, VofError
from vof.transport.unix import bind

log = logging.getLogger("vof.target")

VERSION = 1
MOST_CLIENTS = 16
MOST_BYTES = 64 * 1024
IDLE_S = 60.0
"""For a client to say something."""
SEND_S = 10.0
"""For a client to take a reply."""
PAUSE_S = 0.1

Fields = Mapping[str, Any]


class Verb(NamedTuple):
    """One row of the table of verbs.

    Attributes:
        run: carries it out, by its fields; returns what the reply says. Raises VofError.
        fields: the optional fields, and the type of each; a float may be given as an integer.
    """

    run: Callable[[Fields], Awaitable[Fields]]
    fields: Mapping[str, type]


class Refusal(VofError):
    """A request is answered with an error.

    Attributes:
        code: for programs.
    """

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


class Place(NamedTuple):
    """Where the admin socket is.

    Attributes:
        path: of the socket file; "" for none.
        default: nobody asked for it: its directory belongs to targets alone, is made where it is
            missing, and must be this user's.
    """

    path: str
    default: bool = False


NOWHERE = Place("")


def listen(place: Place) -> socket.socket:
    """Return a listening socket that only this user, and root, can connect to.

    A socket file that nobody listens on is replaced.

    Raises:
        ConfigError: another target listens there, or it cannot be made.
    """
    path = place.path
    try:
        if place.default:
            _private(os.path.dirname(path))
        before = os.umask(0o177)
        try:
            sock = bind(path)
        finally:
            os.umask(before)
    except OSError as error:
        raise ConfigError(path, "", f"no admin socket: {error.strerror or error}") from None
    sock.listen()
    sock.setblocking(False)
    return sock


def _private(directory: str) -> None:
    """Make a directory that is ours alone, or see that it is. Raises OSError, ConfigError."""
    os.makedirs(directory, 0o700, exist_ok=True)
    found = os.lstat(directory)
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid() or found.st_mode & 0o022:
        raise ConfigError(directory, "", "no admin socket: others can write this directory")


class Admin:
    """Serves the verbs on one socket."""

    def __init__(self, sock: socket.socket, verbs: Mapping[str, Verb]) -> None:
        """Take over a listening socket."""
        self._sock = sock
        self._path: str = sock.getsockname()
        self._verbs = verbs
        self._clients = 0
        self._busy = 0
        self._calm = trio.Event()
        self._calm.set()

    async def serve(self) -> None:
        """Serve until cancelled; the socket and its file are gone then. Suspends."""
        try:
            async with trio.open_nursery() as nursery:
                while True:
                    await trio.lowlevel.wait_readable(self._sock)
                    try:
                        sock, _ = self._sock.accept()
                    except BlockingIOError:
                        continue
                    except OSError as error:
                        log.warning("%s: cannot accept: %s", self._path, error)
                        await trio.sleep(PAUSE_S)
                        continue
                    nursery.start_soon(self._client, trio.socket.from_stdlib_socket(sock))
        finally:
            self._sock.close()
            with suppress(FileNotFoundError):
                os.unlink(self._path)

    async def calm(self) -> None:
        """Wait until every request that came was answered. Suspends."""
        await self._calm.wait()

    async def _client(self, sock: trio.socket.SocketType) -> None:
        """Serve one client. Whatever it does ends here."""
        self._clients += 1
        try:
            with sock:
                stream = trio.SocketStream(sock)
                try:
                    if self._clients > MOST_CLIENTS:
                        raise Refusal("busy", f"{MOST_CLIENTS} others are connected: try later")
                    await self._requests(stream)
                except Refusal as refusal:
                    await _send(stream, _error(refusal.code, str(refusal)))
        except (trio.BrokenResourceError, trio.TooSlowError):
            pass  # it is gone, or as good as gone
        except Exception:
            log.exception("admin: internal error; the connection ends")
        finally:
            self._clients -= 1

    async def _requests(self, stream: trio.SocketStream) -> None:
        """Answer requests until the client closes. Raises Refusal for what is no request."""
        unpacker = msgpack.Unpacker(max_buffer_size=MOST_BYTES)
        while True:
            with trio.move_on_after(IDLE_S) as scope:
                data = await stream.receive_some(4096)
            if scope.cancelled_caught:
                raise Refusal("idle", f"nothing was asked for {IDLE_S:g} seconds")
            if not data:
                return
            try:
                unpacker.feed(data)
                requests = list(unpacker)
            except msgpack.BufferFull:
                text = f"a request of more than {MOST_BYTES} bytes"
                raise Refusal("too-long", text) from None
            except (ValueError, msgpack.UnpackException) as error:
                raise Refusal("not-msgpack", f"not a msgpack map: {error}") from None
            for request in requests:
                if not isinstance(request, dict):
                    raise Refusal("not-a-map", "a request is a msgpack map")
                with self._working():
                    await _send(stream, await self._answer(request))

    @contextmanager
    def _working(self) -> Iterator[None]:
        self._busy += 1
        if self._busy == 1:
            self._calm = trio.Event()
        try:
            yield
        finally:
            self._busy -= 1
            if not self._busy:
                self._calm.set()

    async def _answer(self, request: dict[object, object]) -> Fields:
        """Carry out a request; return the reply."""
        try:
            verb, fields = self._parse(request)
            return {"version": VERSION, "ok": True, **await verb.run(fields)}
        except Refusal as refusal:
            return _error(refusal.code, str(refusal))
        except ConfigError as error:
            return _error("config", str(error))
        except InvalidArgument as error:
            return _error("argument", str(error))
        except VofError as error:
            return _error("failed", str(error))

    def _parse(self, request: dict[object, object]) -> tuple[Verb, Fields]:
        """Return what a request asks for. Raises Refusal."""
        fields = {str(key): value for key, value in request.items()}
        version = fields.pop("version", None)
        if version != VERSION:
            raise Refusal("version", f"version {VERSION} is spoken here, not {version!r}")
        name = fields.pop("verb", None)
        verb = self._verbs.get(name) if isinstance(name, str) else None
        if verb is None:
            raise Refusal("verb", f"unknown verb {name!r}; known: {', '.join(self._verbs)}")
        for key, value in fields.items():
            kind = verb.fields.get(key)
            if kind is None:
                known = ", ".join(verb.fields) or "none"
                raise Refusal("field", f"{name}: unknown field {key!r}; known: {known}")
            if type(value) is not kind and (kind, type(value)) != (float, int):
                raise Refusal("field", f"{name}: {key} is of type {kind.__name__}, not {value!r}")
        return verb, fields


def _error(code: str, message: str) -> Fields:
    return {"version": VERSION, "ok": False, "error": {"code": code, "message": message}}


async def _send(stream: trio.SocketStream, reply: Fields) -> None:
    """Send a reply to whoever takes it soon enough. Raises TooSlowError, BrokenResourceError."""
    with trio.fail_after(SEND_S):
        await stream.send_all(msgpack.packb(reply))
