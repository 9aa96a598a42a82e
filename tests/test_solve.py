"""Tests of `solve`: its checks, what it returns, and how it fails."""

import re

import keras
import numpy as np
import pytest
import tensorflow as tf
from conftest import loss, run, slow

import tfsymadj
from tfsymadj import (
    Backprop,
    ButcherTableau,
    ConstantSteps,
    PIController,
    Solution,
    Stats,
    Status,
    SymplecticAdjoint,
)

FIXED = dict(method="rk4", num_steps=20)
ADAPTIVE = dict(method="dopri5", rtol=1e-4, atol=1e-6, max_steps=200)


def decay(t, y):
    return -y


# Arguments


@pytest.mark.parametrize(
    "change, error, name",
    [
        (dict(dynamics=3), TypeError, "dynamics"),
        (dict(y0=[1, 2]), TypeError, "y0"),
        (dict(y0=()), ValueError, "y0"),
        (dict(t=[0.0]), ValueError, "t"),
        (dict(t=0.0), ValueError, "t"),
        (dict(t=[[0.0, 1.0]]), ValueError, "t"),
        (dict(t=[0.0, 0.0]), ValueError, "t"),
        (dict(t=[0.0, 2.0, 1.0]), ValueError, "t"),
        (dict(t=[0.0, np.nan]), ValueError, "t"),
        (dict(t=[0.0, np.inf]), ValueError, "t"),
        (dict(method="rk5"), ValueError, "method"),
        (dict(method=5), TypeError, "method"),
        (dict(method="rk4"), ValueError, "num_steps"),
        (dict(method="rk4", controller=PIController()), ValueError, "num_steps"),
        (dict(num_steps=2, step_size=0.1), ValueError, "num_steps"),
        (dict(num_steps=2, controller=PIController()), ValueError, "controller"),
        (dict(step_size=2.0, controller=ConstantSteps(2)), ValueError, "controller"),
        (dict(controller="pi"), TypeError, "controller"),
        (dict(num_steps=0), ValueError, "num_steps"),
        (dict(num_steps=2.5), ValueError, "num_steps"),
        (dict(num_steps=True), ValueError, "num_steps"),
        (dict(step_size=0.0), ValueError, "step_size"),
        (dict(step_size=-0.1), ValueError, "step_size"),
        (dict(step_size=np.inf), ValueError, "step_size"),
        (dict(step_size="small"), ValueError, "step_size"),
        (dict(rtol=-1e-3), ValueError, "rtol"),
        (dict(rtol=np.nan), ValueError, "rtol"),
        (dict(rtol="tight"), ValueError, "rtol"),
        (dict(atol=np.inf), ValueError, "atol"),
        (dict(atol=[1e-3, -1.0]), ValueError, "atol"),
        (dict(first_step=0.0), ValueError, "first_step"),
        (dict(first_step="a"), ValueError, "first_step"),
        (dict(min_step=-1.0), ValueError, "min_step"),
        (dict(max_steps=0), ValueError, "max_steps"),
        (dict(max_steps=10.0), ValueError, "max_steps"),
        (dict(max_steps=True), ValueError, "max_steps"),
        (dict(max_steps=2**31), ValueError, "max_steps"),
        (dict(gradient="adjoint"), ValueError, "gradient"),
        (dict(gradient=None), ValueError, "gradient"),
        (dict(gradient=SymplecticAdjoint), ValueError, "gradient"),
        (dict(autonomous="yes"), ValueError, "autonomous"),
        (dict(on_failure="ignore"), ValueError, "on_failure"),
        (dict(dynamics=lambda t, y: None), TypeError, "dynamics"),
        (dict(dynamics=lambda t, y: (y, y)), TypeError, "dynamics"),
        (dict(dynamics=lambda t, y: tf.cast(y, tf.float32)), TypeError, "dynamics"),
        (dict(dynamics=lambda t, y: y[:1]), ValueError, "dynamics"),
        (dict(dynamics=lambda t, y: tf.reduce_sum(y)), ValueError, "dynamics"),
    ],
)
@pytest.mark.parametrize("graph", [False, True], ids=["eager", "graph"])
def test_wrong_arguments(change, error, name, graph):
    options = dict(dynamics=decay, y0=np.ones(2), t=[0.0, 1.0]) | change

    def call():
        return tfsymadj.solve(**options)

    with pytest.raises(error, match=rf"`{name}`(.|\n)*Received: (.|\n)+"):
        tf.function(call, autograph=False)() if graph else call()


@pytest.mark.parametrize(
    "options, name",
    [
        (dict(safety=0.0), "safety"),
        (dict(safety=1.5), "safety"),
        (dict(min_factor=0.0), "min_factor"),
        (dict(min_factor=1.0), "min_factor"),
        (dict(max_factor=1.0), "max_factor"),
        (dict(max_factor=np.inf), None),
        (dict(integral=0.0), "integral"),
        (dict(rtol="a"), "rtol"),
    ],
)
def test_wrong_controller_coefficients(options, name):
    if name is None:
        PIController(**options)
        return
    with pytest.raises(ValueError, match=rf"`{name}`.*Received: "):
        PIController(**options)


@pytest.mark.parametrize("options", [dict(), dict(num_steps=2, step_size=0.1)])
def test_wrong_constant_steps(options):
    with pytest.raises(ValueError, match="`num_steps`.*`step_size`.*Received: "):
        ConstantSteps(**options)


@pytest.mark.parametrize("checkpoints", ["all", None, -1, 2.5])
def test_wrong_checkpoints(checkpoints):
    with pytest.raises(ValueError, match="`checkpoints`.*Received: "):
        SymplecticAdjoint(checkpoints)


@pytest.mark.parametrize("checkpoints", ["steps", "stages"])
def test_buffers_that_no_one_meant_to_ask_for(checkpoints):
    options = dict(gradient=SymplecticAdjoint(checkpoints), max_steps=10**9)
    with pytest.raises(ValueError, match="`max_steps`.*Received: "):
        tfsymadj.solve(decay, np.ones(1000), [0.0, 1.0], **options)


def test_values_that_are_equivalent():
    expected = tfsymadj.odeint(decay, tf.constant([1.0, 2.0]), tf.constant([0.0, 1.0]), **FIXED)
    for y0 in ([1.0, 2.0], np.array([1.0, 2.0], np.float32), tf.Variable([1.0, 2.0])):
        for t in ((0, 1), np.array([0, 1]), tf.Variable([0.0, 1.0]), [tf.constant(0.0), 1.0]):
            y = tfsymadj.odeint(decay, y0, t, **FIXED)
            assert y.dtype == tf.float32
            np.testing.assert_array_equal(y, expected)


def test_args_are_positional():
    def dynamics(t, y, a, b):
        return a * y + b["c"]

    args = (np.array(2.0), {"c": np.array(1.0)})
    y = tfsymadj.odeint(dynamics, np.array(0.0), [0.0, 1.0], args=args, rtol=1e-8, atol=1e-8)
    np.testing.assert_allclose(y[-1], (np.exp(2.0) - 1) / 2, rtol=1e-6)


# What comes back


@pytest.mark.parametrize("jit", [None, True], ids=["graph", "xla"])
def test_solution_leaves_a_function(jit):
    @tf.function(jit_compile=jit)
    def compute(y0):
        times = [0.0, 0.5, 1.0]
        return tfsymadj.solve(lambda t, y: {"a": -y["a"]}, {"a": y0}, times, **ADAPTIVE)

    solution = compute(tf.ones([2, 3]))
    assert isinstance(solution, Solution)
    assert isinstance(solution.stats, Stats)
    assert solution.y["a"].shape == (3, 2, 3)
    assert solution.t.dtype == tf.float64
    assert solution.status.dtype == tf.int32
    assert Status(int(solution.status)) is Status.SUCCESS
    stats = tf.nest.map_structure(int, solution.stats)
    assert stats.num_steps == stats.num_accepted + stats.num_rejected > 0
    assert stats.num_evaluations == stats.num_steps * 6 + 2
    # So few steps that all stage values are kept.
    assert stats.num_backward_evaluations == stats.num_accepted * 6


@pytest.mark.parametrize(
    "gradient, backward",
    [
        ("backprop", 0),
        ("symplectic_adjoint", 2 * 20 * 4),
        (SymplecticAdjoint("steps"), 2 * 20 * 4),
        (SymplecticAdjoint("stages"), 20 * 4),
    ],
)
def test_planned_backward_evaluations(gradient, backward):
    solution = tfsymadj.solve(decay, np.ones(2), [0.0, 1.0], gradient=gradient, **FIXED)
    assert int(solution.stats.num_backward_evaluations) == backward


def test_structures():
    def dynamics(t, y):
        a, (b, c) = y
        return -a, (-b, -c)

    y0 = (tf.ones([2]), (tf.ones([3, 1], tf.float64), tf.ones([], tf.complex64)))
    y = tfsymadj.odeint(dynamics, y0, [0.0, 0.5, 1.0], **FIXED)
    tf.nest.assert_same_structure(y0, y)
    for a, b in zip(tf.nest.flatten(y0), tf.nest.flatten(y)):
        assert b.shape == (3, *a.shape)
        assert b.dtype == a.dtype
        np.testing.assert_allclose(b[-1], np.exp(-1.0) * a.numpy(), rtol=1e-4)


def test_gradient_objects_compare_by_value():
    assert SymplecticAdjoint() == SymplecticAdjoint("auto") != SymplecticAdjoint("steps")
    assert Backprop() == Backprop() != SymplecticAdjoint()
    assert hash(SymplecticAdjoint("steps")) == hash(SymplecticAdjoint("steps"))
    assert repr(SymplecticAdjoint("steps")) == "SymplecticAdjoint(checkpoints='steps')"


# Failures


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


@pytest.mark.parametrize("name", FAILURES)
def test_failure_status_eager(name):
    check_failed(name, *failing(name, "eager", "status"))


@pytest.mark.parametrize("name", FAILURES)
def test_failure_raises_eager(name):
    _, _, _, statuses, (first, last), _ = FAILURES[name]
    with pytest.raises(tf.errors.InvalidArgumentError) as info:
        failing(name, "eager", "raise")
    found = re.search(r"status (\w+) at t = ([-\d.e]+)", str(info.value))
    assert found[1] in statuses
    assert first <= float(found[2]) <= last


@pytest.mark.parametrize("name", ["nan_fixed", "pole_adaptive", "max_steps", "bad_y0_adaptive"])
def test_failure_raises_in_graph(name):
    statuses = FAILURES[name][3]
    with pytest.raises(tf.errors.InvalidArgumentError) as info:
        failing(name, "graph", "raise")
    assert any(f"status {status} at t =" in str(info.value) for status in statuses)


@pytest.mark.parametrize("name", [slow("nan_fixed"), "pole_adaptive", slow("max_steps")])
def test_failure_under_xla(name):
    # XLA drops the assertion; NaN and the status tell.
    check_failed(name, *failing(name, "xla", "raise"))


@pytest.mark.parametrize("name", ["nan_adaptive", "max_steps", "pole_fixed"])
def test_failure_of_backprop(name):
    check_failed(name, *failing(name, "graph", "status", Backprop()))


@pytest.mark.parametrize("checkpoints", ["steps", "stages"])
def test_failure_with_other_checkpoints(checkpoints):
    gradient = SymplecticAdjoint(checkpoints)
    check_failed("nan_adaptive", *failing("nan_adaptive", "graph", "status", gradient))


def test_outputs_before_a_failure_are_right():
    solution, _ = failing("nan_adaptive", "eager", "status")
    np.testing.assert_allclose(solution.y[1], np.exp(-0.5) * np.array([1.0, 0.5]), rtol=1e-4)


@pytest.mark.parametrize("jit", [None, True], ids=["graph", "xla"])
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
