"""Times: late ones, many of them, and those that the dynamics can't tell apart."""

import warnings

import keras
import numpy as np
import pytest
import tensorflow as tf
from helpers.modes import run
from helpers.problems import forced

import tfsymadj


def decay(t, y):
    return -y


def time_in_a_nested_function(t, y):
    return tf.map_fn(lambda x: -x * tf.cast(t, y.dtype), y)


LATE = {
    "interval": dict(t=[1.7e9, 1.7e9 + 20.0]),
    "interval of several": dict(t=[0.0, 1.7e9, 1.7e9 + 20.0], max_steps=5),
    "fixed": dict(t=[1.7e9, 1.7e9 + 1000.0], method="rk4", num_steps=1000),
    "fixed size": dict(t=[1.7e9, 1.7e9 + 1000.0], method="rk4", step_size=1.0),
    "backward": dict(t=[-1.7e9, -1.7e9 - 20.0]),
    "half": dict(t=[2000.0, 2000.5], y0=tf.zeros([1], tf.float16)),
    "double": dict(t=[1e15, 1e15 + 1.0], y0=np.zeros(1), method="rk4", num_steps=100),
    "captured": dict(t=[1.7e9, 1.7e9 + 20.0], dynamics=time_in_a_nested_function),
}


@pytest.mark.parametrize("mode", ["eager", "graph"])
@pytest.mark.parametrize("name", LATE)
def test_times_that_the_dynamics_can_not_tell_apart(name, mode):
    options = dict(dynamics=forced, y0=tf.zeros([1]), on_failure="status") | LATE[name]
    with pytest.warns(UserWarning, match="times of `t`.*Shift the origin.*Received: ") as caught:
        run(lambda: tfsymadj.solve(**options).status, mode)
    assert len([x for x in caught if "Shift the origin" in str(x.message)]) == 1


def test_steps_that_the_dynamics_can_not_tell_apart():
    """Adaptive steps are known after an eager solve."""
    with pytest.warns(UserWarning, match="times of `t`"):
        tfsymadj.odeint(forced, tf.zeros([1]), [1.7e9, 1.7e9 + 1000.0], rtol=1e-6)


@pytest.mark.parametrize(
    "options",
    [
        dict(),
        dict(t=[1e4, 1e4 + 5.0]),
        dict(t=[1e6, 1e6 + 1.0], num_steps=4),
        dict(t=[1.7e9, 1.7e9 + 20.0], y0=np.zeros(1)),
        # What doesn't use the time can't be wrong about it.
        dict(t=[1.7e9, 1.7e9 + 20.0], dynamics=decay),
        dict(t=[1.7e9, 1.7e9 + 20.0], dynamics=lambda t, y: -y),
        dict(t=[1.7e9, 1.7e9 + 20.0], dynamics=keras.layers.Dense(1), y0=tf.zeros([1, 1])),
    ],
)
def test_no_warning_of_times(options):
    options = dict(dynamics=forced, y0=tf.zeros([1]), t=[0.0, 5.0]) | options
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        tfsymadj.solve(**options)


def test_shifted_times_are_right():
    """The remedy: the origin among the arguments, in float64."""
    t = np.array([1.7e9, 1.7e9 + 20.0])

    def shifted(t, y, origin):
        time = tf.cast(t, tf.float64) + origin
        return -y + tf.cast(tf.cos(0.2 * np.pi * time), y.dtype)

    y = tfsymadj.odeint(
        shifted, tf.zeros([1]), t - t[0], args=(tf.constant(t[0]),), rtol=1e-5, atol=1e-7
    )
    expected = tfsymadj.odeint(
        lambda t, y: -y + tf.cos(0.2 * np.pi * t), np.zeros(1), t, rtol=1e-9, atol=1e-9
    )
    np.testing.assert_allclose(y[-1], expected[-1], rtol=1e-4)


@pytest.mark.parametrize("mode", ["eager", "graph"])
@pytest.mark.parametrize("n", [101, 5001])
def test_more_outputs_than_steps(n, mode):
    options = dict(max_steps=100) if n == 101 else dict()
    options |= dict(outputs="step")

    def call(n):
        return tfsymadj.odeint(decay, tf.ones([1]), np.linspace(0.0, 1.0, n), **options)

    with pytest.raises(ValueError, match="`max_steps`(.|\n)*`t`(.|\n)*Received: "):
        run(lambda: call(n + 1), mode)
    if n == 101:
        np.testing.assert_allclose(run(lambda: call(n), mode)[-1], [np.exp(-1.0)], rtol=1e-3)
    fixed = tfsymadj.odeint(
        decay, tf.ones([1]), np.linspace(0.0, 1.0, 200), num_steps=1, max_steps=9
    )
    np.testing.assert_allclose(fixed[-1], [np.exp(-1.0)], rtol=1e-3)
    with pytest.raises(ValueError, match="`max_steps`"):
        tfsymadj.ODELayer(
            keras.layers.Dense(2), t=np.linspace(0.0, 1.0, 12), max_steps=10, outputs="step"
        )
