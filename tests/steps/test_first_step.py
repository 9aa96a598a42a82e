"""First steps."""

import numpy as np
import pytest
import tensorflow as tf
from helpers.modes import XLA_SLOW, run
from helpers.problems import PENDULUM0, pendulum, pendulum_exactly, ramp
from helpers.stubs import Told, loop

import tfsymadj
from tfsymadj import METHODS, PIController, Status


def test_first_step_by_hand_is_within_bounds():
    seen = []

    class First(Told):
        def initial_state(self, first_step):
            seen.append(float(first_step))
            return super().initial_state(first_step)

    loop(First([0.5]), first_step=None)
    loop(First([0.5]), (3e9, 3e9 + 1.0), first_step=1e-12)
    assert 0.0 < seen[0] <= 100.0
    assert 3e9 + seen[1] > 3e9


def test_first_step_is_taken():
    # Euler's method is of first order for y' = t: an error estimate of zero accepts any step.
    def count(first_step):
        solution = tfsymadj.solve(
            lambda t, y: tf.zeros_like(y), np.ones(1), [0.0, 1.0], first_step=first_step
        )
        return int(solution.stats.num_steps)

    assert count(1.0) == 1
    assert count(0.5) == 2
    assert count(0.01) == 3  # 0.01, 0.1, and what is left


def test_first_step_too_long_is_rejected():
    solution = tfsymadj.solve(pendulum, PENDULUM0, [0.0, 10.0], first_step=10.0, rtol=1e-6)
    assert int(solution.stats.num_rejected) > 0
    np.testing.assert_allclose(solution.y[-1], pendulum_exactly([0.0, 10.0])[-1], atol=1e-4)


def decay(t, y):
    return -y


@pytest.mark.parametrize("mode", XLA_SLOW)
@pytest.mark.parametrize("dtype", [tf.float32, tf.float64, tf.complex64])
def test_first_step_without_a_scale(dtype, mode):
    y0 = tf.constant([0.0, 1.0], dtype)
    solution = run(lambda: tfsymadj.solve(ramp, y0, [0.0, 1.0], rtol=1e-4, atol=0.0), mode)
    np.testing.assert_allclose(solution.y[-1], [1.0, np.exp(-1.0)], rtol=1e-3)
    assert int(solution.stats.num_steps) < 20


ODD = {
    "zero": (lambda t, y: 0.0 * y, 1.0, dict(atol=0.0), 1.0),
    "zero state": (lambda t, y: tf.ones_like(y), 0.0, dict(atol=0.0), 1.0),
    "zero state and slope": (lambda t, y: 0.0 * y, 0.0, dict(atol=0.0), 0.0),
    "denormal slope": (lambda t, y: 0.0 * y + 1e-42, 1.0, dict(), 1.0),
    "denormal state": (lambda t, y: 0.0 * y, 1e-42, dict(), 0.0),
    "huge slope": (lambda t, y: 1e25 * tf.cos(t) + 0.0 * y, 1.0, dict(), 1e25 * np.sin(1.0)),
    "huge state": (decay, 1e37, dict(), 1e37 * np.exp(-1.0)),
    "state near zero": (lambda t, y: tf.ones_like(y), 1e-30, dict(atol=0.0), 1.0),
    "tiny tolerance": (decay, 1.0, dict(rtol=0.0, atol=1e-6), np.exp(-1.0)),
    "huge over tolerance": (decay, 1e35, dict(rtol=1e-6, atol=1e-30), 1e35 * np.exp(-1.0)),
    "small over tolerance": (decay, 1e30, dict(rtol=1e-3, atol=1e-30), 1e30 * np.exp(-1.0)),
    "beyond the squares": (decay, 1e24, dict(rtol=0.0, atol=1e20), 1e24 * np.exp(-1.0)),
}


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", ODD)
def test_odd_slopes_and_states(name, dtype):
    dynamics, y0, options, expected = ODD[name]
    y0 = tf.constant([y0], dtype)
    solution = tfsymadj.solve(dynamics, y0, [0.0, 1.0], **options)
    np.testing.assert_allclose(solution.y[-1, 0], expected, rtol=1e-2, atol=1e-30)
    assert int(solution.stats.num_steps) < 100


@pytest.mark.parametrize("value", [np.inf, -np.inf, np.nan])
@pytest.mark.parametrize("mode", XLA_SLOW)
def test_infinite_first_slope(mode, value):
    solution = run(
        lambda: tfsymadj.solve(
            lambda t, y: tf.where(y > 0.0, -y, value), tf.constant([1.0, 0.0]), [0.0, 1.0],
            on_failure="status",
        ),
        mode,
    )  # fmt: skip
    assert int(solution.status) == Status.NON_FINITE_DYNAMICS
    assert np.isnan(solution.y[1]).all()


@pytest.mark.parametrize("first_step", [None, 1e-20])
@pytest.mark.parametrize("t0", [1e9, -1e12, 1e15])
def test_first_step_far_from_zero(t0, first_step):
    """Where 1e-6, the least first step by the textbook, would not move the time."""
    length = 1e5 * np.spacing(abs(t0))
    solution = tfsymadj.solve(
        lambda t, y: -y / length, np.ones(1), [t0, t0 + length], first_step=first_step, rtol=1e-5
    )
    np.testing.assert_allclose(solution.y[-1, 0], np.exp(-1.0), rtol=1e-4)
    assert int(solution.stats.num_accepted) < 30


def test_no_tolerance_at_all_is_not_met():
    """Nor is an error of an entry that is zero before and after the step."""
    solution = tfsymadj.solve(decay, [1.0], [0.0, 1.0], rtol=0.0, atol=0.0, on_failure="status")
    assert int(solution.status) != Status.SUCCESS
    controller = PIController(1e-3, 0.0).for_method(METHODS["dopri5"])
    zeros = [tf.constant([0.0, 1.0])]
    assert float(controller.error_norm([tf.constant([1e-9, 0.0])], zeros, zeros)) > 1e3
    assert float(controller.error_norm([tf.constant([0.0, 0.0])], zeros, zeros)) == 0.0


def test_a_step_of_zero_is_not_accepted():
    """Towards a singularity at t = 1 the steps vanish: the solve must not creep on without time."""
    solution = tfsymadj.solve(
        lambda t, y: y**2, np.ones(1), [0.0, 2.0], on_failure="status", max_steps=2000
    )
    assert int(solution.status) != Status.SUCCESS
    assert np.isnan(solution.y[-1, 0])


def test_a_singularity_far_from_zero_is_an_underflow():
    solution = tfsymadj.solve(
        lambda t, y: y**2 * 1e-3, np.ones(1), [1e12, 1e12 + 2e3], on_failure="status"
    )
    assert int(solution.status) in (Status.STEP_UNDERFLOW, Status.NON_FINITE_DYNAMICS)
