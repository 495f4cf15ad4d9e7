# SPDX-License-Identifier: BSD-3-Clause
"""Every exception of vof: whose fault it was, and what to do.

``Local...`` means that this program asked for something illegal; ``Remote...`` that the peer did.
A remote failure breaks a *queue*: background tasks hand the error to ``Virtqueue.break_`` and never
raise it into a user's nursery. An error that reaches the waiter of a request which was in flight
carries ``maybe_executed = True``: the device may have done the work, fully or in part.
"""

import copy
from typing import Self


class VofError(Exception):
    """Base of every error that vof raises on purpose.

    Attributes:
        maybe_executed: the error ended a request that was in flight, so its effect is unknown.
    """

    maybe_executed: bool = False

    def as_in_flight(self) -> Self:
        """Return a copy that says that the request may have been executed."""
        error = copy.copy(self)
        error.maybe_executed = True
        error.__cause__ = self
        return error


class LocalProtocolError(VofError):
    """This side asked for something that the protocol forbids in the present state."""


class RemoteProtocolError(VofError):
    """The peer broke the protocol; its connection is not usable any more.

    Attributes:
        status: the status code that answers the offence, where the protocol has one, else 0.
    """

    def __init__(self, message: str, status: int = 0) -> None:
        super().__init__(message)
        self.status = status


class CommandError(VofError):
    """The target refused a command; the connection goes on.

    Attributes:
        status: the status code of the completion.
    """

    def __init__(self, message: str, status: int = 0) -> None:
        super().__init__(message)
        self.status = status


class ConnectionLost(VofError):
    """The connection ended, or a control command got no answer in time."""


class OutOfMemory(VofError):
    """This machine gives no more memory, or lets no more of it be locked for an RDMA device."""


class QueueFull(VofError):
    """No free descriptor or command id (Linux: -ENOSPC). Take used buffers, then add again."""


class QueueBroken(VofError):
    """The queue does not accept work any more (Linux: -EIO).

    Attributes:
        cause: what broke it, or None when it was broken on request.
    """

    def __init__(self, message: str, cause: BaseException | None = None) -> None:
        super().__init__(message)
        self.cause = cause
        self.__cause__ = cause


class QueueBusy(VofError):
    """The queue is in a state in which the operation is not possible now (Linux: -EBUSY)."""


class NotPermitted(VofError):
    """The operation is not allowed on this queue or device (Linux: -EPERM)."""


class NotSupported(VofError):
    """The device or transport does not have this operation (Linux: -ENOENT)."""


class InvalidArgument(VofError, ValueError):
    """An argument is outside what the operation takes (Linux: -EINVAL, -E2BIG)."""


class RingError(VofError):
    """Shared memory holds something that no correct peer writes."""


class FeatureError(VofError):
    """Feature negotiation failed: a needed feature is not offered, or a choice was refused."""


class DeviceError(VofError):
    """The device reported failure of a request in its own status byte.

    Attributes:
        status: the device type's status value (VIRTIO_BLK_S_IOERR, ...).
    """

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status


class ConfigError(VofError, ValueError):
    """A configuration file, option or URL is wrong.

    Attributes:
        path: the file, option or URL it stands in.
        key: the key in question, dotted, or "" for the whole.
    """

    def __init__(self, path: str, key: str, message: str) -> None:
        super().__init__(f"{path}: {key}: {message}" if key else f"{path}: {message}")
        self.path = path
        self.key = key
