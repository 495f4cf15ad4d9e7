# SPDX-License-Identifier: BSD-3-Clause
"""Messages and descriptors on a socket that blocks."""

import array
import socket

from vof.virtio import vhost_user as vu


class Decoder(vu.Decoder):
    """Reads no byte beyond a message: descriptors come with the bytes that they belong to."""

    def read(self, sock):
        """Read once; return the message, if it is complete now."""
        data, fds, _, _ = socket.recv_fds(sock, self._wants(), vu.MOST_FDS)
        if not data:
            raise EOFError("the frontend left")
        return self.feed(data, fds)

    def _wants(self):
        data = self._data
        if len(data) < vu.HEADER.size:
            return vu.HEADER.size - len(data)
        return vu.HEADER.size + vu.HEADER.unpack_from(data)[2] - len(data)


def rights(fds):
    """Descriptors as sendmsg takes them."""
    return [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
