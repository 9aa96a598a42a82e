"""Solves that fail, and what they say."""

import re

import keras
import numpy as np
import pytest
import tensorflow as tf
from helpers.modes import partly_slow, run, slow
from helpers.problems import loss
from helpers.stubs import Told, loop

import tfsymadj
from tfsymadj import Backprop, ButcherTableau, Status, SymplecticAdjoint


@pytest.mark.parametrize("ts", [(0.0, 1.0, 0.5), (0.0, 0.0), (0.0, np.nan), (0.0, np.inf)])
def test_loop_refuses_times_out_of_order(ts):
    controller = Told([0.5])
    result = loop(controller, ts)
    assert int(result.status) == Status.TIMES_NOT_MONOTONIC
    assert not controller.seen
    assert np.isnan(result.ys[0][1:]).all()


def test_loop_refuses_a_state_that_is_not_finite():
    result = loop(Told([0.5]), ys=[tf.constant([1.0, np.inf], tf.float64)])
    assert int(result.status) == Status.NON_FINITE_STATE
    assert int(result.stats.num_steps) == 0


FIXED = dict(method="rk4", num_steps=20)
ADAPTIVE = dict(method="dopri5", rtol=1e-4, atol=1e-6, max_steps=200)


def decay(t, y):
    return -y


def nan_from_one(t, y):
    """NaN from t = 1 on."""
    return tf.where(t < 1.0, -y, tf.constant(np.nan, y.dtype))


def always_nan(t, y):
    return y * np.nan


def infinite(t, y):
    return y / tf.zeros_like(y)


def blow_up(t, y):
    """y = 1 / (1 / y0 - t)."""
    return y * y


TIMES = np.array([0.0, 0.5, 3.0, 4.0])


# name: (dynamics, y0, options, statuses, earliest and latest time of the failure, outputs reached)
FAILURES = {
    "nan_fixed": (nan_from_one, 1.0, FIXED, ["NON_FINITE_DYNAMICS"], (0.5, 1.3), 2),
    "nan_adaptive": (nan_from_one, 1.0, ADAPTIVE, ["NON_FINITE_DYNAMICS"], (0.5, 1.0), 2),
    "always_nan_fixed": (always_nan, 1.0, FIXED, ["NON_FINITE_DYNAMICS"], (0.0, 0.0), 1),
    "always_nan_adaptive": (always_nan, 1.0, ADAPTIVE, ["NON_FINITE_DYNAMICS"], (0.0, 0.0), 1),
    "infinite_fixed": (infinite, 1.0, FIXED, ["NON_FINITE_DYNAMICS"], (0.0, 0.0), 1),
    "infinite_adaptive": (infinite, 1.0, ADAPTIVE, ["NON_FINITE_DYNAMICS"], (0.0, 0.0), 1),
    "bad_y0_fixed": (decay, np.inf, FIXED, ["NON_FINITE_STATE"], (0.0, 0.0), 1),
    "bad_y0_adaptive": (decay, np.nan, ADAPTIVE, ["NON_FINITE_STATE"], (0.0, 0.0), 1),
    # A fixed step jumps over the pole and overflows behind it: in the state or in the dynamics.
    "pole_fixed": (
        blow_up, 1.0, FIXED, ["NON_FINITE_STATE", "NON_FINITE_DYNAMICS"], (0.5, 3.0), 2,
    ),
    "pole_adaptive": (
        blow_up, 1.0, ADAPTIVE | dict(max_steps=4000),
        ["STEP_UNDERFLOW", "NON_FINITE_DYNAMICS", "NON_FINITE_STATE"], (0.99, 1.01), 2,
    ),
    "max_steps": (
        decay, 1.0, ADAPTIVE | dict(max_steps=9, first_step=0.1, rtol=1e-8, atol=1e-8),
        ["MAX_STEPS_REACHED"], (0.1, 4.0), None,
    ),
    "min_step": (
        blow_up, 1.0, ADAPTIVE | dict(min_step=1e-3), ["STEP_UNDERFLOW"], (0.8, 1.0), 2,
    ),
}  # fmt: skip


def failing(name, mode, on_failure, gradient="symplectic_adjoint"):
    """The solution of a failing solve, the time's gradient and the others."""
    dynamics, start, options, *_ = FAILURES[name]
    w = tf.Variable(np.ones(2))
    y0 = tf.constant([start, 0.5], tf.float64)
    t = tf.constant(TIMES)
    closed = tf.constant([1.0, 1.0], tf.float64)

    def weighted(t, y):
        return dynamics(t, y) * w * closed

    def compute():
        with tf.GradientTape() as tape:
            tape.watch([y0, t, closed])
            solution = tfsymadj.solve(
                weighted, y0, t, on_failure=on_failure, gradient=gradient, **options
            )
            value = loss(solution.y[:1])  # of the outputs that are fine, even
        return solution, tape.gradient(value, [y0, t, closed, w])

    return run(compute, mode)


def check_failed(name, solution, grads):
    _, start, _, statuses, _, reached = FAILURES[name]
    status = Status(int(solution.status)).name
    assert status in statuses
    y = solution.y.numpy()
    ok = np.isfinite(y).all(axis=1)
    if np.isfinite(start):
        np.testing.assert_array_equal(y[0], [start, 0.5])
        reached = ok.argmin() if reached is None else reached
        assert ok[:reached].all()
        # From there on every entry is NaN, not just some.
        assert np.isnan(y[reached:]).all()
    else:
        assert np.isnan(y[1:]).all()
    for gradient in grads:
        assert np.isnan(gradient).all()


@pytest.mark.parametrize(
    "name", partly_slow(FAILURES, "always_nan_fixed", "infinite_adaptive", "bad_y0_adaptive")
)
def test_failure_status_eager(name):
    check_failed(name, *failing(name, "eager", "status"))


@pytest.mark.slow
@pytest.mark.parametrize("name", FAILURES)
def test_failure_raises_eager(name):
    _, _, _, statuses, (first, last), _ = FAILURES[name]
    with pytest.raises(tf.errors.InvalidArgumentError) as info:
        failing(name, "eager", "raise")
    found = re.search(r"status (\w+) at t = ([-\d.e]+)", str(info.value))
    assert found[1] in statuses
    assert first <= float(found[2]) <= last


@pytest.mark.parametrize(
    "name", ["nan_fixed", slow("pole_adaptive"), "max_steps", slow("bad_y0_adaptive")]
)
def test_failure_raises_in_graph(name):
    statuses = FAILURES[name][3]
    with pytest.raises(tf.errors.InvalidArgumentError) as info:
        failing(name, "graph", "raise")
    assert any(f"status {status} at t =" in str(info.value) for status in statuses)


@pytest.mark.slow
@pytest.mark.parametrize("name", [slow("nan_fixed"), "pole_adaptive", slow("max_steps")])
def test_failure_under_xla(name):
    # XLA drops the assertion; NaN and the status tell.
    check_failed(name, *failing(name, "xla", "raise"))


@pytest.mark.parametrize("name", [slow("nan_adaptive"), "max_steps", "pole_fixed"])
def test_failure_of_backprop(name):
    check_failed(name, *failing(name, "graph", "status", Backprop()))


@pytest.mark.parametrize("checkpoints", ["steps", "stages"])
def test_failure_with_other_checkpoints(checkpoints):
    gradient = SymplecticAdjoint(checkpoints)
    check_failed("nan_adaptive", *failing("nan_adaptive", "graph", "status", gradient))


def test_outputs_before_a_failure_are_right():
    solution, _ = failing("nan_adaptive", "eager", "status")
    np.testing.assert_allclose(solution.y[1], np.exp(-0.5) * np.array([1.0, 0.5]), rtol=1e-4)


@pytest.mark.parametrize("jit", [None, slow(True)], ids=["graph", "xla"])
@pytest.mark.parametrize("options", [FIXED, ADAPTIVE], ids=["fixed", "adaptive"])
@pytest.mark.parametrize(
    "times", [[0.0, 2.0, 1.0], slow([0.0, 1.0, 1.0]), slow([0.0, np.nan, 1.0])]
)
def test_traced_times_not_monotonic(jit, options, times):
    y0 = tf.ones([2], tf.float64)

    @tf.function(jit_compile=jit)
    def compute(t):
        with tf.GradientTape() as tape:
            tape.watch([y0, t])
            solution = tfsymadj.solve(decay, y0, t, on_failure="status", **options)
            value = loss(solution.y)
        return solution, tape.gradient(value, [y0, t])

    solution, grads = compute(tf.constant(times, tf.float64))
    assert Status(int(solution.status)) is Status.TIMES_NOT_MONOTONIC
    assert np.isnan(solution.y[1:]).all()
    for gradient in grads:
        assert np.isnan(gradient).all()
    # The same function serves times that are in order.
    assert int(compute(tf.constant([0.0, 1.0, 2.0], tf.float64))[0].status) == Status.SUCCESS


def test_failed_batch_entry_fails_the_solve():
    y0 = np.array([[1.0], [np.nan]])
    solution = tfsymadj.solve(decay, y0, [0.0, 1.0], on_failure="status")
    assert Status(int(solution.status)) is Status.NON_FINITE_STATE
    assert np.isnan(solution.y[1]).all()


def test_complex_failure():
    y0 = tf.constant([1.0 + 1j], tf.complex64)
    nan = tf.constant(complex(0.0, np.nan), tf.complex64)
    with tf.GradientTape() as tape:
        tape.watch(y0)
        solution = tfsymadj.solve(
            lambda t, y: y * nan, y0, [0.0, 1.0], on_failure="status", **FIXED
        )
        value = loss(solution.y)
    assert Status(int(solution.status)) is Status.NON_FINITE_DYNAMICS
    assert not np.isfinite(solution.y[1]).any()
    assert not np.isfinite(tape.gradient(value, y0)).any()


def test_layers_build_inside_of_a_loop():
    layer = keras.layers.Dense(2)

    @tf.function
    def compute(ys):
        return tf.map_fn(lambda y: tfsymadj.odeint(layer, y[tf.newaxis], [0.0, 1.0], **FIXED), ys)

    assert compute(tf.ones([3, 2])).shape == (3, 2, 1, 2)
    assert len(layer.trainable_variables) == 2


def test_wrong_result_of_own_tableau():
    with pytest.raises(ValueError, match="Received: "):
        ButcherTableau(name="bad", order=3, c=(0, 1), a=((), (1,)), b=(0.5, 0.5))


def test_tolerance_below_the_precision():
    with pytest.warns(UserWarning, match="`rtol` is below the precision of float32.*Received"):
        solution = tfsymadj.solve(decay, tf.ones([3]), [0.0, 1.0], rtol=1e-12, atol=0.0)
    assert solution.status == Status.SUCCESS
    np.testing.assert_allclose(solution.y[-1], np.full(3, np.exp(-1.0)), rtol=1e-5)
