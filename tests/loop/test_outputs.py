"""Output times."""

import math

import numpy as np
import pytest
import tensorflow as tf
from helpers.problems import PENDULUM0, pendulum

import tfsymadj


@pytest.mark.parametrize(
    "options",
    [dict(method="rk4", num_steps=3), dict(step_size=0.07), dict(rtol=1e-3)],
    ids=["num_steps", "step_size", "adaptive"],
)
def test_outputs_are_at_exactly_the_requested_times(options):
    times = [0.1, 0.3, 0.35, 1.0 / 3.0 + 0.1, 1.1]
    # dy/dt = 1: y is the time, but for roundings.
    solution = tfsymadj.solve(lambda t, y: tf.ones_like(y), np.array([0.1]), times, **options)
    np.testing.assert_array_equal(solution.t, times)
    np.testing.assert_allclose(solution.y[:, 0], times, rtol=1e-14)
    np.testing.assert_array_equal(solution.y[0], [0.1])


def test_outputs_between_do_not_change_the_fixed_grid():
    coarse = tfsymadj.odeint(pendulum, PENDULUM0, [0.0, 1.0], method="rk4", num_steps=8)
    fine = tfsymadj.odeint(pendulum, PENDULUM0, np.linspace(0.0, 1.0, 5), method="rk4", num_steps=2)
    np.testing.assert_allclose(fine[-1], coarse[-1], rtol=1e-14)


def test_all_times_of_one_interval_are_visited_once():
    """The times of fixed steps are start + j h, never a running sum: y' = cos t sums them up."""
    n = 1000
    y = tfsymadj.odeint(lambda t, y: tf.cos(t), 0.0 * PENDULUM0[0], [0.0, 1.0], method="euler",
                        num_steps=n)  # fmt: skip
    expected = math.fsum(np.cos(np.arange(n) / n)) / n
    np.testing.assert_allclose(y[-1], expected, rtol=1e-12)


def test_many_outputs_cost_little():
    options = dict(rtol=1e-6, atol=1e-6)
    few = tfsymadj.solve(pendulum, PENDULUM0, [0.0, 20.0], **options).stats
    many = tfsymadj.solve(pendulum, PENDULUM0, np.linspace(0.0, 20.0, 50), **options).stats
    # At most the step that is cut at each output is added.
    assert int(many.num_steps) <= int(few.num_steps) + 49


def test_proposal_is_kept_after_an_output_time():
    # An output just behind another one must not make the controller start over.
    options = dict(rtol=1e-6, atol=1e-6)
    without = tfsymadj.solve(pendulum, PENDULUM0, [0.0, 10.0, 20.0], **options)
    close_by = [0.0, 10.0, 10.0 + 1e-9, 20.0]
    within = tfsymadj.solve(pendulum, PENDULUM0, close_by, **options)
    assert int(within.stats.num_steps) <= int(without.stats.num_steps) + 2


@pytest.mark.parametrize("options", [dict(method="rk4", num_steps=10), dict(rtol=1e-4)])
def test_large_times_with_a_float32_state(options):
    """Times are float64 inside: in float32, 1e6 + 0.1 would be 1e6 + 0.125."""

    # Autonomous, so that the shift leaves the problem as it is.
    def solve(start):
        return tfsymadj.solve(
            lambda t, y: tf.stack([y[1], -tf.sin(y[0])]),
            tf.constant(PENDULUM0, tf.float32),
            [start, start + 0.25, start + 1.0],
            **options,
        )

    near, far = solve(0.0), solve(1e6)
    assert far.y.dtype == tf.float32
    # t0 + c h has rounding errors of 1e-10, a float32 state of 6e-8 a step.
    np.testing.assert_allclose(far.y, near.y, rtol=1e-6)
    assert int(far.stats.num_steps) == int(near.stats.num_steps)
