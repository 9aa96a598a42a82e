"""`solve`: its checks and what it returns."""

import numpy as np
import pytest
import tensorflow as tf

import tfsymadj
from tfsymadj import (
    Backprop,
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
    # So few steps that all stage values are kept; one more for the slope at the end.
    assert stats.num_backward_evaluations == stats.num_accepted * 6 + 1


@pytest.mark.parametrize(
    "gradient, backward",
    [
        ("backprop", 0),
        ("symplectic_adjoint", 0),
        (SymplecticAdjoint(80), 20 * 4),
        (SymplecticAdjoint("sqrt"), 2 * 20 * 4),
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
