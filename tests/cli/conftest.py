# SPDX-License-Identifier: BSD-3-Clause
"""A target beside the command: a server in a thread of its own, with any models."""

import itertools
import threading

import pytest
import trio

from tests.fuse import FuseModel
from vof.target import Export, Server
from vof.target.devices import BlkModel, FileBacking, MemoryBacking, NetModel, RngModel
from vof.transport import listen, parse_url

LONGEST_S = 20


class Served:
    """Exports by name.

    Attributes:
        models: all that were made, oldest first.
    """

    def __init__(self, path, makers):
        self.path = path
        self.models = []
        self._exports = {name: Export(name, self._noting(make)) for name, make in makers.items()}
        self._ready = threading.Event()
        self._thread = threading.Thread(target=trio.run, args=(self._run,))
        self._thread.start()
        assert self._ready.wait(LONGEST_S)

    def _noting(self, make):
        def noted():
            self.models.append(make())
            return self.models[-1]

        return noted

    async def _run(self):
        self._token = trio.lowlevel.current_trio_token()
        with trio.CancelScope() as self.scope:
            server = Server(self._exports)
            async with trio.open_nursery() as nursery:
                await nursery.start(
                    server.serve, await listen(parse_url(f"vof+unix://{self.path}"))
                )
                self._ready.set()

    def __getitem__(self, name):
        """Return the URL of an export."""
        return f"vof+unix://{self.path}?tvqn={name}"

    def stop(self):
        """End, and cut all connections."""
        try:
            self._token.run_sync_soon(self.scope.cancel)
        except trio.RunFinishedError:
            pass
        self._thread.join(LONGEST_S)
        assert not self._thread.is_alive()


@pytest.fixture
def serve(tmp_path):
    """Return ``serve(name=make_model, ...)``, whose result names the URLs."""
    running = []
    numbers = itertools.count()

    def serve(**makers):
        running.append(Served(tmp_path / f"s{next(numbers)}", makers))
        return running[-1]

    yield serve
    for served in running:
        served.stop()


@pytest.fixture
def disk(tmp_path):
    """Return ``disk(size)``: a maker of disks over one file, and its path."""
    backings = []

    def disk(size=1 << 20, **options):
        path = tmp_path / f"disk{len(backings)}.img"
        path.write_bytes(bytes(size))
        backings.append(FileBacking(str(path), read_only=options.pop("read_only", False)))
        return (lambda backing=backings[-1]: BlkModel(backing, **options)), path

    yield disk
    for backing in backings:
        backing.close()


@pytest.fixture
def world(serve, disk, tmp_path):
    """A disk of 1 MiB, one of 64 KiB in memory, a source of random bytes, a network echo, a
    directory."""
    make, path = disk(queues=2, serial=b"one")
    small = MemoryBacking(1 << 16)
    directory = tmp_path / "shared"
    directory.mkdir()
    (directory / "hello").write_text("hello, file\n")
    served = serve(
        disk=make,
        small=lambda: BlkModel(small),
        rng=lambda: RngModel(64),
        net=NetModel,
        fs=lambda: FuseModel(directory),
    )
    served.image, served.directory = path, directory
    yield served
    served.stop()
    small.close()
