"""Tests of checkpointing within a budget of states."""

import functools

import numpy as np
import pytest
import tensorflow as tf
from conftest import MODES, XLA_SLOW, everything, gradients, mlp, relative_error, run, slow
from test_gradients import FLOAT64, counts
from test_memory import MIB, STATE_SIZE, peak, rk4

import tfsymadj
from tfsymadj import Backprop, SymplecticAdjoint
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
ADAPTIVE = dict(method="dopri5", rtol=1e-7, atol=1e-7, max_steps=200)


@pytest.mark.parametrize("mode", XLA_SLOW)
@pytest.mark.parametrize(
    "options, checkpoints", [(FIXED, 8), (FIXED, 11), (ADAPTIVE, 10), (ADAPTIVE, 20)]
)
def test_gradients(mode, options, checkpoints):
    actual = gradients(mlp(), SymplecticAdjoint(checkpoints), mode, **options)
    expected = gradients(mlp(), Backprop(), mode, **options)
    assert relative_error(actual, expected) < FLOAT64


@pytest.mark.slow
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("options", [FIXED, ADAPTIVE], ids=["rk4", "dopri5"])
@pytest.mark.parametrize("checkpoints", [10, 12, 17, 30, 60, 10**12])
def test_gradients_of_everything(mode, options, checkpoints):
    if checkpoints == 10**12 and options is ADAPTIVE:
        pytest.skip("as many as max_steps: tested with 'steps'")
    actual = gradients(everything(), SymplecticAdjoint(checkpoints), mode, **options)
    expected = gradients(everything(), Backprop(), mode, **options)
    assert relative_error(actual, expected) < FLOAT64


@pytest.mark.parametrize("mode", ["eager", "graph"])
def test_number_of_steps_known_at_run_time_only(mode):
    options = dict(method="rk4", step_size=0.07, max_steps=99)
    actual = gradients(mlp(), SymplecticAdjoint(9), mode, **options)
    expected = gradients(mlp(), Backprop(), mode, **options)
    assert relative_error(actual, expected) < FLOAT64


@pytest.mark.parametrize("checkpoints", [8, 9, 13, 20, 40, 72])
def test_evaluations(checkpoints):
    n, s = 18, 4
    _, backward, vjps, stats = counts(SymplecticAdjoint(checkpoints), **FIXED)
    assert vjps == n * s
    assert backward <= stats.num_backward_evaluations <= backward + n
    least = n * s if checkpoints >= n * s else 2 * n * s
    beyond = stats.num_backward_evaluations - least
    assert beyond == 0 if checkpoints >= 20 else beyond > 0
    assert beyond <= s * budget.num_advanced_again(n, checkpoints - s)


@pytest.mark.parametrize("checkpoints", [10, 12, 20])
def test_evaluations_of_adaptive_steps(checkpoints):
    _, backward, vjps, stats = counts(SymplecticAdjoint(checkpoints), **ADAPTIVE)
    assert vjps == stats.num_accepted * 6
    assert backward <= stats.num_backward_evaluations <= backward + stats.num_accepted


@pytest.mark.parametrize("mode", ["graph", slow("xla")])
@pytest.mark.parametrize("checkpoints", ["auto", "stages", 60, 20])
def test_attempts_that_are_not_finite_leave_nothing_behind(mode, checkpoints):
    """What a rejected step computed is not kept, or NaN would stay where stages are overwritten."""

    def compute(gradient):
        y0 = tf.constant([1.0, 0.5], tf.float64)
        with tf.GradientTape() as tape:
            tape.watch(y0)
            solution = tfsymadj.solve(
                lambda t, y: -tf.sqrt(y), y0, [0.0, 1.2], rtol=1e-5, max_steps=40, first_step=1.2,
                gradient=gradient,
            )  # fmt: skip
            value = tf.reduce_sum(solution.y[-1])
        return tape.gradient(value, y0), solution.stats.num_rejected

    actual, rejected = run(lambda: compute(SymplecticAdjoint(checkpoints)), mode)
    expected, _ = run(lambda: compute("aca"), mode)
    assert rejected > 0
    assert relative_error(actual, expected) < FLOAT64


@pytest.mark.parametrize("checkpoints, kept", [("auto", 6), (60, 5), ("steps", 0)])
def test_steps_at_the_end_are_not_recomputed(checkpoints, kept):
    """Those that the ring has room for: sqrt(200 / 6), or half of the budget."""
    _, backward, vjps, stats = counts(SymplecticAdjoint(checkpoints), **ADAPTIVE)
    again = stats.num_accepted - kept
    assert again > 0
    assert vjps == 6 * stats.num_accepted
    assert backward <= stats.num_backward_evaluations == vjps + 6 * again


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["graph", "xla"])
@pytest.mark.parametrize("checkpoints", [16, 48, 100])
def test_memory(mode, checkpoints):
    """The budget's states, twice that where sizes are rounded up to powers of two, and one use."""
    least = peak(SymplecticAdjoint(8), mode, **rk4(1000))
    used = peak(SymplecticAdjoint(checkpoints), mode, **rk4(1000))
    assert used - least < 2 * (checkpoints - 8) * STATE_SIZE + MIB


@pytest.mark.slow
def test_an_adaptive_budget_does_not_hold_max_steps():
    options = dict(method="dopri5", rtol=1e-5, atol=1e-7, max_steps=4096)
    assert peak(SymplecticAdjoint(24), "xla", **options) < 16 * MIB


@pytest.mark.parametrize("checkpoints", [0, -3, True, 1.5, None, "most"])
def test_bad_budgets_are_refused(checkpoints):
    with pytest.raises(ValueError, match="`checkpoints` must be"):
        SymplecticAdjoint(checkpoints)


def test_budgets_below_the_least_are_refused():
    with pytest.raises(ValueError, match=r"s \+ 4 = 8 for the method 'rk4'.*Received: 7"):
        tfsymadj.odeint(lambda t, y: -y, [1.0], [0.0, 1.0], gradient=SymplecticAdjoint(7), **FIXED)


def test_huge_adaptive_budgets_are_refused():
    with pytest.raises(ValueError, match="max_steps"):
        tfsymadj.odeint(
            lambda t, y: -y, tf.ones([1000]), [0.0, 1.0], max_steps=2**30,
            gradient=SymplecticAdjoint(10**12),
        )  # fmt: skip


@pytest.mark.parametrize("mode", ["graph", slow("eager"), slow("xla")])
@pytest.mark.parametrize("checkpoints", ["auto", slow("stages"), slow(12)])
def test_rejected_steps_that_are_not_finite(checkpoints, mode):
    """Their stage values are gone when the next step's are kept."""
    y0 = tf.constant([0.0], tf.float64)

    def compute():
        with tf.GradientTape() as tape:
            tape.watch(y0)
            solution = tfsymadj.solve(
                lambda t, y: tf.sqrt(1.0 - y), y0, [0.0, 1.9], rtol=1e-9, atol=1e-9,
                first_step=1.9, max_steps=64, gradient=SymplecticAdjoint(checkpoints),
            )  # fmt: skip
            end = solution.y[-1]
        return solution.stats.num_rejected, tape.gradient(end, y0)

    rejected, gradient = run(compute, mode)
    assert rejected > 0
    # sqrt(1 - y) = sqrt(1 - y0) - t / 2
    np.testing.assert_allclose(gradient, [1.0 - 1.9 / 2.0], rtol=1e-6)
