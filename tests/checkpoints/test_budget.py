"""Plans of checkpoints within a budget of states."""

import functools

import numpy as np
import pytest
import tensorflow as tf

import tfsymadj
from tfsymadj import SymplecticAdjoint
from tfsymadj.checkpoints import budget

#: (steps, checkpoints, max_steps): steps that equinox 0.13.8, which does the checkpointing of
#: diffrax 0.7.0, advances in one gradient beyond the first sweep and one more use of each step.
DIFFRAX = {
    (30, 4, 30): 56,
    (30, 8, 30): 22,
    (100, 4, 100): 303,
    (100, 8, 100): 237,
    (100, 14, 100): 86,
    (100, 24, 100): 76,
    (300, 8, 300): 856,
    (1000, 12, 1000): 3602,
    (1000, 36, 1000): 2688,
    (30, 4, 4096): 56,
    (30, 8, 4096): 22,
    (57, 14, 4096): 43,
    (57, 34, 4096): 23,
    (100, 4, 4096): 303,
    (100, 14, 4096): 86,
    (300, 14, 4096): 785,
    (300, 34, 4096): 266,
    (1000, 34, 4096): 2500,
}


@functools.cache
def fewest_advances(length, slots):
    """By trying all places of the next state."""
    if length == 1:
        return 0
    if slots == 1:
        return length * (length - 1) // 2
    return min(
        part + fewest_advances(length - part, slots - 1) + fewest_advances(part, slots)
        for part in range(1, length)
    )


def test_number_of_advances_is_the_least():
    for slots in range(1, 7):
        for length in range(1, 50):
            assert budget.num_advances(length, slots) == fewest_advances(length, slots)


def test_number_of_advances_after_the_forward_pass():
    """By trying all states that it may keep."""

    @functools.cache
    def fewest(length, slots):
        if slots == 1:
            return fewest_advances(length, 1)
        return min(
            fewest_advances(part, slots)
            + (fewest(length - part, slots - 1) if part < length else 0)
            for part in range(1, length + 1)
        )

    for slots in range(1, 6):
        for length in range(1, 40):
            assert budget.num_advanced_again(length, slots) == fewest(length, slots)


def test_every_split_is_optimal():
    table = tf.constant(budget._binomials(8, 60))
    for slots in range(1, 8):
        for length in range(2, 60):
            part = int(budget._split(tf.constant(length), tf.constant(slots), table))
            assert 1 <= part < length
            if slots == 1:
                assert part == length - 1
                continue
            cost = part + budget.num_advances(part, slots)
            cost += budget.num_advances(length - part, slots - 1)
            assert cost == budget.num_advances(length, slots)


@pytest.mark.parametrize("slots", [4, 7, 20])
def test_states_kept_on_the_way_are_near_the_best(slots):
    segments = 300
    rows = budget.online_rows(segments, slots)
    assert rows[0] == 0
    held = {}
    for q, row in enumerate(rows):
        if row < slots:
            held[int(row)] = q
        positions = sorted(held.values())
        assert positions[0] == 0 and len(positions) == min(q + 1, slots)
        ends = [*positions[1:], q + 1]
        again = sum(
            budget.num_advances(end - begin, slots - i)
            for i, (begin, end) in enumerate(zip(positions, ends))
        )
        best = budget.num_advanced_again(q + 1, slots)
        # What is best for one number of segments is not for the next one; it never costs much.
        assert best <= again <= 1.1 * (best + q) - q


class _Advances:
    """Counts what a recording advances; no dynamics."""

    def __init__(self, steps, slots, kept):
        self.recording = budget._Budget(1, slots, kept=kept)
        self.count = 0
        self.steps = steps

    def run(self):
        checkpoints = [tf.zeros([self.recording.rows + 1, 1])]
        for q in range(self.steps):
            row = int(self.recording.row(tf.constant(q)))
            checkpoints = [tf.tensor_scatter_nd_update(checkpoints[0], [[row]], [[float(q)]])]
        held = self.recording.held(checkpoints, tf.constant(self.steps))
        for q in reversed(range(self.steps)):
            (y,), held = self.recording.restore(
                tf.constant(q), held, checkpoints, [tf.zeros([1])], self._advance
            )
            assert float(y[0]) == q
        return self.count

    def _advance(self, begin, end, ys):
        self.count += int(end - begin)
        return [ys[0] + tf.cast(end - begin, tf.float32)]


@pytest.mark.parametrize("steps, slots, max_steps", [k for k in DIFFRAX if k[0] <= 100])
def test_no_more_evaluations_than_diffrax_at_equal_memory(steps, slots, max_steps):
    """Segments of one step: the same number of states on both sides."""
    if steps == max_steps:
        kept = np.full([steps], slots, np.int32)
        kept[budget._positions(tf.constant(steps), slots)] = np.arange(slots)
        planned = budget.num_advanced_again(steps, slots)
    else:
        kept = budget.online_rows(max_steps, slots)
    advances = _Advances(steps, slots, kept)
    if steps < max_steps:
        planned = int(advances.recording.num_advanced(tf.constant(steps)))
    count = advances.run()
    assert count == planned == int(advances.recording.num_advanced(tf.constant(steps)))
    assert count <= DIFFRAX[steps, slots, max_steps]


@pytest.mark.parametrize("steps, slots, max_steps", DIFFRAX)
def test_planned_evaluations_are_no_more_than_those_of_diffrax(steps, slots, max_steps):
    if steps == max_steps:
        planned = budget.num_advanced_again(steps, slots)
    else:
        recording = budget._Budget(1, slots, kept=budget.online_rows(max_steps, slots))
        planned = int(recording.num_advanced(tf.constant(steps)))
    assert planned <= DIFFRAX[steps, slots, max_steps]


FIXED = dict(method="rk4", num_steps=9)


def test_budgets_below_the_least_are_refused():
    with pytest.raises(ValueError, match=r"s \+ 4 = 8 for the method 'rk4'.*Received: 7"):
        tfsymadj.odeint(lambda t, y: -y, [1.0], [0.0, 1.0], gradient=SymplecticAdjoint(7), **FIXED)


def test_huge_adaptive_budgets_are_refused():
    with pytest.raises(ValueError, match="max_steps"):
        tfsymadj.odeint(
            lambda t, y: -y, tf.ones([1000]), [0.0, 1.0], max_steps=2**30,
            gradient=SymplecticAdjoint(10**12),
        )  # fmt: skip
