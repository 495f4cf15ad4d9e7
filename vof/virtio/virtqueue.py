# SPDX-License-Identifier: BSD-3-Clause
"""The driver's view of a queue: the whole virtqueue ops table, by its Linux names.

An implementation provides the abstract methods; everything else is derived here, once. Whether
buffers travel through a ring in shared memory or as capsules over a connection cannot be told
from here: that is the point.

Rules that hold for every implementation:

* No method but ``resize`` and ``wait_used`` suspends. All calls for one queue must be serialised:
  make them from one thread, the one that runs the queue's trio loop.
* A buffer belongs to the queue from ``add_sgs`` until ``get_buf`` (or ``detach_unused_buf``, or the
  recycle function of ``resize``) hands its token back. Cancelling whoever waits for it does not
  return it. A driver may not change readable bytes in between, nor look at writable ones.
* Nothing is visible to the device before ``notify`` (``kick``); it may become visible earlier.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence

from vof.errors import InvalidArgument, QueueBroken
from vof.memory import Buffer

Callback = Callable[["Virtqueue"], None]
Recycle = Callable[["Virtqueue", object], None]


class Virtqueue(ABC):
    """One virtqueue, as its driver sees it.

    Attributes:
        index: number of the queue on its device.
        name: the driver's name for it, for messages.
        num_max: largest size that the device allows.
        callback: called, without arguments but the queue, when buffers were used while callbacks
            are enabled. It runs in the thread of the queue, must not suspend, and must not raise.
            None: the driver polls or awaits ``wait_used``.
    """

    index: int
    name: str
    num_max: int
    callback: Callback | None
    _broken = False
    _cause: BaseException | None = None

    # -- the ops table ------------------------------------------------------------------------

    @property
    @abstractmethod
    def num_free(self) -> int:
        """How many more descriptors (of a ring) or commands (of a fabric) fit now."""

    @abstractmethod
    def add_sgs(
        self,
        sgs: Sequence[Buffer],
        out_sgs: int,
        in_sgs: int,
        data: object,
        ctx: object = None,
    ) -> None:
        """Offer one chain: ``out_sgs`` device-readable buffers, then ``in_sgs`` writable ones.

        Args:
            sgs: the buffers, readable ones first; exactly ``out_sgs + in_sgs`` of them. Bytes,
                contiguous. They belong to the queue until ``data`` comes back.
            out_sgs: how many are readable by the device.
            in_sgs: how many are writable by the device.
            data: the token that ``get_buf`` will return; not None.
            ctx: a second value that ``get_buf_ctx`` returns beside it.

        Raises:
            QueueFull: no room now; nothing was added.
            QueueBroken: the queue is broken; nothing was added.
            InvalidArgument: no buffer at all, a count that does not fit, or no token.
            OutOfMemory: what is to be copied finds no place; nothing was added.
        """

    @abstractmethod
    def kick_prepare(self) -> bool:
        """First half of ``kick``: return whether ``notify`` is needed.

        May be called under a lock that ``notify`` does not need. True also when the device waits
        for buffers that an earlier ``kick_prepare`` made ready and no ``notify`` followed.
        """

    @abstractmethod
    def notify(self) -> bool:
        """Second half of ``kick``: tell the device. Need not be serialised in Linux; here it must.

        Returns:
            False when the queue is or became broken, else True.
        """

    @abstractmethod
    def enable_cb_prepare(self) -> int:
        """Enable callbacks and return an opaque position for ``poll``.

        The race between checking for work and enabling is closed by ``poll``: when that says False,
        the next used buffer calls back.
        """

    @abstractmethod
    def poll(self, last_used_idx: int) -> bool:
        """Return whether a buffer was used since ``enable_cb_prepare`` returned ``last_used_idx``.

        Looks at the medium (the ring, the connection), so it is also the way to poll one.
        False on a broken queue.
        """

    @abstractmethod
    def enable_cb_delayed(self) -> bool:
        """Enable callbacks, but hint that one is wanted only when most of the buffers are used.

        Returns:
            False when many buffers are pending already: take them now.
        """

    @abstractmethod
    def disable_cb(self) -> None:
        """Ask for no more callbacks. A hint: one may still come. Turns to polling mode."""

    @abstractmethod
    def get_buf_ctx(self) -> tuple[object, int, object] | None:
        """Take the next used buffer.

        Returns:
            ``(data, written, ctx)``: the token, how many bytes the device wrote into the writable
            buffers counted from their start, and the context; the buffers belong to the caller
            again. None when nothing is used, or the queue is broken.
        """

    @abstractmethod
    def detach_unused_buf(self) -> object | None:
        """Take back one buffer that the device did not use.

        Only after the device was reset or the queue broken, when the device cannot touch buffers.

        Returns:
            A token, or None when the queue holds none any more.

        Raises:
            QueueBusy: the device may still use the buffers.
        """

    @abstractmethod
    def get_vring_size(self) -> int:
        """Return the size of the queue: how many single-buffer chains it holds at most."""

    @abstractmethod
    async def resize(self, num: int, recycle: Recycle) -> None:
        """Change the size of an idle or busy queue. May suspend. No other op may run meanwhile.

        Args:
            num: the new size.
            recycle: called for each buffer that was in the queue and not taken by ``get_buf``; it
                belongs to the caller again.

        Raises:
            InvalidArgument: ``num`` is 0 or more than ``num_max``; the queue works as before.
            NotSupported: device or transport cannot; the queue works as before.
            QueueBusy: it failed half way; the queue is broken.
            NotPermitted: the device is not in a state for it; the queue works as before.
        """

    @abstractmethod
    def break_(self, cause: BaseException | None = None) -> None:
        """Linux ``__break``: refuse all further work. Idempotent; the first cause stays.

        Used buffers that were not taken stay inside and come back by ``detach_unused_buf``.
        """

    @abstractmethod
    def unbreak(self) -> None:
        """Linux ``__unbreak``: accept work again, if what broke the queue allows it.

        A queue whose connection ended stays without one: ``add_sgs`` then breaks it again.
        """

    @property
    def is_broken(self) -> bool:
        """Whether the queue is broken."""
        return self._broken

    @property
    def broken_by(self) -> BaseException | None:
        """What broke the queue, where that is known."""
        return self._cause

    @abstractmethod
    async def wait_used(self) -> None:
        """Suspend until ``get_buf`` has something or the queue is broken. One task at a time.

        The sleeping half of polling, where a kernel would sleep for an interrupt. It does not
        call ``callback`` and needs none. May spin for a short, bounded time before it sleeps.
        Always returns to a queue that the caller can use; cancelling it loses nothing.
        """

    def attend(  # noqa: B027 - a hook, empty on purpose
        self, look: Callable[[], bool] | None
    ) -> None:
        """Let whoever polls for anything in this thread also look at this queue.

        Args:
            look: takes what was used, and returns whether there was something. Must not suspend.
                None: no more, for now.

        It replaces the spin of ``wait_used``, which still tells when nobody polls. A queue that is
        not in memory ignores it.
        """

    # -- derived ------------------------------------------------------------------------------

    def add_outbuf(self, sgs: Sequence[Buffer], data: object) -> None:
        """Offer buffers that the device only reads. Raises as ``add_sgs``."""
        self.add_sgs(sgs, len(sgs), 0, data)

    def add_inbuf(self, sgs: Sequence[Buffer], data: object) -> None:
        """Offer buffers that the device only writes. Raises as ``add_sgs``."""
        self.add_sgs(sgs, 0, len(sgs), data)

    def add_inbuf_ctx(self, sgs: Sequence[Buffer], data: object, ctx: object) -> None:
        """Offer buffers that the device only writes, with a context. Raises as ``add_sgs``."""
        self.add_sgs(sgs, 0, len(sgs), data, ctx)

    def kick(self) -> bool:
        """Make added buffers visible and tell the device.

        Returns:
            False when the queue is or became broken, else True.
        """
        if self.kick_prepare():
            return self.notify()
        return not self.is_broken

    def enable_cb(self) -> bool:
        """Enable callbacks.

        Returns:
            False when a buffer was used meanwhile: take it, no callback will come for it.
        """
        return not self.poll(self.enable_cb_prepare())

    def get_buf(self) -> tuple[object, int] | None:
        """Take the next used buffer: ``(data, written)``, or None. See ``get_buf_ctx``."""
        used = self.get_buf_ctx()
        return used and used[:2]

    def check_usable(self) -> None:
        """Raise QueueBroken, with its cause, on a broken queue."""
        if self.is_broken:
            why = f": {self.broken_by}" if self.broken_by else ""
            raise QueueBroken(f"queue {self.name} is broken{why}", self.broken_by)


def no_chain(sgs: Sequence[Buffer], out_sgs: int, in_sgs: int) -> InvalidArgument:
    """Return the error for what ``add_sgs`` cannot take."""
    return InvalidArgument(
        f"{len(sgs)} buffers for {out_sgs} readable and {in_sgs} writable ones; "
        "at least one, and a token, are needed"
    )
