# SPDX-License-Identifier: BSD-3-Clause
"""What the target's side of a stream is, whatever the dialect and the mapping. Pure.

Nothing is allocated for a request before its lengths are checked, and a queue whose requests and
unsent completions reach ``queue_bytes`` stops reading: the peer meets back-pressure.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Generator
from typing import ClassVar, NamedTuple, TypeVar

from vof.errors import LocalProtocolError, OutOfMemory, RemoteProtocolError
from vof.memory import HEAP, Pool
from vof.protocol.budget import CHUNK, FREE, UNLIMITED, Budget
from vof.protocol.stream import Program
from vof.virtio.model import Chain

GET_GENERATION, GET_NUM_QUEUES, SET_VQ_SIZE = range(0x10000, 0x10003)
"""Commands that v5 has no number for: beyond what 16 bits can hold."""
UNKNOWN = -1
"""The opcode of a command that the dialect does not know."""


Found = TypeVar("Found")


def _nobody() -> None:
    """Wake nobody."""


class Message(NamedTuple):
    """A command other than a request, in the common vocabulary.

    Attributes:
        opcode: its number, known or not.
        command_id: to be echoed.
        fields: by name; empty for an unknown opcode.
        body: the CONNECT body, or b"".
        queues: where it is legal: "c" control queue, "v" virtqueue.
    """

    opcode: int
    command_id: int
    fields: dict[str, int]
    body: bytes
    queues: str


ENDS = RemoteProtocolError, OutOfMemory
"""What a stream raises when its connection cannot go on; all others can."""


class TargetStream(ABC):
    """One connection's two directions.

    Attributes:
        chains: requests that came and were not taken yet; taken by whoever serves the queue.
        messages: other commands that came and were not taken yet.
        inflight: how many requests were not pushed yet.
        paused: the parser waits for requests to end: call ``advance`` when some did.
        transferring: bytes of requests are under way: look at the connection for their end.
        starved: it waits for bytes that other queues hold; ``wake`` is called when there are some.
        wake: see ``starved``; called in any thread, and by the garbage collector.
        taken: messages that were taken, or begun, in all.
        errors: how many commands were answered with an error.
        dialect: its name in the table of dialects.
        waits: requests wait for DRIVER_OK even when the driver never wrote the status.
        transport_features: what of them the target has on such a stream.
    """

    dialect: ClassVar[str]
    waits: ClassVar[bool] = True
    transport_features: ClassVar[int] = 0

    def __init__(self, request_bytes: int, queue_bytes: int) -> None:
        self.chains: list[Chain] = []
        self.messages: list[Message] = []
        self.inflight = 0
        self.paused = False
        self.errors = 0
        self.starved = False
        self.taken = 0
        self.wake = _nobody
        self._request_bytes = request_bytes
        self._queue_bytes = queue_bytes
        self._grant = min(queue_bytes, FREE)
        self._budget = UNLIMITED
        self._queue_size = -1  # not bound yet
        self._held = 0
        self._pool: Pool = HEAP
        self._failure = b""

    def bind(
        self, queue_size: int, pool: Pool, failure: bytes = b"", budget: Budget = UNLIMITED
    ) -> None:
        """Become a queue's stream.

        Args:
            queue_size: requests that may be in flight; 0 for a control queue, which has none.
            pool: where payload goes.
            failure: the end of the writable part of a request that cannot be carried out; see
                ``DeviceModel.failure``.
            budget: what other queues share with this one.
        """
        self._queue_size = queue_size
        self._budget = budget
        self._pool = pool
        self._failure = failure
        if queue_size:
            pool.enter(self.let_go)

    @abstractmethod
    def push(self, chain: Chain, written: int, filled: int | None = None) -> None:
        """Queue the completion of a request. See ``DeviceQueue.push``."""

    @abstractmethod
    def answer(self, message: Message, status: int, **fields: int) -> None:
        """Queue the completion of any other command."""

    @abstractmethod
    def notice(self, ident: int, **fields: int) -> bool:
        """Queue a completion that no command asked for: ``v5.ID_CONFIG_CHANGE`` and the like.

        Returns:
            Whether the driver must look before it is told again.
        """

    @property
    def transferring(self) -> bool:
        """Whether bytes of requests are under way; never where they come in a row."""
        return False

    @property
    @abstractmethod
    def unsent(self) -> bool:
        """Whether something was pushed or answered, and not taken to be sent."""

    @property
    @abstractmethod
    def unfinished(self) -> bool:
        """Whether a message began and did not end, and nothing but the peer is waited for."""

    @abstractmethod
    def pending(self) -> int:
        """Return how many bytes of completions wait to be sent."""

    @abstractmethod
    def advance(self) -> None:
        """Go on, where the parser paused; otherwise nothing happens."""

    def eager_buffer(self, most: int) -> dict[str, int]:
        """Return memory of this side that the initiator may write requests to beforehand.

        Args:
            most: pieces that it wants to hear of.

        Returns:
            The fields of the answer to GET_KEYED_EAGER_BUF; no pieces where there is no such thing.
        """
        return {"descs": 0}

    def quiesce(self) -> None:  # noqa: B027 - a request that is read at once is here already
        """Begin no more requests; those that began come whole."""

    @abstractmethod
    def trim(self) -> None:
        """Let go of all memory that holds nothing."""

    @abstractmethod
    def let_go(self) -> None:
        """Somebody waits for memory of the pool: keep only what requests lie in."""

    def release(self) -> None:
        """The connection is over, and nobody serves it: let go of everything.

        Without it, memory would stay until the garbage collector looks: stream and program know
        each other.
        """
        self._pool.forget(self.wake)
        self._pool.leave(self.let_go)
        self._budget.forget(self.wake)
        self.wake = _nobody
        self._held = 0
        self.yield_bytes()
        self.chains, self.messages = [], []

    # -- in -----------------------------------------------------------------------------------

    def _afford(self, size: int) -> Program:
        """Pause until a request of ``size`` bytes fits the budgets.

        One alone always fits that of the queue; what it holds beyond FREE it must get from those
        that others share.
        """
        while True:
            held = self._held + self.pending()
            if held + size > self._queue_bytes and (held or self.inflight):
                yield from self._pause()
                continue
            lacking = held + size - self._grant
            if lacking > 0:
                lacking = -(-lacking // CHUNK) * CHUNK
                if not self._budget.take(lacking):
                    self._budget.wait(self.wake, lacking)
                    self.starved = True
                    yield from self._pause()
                    continue
                self._grant += lacking
            if self.starved:  # it may go on without having been woken: what is meant for it then
                self.starved = False  # would be kept from others
                self._budget.forget(self.wake)
            return

    def _find(
        self, attempt: Callable[[], Found | None]
    ) -> Generator["int | memoryview | None", None, Found | None]:
        """Find memory in the pool; wait until there is some: part of a program.

        All that a request needs at once, so that nobody waits who holds what another waits for. The
        line is strict: who waits for much would never get it, if who wants little went ahead.

        Args:
            attempt: takes all that is needed, or nothing, which it says by None.

        Returns:
            What was taken, or None: there can never be so much.
        """
        pool = self._pool
        if not pool.contended and (found := attempt()):
            return found
        pool.wait(self.wake)  # all let go, also this one
        while True:
            if pool.first(self.wake):
                found, idle = attempt(), pool.idle
                if found or idle:
                    pool.forget(self.wake)
                    return found
            self.starved = True
            yield from self._pause()
            self.starved = False

    def yield_bytes(self) -> None:
        """Give back what is beyond need to those who share the budget."""
        need = max(min(self._queue_bytes, FREE), self._held + self.pending())
        spare = (self._grant - need) // CHUNK * CHUNK
        if spare > 0:
            self._grant -= spare
            self._budget.give(spare)

    def _pause(self) -> Program:
        self.paused = True
        yield None
        self.paused = False

    def _message(self, message: Message) -> Program:
        """Hand out a command, one at a time: what follows may depend on it."""
        self.messages.append(message)
        yield from self._pause()


def check_used(written: int, filled: int | None, capacity: int) -> int:
    """Return how many bytes go to the driver. Raises LocalProtocolError."""
    if filled is None:
        filled = written
    if not 0 <= written <= filled <= capacity:
        raise LocalProtocolError(
            f"used length {written} of {filled} filled bytes in a buffer of {capacity}"
        )
    return filled
