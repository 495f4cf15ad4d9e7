# SPDX-License-Identifier: BSD-3-Clause
"""The server: listeners, connections, associations. No signals, no files: see ``daemon``.

Each connection is one task. What a peer does can end its own connection or association; it can
neither end the server nor touch another peer.
"""

import logging
import secrets
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import trio

from vof.errors import RemoteProtocolError, VofError
from vof.memory import HEAP
from vof.protocol import v5
from vof.protocol.dialects import Dialect, Opening
from vof.protocol.session import Event, Session
from vof.protocol.target_stream import Message, TargetStream
from vof.target.association import Association, Refused
from vof.target.seldom import Seldom
from vof.target.tidy import Tidy
from vof.transport import Connection, Listener
from vof.virtio.model import DeviceModel

log = logging.getLogger("vof.target")
seldom = Seldom(log)

PAUSE_S = 0.1

Bound = Callable[[], Awaitable[None]]


@dataclass(frozen=True)
class Limits:
    """What one target gives away at most.

    Attributes:
        request_bytes: readable, and writable, bytes of one request.
        queue_bytes: bytes in flight on one virtqueue; more makes it stop reading.
        associations: device instances at a time.
        connections: connections at a time.
        connect_seconds: for a connection to say who it is.
        drain_seconds: for in-flight requests to end when the target stops.
        keepalive_seconds: between signs of life on an idle control queue; 0 sends none.
    """

    request_bytes: int = 16 * 1024 * 1024
    queue_bytes: int = 64 * 1024 * 1024
    associations: int = 1024
    connections: int = 4096
    connect_seconds: float = 10.0
    drain_seconds: float = 10.0
    keepalive_seconds: float = 30.0


class Export(NamedTuple):
    """A device that initiators may use.

    Attributes:
        tvqn: its name.
        make: returns a fresh model for one initiator.
    """

    tvqn: str
    make: Callable[[], DeviceModel]


class Server:
    """Serves exports on listeners.

    Attributes:
        associations: the live ones, by device instance id.
    """

    def __init__(self, exports: Mapping[str, Export], limits: Limits | None = None) -> None:
        self.associations: dict[int, Association] = {}
        self._exports = exports
        self._limits = limits or Limits()
        self._connections: set[Connection] = set()
        self._listeners: Sequence[Listener] = ()
        self._accepting = trio.CancelScope()
        self._tidy = Tidy()

    async def serve(
        self,
        listeners: Sequence[Listener],
        task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        """Serve until cancelled; the listeners are closed then. Suspends."""
        self._listeners = listeners
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._tidy.run)
                with self._accepting:
                    async with trio.open_nursery() as accepting:
                        for listener in listeners:
                            accepting.start_soon(self._accept, listener, nursery)
                        task_status.started()
                await trio.sleep_forever()
        finally:
            self._close_listeners()

    async def drain(self, seconds: float) -> bool:
        """Accept nothing more, let in-flight requests end, then end all associations. Suspends.

        Returns:
            Whether everything ended in time.
        """
        self._accepting.cancel()
        self._close_listeners()
        with trio.move_on_after(seconds) as scope:
            async with trio.open_nursery() as nursery:
                for association in self.associations.values():
                    nursery.start_soon(association.drain)
        for association in list(self.associations.values()):
            association.end()
        return not scope.cancelled_caught

    def _close_listeners(self) -> None:
        for listener in self._listeners:
            listener.close()

    async def _accept(self, listener: Listener, nursery: trio.Nursery) -> None:
        while True:
            try:
                connection = await listener.accept()
            except OSError as error:
                log.warning("%s: cannot accept: %s", listener.url, error)
                await trio.sleep(PAUSE_S)
                continue
            if len(self._connections) >= self._limits.connections:
                log.warning(
                    "%s: refused a connection: limits.connections is %d",
                    connection.peer,
                    self._limits.connections,
                )
                connection.close()
                continue
            self._connections.add(connection)
            nursery.start_soon(self._connection, connection, listener.url.named_dialect, nursery)

    # -- one connection -----------------------------------------------------------------------

    async def _connection(
        self, connection: Connection, dialect: Dialect | None, nursery: trio.Nursery
    ) -> None:
        """Serve one connection from CONNECT to its end."""
        session = Session()
        try:
            bound = None
            with trio.move_on_after(self._limits.connect_seconds) as scope:
                stream = await self._open(connection, dialect, nursery)
                if stream is not None:
                    bound = await self._connect(connection, stream, session)
            if scope.cancelled_caught:
                log.info("%s: no CONNECT in time", connection.peer)
            elif bound is not None:
                await bound()
        except RemoteProtocolError as error:
            log.warning("%s: %s", connection.peer, error)
        except Exception as error:
            what = "%s: internal error; its connection ends"
            seldom.error(type(error), what, connection.peer, trace=error)
        finally:
            if connection.error is not None and isinstance(connection.error, RemoteProtocolError):
                log.warning("%s: %s", connection.peer, connection.error)
            session.received(Event.LOST)
            connection.close()
            self._connections.discard(connection)

    async def _open(
        self, connection: Connection, dialect: Dialect | None, nursery: trio.Nursery
    ) -> TargetStream | None:
        """Return a connection's stream, of the dialect that its first bytes show if need be."""
        opening = Opening()
        connection.attach(opening, nursery)
        while dialect is None:
            if connection.error is not None:
                return None
            await connection.wait()
            connection.receive()
            dialect = opening.dialect
        limits = self._limits
        stream = dialect.target(limits.request_bytes, limits.queue_bytes, opening.inbox)
        connection.attach(stream, nursery)
        stream.inbox.advance()
        return stream

    async def _connect(
        self, connection: Connection, stream: TargetStream, session: Session
    ) -> Bound | None:
        """Take CONNECT commands until one succeeds; return what serves the connection then."""
        while connection.error is None:
            if not stream.messages:
                connection.flush()
                await connection.drained()
                await connection.wait()
                connection.receive()
                continue
            message = stream.messages.pop(0)
            connecting = message.opcode == v5.CONNECT
            session.received(Event.CONNECT if connecting else Event.COMMAND)
            bound, ident, status = None, 0, v5.OK
            try:
                bound, ident = self._bind(message, connection, stream, session)
            except Refused as refusal:
                status = refusal.status
                log.info("%s: CONNECT refused: %s", connection.peer, refusal)
            stream.answer(message, status, device_instance_id=ident)
            session.sent(Event.ACCEPTED if bound else Event.REFUSED)
            connection.flush()
            if bound:
                stream.trim()  # many queues are connected and not used for long
                return bound  # which reads on: what came behind CONNECT is its to judge
            stream.inbox.advance()
        return None

    def _bind(
        self, message: Message, connection: Connection, stream: TargetStream, session: Session
    ) -> tuple[Bound, int]:
        """Carry out one CONNECT. Never suspends. Raises Refused."""
        fields = message.fields
        names = vqn(message.body[:256]), vqn(message.body[256:512])
        ident = fields["device_instance_id"]
        if ident == v5.NEW_INSTANCE:
            association = self._create(*names, fields["queue_size"], connection)
            stream.bind(0, HEAP)
            return partial(self._control, association, stream, session), association.ident
        found = self.associations.get(ident)
        if found is None or found.peer != connection.peer:
            raise Refused(v5.EBADDEV)
        if message.body and names != (found.ivqn, found.tvqn):
            raise Refused(v5.EBADVQN)
        index = fields["vq_index"]
        served = found.join(index, fields["queue_size"], connection, stream, session)
        return partial(found.serve, index, served), ident

    def _create(self, ivqn: str, tvqn: str, size: int, connection: Connection) -> Association:
        """Make an association. Raises Refused."""
        export = self._exports.get(tvqn)
        if not ivqn:
            raise Refused(v5.EBADVQN)
        if export is None:
            raise Refused(v5.ENOTGT)
        if size > v5.CONTROL_QUEUE_SIZE:
            raise Refused(v5.EQSIZEQUOT)
        if len(self.associations) >= self._limits.associations:
            log.warning("limits.associations is %d: refused one more", self._limits.associations)
            raise Refused(v5.ENODEV)
        try:
            model = export.make()
        except (VofError, OSError) as error:
            log.error("%s: cannot make a device: %s", tvqn, error)
            raise Refused(v5.ENODEV) from None
        ident = secrets.randbelow(v5.NEW_INSTANCE)
        while ident in self.associations:
            ident = secrets.randbelow(v5.NEW_INSTANCE)
        association = Association(ident, tvqn, ivqn, model, connection, self._tidy)
        self.associations[ident] = association
        log.info("%s: %r connected from %s as %d", tvqn, ivqn, connection.peer, ident)
        return association

    async def _control(
        self, association: Association, stream: TargetStream, session: Session
    ) -> None:
        """Serve a control queue; its end is the association's end."""
        try:
            await association.control(stream, session, self._limits.keepalive_seconds)
        finally:
            await association.destroy()
            del self.associations[association.ident]
            log.info("%s: %r (%d) gone", association.tvqn, association.ivqn, association.ident)


def vqn(field: bytes) -> str:
    """Return the name in a VQN field, "" for none. Raises Refused."""
    name, end, _ = field.partition(b"\0")
    try:
        text = name.decode()
    except UnicodeDecodeError:
        raise Refused(v5.EBADVQN) from None
    if field and not end:
        raise Refused(v5.EBADVQN)
    return text
