"""Checkpoints in half precision, and cotangents of dynamics that run in it."""

import numpy as np
import pytest
import tensorflow as tf
from helpers.gradients import gradients, relative_error
from helpers.memory import STATE_SIZE, peak, rk4
from helpers.modes import MODES, partly_slow, run, slow
from helpers.problems import mlp

import tfsymadj
from tfsymadj import SymplecticAdjoint

EPSILON = {"float16": 2.0**-11, "bfloat16": 2.0**-8}
FIXED = dict(method="rk4", num_steps=20)
LANES = dict(method="dopri5", rtol=1e-3, max_steps=40, batch_axis=0)


def each(t, y):
    return tf.tanh(y * tf.constant([0.5, -1.0, 1.5]))


@pytest.mark.parametrize("dtype", ["float16", slow("bfloat16")])
@pytest.mark.parametrize(
    "checkpoints, options, mode",
    [
        ("steps", FIXED, "graph"),
        slow("sqrt", FIXED, "xla"),
        slow("auto", FIXED, "graph"),
        slow("stages", FIXED, "graph"),
        slow(9, FIXED, "graph"),
        slow(9, FIXED, "xla"),
        slow("auto", dict(method="dopri5", rtol=1e-3, max_steps=40), "xla"),
        slow("sqrt", FIXED, "eager"),
    ],
)
def test_error_of_the_order_of_the_precision(checkpoints, options, mode, dtype):
    problem = mlp(tf.float32)
    exact = gradients(problem, SymplecticAdjoint(checkpoints), mode, **options)
    half = SymplecticAdjoint(checkpoints, checkpoint_dtype=dtype)
    found = gradients(problem, half, mode, **options)
    outputs = [name for name in exact if name.startswith("y[")]
    for name in outputs:
        np.testing.assert_array_equal(found.pop(name), exact.pop(name))
    error = relative_error(found, exact)
    # The dynamics are Lipschitz with a constant of a few; each stage's Jacobian is off by that
    # times the rounding of a state.
    assert error < 20 * EPSILON[dtype]
    assert error > 1e-6  # or nothing was rounded


@pytest.mark.slow
@pytest.mark.parametrize("checkpoints", ["sqrt", "stages", 12])
def test_with_steps_of_each_example(checkpoints):
    y0 = tf.constant(np.random.default_rng(0).normal(size=[4, 3]), tf.float32)
    found = []
    for dtype in (None, "float16"):
        gradient = SymplecticAdjoint(checkpoints, checkpoint_dtype=dtype)
        with tf.GradientTape() as tape:
            tape.watch(y0)
            y = tfsymadj.odeint(each, y0, [0.0, 2.0], gradient=gradient, **LANES)
            value = tf.reduce_sum(y[-1] ** 2)
        found.append(tape.gradient(value, y0))
    assert 1e-6 < relative_error(found[1], found[0]) < 20 * EPSILON["float16"]


@pytest.mark.parametrize("mode", ["graph", slow("xla")])
def test_a_state_beyond_half_precision_has_no_gradient(mode):
    y0 = tf.constant([1e5])

    def compute():
        with tf.GradientTape() as tape:
            tape.watch(y0)
            y = tfsymadj.odeint(
                lambda t, y: tf.tanh(y), y0, [0.0, 1.0],
                gradient=SymplecticAdjoint("steps", checkpoint_dtype="float16"), **FIXED,
            )  # fmt: skip
        return tape.gradient(y, y0)

    assert np.all(np.isnan(run(compute, mode)))


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["graph", "xla"])
@pytest.mark.parametrize("dtype", EPSILON)
def test_half_the_memory(dtype, mode):
    half = SymplecticAdjoint("steps", checkpoint_dtype=dtype)
    few, many = (peak(half, mode, **rk4(n)) for n in (450, 950))
    assert (many - few) / (500 * STATE_SIZE) < 0.65


@pytest.mark.slow
def test_second_derivatives_are_refused():
    w, gradient = tf.Variable(0.5), SymplecticAdjoint("steps", checkpoint_dtype="bfloat16")
    options = dict(method="euler", num_steps=2, gradient=gradient)

    def compute():
        with tf.GradientTape() as outer:
            with tf.GradientTape() as tape:
                y = tfsymadj.odeint(lambda t, y: w * y, [1.0], [0.0, 1.0], **options)
            first = tape.gradient(y, w)
        return outer.gradient(first, w)

    with pytest.raises(RuntimeError, match="no second derivatives"):
        run(compute, "graph")


def test_refused_for_other_states():
    gradient = SymplecticAdjoint(checkpoint_dtype="float16")
    for dtype in (tf.float64, tf.complex64):
        with pytest.raises(ValueError, match="`checkpoint_dtype`.*Received: a state of"):
            tfsymadj.odeint(
                lambda t, y: -y * y, tf.ones([2], dtype), [0.0, 1.0], gradient=gradient, **FIXED
            )
    with pytest.raises(ValueError, match="`checkpoint_dtype`.*Received: 'float32'"):
        SymplecticAdjoint(checkpoint_dtype="float32")


def test_config():
    gradient = SymplecticAdjoint("sqrt", checkpoint_dtype="bfloat16")
    assert gradient == SymplecticAdjoint.from_config(gradient.get_config())
    assert gradient != SymplecticAdjoint("sqrt")
    assert repr(SymplecticAdjoint("sqrt")) == "SymplecticAdjoint(checkpoints='sqrt')"


@pytest.mark.parametrize("mode", partly_slow(MODES, "eager", "xla"))
@pytest.mark.parametrize("checkpoints", ["auto", slow("sqrt")])
@pytest.mark.parametrize("size", [1e-7, slow(1e7)])
def test_cotangents_beyond_float16(size, checkpoints, mode):
    """A step's cotangents of the slopes are h b lambda: 1e-8, or 1e6."""
    rate, h = tf.constant([1.0, 0.5]), 0.1
    y0 = {"half": tf.ones([2], tf.float16), "sum": tf.zeros([2])}

    def dynamics(t, y):
        half = y["half"]
        return {"half": -tf.cast(rate, half.dtype) * half, "sum": tf.cast(half, tf.float32)}

    def compute():
        with tf.GradientTape() as tape:
            tape.watch(rate)
            y = tfsymadj.odeint(
                dynamics, y0, [0.0, 1.0], method="euler", num_steps=10,
                gradient=SymplecticAdjoint(checkpoints),
            )  # fmt: skip
            value = size * tf.reduce_sum(y["sum"][-1])
        return tape.gradient(value, rate)

    # The sum is h sum_k (1 - h rate)^k.
    factors = 1.0 - h * np.array([1.0, 0.5])
    expected = -size * h * h * sum(k * factors ** (k - 1) for k in range(1, 10))
    np.testing.assert_allclose(run(compute, mode), expected, rtol=0.01)


def test_small_cotangents_of_float16_beside_large_ones():
    y0, cotangents = tf.ones([1, 2], tf.float16), tf.constant([[1e-3, 1e4]], tf.float16)
    with tf.GradientTape() as tape:
        tape.watch(y0)
        y = tfsymadj.odeint(lambda t, y: -y * y, y0, [0.0, 1.0], method="rk4", num_steps=10)[-1]
    found = tape.gradient(y, y0, output_gradients=cotangents)
    # y = y0 / (1 + t y0)
    np.testing.assert_allclose(found / cotangents, np.full([1, 2], 0.25), rtol=2e-2)
