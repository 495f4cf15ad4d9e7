# SPDX-License-Identifier: BSD-3-Clause
"""A queue pair by pyverbs.

What makes it quick enough:

* Work requests are objects that are filled again and again, as posting copies them. They are
  chained once; to post some of them, the last of the chain are filled, which its end ends.
* Few posts tell that they completed, and then all before them did, too: reads, every so manyth,
  what ends a lot of bytes, and the last of a chain while somebody waits for it. Who begins to wait
  later is helped by a mark: a write of no bytes.
* Completions are polled all at once, from memory. The system is asked for a notification before a
  sleep only.
"""

import errno
import threading
from collections import deque
from collections.abc import Sequence
from functools import cache

from vof.errors import ConnectionLost, VofError
from vof.protocol.keyed import READ, Post
from vof.protocol.keyed_initiator import EXTRA
from vof.protocol.registered import Memory
from vof.transport.queue_pair import QueuePair
from vof.transport.rdmacm import Attributes
from vof.transport.verbs import Place, Places, Verbs, VerbsDomain, completion_channel, pyverbs

WR_RDMA_WRITE, WR_SEND, WR_RDMA_READ = 0, 2, 4
SEND_FENCE, SEND_SIGNALED = 1, 2
QPT_RC = 2
QPS_INIT, QPS_RTR, QPS_RTS, QPS_ERR = 1, 2, 3, 6
QP_STATE, QP_AV = 1 << 0, 1 << 7
WC_WR_FLUSH_ERR = 5

FAILURES = {
    1: "a message was longer than the receive for it",
    4: "a transfer left the memory that it was for",
    5: "the peer closed it, or broke its rules",
    9: "the peer took a message for invalid",
    10: "the peer's memory does not allow a transfer: its key, place or rights",
    11: "the peer could not carry out a transfer",
    12: "the peer does not answer",
    13: "the peer has no receive posted",
}
"""Statuses of completions, in words."""

ATTRIBUTES = (
    *("path_mtu", "qkey", "rq_psn", "sq_psn", "dest_qp_num", "qp_access_flags", "pkey_index"),
    *("max_rd_atomic", "max_dest_rd_atomic", "min_rnr_timer", "port_num", "timeout"),
    *("retry_cnt", "rnr_retry"),
)
VECTOR = ("dlid", "sl", "src_path_bits", "static_rate", "port_num", "is_global")
ROUTE = ("sgid_index", "hop_limit", "flow_label", "traffic_class")
"""Attributes by their names, which rdmacm and pyverbs share."""

SENDS = 255
"""One below a power of two: soft-RoCE has room for one more, and rounds up."""
LARGEST = 1024
"""The largest queue."""
MESSAGES = 16
"""Places for messages to send that are made at a time."""
ALL = SENDS + LARGEST + EXTRA
"""As many as a completion queue may hold."""
SIGNAL_EVERY = 32
SIGNAL_BYTES = 64 * 1024
"""Of what is not read, every so manyth tells that it completed; and the end of a chain that is so
long, with those before it."""
MARK = 1 << 40
"""What the number of a mark has more than that of the post before it."""


class _Requests(threading.local):
    """Work requests of one thread, chained: to post some, the last of them are filled."""

    def __init__(self) -> None:
        work = pyverbs("wr")
        self.places = [work.SGE(0, 0, 0) for _ in range(SENDS)]
        self.chain: list[Verbs] = [None] * SENDS
        following = None
        for at in reversed(range(SENDS)):
            place = self.places[at]
            following = work.SendWR(num_sge=1, sg=[place], next_wr=following)
            following.sg_list = place  # not a copy of it
            self.chain[at] = following
        self.mark = work.SendWR(
            opcode=WR_RDMA_WRITE, num_sge=1, sg=[work.SGE(0, 0, 0)], send_flags=SEND_SIGNALED
        )


@cache
def _requests() -> _Requests:
    return _Requests()


class Endpoint(QueuePair):
    """A queue pair with a completion queue and its descriptor. See ``QueuePair``.

    Attributes:
        domain: what its memory is registered in.
        number: of the queue pair.
        alive: ``kill`` was not called.
        peer: who is at the other end.
        why: why that is gone, as far as somebody told; "" for nobody did.
    """

    def __init__(
        self, domain: VerbsDomain, memory: Memory, access: int, peer: str, size: int
    ) -> None:
        """Make one that is not connected.

        Args:
            domain: of all memory that it touches.
            memory: see ``QueuePair``.
            access: what the peer may do at most: ACCESS_REMOTE_READ, ACCESS_REMOTE_WRITE or both.
            peer: see above.
            size: of the queue that there must be room for, up to ``largest``.

        Raises:
            VofError: the system refuses.
        """
        pairs, queues = pyverbs("qp"), pyverbs("cq")
        self.domain = domain
        self.peer = peer
        self.memory = memory
        self.reads = 1
        self.why = ""
        self._access = access
        device = domain.device
        self.depth = min(SENDS, device.requests) - 1  # and a mark
        self.largest = min(LARGEST, device.requests - EXTRA)
        self._room = min(size, self.largest) + EXTRA
        limits = {"max_send_wr": self.depth + 1, "max_recv_wr": self._room}
        try:
            self._channel, self.fd = completion_channel(device)
            room = self.depth + 1 + self._room
            self._queue = queues.CQ(device.context, room, None, self._channel, 0)
            self._pair = pairs.QP(
                domain.pd,
                pairs.QPInitAttr(
                    qp_type=QPT_RC,
                    cap=pairs.QPCap(max_send_sge=1, max_recv_sge=1, **limits),
                    scq=self._queue,
                    rcq=self._queue,
                    sq_sig_all=0,
                ),
            )
        except pyverbs("pyverbs_error").PyverbsError as error:
            raise VofError(f"{device.name} gives no queue pair: {error}") from None
        self.number: int = self._pair.qp_num
        self.alive = True
        self._armed = self._marked = False
        self._attends = True
        self._failure = ""
        self._posted = self._completed = 0
        self._signaled = 0  # the last that tells
        self._fence = SEND_FENCE if device.iwarp else 0  # else a read completes after what follows
        self._since = 0  # bytes that were posted after it
        self._places = Places(domain)
        self._sending: deque[tuple[int, Place]] = deque()
        self._ready: deque[Place] = deque()
        self._requests = _requests()
        self._error = pyverbs("pyverbs_error").PyverbsError

    def prepare(self, attributes: Attributes, mask: int) -> None:
        """Bring the queue pair to a state, by what the connection says.

        Raises:
            VofError: that is not possible.
        """
        pairs, address = pyverbs("qp"), pyverbs("addr")
        wanted = pairs.QPAttr(qp_state=attributes.qp_state)
        device = self.domain.device
        attributes.qp_access_flags = self._access
        attributes.max_rd_atomic = min(attributes.max_rd_atomic, device.reads)
        attributes.max_dest_rd_atomic = min(attributes.max_dest_rd_atomic, device.answers)
        for name in ATTRIBUTES:
            setattr(wanted, name, getattr(attributes, name))
        if mask & QP_AV:
            vector = attributes.ah_attr
            route = vector.grh
            raw = bytes(route.dgid).hex()
            words = ":".join(raw[at : at + 4] for at in range(0, len(raw), 4))
            wanted.ah_attr = address.AHAttr(
                **{name: getattr(vector, name) for name in VECTOR},
                gr=address.GlobalRoute(
                    dgid=address.GID(words),
                    **{name: getattr(route, name) for name in ROUTE},
                ),
            )
        try:
            self._pair.modify(wanted, mask)
        except pyverbs("pyverbs_error").PyverbsError as error:
            raise VofError(f"the queue pair cannot be brought up: {error}") from None

    def receives(self, count: int, size: int) -> None:
        """Post receives. See ``QueuePair``."""
        if len(self._ready) + count > self._room:
            raise VofError(
                f"{self.domain.device.name} has no room for a queue of {count}: "
                f"at most {self._room - EXTRA}"
            )
        post, ready = self._pair.post_recv, self._ready
        while count > 0:
            free = self._places.free(size, count)
            for place in [free.pop() for _ in range(min(count, len(free)))]:
                ready.append(place)
                try:
                    post(place.receive)
                except self._error as error:
                    raise self._lost(str(error)) from None
                count -= 1

    def post(self, posts: Sequence[Post]) -> None:
        """Post messages and transfers. See ``QueuePair``."""
        left = len(posts)
        chain, places = self._requests.chain, self._requests.places
        at = first = len(chain) - left
        free, sending = self._places.free, self._sending.append
        number, signaled, fence = self._posted, self._signaled, self._fence
        for post in posts:
            place, request = places[at], chain[at]
            at += 1
            number += 1
            flags = fence
            if type(post) is bytes:
                size = len(post)
                message = free(size, MESSAGES).pop()
                sending((number, message))
                message.view[:size] = post
                place.addr, place.length, place.lkey = message.address, size, message.key
                request.opcode = WR_SEND
            else:
                kind, place.addr, place.length, place.lkey, address, key = post
                request.set_wr_rdma(key, address)
                self._since += post[2]
                if kind == READ:
                    request.opcode = WR_RDMA_READ
                    flags = SEND_SIGNALED
                else:
                    request.opcode = WR_RDMA_WRITE
            if number - signaled >= SIGNAL_EVERY or (
                at == SENDS and (self._attends or self._since >= SIGNAL_BYTES)
            ):
                flags |= SEND_SIGNALED
            if flags & SEND_SIGNALED:
                signaled = number
                self._since = 0
            request.wr_id = number
            request.send_flags = flags
        self._posted, self._signaled = number, signaled
        try:
            self._pair.post_send(chain[first])
        except self._error as error:
            raise self._lost(str(error)) from None

    def attend(self, posts: bool) -> None:
        """Let all posts tell that they completed. See ``QueuePair``."""
        self._attends = posts
        if posts:
            self._mark()

    def _mark(self) -> None:
        """Post a mark, if the last post does not tell that it completed; one mark at a time."""
        if self._marked or self._signaled == self._posted:
            return
        self._marked = True
        self._signaled = self._posted
        self._requests.mark.wr_id = MARK + self._posted
        try:
            self._pair.post_send(self._requests.mark)
        except self._error:
            pass  # which ``poll`` will say

    def poll(self) -> tuple[int, list[bytes]]:
        """Take what completed. See ``QueuePair``."""
        if not self.alive or self._failure:
            raise self._lost(self._failure)
        try:
            count, completions = self._queue.poll(ALL)
        except self._error as error:  # the device is gone
            raise self._lost(str(error)) from None
        if not count:
            if self.why:
                raise self._lost("")
            return 0, []
        messages: list[bytes] = []
        last = self._completed
        for completion in completions:
            if status := completion.status:
                if status != WC_WR_FLUSH_ERR or not self._failure:
                    self._failure = FAILURES.get(status, f"status {status}")
            elif number := completion.wr_id:
                if number > MARK:
                    number -= MARK
                    self._marked = False
                if number < last:
                    raise self._lost(f"post {number} completed after {last}")
                last = number
            else:
                place = self._ready.popleft()
                messages.append(bytes(place.view[: completion.byte_len]))
                place.free.append(place)
        done, self._completed = last - self._completed, last
        sending = self._sending
        while sending and sending[0][0] <= last:
            place = sending.popleft()[1]
            place.free.append(place)
        if self._failure:
            if not done and not messages:
                raise self._lost(self._failure)
        elif self._attends:
            self._mark()
        return done, messages

    def arm(self) -> None:
        """Ask the system for a notification. See ``QueuePair``."""
        if not self._armed:
            self._armed = True
            try:
                self._queue.req_notify()
            except self._error:
                pass  # the device is gone, as ``poll`` will say

    def disarm(self) -> None:
        """Take the notification, if it is there; else it is still to come. See ``QueuePair``."""
        if self._armed:
            try:
                self._channel.get_cq_event(self._queue)
            except self._error as error:
                if error.error_code != errno.EAGAIN:
                    self._failure = str(error)  # the device is gone
                return
            self._queue.ack_events(1)
            self._armed = False

    def _lost(self, why: str) -> ConnectionLost:
        return ConnectionLost(f"connection to {self.peer} lost: {self.why or why}")

    def end(self, why: str) -> None:
        """Note that the peer is gone: ``poll`` gives what completed before, then this reason."""
        if self.alive and not self.why:
            self.why = why
            try:
                self._pair.modify(pyverbs("qp").QPAttr(qp_state=QPS_ERR), QP_STATE)
            except self._error:
                pass  # it was there already, or the device is gone

    def kill(self) -> None:
        """End the queue pair. See ``QueuePair``."""
        if self.alive:
            self.alive = False
            self._pair.close()

    def close(self) -> None:
        """Let go of everything. See ``QueuePair``."""
        self.kill()
        self._queue.close()
        self._channel.close()
        self._places.close()
        self._ready.clear()
        self._sending.clear()
