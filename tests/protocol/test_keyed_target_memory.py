# SPDX-License-Identifier: BSD-3-Clause
"""What the target's side of a queue pair holds at most, whom it waits for, and when it lets go."""

import gc

from tests.protocol.keyed import Moved, done, live, vq
from tests.protocol.pipe import MIB, taken
from vof.errors import OutOfMemory
from vof.memory import HEAP, Region
from vof.protocol import v5
from vof.protocol.budget import FREE, HELD, Budget
from vof.protocol.keyed_initiator import EXTRA
from vof.protocol.v5_keyed import from_fields
from vof.protocol.v5_keyed_target import EAGER_BYTES

# -- limits ---------------------------------------------------------------------------------------


def test_a_queue_that_is_full_takes_no_more_messages():
    queue = live(queue_size=4, queue_bytes=2000)
    for ident in range(3):
        queue.stream.received(vq(ident, (), [900]))
    assert queue.stream.paused
    assert queue.stream.inflight == 2
    queue.stream.received(vq(3, (), [900]))
    assert queue.stream.receives[0] == 4 + EXTRA - 1
    chains = taken(queue.stream)
    queue.stream.push(chains[0], 0)
    queue.stream.advance()
    assert queue.stream.inflight == 1  # its memory is in use until the completion is there
    queue.run()
    queue.stream.advance()
    assert queue.stream.inflight == 2
    queue.stream.push(chains[1], 0)
    queue.run()
    queue.stream.advance()
    assert queue.stream.inflight == 2
    assert not queue.stream.paused
    assert queue.stream.receives[0] == 4 + EXTRA


def test_one_alone_may_be_larger_than_the_queue():
    queue = live(queue_bytes=2000)
    queue.stream.received(vq(1, (), [5000]))
    assert queue.stream.inflight == 1


def test_bytes_that_others_hold_are_waited_for():
    budget = Budget(1 << 20)
    one, other = live(request_bytes=4 * MIB), live(request_bytes=4 * MIB)
    for queue in (one, other):
        queue.stream.bind(4, HEAP, budget=budget)
    one.stream.received(vq(1, (), [FREE + 900_000]))
    woken = []
    other.stream.wake = lambda: woken.append(True)
    other.stream.received(vq(1, (), [FREE + 900_000]))
    assert other.stream.starved
    assert other.stream.paused
    one.stream.push(taken(one.stream)[0], 0)
    one.run()
    assert woken
    other.stream.advance()
    assert not other.stream.starved
    assert len(other.stream.chains) == 1
    assert budget.used == 1 << 20
    other.stream.release()
    assert budget.used == 0


def test_what_is_beyond_need_goes_back_when_nothing_is_held():
    budget = Budget(4 << 20)
    queue = live(request_bytes=4 * MIB)
    queue.stream.bind(4, HEAP, budget=budget)
    for ident in (1, 2):
        queue.stream.received(vq(ident, (), [FREE + 900_000]))
    used = budget.used
    first, second = taken(queue.stream)
    queue.stream.push(first, 0)
    queue.run()
    assert budget.used == used  # the next may need as much
    queue.stream.trim()
    assert 0 < budget.used < used
    queue.stream.push(second, 0)
    queue.run()
    assert budget.used == 0


def test_who_goes_on_without_having_been_woken_leaves_the_line():
    """Else what comes back is kept for it, and others wait for ever."""
    budget = Budget(1)
    holder, first, second = (live(request_bytes=4 * MIB) for _ in range(3))
    woken = []
    for queue in (holder, first, second):
        queue.stream.bind(4, HEAP, budget=budget)
        queue.stream.wake = lambda queue=queue: woken.append(queue)
        queue.stream.received(vq(1, (), [FREE + 100_000]))
    holder.stream.push(taken(holder.stream)[0], 0)
    holder.run()
    assert woken == [first]
    first.stream.advance()
    first.stream.push(taken(first.stream)[0], 0)
    holder.stream.received(vq(2, (), [FREE + 100_000]))
    first.run()
    assert woken == [first, second]
    holder.stream.advance()  # it was not its turn, but there is room
    holder.stream.push(taken(holder.stream)[0], 0)
    second.stream.advance()
    assert second.stream.starved
    holder.run()
    assert woken == [first, second, second]


# -- memory of a region ---------------------------------------------------------------------------


def in_region(size=1 << 20, count=2):
    region = Region(size)
    woken = []
    queues = [live(pool=region) for _ in range(count)]
    for queue in queues:
        queue.stream.wake = lambda queue=queue: woken.append(queue)
    return region, queues, woken


def test_queues_wait_in_line_for_a_region():
    region, (one, other), woken = in_region()
    one.stream.received(vq(1, [10], [600_000]))
    other.stream.received(vq(1, (), [600_000]))
    other.stream.received(vq(2, (), [10]))
    assert other.stream.starved
    assert other.stream.inflight == 0
    assert region.contended
    one.run()
    one.stream.push(taken(one.stream)[0], 0)
    one.run()
    gc.collect()
    assert woken == [other]
    other.stream.advance()
    assert [c.token.command_id for c in other.stream.chains] == [1, 2]
    assert not region.contended


def test_what_a_region_never_holds_is_refused():
    _, (one, other), _ = in_region()
    one.stream.received(vq(1, (), [950_000]))
    assert one.run() == [done(1, 0, status=v5.EINVQBUF)]
    other.stream.received(vq(1, [950_000], [10]))
    assert other.run() == [done(1, 0, status=v5.EOUTVQBUF)]
    assert (other.stream.inflight, other.stream._held) == (0, 0)


def test_who_waits_in_line_and_ends_lets_the_next_go_on():
    _, queues, woken = in_region(count=3)
    for queue in queues:
        queue.stream.received(vq(1, (), [600_000]))
    queues[1].stream.release()
    assert woken == [queues[2]]


def test_which_posts_are_waited_for():
    queue = live(queue_bytes=3000)
    assert not queue.stream.expects
    queue.stream.received(vq(1, [5], [5]))
    queue.posts()
    assert queue.stream.expects  # a read
    queue.stream.completed(1)
    assert not queue.stream.expects
    queue.stream.push(taken(queue.stream)[0], 5)
    queue.posts()
    assert not queue.stream.expects  # an answer is nobody's but the initiator's
    queue.stream.received(vq(2, (), [3000]))
    assert queue.stream.paused
    assert queue.stream.expects  # but for the memory that it still holds
    queue.stream.completed(2)
    queue.stream.advance()
    assert not queue.stream.expects
    other = live(pool=Region(1 << 20))
    other.stream.received(vq(1, (), [5]))
    other.stream.push(taken(other.stream)[0], 5)
    other.posts()
    assert other.stream.expects  # other queues may want that memory


def test_an_eager_buffer_is_bounded_and_is_counted():
    budget = Budget(HELD * (EAGER_BYTES + 1000))
    one, other, none = live(), live(), live()
    for queue in (one, other, none):
        queue.stream.bind(5000, HEAP, budget=budget)
    assert none.stream.eager_buffer(0) == {"descs": 0}
    assert from_fields(one.stream.eager_buffer(1))[0][1] == EAGER_BYTES
    assert other.stream.eager_buffer(1) == {"descs": 0}
    one.stream.release()
    assert budget.used == 0
    assert other.stream.eager_buffer(1)["descs"] == 1


def test_where_no_memory_may_be_registered_there_is_no_eager_buffer(monkeypatch):
    def refuse(region, rights):
        raise OutOfMemory("no more")

    budget, queue = Budget(HELD * EAGER_BYTES), live()
    queue.stream.bind(5, HEAP, budget=budget)
    monkeypatch.setattr(queue.memory.domain, "register", refuse)
    assert queue.stream.eager_buffer(1) == {"descs": 0}
    assert budget.used == 0


def test_payload_lies_in_the_region_of_the_model():
    region = Region(1 << 20)
    queue = live(pool=region)
    queue.stream.received(vq(1, [4000], [4000]))
    (post,) = queue.posts()
    assert region.offset_of(post.here) is not None
    queue.stream.completed(1)
    (chain,) = taken(queue.stream)
    assert all(region.offset_of(s) is not None for s in (*chain.readable, *chain.writable))


# -- ends -----------------------------------------------------------------------------------------


def test_a_released_stream_lets_go_of_everything():
    queue = live()
    for ident in (1, 2):
        queue.stream.received(vq(ident, [5], [5]))
    assert [type(post) for post in queue.posts(1)] == [Moved]
    queue.stream.release()
    assert not queue.stream.transferring
    assert not queue.memory._own


def test_a_trimmed_stream_goes_on():
    queue = live()
    for _ in range(2):
        queue.stream.received(vq(1, [5], [5]))
        queue.run(b"hello")
        (chain,) = taken(queue.stream)
        queue.stream.trim()
        assert queue.memory._own
        queue.stream.push(chain, 0)
        del chain
        queue.run()
        queue.stream.trim()
        assert not queue.memory._own
