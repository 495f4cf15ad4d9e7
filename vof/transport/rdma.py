# SPDX-License-Identifier: BSD-3-Clause
"""``vof+rdma://host[:port]/TVQN``: queue pairs over RoCE, InfiniBand or iWARP.

An initiator's memory may be read and written by the target, each by a key of its own; the queue
pairs of one driver's device share a protection domain, and no other has it. At a target each
connection has its own, so that no initiator can use a key of another; it may write to what the
target gives it for that, and read nothing.
"""

import errno
import socket
from contextlib import ExitStack
from ipaddress import IPv6Address, ip_address

import trio

from vof.errors import VofError
from vof.protocol.registered import REMOTE_READ, REMOTE_WRITE, Memory
from vof.transport import rdmacm
from vof.transport.base import LARGEST, Connection, Listener, Url
from vof.transport.queue_pair import KeyedConnection
from vof.transport.rdma_events import AGAIN_S, WHY, Link, Watch
from vof.transport.rdmacm import Attributes, Event, Id, NoRdma
from vof.transport.verbs import (
    ACCESS_REMOTE_READ,
    ACCESS_REMOTE_WRITE,
    Device,
    VerbsDomain,
    load,
)
from vof.transport.verbs_pair import QPS_INIT, QPS_RTR, QPS_RTS, Endpoint


class Pair(Endpoint):
    """A queue pair, the id that connects it, and its use of a domain, all of which it owns."""

    def __init__(
        self, link: Link, domain: VerbsDomain, memory: Memory, access: int, size: int = LARGEST
    ) -> None:
        """Begin. See ``Endpoint``; the domain is given away, and the link only on success."""
        try:
            super().__init__(domain, memory, access, link.identity.peer[0], size)
        except VofError:
            domain.close()
            raise
        self._link = link

    def bring_up(self, *states: int) -> None:
        """Bring it to these states, in order. The id has what is needed.

        Raises:
            OSError: the peer is gone.
            VofError: that is not possible.
        """
        try:
            for state in states:
                self.prepare(*self._link.identity.attributes(state))
        except OSError:
            raise OSError(errno.ECONNABORTED, WHY[rdmacm.DISCONNECTED]) from None

    def agree(self, event: Event) -> None:
        """Note how many reads the peer answers at a time, by its request or its response."""
        self.reads = max(1, min(event.reads, self.domain.device.reads))

    def follow(self, connection: Connection) -> None:
        """From here on, note the end of the connection, and wake who waits for something of it."""

        def ended(why: str) -> None:
            self.end(why)
            connection.interrupt()

        self._link.follow(ended)

    def kill(self) -> None:
        """End it for both sides. See ``QueuePair``."""
        if self.alive:
            self._link.identity.disconnect()
        super().kill()

    def close(self) -> None:
        """Let go of everything. See ``QueuePair``."""
        super().close()
        self.domain.close()
        self._link.close()


# -- the initiator's side -------------------------------------------------------------------------


async def connect(url: Url, beside: Connection | None = None) -> Connection:
    """Connect to the first address of the host that answers. See ``transport.connect``."""
    found = await trio.socket.getaddrinfo(url.host, url.port, type=socket.SOCK_STREAM)
    errors: list[OSError] = []
    for family, _, _, _, address in found:
        try:
            return await _connect(rdmacm.pack_address(family, address), beside)
        except NoRdma:
            raise
        except OSError as error:
            errors.append(error)
    raise errors[-1]


async def _connect(address: bytes, beside: Connection | None) -> Connection:
    with ExitStack() as undo:
        link = Link(Watch.start())
        undo.callback(link.close)
        identity = link.identity
        try:
            identity.resolve_address(address)
            await link.expect(rdmacm.ADDR_RESOLVED)
            identity.resolve_route()
            await link.expect(rdmacm.ROUTE_RESOLVED)
        except OSError as error:
            if error.errno == errno.ENODEV:
                raise OSError(errno.ENODEV, WHY[rdmacm.ADDR_ERROR]) from None
            raise
        try:
            domain, memory = _memory(identity, beside)
            pair = Pair(link, domain, memory, ACCESS_REMOTE_READ | ACCESS_REMOTE_WRITE)
            undo.pop_all()
            undo.callback(pair.close)
            device = domain.device
            pair.bring_up(QPS_INIT)
            identity.connect(pair.number, device.answers, device.reads)
            event = await link.expect(rdmacm.CONNECT_RESPONSE, rdmacm.ESTABLISHED)
            pair.agree(event)
            if event.kind == rdmacm.CONNECT_RESPONSE:  # iWARP did the rest itself
                pair.bring_up(QPS_RTR, QPS_RTS)
                identity.establish()
            connection = KeyedConnection(pair, pair.peer)
            pair.follow(connection)
            connection.adapter = domain.device.name
        except VofError as error:
            raise OSError(str(error)) from error
        undo.pop_all()
        return connection


def _memory(identity: Id, beside: Connection | None) -> tuple[VerbsDomain, Memory]:
    """Return what a connection may touch: that of the one beside it, or something new."""
    name, transport = identity.device
    if beside is None:
        domain = VerbsDomain(Device.open(name, transport))
        return domain, Memory(domain, REMOTE_READ | REMOTE_WRITE)
    memory = beside.pool
    assert isinstance(memory, Memory)
    assert isinstance(memory.domain, VerbsDomain)
    if memory.domain.device.name != name:
        raise OSError(errno.ENETUNREACH, f"{name} is not the RDMA device of the control queue")
    return memory.domain.share(), memory


# -- the target's side ----------------------------------------------------------------------------


def is_there(peer: str, local: str, attributes: Attributes) -> bool:
    """Return whether a peer that is not reached by iWARP is where it says, as far as can be told.

    Its address is what its request to connect says, and who may use a device is decided by that.
    On Ethernet (RoCE) it has to be what packets are sent to; on InfiniBand they go by other
    addresses, and nobody is believed to be where we are, which is where most are let in from.

    Args:
        peer: the address that it says.
        local: the address of this side.
        attributes: what a queue pair to it needs.
    """
    vector = attributes.ah_attr
    if not vector.is_global or vector.dlid:
        return peer != local and not ip_address(peer).is_loopback
    found = IPv6Address(bytes(vector.grh.dgid))
    return peer == str(found.ipv4_mapped or found)


class RdmaListener(Listener):
    """An address at which the connection manager listens.

    A device that is removed takes the address with it; it is listened on again when it is back.
    """

    def __init__(self, url: Url, family: int, address: tuple[str | int | bytes, ...]) -> None:
        """Listen. Raises OSError."""
        self.url = url
        self._family = family
        self._address = address
        self._send, self._receive = trio.open_memory_channel[Event](rdmacm.BACKLOG)
        self._open = True
        self._identity: Id | None = None
        self._watch: Watch
        host, port = self._listen().local
        self._address = address[0], port, *address[2:]
        if scope := int(address[3]) if len(address) > 3 else 0:
            host += f"%{socket.if_indextoname(scope)}"
        self.url = url._replace(host=host, port=port)

    def _listen(self) -> Id:
        self._watch = Watch.start()
        identity = self._watch.identify(self._happened)
        try:
            address = rdmacm.pack_address(self._family, self._address)
            identity.listen(address, only_this_family=self._family == socket.AF_INET6)
        except OSError as error:
            self._watch.destroy(identity)
            if error.errno in (errno.ENODEV, errno.EADDRNOTAVAIL):
                what = f"no RDMA device has the address {self.url.host}; see vof doctor"
                raise NoRdma(error.errno, what) from None
            raise
        self._identity = identity
        return identity

    def _happened(self, event: Event) -> None:
        if event.kind == rdmacm.DEVICE_REMOVAL:
            self._drop()
            self._send.send_nowait(event)
        elif event.kind == rdmacm.CONNECT_REQUEST:
            try:
                self._send.send_nowait(event)
            except trio.WouldBlock:
                Id(event.id).destroy()

    def _drop(self) -> None:
        """Listen no more; connections that were not accepted end."""
        while self._receive.statistics().current_buffer_used:
            event = self._receive.receive_nowait()
            if event.kind == rdmacm.CONNECT_REQUEST:
                Id(event.id).destroy()
        if self._identity is not None:
            self._watch.destroy(self._identity)
            self._identity = None

    async def accept(self) -> Connection:
        """Wait for the next connection. One that died meanwhile is passed over."""
        while True:
            while self._open and self._identity is None:
                try:
                    self._listen()
                except OSError:
                    await trio.sleep(AGAIN_S)
            event = await self._receive.receive()
            if event.kind == rdmacm.DEVICE_REMOVAL:
                raise OSError(errno.ENODEV, f"{WHY[event.kind]}; waiting for it to come back")
            try:
                return self._accept(event)
            except NoRdma:
                raise
            except VofError as error:
                raise OSError(errno.ENOMEM, str(error)) from error
            except OSError:
                continue

    def _accept(self, event: Event) -> Connection:
        with ExitStack() as undo:
            link = Link(self._watch, Id(event.id))
            undo.callback(link.close)
            identity = link.identity
            domain = VerbsDomain(Device.open(*identity.device))
            pair = Pair(link, domain, Memory(domain), ACCESS_REMOTE_WRITE, self.largest)
            undo.pop_all()
            undo.callback(pair.close)
            pair.agree(event)
            pair.bring_up(QPS_INIT)
            if not domain.device.iwarp:
                if not event.reads:
                    raise OSError(errno.ECONNABORTED, "it lets nobody read")
                pair.bring_up(QPS_RTR, QPS_RTS)
                to_peer, _ = identity.attributes(QPS_RTR)
                if not is_there(pair.peer, identity.local[0], to_peer):
                    raise OSError(errno.ECONNABORTED, "it is not where it says")
            connection = KeyedConnection(pair, pair.peer)
            pair.follow(connection)
            connection.adapter = domain.device.name
            identity.accept(pair.number, min(event.answers, domain.device.answers), pair.reads)
            undo.pop_all()
            return connection

    def close(self) -> None:
        """Stop listening; connections that were not accepted end."""
        if self._open:
            self._open = False
            self._drop()
            self._send.close()
            self._receive.close()


async def listen(url: Url) -> list[Listener]:
    """Listen on each address of the host that an RDMA device has, all on one port.

    Suspends; raises OSError.
    """
    found = await trio.socket.getaddrinfo(
        url.host, url.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
    )
    load()
    port = url.port
    listeners: list[Listener] = []
    missing: list[NoRdma] = []
    with ExitStack() as undo:
        for family, _, _, _, address in dict.fromkeys(found):
            try:
                listener = RdmaListener(url, family, (address[0], port, *address[2:]))
            except NoRdma as error:
                missing.append(error)
                continue
            undo.callback(listener.close)
            port = listener.url.port
            listeners.append(listener)
        if not listeners:
            raise missing[-1]
        undo.pop_all()
    return listeners
