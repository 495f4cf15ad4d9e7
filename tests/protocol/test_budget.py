# SPDX-License-Identifier: BSD-3-Clause
"""Bytes that queues share: who takes, who waits, and that all of it comes back."""

from tests.protocol.pipe import done, drain, feed, taken, vq
from vof.memory import HEAP
from vof.protocol.budget import CHUNK, FREE, HELD, Budget
from vof.protocol.v5_target import V5Target

MIB = 1 << 20


def test_a_chain_of_budgets():
    top = Budget(10)
    left, right = Budget(8, top), Budget(8, top)
    assert left.take(6)
    assert not left.take(3)  # its own limit
    assert right.take(3)
    assert not right.take(2)  # that of both
    assert (top.used, left.used, right.used) == (9, 6, 3)
    left.give(6)
    assert right.take(2)
    assert (top.used, left.used, right.used) == (5, 0, 5)
    assert (top.waits, left.waits, right.waits) == (1, 1, 0)


def test_who_is_alone_gets_what_it_asks_for():
    budget = Budget(10, Budget(5))
    assert budget.take(100)
    assert not budget.take(1)


def test_who_holds_bytes_for_long_leaves_most_of_them_to_others():
    top = Budget(10 * HELD)
    left, right = Budget(8 * HELD, top), Budget(8 * HELD, top)
    assert not left.hold(9)  # even alone
    assert left.hold(8)
    assert not left.hold(1)
    assert not right.hold(3)
    assert right.hold(2)
    assert (top.used, top.held, left.held, right.held) == (10, 10, 8, 2)
    assert right.take(8 * HELD - 2)
    assert not right.hold(5)
    left.let_go(8)
    assert (left.used, left.held, top.held) == (0, 0, 2)
    assert left.take(2 * HELD)
    assert not left.hold(1)  # there is room for more of the kind, but none at all above
    assert left.held == 0


def test_those_for_whom_there_is_enough_are_woken_once():
    top = Budget(20)
    budget, woken = Budget(10, top), []
    wakers = [lambda number=number: woken.append(number) for number in range(4)]
    assert budget.take(10)
    for wake, size in zip(wakers, (4, 9, 3, 1), strict=True):
        assert not budget.take(size)
        budget.wait(wake, size)
    budget.wait(wakers[0], 4)
    budget.forget(wakers[3])
    budget.forget(wakers[3])
    assert budget.contended
    budget.give(6)
    assert woken == [0]
    budget.give(1)
    assert woken == [0, 2]
    budget.give(3)
    assert woken == [0, 2, 1]
    assert not budget.contended


def test_who_waits_is_no_burden_to_those_who_have_another_budget():
    top = Budget(20)
    mine, theirs, woken = Budget(10, top), Budget(10, top), []
    assert theirs.take(10)
    theirs.wait(lambda: woken.append(True), 1)
    assert theirs.contended
    assert not mine.contended
    assert not top.contended
    assert mine.take(10)
    mine.give(10)
    assert not woken
    theirs.give(10)
    assert woken


def test_who_waits_for_what_all_share_is_woken_by_any():
    top = Budget(20)
    mine, theirs, woken = Budget(20, top), Budget(20, top), []
    assert mine.take(20)
    assert not theirs.take(5)
    theirs.wait(lambda: woken.append(True), 5)
    assert mine.contended
    mine.give(1)
    assert not woken
    mine.give(4)
    assert woken == [True]


def test_who_would_be_alone_is_woken_whatever_it_asks_for():
    budget, woken = Budget(10), []
    assert budget.take(1)
    budget.wait(lambda: woken.append(1), 100)
    budget.wait(lambda: woken.append(2), 100)
    budget.give(1)
    assert woken == [1]


def bound(budget, queue_bytes=64 * MIB):
    stream = V5Target(16 * MIB, queue_bytes)
    stream.bind(128, HEAP, budget=budget)
    return stream


def test_small_requests_never_ask():
    budget = Budget(0)
    stream = bound(budget)
    feed(stream.inbox, b"".join(vq(i, b"?", FREE // 64 - 1) for i in range(64)))
    assert len(stream.chains) == 64
    assert (budget.used, budget.waits) == (0, 0)


def test_one_waits_until_another_gives_back():
    budget, woken = Budget(2 * MIB), []
    greedy, modest = bound(budget), bound(budget)
    modest.wake = lambda: woken.append(True)
    feed(greedy.inbox, b"".join(vq(i, b"?", MIB) for i in range(8)))
    chains = taken(greedy)
    assert len(chains) == 2
    assert greedy.starved
    feed(modest.inbox, vq(1, b"?", MIB))
    assert modest.starved
    assert modest.paused
    assert not modest.chains
    for chain in chains:
        greedy.push(chain, MIB)
    assert not woken  # not sent yet
    assert len(drain(greedy)) == 2 * (16 + MIB)
    assert woken == [True]
    modest.inbox.advance()
    (chain,) = taken(modest)
    assert not modest.starved
    modest.push(chain, 0)
    assert drain(modest) == done(1)
    modest.trim()
    greedy.inbox.advance()
    assert taken(greedy)
    greedy.release()
    modest.release()
    assert budget.used == 0
    assert not budget.contended


def test_what_is_granted_is_kept_while_nobody_waits():
    budget = Budget(64 * MIB)
    stream = bound(budget)
    feed(stream.inbox, vq(1, b"?", 4 * MIB))
    used = budget.used
    assert used >= 4 * MIB - FREE
    assert used % CHUNK == 0
    (chain,) = taken(stream)
    stream.push(chain, 0)
    drain(stream)
    assert budget.used == used
    stream.trim()
    assert budget.used == 0


def test_what_arrives_at_the_moment_is_not_given_away():
    budget = Budget(8 * MIB)
    stream = bound(budget)
    feed(stream.inbox, vq(1, bytes(MIB), out_length=4 * MIB))
    used = budget.used
    budget.wait(lambda: None, MIB)
    stream.yield_bytes()
    assert budget.used == used
    assert stream.unfinished
    feed(stream.inbox, bytes(3 * MIB))
    assert not stream.unfinished
    assert len(taken(stream)) == 1
