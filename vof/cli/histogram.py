# SPDX-License-Identifier: BSD-3-Clause
"""A log-linear histogram: any range, a fixed relative error, constant time to add."""

SUB_BITS = 5
SUB = 1 << SUB_BITS
"""Buckets for each power of two: values are kept to 3 percent."""


class Histogram:
    """Counts of non-negative integers."""

    __slots__ = ("counts", "largest", "least", "total", "weight")

    def __init__(self) -> None:
        self.counts: dict[int, int] = {}
        self.weight = self.total = self.largest = 0
        self.least = 0

    def add(self, value: int, times: int = 1) -> None:
        """Count a value."""
        shift = value.bit_length() - SUB_BITS - 1
        if shift < 0:
            shift = 0
        bucket = (shift << SUB_BITS) + (value >> shift)
        counts = self.counts
        if bucket in counts:
            counts[bucket] += times
        else:
            counts[bucket] = times
        if value > self.largest:
            self.largest = value
        if value < self.least or not self.weight:
            self.least = value
        self.weight += times
        self.total += value * times

    def merge(self, other: "Histogram") -> None:
        """Add all counts of another."""
        if other.weight:
            self.least = min(self.least, other.least) if self.weight else other.least
            self.largest = max(self.largest, other.largest)
            self.weight += other.weight
            self.total += other.total
            for bucket, times in other.counts.items():
                self.counts[bucket] = self.counts.get(bucket, 0) + times

    def mean(self) -> float:
        """Return the mean, 0 for an empty histogram."""
        return self.total / self.weight if self.weight else 0.0

    def percentile(self, percent: float) -> int:
        """Return a value that so many percent do not exceed, as exact as the buckets are."""
        wanted = self.weight * percent / 100
        seen = 0
        for bucket in sorted(self.counts):
            seen += self.counts[bucket]
            if seen >= wanted:
                return self._value(bucket)
        return self.largest

    def steps(self) -> list[tuple[int, float]]:
        """Return the distribution: value, and the percentage that does not exceed it."""
        seen, steps = 0, []
        for bucket in sorted(self.counts):
            seen += self.counts[bucket]
            steps.append((self._value(bucket), 100 * seen / self.weight))
        return steps

    def _value(self, bucket: int) -> int:
        """Return the middle of a bucket, or what is known better."""
        return min(max(_middle(bucket), self.least), self.largest)


def _middle(bucket: int) -> int:
    """Return the middle of a bucket."""
    shift = max((bucket >> SUB_BITS) - 1, 0)
    first = (bucket - (shift << SUB_BITS)) << shift
    return first + ((1 << shift) - 1) // 2
