# SPDX-License-Identifier: BSD-3-Clause
"""One connection to a frontend: its requests, its rings, and what it is asked."""

import mmap
import os
import random
import selectors
import signal
import socket
import struct
import time

from tests.vhost_backend import inflight
from tests.vhost_backend.disk import WRITEBACK_AT
from tests.vhost_backend.inflight import TrackedPacked, TrackedSplit
from tests.vhost_backend.rings import Memory, Refused, Ring, indices, position
from tests.vhost_backend.wire import Decoder, rights
from vof.errors import RemoteProtocolError, RingError
from vof.virtio import vhost_user as vu
from vof.virtio.constants import VIRTIO_F_EVENT_IDX, VIRTIO_F_RING_PACKED, bit
from vof.virtio.layout import PackedLayout, SplitLayout
from vof.virtio.vhost_user import FRONTEND, Message, Protocol

NAMES = {row.number: row.name for row in FRONTEND.values()}
POLL_S = 0.001
WRONG = Refused, RingError, RemoteProtocolError, struct.error, OSError, LookupError, ValueError
"""What a request that cannot be carried out ends with, the memory that it names being anybody's."""


class Backend:
    """One connection to a frontend."""

    def __init__(self, options, disk, misbehaviour, sock):
        self.options, self.disk, self.mis = options, disk, misbehaviour
        self.sock = sock
        self.requests = None  # the socket to ask the frontend on
        self.features = self.protocol = self.status = 0
        self.memory = Memory()
        self.rings = [Ring(index) for index in range(options.queues)]
        self.busy = set()
        self.inflight = None
        self.size = 0
        self.random = random.Random(options.seed)
        self.selector = selectors.DefaultSelector()
        self.watch(sock, self.readable)
        self.decoder = Decoder()

    # -- loop ---------------------------------------------------------------------------------

    def watch(self, file, call):
        self.selector.register(file, selectors.EVENT_READ, call)

    def run(self, wake):
        """Serve until the frontend leaves."""
        self.watch(wake, lambda: self.grow(wake))
        try:
            while True:
                for key, _ in self.selector.select(0 if self.busy else None):
                    key.data()
                for ring in list(self.busy):
                    self.work(ring)
        except (EOFError, BrokenPipeError, ConnectionResetError, RemoteProtocolError) as error:
            self.log(f"end: {error!r}")
        finally:
            self.close()

    def close(self):
        for ring in self.rings:
            self.stop(ring)
        for sock in (self.sock, self.requests):
            if sock is not None:
                sock.close()
        self.decoder.close()
        self.selector.close()

    def log(self, line):
        if self.options.log:
            with open(self.options.log, "a") as file:
                file.write(line + "\n")

    def readable(self):
        for message in self.decoder.read(self.sock):
            name = NAMES.get(message.number, str(message.number))
            self.log(name)
            if not self.mis.message(self, name, message):
                self.answer(name, message)
            message.close()

    def answer(self, name, message):
        """Carry a request out and answer it, if an answer is due."""
        row, handler = FRONTEND.get(name), getattr(self, name.lower(), None)
        failed, fds = 1, []
        payload = b""
        try:
            if handler is None:
                raise Refused("unknown")
            result = handler(message)
            failed = 0
            if isinstance(result, tuple):
                payload, *fds = result
        except WRONG as error:
            self.log(f"refused {name}: {error}")
        if row is not None and row.reply is not None:
            self.reply(message.number, payload, fds)
        elif message.need_reply and self.has(Protocol.REPLY_ACK):
            self.reply(message.number, vu.U64.pack(failed))

    def reply(self, number, payload, fds=()):
        data = Message(number, vu.FLAG_REPLY, payload).encode()
        self.sock.sendmsg([data], rights(fds))

    def has(self, feature):
        return self.protocol >> feature & 1

    # -- what the device is -------------------------------------------------------------------

    def get_features(self, message):
        return (vu.U64.pack(self.options.features),)

    def set_features(self, message):
        (features,) = vu.U64.unpack(message.payload)
        if features & ~self.options.features:
            raise Refused(f"features 0x{features:x}")
        self.features = features
        if not features & bit(vu.F_PROTOCOL_FEATURES):
            for ring in self.rings:
                self.enable(ring, True)

    def get_protocol_features(self, message):
        return (vu.U64.pack(self.options.protocol),)

    def set_protocol_features(self, message):
        (self.protocol,) = vu.U64.unpack(message.payload)

    def set_owner(self, message):
        pass

    def reset_owner(self, message):
        pass

    def get_queue_num(self, message):
        return (vu.U64.pack(len(self.rings)),)

    def get_config(self, message):
        offset, size, flags = vu.CONFIG.unpack(message.payload)
        config = self.disk.config.pack()
        if offset + size > len(config):
            return (b"",)
        return (vu.CONFIG.pack(offset, size, flags, tail=config[offset : offset + size]),)

    def set_config(self, message):
        offset, size, flags = vu.CONFIG.unpack(message.payload)
        if not flags and (offset, size) != (WRITEBACK_AT, 1):
            raise Refused("that part of the configuration is not writable")
        value = message.payload[vu.CONFIG.codec.size :]
        self.disk.config = self.disk.config._replace(writeback=value[0])

    def set_status(self, message):
        (self.status,) = vu.U64.unpack(message.payload)
        if not self.status:
            self.reset_device(message)

    def get_status(self, message):
        return (vu.U64.pack(self.status),)

    def reset_device(self, message):
        self.status = self.features = 0
        for ring in self.rings:
            self.stop(ring)
            ring.enabled = False

    # -- memory -------------------------------------------------------------------------------

    def set_mem_table(self, message):
        (count,) = vu.MEMORY.unpack(message.payload)
        rows = list(vu.REGION.codec.iter_unpack(message.payload[vu.MEMORY.codec.size :]))
        if count != len(rows) or count != len(message.fds):
            raise Refused(f"{count} regions, {len(rows)} rows, {len(message.fds)} descriptors")
        self.memory.regions.clear()
        for row in rows:
            self.memory.add(*row, message.take())

    def get_max_mem_slots(self, message):
        return (vu.U64.pack(self.options.slots),)

    def add_mem_reg(self, message):
        if len(message.fds) != 1 or len(self.memory.regions) >= self.options.slots:
            raise Refused("not one descriptor, or too many regions")
        self.memory.add(*vu.ONE_REGION.unpack(message.payload), message.take())

    def rem_mem_reg(self, message):
        guest, size, user, _ = vu.ONE_REGION.unpack(message.payload)
        self.memory.remove(guest, size, user)

    def get_inflight_fd(self, message):
        _, _, queues, num = vu.INFLIGHT.unpack(message.payload)
        size = queues * inflight.bytes_of(num)
        fd = os.memfd_create("inflight")
        os.ftruncate(fd, size)
        self.remember(fd, size, 0, num)
        return vu.INFLIGHT.pack(size, 0, queues, num), fd

    def set_inflight_fd(self, message):
        size, offset, _, num = vu.INFLIGHT.unpack(message.payload)
        self.remember(message.fds[0], size, offset, num)

    def remember(self, fd, size, offset, num):
        self.inflight = memoryview(mmap.mmap(fd, offset + size))[offset:]
        self.size = inflight.bytes_of(num)

    # -- rings --------------------------------------------------------------------------------

    def ring(self, index):
        if index >= len(self.rings):
            raise Refused(f"ring {index} of {len(self.rings)}")
        return self.rings[index]

    def set_vring_num(self, message):
        index, self.ring(index).num = vu.STATE.unpack(message.payload)

    def set_vring_base(self, message):
        index, num = vu.STATE.unpack(message.payload)
        self.ring(index).base = num

    def set_vring_addr(self, message):
        index, _, *addresses, _ = vu.ADDR.unpack(message.payload)
        ring = self.ring(index)
        ring.addresses = addresses[0], addresses[2], addresses[1]
        self.layout(ring)

    def layout(self, ring):
        """The ring in memory; its parts must follow each other as this project lays them."""
        kind = PackedLayout if self.features & bit(VIRTIO_F_RING_PACKED) else SplitLayout
        first = ring.addresses[0]
        layout = kind(ring.num, self.memory.user(first, kind.bytes_of(ring.num)))
        if tuple(address - first for address in ring.addresses) != layout.offsets:
            raise Refused(f"a ring at {ring.addresses}")
        return layout

    def set_vring_kick(self, message):
        ring = self.set_fd("KICK", message)
        if ring.fds["KICK"] is not None:
            self.watch(ring.fds["KICK"], lambda: self.kick(ring))
        if ring.vringh is None:
            ring.vringh = self.make(ring)
        ring.kicked = ring.fds["KICK"] is None or bool(ring.vringh.unfinished)
        self.start(ring)

    def make(self, ring):
        """The device's side of a ring, where it was left."""
        packed = self.features >> VIRTIO_F_RING_PACKED & 1
        state = memoryview(bytearray(inflight.bytes_of(ring.num)))
        if self.inflight is not None:
            at = ring.index * self.size
            state = self.inflight[at : at + self.size]
        return (TrackedPacked if packed else TrackedSplit)(
            self.layout(ring),
            self.memory.guest,
            bool(self.features >> VIRTIO_F_EVENT_IDX & 1),
            position(ring.base, ring.num) if packed else ring.base & 0xFFFF,
            state,
        )

    def set_vring_call(self, message):
        self.set_fd("CALL", message)

    def set_vring_err(self, message):
        self.set_fd("ERR", message)

    def set_fd(self, name, message):
        (value,) = vu.U64.unpack(message.payload)
        ring = self.ring(value & vu.VRING_INDEX_MASK)
        self.drop(ring, name)
        ring.fds[name] = message.take()
        if (ring.fds[name] is None) != bool(value & vu.VRING_NO_FD):
            raise Refused("a descriptor too few or too many")
        return ring

    def drop(self, ring, name):
        fd, ring.fds[name] = ring.fds[name], None
        if fd is not None:
            if name == "KICK":
                self.selector.unregister(fd)
            os.close(fd)

    def set_vring_enable(self, message):
        index, on = vu.STATE.unpack(message.payload)
        self.enable(self.ring(index), bool(on))

    def enable(self, ring, on):
        ring.enabled = on
        self.busy.discard(ring)
        self.start(ring)

    def get_vring_base(self, message):
        index, _ = vu.STATE.unpack(message.payload)
        ring = self.ring(index)
        self.stop(ring)
        return (vu.STATE.pack(index, ring.base),)

    def kick(self, ring):
        try:
            os.eventfd_read(ring.fds["KICK"])
        except BlockingIOError:
            return
        ring.kicked = True
        self.start(ring)

    def start(self, ring):
        """Let a ring run that was kicked and is enabled; first what somebody else left."""
        if ring.kicked and ring.enabled and ring.vringh is not None:
            self.busy.add(ring)
            if chains := ring.vringh.resubmitted():
                self.log(f"ring {ring.index} resubmits {len(chains)}")
                self.mis.chains(self, ring, chains)

    def stop(self, ring):
        """Stop a ring; nothing is in flight then."""
        self.busy.discard(ring)
        for name in ring.fds:
            self.drop(ring, name)
        ring.kicked = False
        if ring.vringh is not None:
            if isinstance(ring.vringh, TrackedPacked):
                ring.base = indices(ring.vringh, ring.num)
            else:
                ring.base = ring.vringh._last_avail_idx & 0xFFFF
            ring.vringh.clean()
            ring.vringh = None

    def work(self, ring):
        """Serve what is available, once."""
        vringh = ring.vringh
        try:
            vringh.notify_disable()
            chains = vringh.receive()
            if chains:
                self.mis.chains(self, ring, chains)
            elif ring.fds["KICK"] is None:
                time.sleep(POLL_S)
            elif vringh.notify_enable():
                self.busy.discard(ring)
        except RingError as error:
            self.log(f"ring {ring.index}: {error}")
            self.busy.discard(ring)
            ring.kicked = False
            ring.signal("ERR")

    def serve(self, ring, chains):
        """Serve chains, in any order."""
        self.random.shuffle(chains)
        for chain in chains:
            self.options.die_after -= 1
            if not self.options.die_after:
                os.kill(os.getpid(), signal.SIGKILL)
            ring.vringh.push(chain, self.disk.serve(chain))
            if self.random.random() < 0.5:
                self.flush(ring)
        self.flush(ring)

    def flush(self, ring):
        if ring.vringh.flush():
            ring.signal("CALL")

    # -- what it asks the frontend --------------------------------------------------------------

    def set_backend_req_fd(self, message):
        self.requests = socket.socket(fileno=message.take())
        self.watch(self.requests, self.acknowledged)

    def acknowledged(self):
        data = self.requests.recv(65536)
        if not data:
            self.selector.unregister(self.requests)
        self.log(f"frontend answers {data.hex()}")

    def ask(self, number, payload=b"", fds=(), flags=0):
        self.requests.sendmsg([Message(number, flags, payload).encode()], rights(fds))

    def grow(self, wake):
        """The disk has another size now: say so."""
        wake.recv(64)
        self.disk.look()
        if self.requests is not None:
            flags = vu.FLAG_NEED_REPLY if self.has(Protocol.REPLY_ACK) else 0
            self.ask(vu.BACKEND["CONFIG_CHANGE_MSG"].number, flags=flags)
