"""The continuous adjoint."""

import numpy as np
import pytest
import tensorflow as tf
from helpers.gradients import gradients, relative_error
from helpers.modes import MODES, partly_slow, run
from helpers.problems import everything, mlp

import tfsymadj
from tfsymadj import Backprop, ContinuousAdjoint

FIXED = dict(method="rk4", num_steps=4)
TIGHT = ContinuousAdjoint(rtol=1e-12, atol=1e-12, method="dopri8")


@pytest.mark.slow
@pytest.mark.parametrize("mode", MODES)
def test_continuous_adjoint_of_everything(mode):
    """Where both solves are converged, discrete and continuous gradients are one."""
    problem = everything()
    options = dict(method="dopri8", rtol=1e-12, atol=1e-12, max_steps=300)
    actual = gradients(problem, ContinuousAdjoint(), mode, **options)
    expected = gradients(problem, Backprop(), "graph", **options)
    # The gradient for a time is that of the flow, here; the steps' own has an error estimate less.
    assert relative_error(actual, expected) < 1e-9


@pytest.mark.slow
def test_continuous_adjoint_is_as_exact_as_its_tolerance():
    exact = gradients(mlp(), Backprop(), "graph", method="dopri8", rtol=1e-13, atol=1e-13)
    errors = []
    for tolerance in (1e-4, 1e-7, 1e-10):
        options = dict(method="dopri5", rtol=tolerance, atol=tolerance)
        found = gradients(mlp(), ContinuousAdjoint(), "graph", **options)
        errors.append(relative_error(found, exact))
        # Local errors of one tolerance each, over ten to a hundred steps.
        assert errors[-1] < 100 * tolerance
    assert errors[-1] < 1e-3 * errors[0]


@pytest.mark.slow
def test_continuous_adjoint_with_fixed_steps_has_the_order_of_the_method():
    exact = gradients(mlp(), Backprop(), "graph", method="dopri8", rtol=1e-13, atol=1e-13)
    errors = [
        relative_error(
            gradients(mlp(), ContinuousAdjoint(), "graph", method="rk4", num_steps=n), exact
        )
        for n in (8, 32)
    ]
    assert abs(np.log(errors[0] / errors[1]) / np.log(4) - 4) < 0.4


@pytest.mark.slow
def test_continuous_adjoint_takes_tolerances_of_each_tensor():
    problem = everything()
    options = dict(method="dopri5", rtol={"a": 1e-7, "z": 1e-8}, atol=1e-9)
    actual = gradients(problem, ContinuousAdjoint(), "graph", **options)
    expected = gradients(problem, Backprop(), "graph", **options)
    assert relative_error(actual, expected) < 1e-5


@pytest.mark.slow
def test_continuous_adjoint_of_a_decreasing_time():
    problem = mlp(t=(1.0, 0.4, -0.5))
    options = dict(method="dopri8", rtol=1e-12, atol=1e-12)
    actual = gradients(problem, ContinuousAdjoint(), "graph", **options)
    expected = gradients(problem, Backprop(), "graph", **options)
    assert relative_error(actual, expected) < 1e-9


@pytest.mark.slow
@pytest.mark.parametrize("mode", partly_slow(MODES, "eager", "xla"))
def test_continuous_adjoint_refuses_second_derivatives(mode):
    y0 = tf.constant([1.0])

    def compute():
        with tf.GradientTape() as outer:
            outer.watch(y0)
            with tf.GradientTape() as inner:
                inner.watch(y0)
                y = tfsymadj.odeint(lambda t, y: y * y, y0, [0.0, 0.5], gradient=TIGHT)
            first = inner.gradient(y, y0)
        return outer.gradient(first, y0)

    with pytest.raises(RuntimeError, match="no second derivatives"):
        run(compute, mode)


@pytest.mark.parametrize("mode", MODES)
def test_a_failed_backward_solve_gives_nan(mode):
    """Forward a decay; backward the same is an explosion that needs more steps than allowed."""
    y0 = tf.constant([1.0])

    def compute():
        with tf.GradientTape() as tape:
            tape.watch(y0)
            y = tfsymadj.odeint(
                lambda t, y: -20.0 * y, y0, [0.0, 2.0], max_steps=100, rtol=1e-3, atol=1e-3,
                gradient=ContinuousAdjoint(rtol=1e-12, atol=1e-30),
            )  # fmt: skip
        return tape.gradient(y, y0)

    assert np.all(np.isnan(run(compute, mode)))


@pytest.mark.parametrize(
    "arguments", [dict(rtol=-1.0), dict(atol=np.inf), dict(rtol=[1e-3]), dict(method="rk5")]
)
def test_bad_arguments_of_the_continuous_adjoint(arguments):
    with pytest.raises(ValueError, match="must be"):
        ContinuousAdjoint(**arguments)


def test_continuous_adjoint_needs_an_error_estimate_for_tolerances():
    with pytest.raises(ValueError, match="no error estimate"):
        tfsymadj.odeint(
            lambda t, y: -y, [1.0], [0.0, 1.0], gradient=ContinuousAdjoint(rtol=1e-3), **FIXED
        )
