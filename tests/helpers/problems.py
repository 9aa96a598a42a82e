"""Problems that the tests solve, and a loss of their solutions."""

import dataclasses

import numpy as np
import scipy.integrate
import tensorflow as tf


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


def pendulum(t, y):
    """Without symmetries and time-dependent, so that no order condition holds by chance."""
    return tf.stack([y[1] + 0.3 * tf.cos(t), -tf.sin(y[0]) - 0.1 * y[1] * y[0]])


PENDULUM0 = np.array([1.0, 0.5])


def pendulum_exactly(times, y0=PENDULUM0):
    def numpy_pendulum(t, y):
        return [y[1] + 0.3 * np.cos(t), -np.sin(y[0]) - 0.1 * y[1] * y[0]]

    span = (times[0], times[-1])
    options = dict(method="DOP853", t_eval=times, rtol=1e-13, atol=1e-15)
    return scipy.integrate.solve_ivp(numpy_pendulum, span, y0, **options).y.T


# First steps


def ramp(t, y):
    """The first entry starts at zero, with a slope; the second one decays."""
    return tf.stack([tf.ones_like(y[0]), -y[1]])


# Times


def forced(t, y):
    return -y + tf.cos(tf.cast(t, y.dtype))
