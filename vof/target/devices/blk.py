# SPDX-License-Identifier: BSD-3-Clause
"""Block device model (virtio 1.2, 5.2): one object for each initiator, over a shared backing.

The way of a request. What the page cache holds is read at once, from the loop, straight into the
chain's memory (RWF_NOWAIT); the same for writes where the file system can. Everything else, and
whatever is not of the usual shape, becomes a ``Job`` first. Jobs that may block go to threads, so
that no queue waits for another's disk, and come back in any order.

* What does not block is answered within the batch; nothing orders the requests of a batch.
* A flush covers what was *completed* before it came: jobs end before they are pushed, so
  fdatasync needs to know nothing about them. It fails once in each model after storage lost
  something, whichever model's flush found out.
* All writable bytes of an answer are written, so that nothing of before reaches the driver: an
  answer without data, a failed one above all, is zeros up to the status byte.
* The status byte is the last writable byte; otherwise the cut into segments has no meaning.
"""

import errno
import os
import struct
from collections.abc import Callable, Sequence
from functools import partial

from vof.errors import InvalidArgument
from vof.target.devices.backing import IOV_MAX, NEVER, FileBacking
from vof.target.devices.jobs import Job, Lane, adjacent, answer, cut
from vof.target.devices.offload import Offload
from vof.virtio.blk import (
    RANGE,
    REQUEST,
    SECTOR,
    VIRTIO_BLK_F_BLK_SIZE,
    VIRTIO_BLK_F_DISCARD,
    VIRTIO_BLK_F_FLUSH,
    VIRTIO_BLK_F_MQ,
    VIRTIO_BLK_F_RO,
    VIRTIO_BLK_F_SEG_MAX,
    VIRTIO_BLK_F_SIZE_MAX,
    VIRTIO_BLK_F_TOPOLOGY,
    VIRTIO_BLK_F_WRITE_ZEROES,
    VIRTIO_BLK_ID_BYTES,
    VIRTIO_BLK_S_IOERR,
    VIRTIO_BLK_S_OK,
    VIRTIO_BLK_S_UNSUPP,
    VIRTIO_BLK_T_DISCARD,
    VIRTIO_BLK_T_FLUSH,
    VIRTIO_BLK_T_GET_ID,
    VIRTIO_BLK_T_IN,
    VIRTIO_BLK_T_OUT,
    VIRTIO_BLK_T_WRITE_ZEROES,
    VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP,
    BlkConfig,
)
from vof.virtio.constants import VIRTIO_F_VERSION_1, VIRTIO_ID_BLOCK, bit
from vof.virtio.model import Chain, DeviceModel, DeviceQueue

MAX_RANGES = 32
MAX_RANGE_SECTORS = 1 << 21
"""1 GiB: bounds how long one request can keep a thread."""

RANGE_FLAGS = {
    VIRTIO_BLK_T_DISCARD: 0,
    VIRTIO_BLK_T_WRITE_ZEROES: VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP,
}
"""Request types with ranges, and the flags that each allows."""

WHAT = {
    VIRTIO_BLK_T_IN: "read",
    VIRTIO_BLK_T_OUT: "write",
    VIRTIO_BLK_T_FLUSH: "flush",
    VIRTIO_BLK_T_DISCARD: "discard",
    VIRTIO_BLK_T_WRITE_ZEROES: "write-zeroes",
}

HEADER_BYTES = REQUEST.size
Push = Callable[[Chain, int], object]


class BlkModel(DeviceModel):
    """A disk, as one initiator sees it. Closing the backing is for whoever opened it."""

    device_id = VIRTIO_ID_BLOCK
    failure = bytes([VIRTIO_BLK_S_IOERR])

    def __init__(
        self,
        backing: FileBacking,
        queues: int = 1,
        *,
        queue_size: int = 128,
        size_max: int = 1 << 20,
        seg_max: int = 126,
        blk_size: int = SECTOR,
        serial: bytes = b"",
        read_only: bool = False,
    ) -> None:
        """Present ``backing``.

        Args:
            backing: shared by all initiators of an export.
            queues: how many.
            queue_size: of each.
            size_max: largest segment that a driver should use, in bytes.
            seg_max: most data segments that a driver should use.
            blk_size: what the driver should take for the size of a block, in bytes.
            serial: up to 20 bytes, what get-id answers.
            read_only: this driver may not write, though the backing could.

        Raises:
            InvalidArgument: a value that virtio-blk cannot express.
        """
        super().__init__()
        if len(serial) > VIRTIO_BLK_ID_BYTES:
            raise InvalidArgument(f"serial of {len(serial)} bytes; at most {VIRTIO_BLK_ID_BYTES}")
        if blk_size < SECTOR or blk_size & (blk_size - 1):
            raise InvalidArgument(f"block size {blk_size}; a power of two from {SECTOR} on")
        if not 1 <= queues <= 0xFFFF or not 1 <= queue_size <= 0x8000:
            raise InvalidArgument(f"{queues} queues of {queue_size}; 1 to 65535 of 1 to 32768")
        self._backing = backing
        self._read_only = read_only or backing.read_only
        self._lost = backing.lost
        self._serial = serial.ljust(VIRTIO_BLK_ID_BYTES, b"\0")
        self.queue_sizes = (queue_size,) * queues
        self.device_features = bit(
            VIRTIO_F_VERSION_1,
            VIRTIO_BLK_F_SIZE_MAX,
            VIRTIO_BLK_F_SEG_MAX,
            VIRTIO_BLK_F_BLK_SIZE,
            VIRTIO_BLK_F_FLUSH,
            VIRTIO_BLK_F_TOPOLOGY,
            VIRTIO_BLK_F_MQ,
        )
        if self._read_only:
            self.device_features |= bit(VIRTIO_BLK_F_RO)
        else:
            self.device_features |= bit(VIRTIO_BLK_F_DISCARD, VIRTIO_BLK_F_WRITE_ZEROES)
        physical = max(backing.block_size, blk_size)
        writable = not self._read_only
        self._config = BlkConfig(
            size_max=size_max,
            seg_max=seg_max,
            blk_size=blk_size,
            physical_block_exp=(physical // blk_size).bit_length() - 1,
            min_io_size=min(physical // blk_size, 0xFFFF),
            num_queues=queues,
            max_discard_sectors=MAX_RANGE_SECTORS * writable,
            max_discard_seg=MAX_RANGES * writable,
            discard_sector_alignment=physical // SECTOR * writable,
            max_write_zeroes_sectors=MAX_RANGE_SECTORS * writable,
            max_write_zeroes_seg=MAX_RANGES * writable,
            write_zeroes_may_unmap=int(writable),
        )
        backing.subscribe(self._resized)

    def close(self) -> None:
        """Let go of the backing. Called once."""
        self._backing.unsubscribe(self._resized)

    def config(self) -> bytes:
        """Return the configuration space; the capacity is that of the file now."""
        self._backing.refresh()
        return self._config._replace(capacity=self._backing.size // SECTOR).pack()

    def _resized(self) -> None:
        self.config_changed()

    # -- the way of a request -----------------------------------------------------------------

    async def serve(self, index: int, queue: DeviceQueue) -> None:
        """See ``DeviceModel.serve``. Threads that run at the end are waited for."""
        offload = Offload(self._backing.threads)
        await offload.run(self._serve(queue, offload))

    async def _serve(self, queue: DeviceQueue, offload: Offload) -> None:
        receive, flush, batch = queue.receive, queue.flush, self._batch
        lane = Lane(queue, offload)
        try:
            while True:
                if jobs := batch(await receive(), queue.push):
                    self._start(jobs, lane)
                    del jobs  # whoever waits holds no memory of the queue
                flush()
        finally:
            lane.close()

    def _batch(self, chains: Sequence[Chain], push: Push) -> list[Job]:
        """Answer what does not block; return the rest."""
        backing = self._backing
        fd, limit, flags = backing.fd, backing.limit, backing.read_flags
        inline = flags != NEVER
        unpack, preadv = REQUEST.unpack_from, os.preadv
        jobs: list[Job] = []
        length = 0
        for chain in chains:
            # The fast path: a read from the cache, in one readable and one writable piece.
            done = None
            try:
                (request,) = chain.readable
                (space,) = chain.writable
                kind, _, sector = unpack(request)
                length = len(space) - 1
                offset = sector << 9
                if not kind and inline and not length & 511 and offset + length <= limit:
                    done = preadv(fd, (space[:-1],), offset, flags)
            except OSError as error:
                inline = self._refused("read_flags", error)
            except (ValueError, struct.error):
                pass
            if done == length:
                space[length] = 0
                push(chain, length + 1)
            elif (job := self._other(chain, limit, push)) is not None:
                jobs.append(job)
        return jobs

    def _refused(self, flags: str, error: OSError) -> bool:
        """An inline attempt failed: return whether others are worth while."""
        if error.errno != errno.EOPNOTSUPP:
            return True
        setattr(self._backing, flags, NEVER)
        return False

    def _other(self, chain: Chain, limit: int, push: Push) -> Job | None:
        """Answer a request that does not block, or return it as a job for a thread."""
        job = self._parse(chain, limit)
        if job is None:
            push(chain, 0)
        elif job.status or self._inline(job):
            push(*answer(job, job.status))
        else:
            return job
        return None

    def _parse(self, chain: Chain, limit: int) -> Job | None:
        """Read and check a request of any cut; None when it has no status byte."""
        readable, writable = chain.readable, chain.writable
        out_length, in_length = sum(map(len, readable)), sum(map(len, writable)) - 1
        if in_length < 0:
            return None
        if out_length < HEADER_BYTES:  # there are drivers that look at nothing but the status
            return Job(chain, VIRTIO_BLK_T_IN, VIRTIO_BLK_S_IOERR)
        kind, _, sector = REQUEST.unpack(b"".join(cut(readable, 0, HEADER_BYTES)))
        if kind == VIRTIO_BLK_T_IN:
            data, length = cut(writable, 0, in_length), in_length
        elif kind == VIRTIO_BLK_T_OUT:
            if self._read_only:
                return Job(chain, kind, VIRTIO_BLK_S_IOERR)
            data, length = cut(readable, HEADER_BYTES, out_length), out_length - HEADER_BYTES
        elif kind == VIRTIO_BLK_T_GET_ID:
            return Job(chain, kind, data=cut(writable, 0, in_length))
        elif kind == VIRTIO_BLK_T_FLUSH:
            return Job(chain, kind)
        elif kind in RANGE_FLAGS:
            return self._parse_ranges(chain, kind, out_length - HEADER_BYTES, limit)
        else:
            return Job(chain, kind, VIRTIO_BLK_S_UNSUPP)
        offset = sector * SECTOR
        wrong = length % SECTOR or offset + length > limit
        status = VIRTIO_BLK_S_IOERR if wrong else VIRTIO_BLK_S_OK
        return Job(chain, kind, status, data, offset, length)

    def _parse_ranges(self, chain: Chain, kind: int, length: int, limit: int) -> Job:
        """Read and check a discard or write-zeroes (5.2.6.2)."""
        count, odd = divmod(length, RANGE.size)
        if odd or not 1 <= count <= MAX_RANGES or self._read_only:
            return Job(chain, kind, VIRTIO_BLK_S_IOERR)
        payload = b"".join(cut(chain.readable, HEADER_BYTES, HEADER_BYTES + length))
        ranges, status = [], VIRTIO_BLK_S_OK
        for sector, sectors, flags in RANGE.iter_unpack(payload):
            if flags & ~RANGE_FLAGS[kind]:
                return Job(chain, kind, VIRTIO_BLK_S_UNSUPP)
            if sectors > MAX_RANGE_SECTORS or (sector + sectors) * SECTOR > limit:
                status = VIRTIO_BLK_S_IOERR
            ranges.append((sector * SECTOR, sectors * SECTOR, flags))
        return Job(chain, kind, status, ranges=ranges)

    def _inline(self, job: Job) -> bool:
        """Do a job if that does not block; return whether it is done."""
        backing, data = self._backing, job.data
        if job.kind == VIRTIO_BLK_T_GET_ID:
            rest = self._serial
            for view in data:
                view[:] = rest[: len(view)].ljust(len(view), b"\0")
                rest = rest[len(view) :]
            return True
        try:
            if job.kind == VIRTIO_BLK_T_IN:
                # In one piece it took the fast path, and needs a thread.
                if len(data) == 1 or (flags := backing.read_flags) == NEVER:
                    return False
                return os.preadv(backing.fd, data[:IOV_MAX], job.offset, flags) == job.length
            if job.kind == VIRTIO_BLK_T_OUT:
                # RWF_NOWAIT does not keep the wait for stable storage away.
                if (flags := backing.write_flags) == NEVER or (flags and self._durable):
                    return False
                return os.pwritev(backing.fd, data[:IOV_MAX], job.offset, flags) == job.length
        except OSError as error:
            self._refused("read_flags" if job.kind == VIRTIO_BLK_T_IN else "write_flags", error)
        return False

    # -- threads ------------------------------------------------------------------------------

    @property
    def _durable(self) -> bool:
        """Whether each write must be stable when it completes: there is no flush (5.2.6.2)."""
        return not self.features & bit(VIRTIO_BLK_F_FLUSH)

    def _start(self, jobs: list[Job], lane: Lane) -> None:
        """Give jobs to threads: the writes to one, all else to one each."""
        for job in jobs:
            if job.kind == VIRTIO_BLK_T_OUT:
                lane.waiting.append(job)
            else:
                lane.offload.start(partial(self._run, job), partial(self._push, lane.queue))
        self._write(lane)

    def _write(self, lane: Lane) -> None:
        """Start the thread that writes, if there is something for it and it does not run."""
        if lane.waiting and not lane.writing:
            lane.writing = True
            lane.offload.start(partial(self._drain, lane), partial(self._written, lane))

    def _drain(self, lane: Lane) -> None:
        """Write all that waits. Blocks; runs in a thread."""
        waiting = lane.waiting
        while True:
            jobs = adjacent(waiting)
            if not jobs:
                return
            lane.done += self._write_all(jobs)
            if waiting:
                lane.offload.soon(lane.collect)

    def _write_all(self, jobs: list[Job]) -> list[tuple[Chain, int]]:
        """Write adjacent jobs as one; one after the other where that fails. In a thread."""
        if len(jobs) > 1:
            whole = jobs[0]._replace(data=[view for job in jobs for view in job.data])
            if self._execute(whole) == VIRTIO_BLK_S_OK:
                return [answer(job, VIRTIO_BLK_S_OK) for job in jobs]
        return [self._run(job) for job in jobs]

    def _written(self, lane: Lane, _: None) -> None:
        lane.writing = False
        lane.collect()
        self._write(lane)

    def _run(self, job: Job) -> tuple[Chain, int]:
        """Do a job. Blocks; runs in a thread."""
        return answer(job, self._execute(job))

    @staticmethod
    def _push(queue: DeviceQueue, used: tuple[Chain, int]) -> None:
        queue.push(*used)
        queue.flush()

    def _execute(self, job: Job) -> int:
        """Do one job; return its status. Blocks; runs in a thread."""
        backing, kind = self._backing, job.kind
        try:
            if kind == VIRTIO_BLK_T_IN:
                backing.read(job.data, job.offset)
            elif kind == VIRTIO_BLK_T_OUT:
                backing.write(job.data, job.offset, self._durable)
            else:
                for offset, length, flags in job.ranges:
                    if kind == VIRTIO_BLK_T_DISCARD:
                        backing.discard(offset, length)
                    else:
                        backing.write_zeroes(offset, length, bool(flags))
                if kind == VIRTIO_BLK_T_FLUSH or self._durable:
                    self._flush()
        except OSError as error:
            backing.report(WHAT[kind], error)
            return VIRTIO_BLK_S_IOERR
        return VIRTIO_BLK_S_OK

    def _flush(self) -> None:
        """Flush; raise OSError for what storage lost since this model was told. In a thread."""
        backing, told = self._backing, self._lost
        try:
            backing.flush()
        finally:
            self._lost = lost = backing.lost
        if lost != told:
            raise OSError(errno.EIO, "storage lost writes, as a flush of another initiator found")
