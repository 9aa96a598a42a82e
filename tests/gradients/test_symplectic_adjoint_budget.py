"""Gradients within a budget of states."""

import numpy as np
import pytest
import tensorflow as tf
from helpers.gradients import FLOAT64, counts, gradients, relative_error
from helpers.memory import MIB, STATE_SIZE, peak, rk4
from helpers.modes import MODES, partly_slow, run, slow
from helpers.problems import everything, mlp

import tfsymadj
from tfsymadj import Backprop, SymplecticAdjoint
from tfsymadj.checkpoints import budget

FIXED = dict(method="rk4", num_steps=9)
ADAPTIVE = dict(method="dopri5", rtol=1e-7, atol=1e-7, max_steps=200)


@pytest.mark.parametrize("mode", partly_slow(MODES, "eager", "xla"))
@pytest.mark.parametrize(
    "options, checkpoints", [(FIXED, 8), slow(FIXED, 11), slow(ADAPTIVE, 10), (ADAPTIVE, 20)]
)
def test_gradients(mode, options, checkpoints):
    actual = gradients(mlp(), SymplecticAdjoint(checkpoints), mode, **options)
    expected = gradients(mlp(), Backprop(), mode, **options)
    assert relative_error(actual, expected) < FLOAT64


@pytest.mark.parametrize("mode", partly_slow(MODES, "eager", "xla"))
@pytest.mark.parametrize("options", [pytest.param(FIXED, id="rk4"), slow(ADAPTIVE, id="dopri5")])
@pytest.mark.parametrize("checkpoints", [10, *map(slow, [12, 17, 30, 60, 10**12])])
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
@pytest.mark.parametrize("checkpoints", ["auto", slow("sqrt"), slow("stages"), slow(60), 20])
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


@pytest.mark.parametrize("checkpoints, kept", [("sqrt", 6), slow(60, 5), ("steps", 0)])
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


@pytest.mark.parametrize("mode", ["graph", slow("eager"), slow("xla")])
@pytest.mark.parametrize("checkpoints", ["auto", "sqrt", slow("stages"), slow(12)])
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
