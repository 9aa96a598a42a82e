"""Steady states and their derivatives by the implicit function theorem."""

import numpy as np
import pytest
import tensorflow as tf
from helpers.modes import run, slow

import tfsymadj

W = tf.Variable(np.array([[0.2, -0.5, 0.1], [0.4, 0.1, -0.3], [0.0, 0.6, -0.2]]))


def network(t, y, b):
    """Contracts to one state for each b."""
    return tf.tanh(tf.linalg.matvec(W, y) + b) - y


B = tf.constant([0.3, -0.2, 0.5], tf.float64)


def at_rest(b, w):
    y = np.zeros(3)
    for _ in range(400):
        y = np.tanh(w @ y + b)
    return y


def exact_gradients(g):
    """For b and W, of the state's product with g."""
    y = at_rest(B.numpy(), W.numpy())
    d = np.diag(1.0 - y**2)
    v = np.linalg.solve((d @ W.numpy() - np.eye(3)).T, -g)
    return v @ d, np.outer(v @ d, y)


@pytest.mark.parametrize("mode", ["eager", slow("graph"), slow("xla")])
def test_state_and_gradients(mode):
    g = np.array([1.0, -2.0, 0.5])

    def compute():
        with tf.GradientTape() as tape:
            tape.watch(B)
            found = tfsymadj.steady_state(network, tf.zeros_like(B), args=(B,), tolerance=1e-10)
            value = tf.reduce_sum(found.y * g)
        return found.y, found.success, *tape.gradient(value, [B, W])

    y, success, db, dw = run(compute, mode)
    assert success
    np.testing.assert_allclose(y, at_rest(B.numpy(), W.numpy()), atol=1e-9)
    for found, expected in zip((db, dw), exact_gradients(g)):
        np.testing.assert_allclose(found, expected, atol=1e-8)


@pytest.mark.slow
def test_a_start_at_rest():
    y = tf.constant(at_rest(B.numpy(), W.numpy()))
    found = tfsymadj.steady_state(network, y, args=(B,), tolerance=1e-6, max_time=5.0)
    np.testing.assert_allclose(found.y, y, atol=1e-6)


@pytest.mark.slow
def test_no_rest_in_half_precision():
    y0 = tf.constant([1.0], tf.float16)  # of which none has a square of 0.35
    with pytest.raises(tf.errors.InvalidArgumentError, match="float16, coarser than `tolerance`"):
        tfsymadj.steady_state(lambda t, y: 0.35 - y * y, y0, tolerance=1e-6, max_time=20.0)


def test_no_rest():
    turn = lambda t, y: tf.stack([y[1], -y[0]])  # noqa: E731
    y0 = tf.constant([1.0, 0.0], tf.float64)
    with pytest.raises(tf.errors.InvalidArgumentError, match="did not come to rest"):
        tfsymadj.steady_state(turn, y0, max_time=5.0)
    found = tfsymadj.steady_state(turn, y0, max_time=5.0, on_failure="status")
    assert not found.success
    assert np.all(np.isnan(found.y))


@pytest.mark.slow
def test_second_derivatives_raise():
    with pytest.raises(RuntimeError, match="no second derivatives"):
        with tf.GradientTape() as outer:
            outer.watch(B)
            with tf.GradientTape() as inner:
                inner.watch(B)
                y = tfsymadj.steady_state(network, tf.zeros_like(B), args=(B,)).y
            first = inner.gradient(y, B)
        outer.gradient(first, B)


def test_wrong_options():
    for name, value in (("outputs", "step"), ("dense", True), ("gradient", "backprop")):
        with pytest.raises(ValueError, match=f"`{name}` is no option of `steady_state`"):
            tfsymadj.steady_state(network, tf.zeros_like(B), args=(B,), **{name: value})
    with pytest.raises(ValueError, match="`tolerance` must be positive"):
        tfsymadj.steady_state(network, tf.zeros_like(B), args=(B,), tolerance=0.0)


def relaxed(rates, target, y0, **options):
    """The steady state of y' = rates (target - y), and its derivatives for the target."""
    with tf.GradientTape() as tape:
        tape.watch(target)
        found = tfsymadj.steady_state(
            lambda t, y, target: rates * (target - y), y0, args=(target,), **options
        )
        value = tf.reduce_sum(found.y)
    return found, tape.gradient(value, target)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [tf.float64, slow(tf.float32)])
@pytest.mark.parametrize("fastest", [10.0, slow(300.0)])
def test_fast_components_come_to_rest(fastest, dtype):
    """At the limit of stability errors as large as the tolerances are slopes that are larger."""
    rates, target = tf.constant([1.0, fastest], dtype), tf.constant([1.0, 2.0], dtype)
    found, gradient = relaxed(rates, target, tf.zeros_like(target), tolerance=1e-3)
    assert found.success
    assert found.t < 10.0
    np.testing.assert_allclose(found.y, target, atol=5e-3)
    np.testing.assert_allclose(gradient, [1.0, 1.0], atol=1e-2)


@pytest.mark.slow
def test_a_start_at_rest_takes_one_step():
    rates, target = tf.constant([1.0, 1e3], tf.float64), tf.constant([1.0, 2.0], tf.float64)
    found, _ = relaxed(rates, target, target, max_steps=50)
    assert found.t == 0.0
    np.testing.assert_array_equal(found.y, target)


@pytest.mark.slow
def test_no_cotangent_is_no_failure():
    a = tf.constant([4.0], tf.float64)
    with tf.GradientTape() as tape:
        tape.watch(a)
        y = tfsymadj.steady_state(lambda t, y, a: a - y * y, tf.ones_like(a), args=(a,)).y
        value = tf.reduce_sum(tf.nn.relu(y - 5.0))
    np.testing.assert_array_equal(tape.gradient(value, a), [0.0])
