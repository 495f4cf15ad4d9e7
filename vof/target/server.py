# SPDX-License-Identifier: BSD-3-Clause
"""The server: listeners, connections, associations. No signals, no files: see ``daemon``.

Each connection is one task. What a peer does can end its own connection or association; it can
neither end the server nor touch another peer.
"""

import logging
import secrets
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import partial
from time import monotonic
from typing import NamedTuple

import trio

from vof.errors import OutOfMemory, VofError
from vof.memory import HEAP
from vof.protocol import v5
from vof.protocol.budget import Budget
from vof.protocol.dialects import OPENINGS, Dialect, Opening
from vof.protocol.session import Event, Session
from vof.protocol.target_stream import ENDS, Message, TargetStream
from vof.target.access import THIS_MACHINE, Allow, decide
from vof.target.association import Association
from vof.target.instance import Refused
from vof.target.limits import Books, Limits, Thing
from vof.target.queue import Served
from vof.target.seldom import Seldom
from vof.target.stalls import Stalls
from vof.target.tidy import Tidy
from vof.transport import Connection, Listener
from vof.virtio.model import DeviceModel

log = logging.getLogger("vof.target")
seldom = Seldom(log)

PAUSE_S = 0.1

Bound = Callable[[], Awaitable[None]]


class Export(NamedTuple):
    """A device that initiators may use.

    Attributes:
        tvqn: its name.
        make: returns a fresh model for one initiator.
        allow: who may use it; the first entry that matches decides.
        read_only: like ``make``, for one that may not write; needed where ``allow`` says so.
    """

    tvqn: str
    make: Callable[[], DeviceModel]
    allow: Sequence[Allow] = THIS_MACHINE
    read_only: Callable[[], DeviceModel] | None = None

    def decide(self, ivqn: str, peer: str) -> Callable[[], DeviceModel] | None:
        """Return what makes a model for an initiator, None for one that may not use it."""
        entry = decide(self.allow, ivqn, peer)
        return None if entry is None else self.read_only if entry.read_only else self.make


class Ended:
    """What those that are gone have done, in all.

    Attributes:
        connections: how many there were.
        requests: that virtqueues took.
        errors: commands that were answered with an error.
        bytes_in: that came.
        bytes_out: that went.
    """

    def __init__(self) -> None:
        self.connections = self.requests = self.errors = self.bytes_in = self.bytes_out = 0

    def add(self, connection: Connection, stream: TargetStream | None) -> None:
        """Add a connection that ended."""
        self.connections += 1
        self.errors += stream.errors if stream else 0
        self.bytes_in += connection.bytes_in
        self.bytes_out += connection.bytes_out


class Server:
    """Serves exports on listeners.

    Attributes:
        associations: the live ones, by device instance id.
        exports: what is served, by tvqn.
        books: who has what.
        draining: tvqns of devices that are being removed.
        listeners: where connections are accepted, and what ends that.
        connections: the open ones, and the stream on each, once its dialect is known.
        refusals: how often something was refused, by the reason.
        budget: bytes that all queues share.
        ended: what ended connections and virtqueues have done.
        since: when it began, on the monotonic clock.
    """

    def __init__(self, exports: Mapping[str, Export], limits: Limits | None = None) -> None:
        self.associations: dict[int, Association] = {}
        self.exports = dict(exports)
        self.books = Books(limits or Limits())
        self.draining: set[str] = set()
        self.listeners: dict[Listener, trio.CancelScope] = {}
        self.connections: dict[Connection, TargetStream | None] = {}
        self.refusals: Counter[str] = Counter()
        self.ended = Ended()
        self.since = monotonic()
        self._largest = 0  # of the queues of all models so far
        self._nursery: trio.Nursery
        self._tidy = Tidy()
        self.budget = self.books.total.budget
        self._stalls = Stalls(self.connections, lambda: self.limits.command_seconds, self._cut)

    @property
    def limits(self) -> Limits:
        """Those in force. Others take effect for what comes next."""
        return self.books.limits

    @limits.setter
    def limits(self, limits: Limits) -> None:
        self.books.limits = limits

    async def serve(
        self,
        listeners: Sequence[Listener],
        task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        """Serve until cancelled; the listeners are closed then. Suspends."""
        try:
            async with trio.open_nursery() as self._nursery:
                self._nursery.start_soon(self._tidy.run)
                self._nursery.start_soon(self._stalls.run)
                for listener in listeners:
                    self.listen(listener)
                task_status.started()
                await trio.sleep_forever()
        finally:
            for listener in list(self.listeners):
                self.unlisten(listener)

    # -- changes while it serves ----------------------------------------------------------------

    def listen(self, listener: Listener) -> None:
        """Accept connections from one more place; the listener is the server's from here on."""
        listener.largest = max(listener.largest, self._largest)
        scope = self.listeners[listener] = trio.CancelScope()
        self._nursery.start_soon(self._accept, listener, scope)

    def unlisten(self, listener: Listener) -> None:
        """Close a listener. Connections that came through it stay."""
        self.listeners.pop(listener).cancel()
        listener.close()

    def add(self, export: Export) -> None:
        """Serve one more device, under a tvqn that is not in use."""
        self.exports[export.tvqn] = export

    def allow(self, tvqn: str, allow: Sequence[Allow]) -> None:
        """Let others use a device. Ends the associations to which that makes a difference."""
        before = self.exports[tvqn]
        now = self.exports[tvqn] = before._replace(allow=allow)
        for one in list(self.associations.values()):
            who = one.ivqn, one.peer
            if one.tvqn == tvqn and before.decide(*who) is not now.decide(*who):
                log.info('%s: %r (%d) ends: "allow" changed', tvqn, one.ivqn, one.ident)
                one.end()

    async def remove(self, tvqn: str, seconds: float) -> bool:
        """Serve a device no more: let its requests end, then end its associations. Suspends.

        New initiators find no such device at once. What is behind the device may be closed when
        this returns. Raises KeyError for a device that is not served.

        Args:
            tvqn: its name.
            seconds: for requests in flight; then they are cut. Threads of a model that work for
                one are waited for even then.

        Returns:
            Whether everything ended in time.
        """
        del self.exports[tvqn]
        self.draining.add(tvqn)
        try:
            mine = [one for one in self.associations.values() if one.tvqn == tvqn]
            in_time = await self._drain(mine, seconds)
            for one in mine:
                await one.gone.wait()
        finally:
            self.draining.discard(tvqn)
        return in_time

    def disconnect(self, who: int | str) -> list[int]:
        """End associations at once: that of an id, or all of an ivqn. Returns their ids."""
        found = [one for one in self.associations.values() if who in (one.ident, one.ivqn)]
        for one in found:
            log.info("%s: %r (%d) is disconnected on request", one.tvqn, one.ivqn, one.ident)
            one.end()
        return [one.ident for one in found]

    async def drain(self, seconds: float) -> bool:
        """Accept nothing more, let in-flight requests end, then end all associations. Suspends.

        Returns:
            Whether everything ended in time.
        """
        for listener in list(self.listeners):
            self.unlisten(listener)
        return await self._drain(list(self.associations.values()), seconds)

    async def _drain(self, associations: Sequence[Association], seconds: float) -> bool:
        with trio.move_on_after(seconds) as scope:
            async with trio.open_nursery() as nursery:
                for association in associations:
                    nursery.start_soon(association.drain)
        for association in associations:
            association.end()
        return not scope.cancelled_caught

    async def _accept(self, listener: Listener, scope: trio.CancelScope) -> None:
        with scope:
            await trio.lowlevel.checkpoint_if_cancelled()  # it may be closed already
            await self._accept_all(listener)

    async def _accept_all(self, listener: Listener) -> None:
        while True:
            try:
                connection = await listener.accept()
            except OSError as error:
                log.warning("%s: cannot accept: %s", listener.url, error)
                await trio.sleep(PAUSE_S)
                continue
            if key := self.books.full("connections", connection.peer):
                what = "%s: refused a connection: limits.%s is %d"
                seldom.error(key, what, connection.peer, key, getattr(self.limits, key))
                self.refusals[f"limits.{key}"] += 1
                connection.close()
                continue
            self.books.take("connections", connection.peer)
            self.connections[connection] = None
            self._nursery.start_soon(self._connection, connection, listener.url.named_dialect)

    # -- one connection -----------------------------------------------------------------------

    async def _connection(self, connection: Connection, dialect: Dialect | None) -> None:
        """Serve one connection from CONNECT to its end."""
        session = Session()
        opening = OPENINGS[connection.mapping]()
        stream: TargetStream | None = None
        try:
            bound = None
            with trio.move_on_after(self.limits.connect_seconds) as scope:
                stream = await self._open(connection, dialect, opening)
                if stream is not None:
                    bound = await self._connect(connection, stream, session)
            if scope.cancelled_caught:
                self.refusals["limits.connect_seconds"] += 1
                log.info("%s: no CONNECT in time", connection.peer)
            elif bound is not None:
                await bound()
        except ENDS as error:
            connection.fail(error)
        except Exception as error:
            what = "%s: internal error; its connection ends"
            seldom.error(type(error), what, connection.peer, trace=error)
        finally:
            if isinstance(connection.error, ENDS):
                memory = isinstance(connection.error, OutOfMemory)
                self.refusals["memory" if memory else "protocol"] += 1
                log.warning("%s: %s", connection.peer, connection.error)
            session.received(Event.LOST)
            connection.close()
            (stream or opening).release()
            self.ended.add(connection, self.connections.pop(connection))
            self.books.give("connections", connection.peer)

    async def _open(
        self, connection: Connection, dialect: Dialect | None, opening: Opening
    ) -> TargetStream | None:
        """Return a connection's stream, of the dialect that its first bytes show if need be."""
        connection.attach(opening, self._nursery)
        while dialect is None:
            if connection.error is not None:
                return None
            await connection.wait()
            connection.receive()
            dialect = opening.dialect
        limits = self.limits
        stream = opening.open(dialect, limits.request_bytes, limits.queue_bytes)
        self.connections[connection] = stream
        connection.stalling = self._stalls.note
        connection.attach(stream, self._nursery)
        stream.advance()
        return stream

    async def _connect(
        self, connection: Connection, stream: TargetStream, session: Session
    ) -> Bound | None:
        """Take CONNECT commands until one succeeds; return what serves the connection then."""
        while connection.error is None:
            if not stream.messages:
                connection.flush()
                await connection.drained()
                if not stream.messages:
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
                self.refusals[refusal.reason] += 1
                log.info("%s: CONNECT refused: %s", connection.peer, refusal)
            stream.answer(message, status, device_instance_id=ident)
            session.sent(Event.ACCEPTED if bound else Event.REFUSED)
            connection.flush()
            if bound:
                stream.trim()  # many queues are connected and not used for long
                return bound  # which reads on: what came behind CONNECT is its to judge
            stream.advance()
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
        found.instance.queue_size(index, 0)  # that there is such a queue comes first
        self._afford("queues", connection.peer, v5.EQUEUEQUOT)
        served = found.join(index, fields["queue_size"], connection, stream, session)
        self.books.take("queues", connection.peer)
        return partial(self._virtqueue, found, index, served), ident

    def _afford(self, thing: Thing, peer: str, status: int) -> None:
        """See whether a peer may have one more of a thing. Raises Refused."""
        if key := self.books.full(thing, peer):
            text = f"limits.{key} is {getattr(self.limits, key)}"
            raise Refused(status, f"limits.{key}", text)

    def _create(self, ivqn: str, tvqn: str, size: int, connection: Connection) -> Association:
        """Make an association. Raises Refused."""
        export = self.exports.get(tvqn)
        if not ivqn:
            raise Refused(v5.EBADVQN)
        if export is None:
            raise Refused(v5.ENOTGT)
        make = export.decide(ivqn, connection.peer)
        if make is None:
            names = ", ".join(map(str, export.allow)) or "nobody"
            text = f'{tvqn}: {ivqn!r} may not use it; its key "allow" names {names}'
            raise Refused(v5.EACLREJECTED, "allow", text)
        if size > v5.CONTROL_QUEUE_SIZE:
            raise Refused(v5.EQSIZEQUOT)
        self._afford("associations", connection.peer, v5.ENODEV)
        try:
            model = make()
        except (VofError, OSError) as error:
            log.error("%s: cannot make a device: %s", tvqn, error)
            raise Refused(v5.ENODEV) from None
        self._largest = max(self._largest, *model.queue_sizes)
        for listener in self.listeners:  # those of its queues come next
            listener.largest = max(listener.largest, self._largest)
        ident = secrets.randbelow(v5.NEW_INSTANCE)
        while ident in self.associations:
            ident = secrets.randbelow(v5.NEW_INSTANCE)
        self.books.take("associations", connection.peer)
        shared = self.books.peers[connection.peer].budget
        budget = Budget(self.limits.association_bytes, shared)
        association = Association(ident, tvqn, ivqn, model, connection, self._tidy, budget)
        self.associations[ident] = association
        log.info("%s: %r connected from %s as %d", tvqn, ivqn, connection.peer, ident)
        return association

    def _cut(self) -> None:
        self.refusals["limits.command_seconds"] += 1

    async def _control(
        self, association: Association, stream: TargetStream, session: Session
    ) -> None:
        """Serve a control queue; its end is the association's end."""
        try:
            await association.control(stream, session, self.limits.keepalive_seconds)
        finally:
            await association.destroy()
            del self.associations[association.ident]
            self.books.give("associations", association.peer)
            association.gone.set()
            self.ended.requests += association.requests
            log.info("%s: %r (%d) gone", association.tvqn, association.ivqn, association.ident)

    async def _virtqueue(self, association: Association, index: int, served: Served) -> None:
        """Serve a virtqueue."""
        try:
            await association.serve(index, served)
        finally:
            self.books.give("queues", association.peer)


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
