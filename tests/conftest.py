"""The problems that the tests solve, and how their gradients are taken."""

import dataclasses
import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
# Without it TensorFlow does not count tensors below 256 KiB on a CPU.
os.environ.setdefault("TF_CPU_ALLOCATOR_USE_BFC", "1")

import numpy as np
import pytest
import tensorflow as tf

import tfsymadj


def slow(*values, **options):
    """A combination for the long runs only: its parts are each in a fast one."""
    return pytest.param(*values, marks=pytest.mark.slow, **options)


#: Ways to run a computation: op by op, as a graph, compiled by XLA.
MODES = ("eager", "graph", "xla")
#: The same, for tests of many cases: compiling all of them by XLA takes too long for every change.
XLA_SLOW = ("eager", "graph", slow("xla"))


@pytest.fixture(scope="session", autouse=True)
def large_block():
    """Gives the allocator a block to cut from, before any test; nothing is written to it.

    Without it large tensors get blocks of up to twice their size, and that is what it counts.
    """
    rest_of_first = tf.raw_ops.Empty(shape=[2**20], dtype=tf.uint8, init=False)
    tf.raw_ops.Empty(shape=[4, 2**30], dtype=tf.uint8, init=False)
    yield
    del rest_of_first


@dataclasses.dataclass(frozen=True)
class Problem:
    """An initial value problem whose gradients are taken for everything in it."""

    dynamics: object
    y0: object
    t: tf.Tensor
    args: tuple = ()
    variables: tuple = ()
    closed: tuple = ()

    @property
    def sources(self):
        """All that has a gradient, by name."""
        named = {f"y0[{i}]": y for i, y in enumerate(tf.nest.flatten(self.y0))}
        named["t"] = self.t
        named |= {f"args[{i}]": x for i, x in enumerate(tf.nest.flatten(self.args))}
        named |= {f"variables[{i}]": v for i, v in enumerate(self.variables)}
        named |= {f"closed[{i}]": x for i, x in enumerate(self.closed)}
        return named


def mlp(dtype=tf.float64, batch=5, size=3, hidden=8, t=(0.0, 0.3, 1.0), seed=0):
    """A time-dependent tanh network with weights in `tf.Variable`s."""
    random = np.random.default_rng(seed)

    def variable(*shape):
        return tf.Variable(0.7 * random.normal(size=shape), dtype=dtype)

    w0, b0 = variable(size + 1, hidden), variable(hidden)
    w1, b1 = variable(hidden, size), variable(size)

    def dynamics(t, y):
        time = t * tf.ones_like(y[:, :1])
        return tf.tanh(tf.concat([y, time], 1) @ w0 + b0) @ w1 + b1

    y0 = tf.constant(random.normal(size=[batch, size]), dtype)
    return Problem(dynamics, y0, tf.constant(t, tf.float64), variables=(w0, b0, w1, b1))


def everything(t=(0.0, 0.2, 0.5, 1.1), dtype=tf.float64):
    """A nest with real and complex parts, arguments, variables, closed-over tensors.

    One of the tensors is so small that TensorFlow may turn it into a constant of the trace, the
    other one is large.
    """
    random = np.random.default_rng(1)
    complex_dtype = tf.complex128 if dtype == tf.float64 else tf.complex64

    def normal(*shape):
        return random.normal(size=shape)

    w = tf.Variable(0.5 * normal(3, 3), dtype=dtype)
    v = tf.Variable(0.5 * (normal(2, 2) + 1j * normal(2, 2)), dtype=complex_dtype)
    small = tf.constant(0.3 * normal(3), dtype)
    large = tf.constant(0.05 * normal(20, 20), dtype)

    def dynamics(t, y, args):
        a, z = y["a"], y["z"]
        mixed = tf.reduce_mean(tf.math.real(z), keepdims=True)
        da = tf.tanh(a @ w + small * tf.sin(2.0 * t)) * args["gain"] + args["shift"] * mixed
        dz = (z @ v) * tf.complex(tf.reduce_mean(a), t) + tf.complex(
            tf.reduce_sum(large * tf.cos(large * t)), tf.reduce_sum(args["gain"])
        )
        return {"a": da, "z": dz}

    y0 = {
        "a": tf.constant(normal(4, 3), dtype),
        "z": tf.constant(normal(2, 2) + 1j * normal(2, 2), complex_dtype),
    }
    args = ({"gain": tf.constant(normal(3), dtype), "shift": tf.constant(0.4, dtype)},)
    return Problem(dynamics, y0, tf.constant(t, tf.float64), args, (w, v), (small, large))


def loss(y):
    """A real number that depends on all outputs, not linearly."""
    total = tf.zeros([], tf.float64)
    for x in tf.nest.flatten(y):
        # Weights without a pattern that a mistake could hide behind.
        weights = tf.reshape(tf.cos(1.7 * tf.range(tf.size(x), dtype=tf.float64)), tf.shape(x))
        parts = [tf.math.real(x), 1.3 * tf.math.imag(x)] if x.dtype.is_complex else [x]
        for part in parts:
            part = tf.cast(part, tf.float64)
            total += tf.reduce_sum(weights * part) + 0.1 * tf.reduce_sum(part * part)
    return total


def run(function, mode):
    """The result of a function without arguments, run in one of `MODES`."""
    if mode == "eager":
        return function()
    return tf.function(function, jit_compile=True if mode == "xla" else None)()


def gradients(problem, gradient, mode, **options):
    """The states and all gradients of `loss`, as a dict of arrays by name.

    Args:
        problem: `Problem`.
        gradient: see `tfsymadj.solve`.
        mode: one of `MODES`.
        **options: of `tfsymadj.solve`.
    """
    sources = problem.sources

    def compute():
        with tf.GradientTape() as tape:
            tape.watch([x for x in sources.values() if not isinstance(x, tf.Variable)])
            y = tfsymadj.odeint(
                problem.dynamics,
                problem.y0,
                problem.t,
                args=problem.args,
                gradient=gradient,
                **options,
            )
            value = loss(y)
        return tf.nest.flatten(y), tape.gradient(value, list(sources.values()))

    ys, found = run(compute, mode)
    missing = [name for name, g in zip(sources, found) if g is None]
    assert not missing, f"no gradient for {missing}"
    result = {f"y[{i}]": y.numpy() for i, y in enumerate(ys)}
    return result | {name: g.numpy() for name, g in zip(sources, found)}


def relative_error(actual, expected):
    """The largest error of two (dicts of) arrays, relative to the largest entry of each."""
    if isinstance(expected, dict):
        assert actual.keys() == expected.keys()
        return max(relative_error(actual[name], expected[name]) for name in expected)
    actual, expected = np.asarray(actual), np.asarray(expected)
    assert actual.shape == expected.shape
    scale = np.max(np.abs(expected), initial=0.0)
    error = np.max(np.abs(actual - expected), initial=0.0)
    if not np.isfinite(error):
        return np.inf
    return error / scale if scale else error
