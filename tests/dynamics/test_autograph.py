"""Python control flow on tensors in the dynamics."""

import functools
import inspect

import keras
import numpy as np
import pytest
import tensorflow as tf
from helpers.modes import MODES, partly_slow, run, slow

import tfsymadj


def bent(t, y):
    if t < 0.5:
        return tf.ones_like(y)
    return tf.zeros_like(y)


def shifted_bend(at, t, y, *, by=0.0):
    if t + by < at:
        return tf.ones_like(y)
    return tf.zeros_like(y)


class Bends:
    """Branches in methods of all kinds."""

    at = 0.5

    def method(self, t, y):
        slope = tf.zeros_like(y)
        if t < self.at:
            for _ in tf.range(4):
                slope += 0.25
        return slope

    def __call__(self, t, y):
        return self.method(t, y)

    @classmethod
    def of_class(cls, t, y):
        return tf.ones_like(y) if t < cls.at else tf.zeros_like(y)

    @staticmethod
    def static(t, y):
        n = 0.0
        while n < 1.0 and t < 0.5:
            n += 0.5
        return n * tf.ones_like(y)


class Inherited(Bends):
    def method(self, t, y):
        if t < 0.6:
            return super().method(t, y)
        return tf.zeros_like(y)


class Module(tf.Module):
    @tf.Module.with_name_scope
    def __call__(self, t, y):
        if t < 0.5:
            return tf.ones_like(y)
        return tf.zeros_like(y)


class Private:
    """A private name, which AutoGraph can't read: called as it is."""

    def __init__(self):
        self.__rate = 1.0

    def method(self, t, y):
        return tf.where(t < 0.5, self.__rate, 0.0) * tf.ones_like(y)


def decorated(function):
    @functools.wraps(function)
    def inner(*args):
        return function(*args)

    return inner


BRANCHES = {
    "function": bent,
    "method": Bends().method,
    "callable object": Bends(),
    "class method": Bends.of_class,
    "static method": Bends.static,
    "inherited": Inherited().method,
    "inherited call": Inherited(),
    "unbound": functools.partial(Bends.method, Bends()),
    "module": Module(),
    "module method": Module().__call__,
    "lambda": lambda t, y: tf.ones_like(y) if t < 0.5 else tf.zeros_like(y),
    "lambda around": lambda t, y: bent(t, y),
    "partial": functools.partial(shifted_bend, 0.5),
    "partial of partial": functools.partial(functools.partial(shifted_bend, 0.6), by=0.1),
    "partial of method": functools.partial(Bends().method),
    "decorated": decorated(bent),
    "tf.function": tf.function(bent),
    "not converted": tf.autograph.experimental.do_not_convert(
        lambda t, y: tf.where(t < 0.5, tf.ones_like(y), tf.zeros_like(y))
    ),
    "private": Private().method,
}


@pytest.mark.parametrize("mode", partly_slow(MODES, "eager", "xla"))
@pytest.mark.parametrize("name", BRANCHES)
def test_branches(name, mode):
    y0 = tf.constant([1.0])

    def compute():
        with tf.GradientTape() as tape:
            tape.watch(y0)
            y = tfsymadj.odeint(BRANCHES[name], y0, [0.0, 1.0], method="euler", num_steps=4)[-1]
        return y, tape.gradient(y, y0)

    # Euler at 0, 1/4, 1/2, 3/4: the first two with slope 1
    y, gradient = run(compute, mode)
    np.testing.assert_allclose(y, [1.5], rtol=1e-6)
    np.testing.assert_allclose(gradient, [1.0], rtol=1e-6)


@pytest.mark.parametrize("name", ["module", slow("lambda"), "partial", slow("class method")])
def test_branch_in_a_layer_in_fit(name):
    layer = tfsymadj.ODELayer(BRANCHES[name], method="euler", num_steps=4)
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(2), layer])
    for jit in (False, True):
        model.compile("sgd", "mse", jit_compile=jit)
        model.fit(np.ones((4, 2)), np.zeros((4, 2)), verbose=0)


def test_a_function_is_converted_once(monkeypatch):
    """However many solves, traces and objects: what can't be read isn't tried again either."""
    source = []
    original = inspect.getsource
    monkeypatch.setattr(inspect, "getsource", lambda f: source.append(f) or original(f))
    for _ in range(3):
        for dynamics in (Bends().method, Private().method, lambda t, y: 0.5 * bent(t, y)):
            tfsymadj.odeint(dynamics, 1.0, [0.0, 1.0], method="euler", num_steps=2)
    assert len(source) <= 4
