"""The peak of memory of a gradient."""

import gc

import numpy as np
import tensorflow as tf

import tfsymadj
from helpers.modes import run

MIB = 2**20
STATE = (512, 64)
STATE_SIZE = 512 * 64 * 4


def network(hidden):
    """A time-dependent tanh network of two hidden layers, and its variables."""
    random = np.random.default_rng(0)
    sizes = (STATE[1] + 1, hidden, hidden, STATE[1])
    weights = [
        tf.Variable(random.normal(size=shape) / np.sqrt(shape[0]), dtype=tf.float32)
        for shape in zip(sizes, sizes[1:])
    ]

    def dynamics(t, y):
        x = tf.concat([y, t * tf.ones_like(y[:, :1])], 1)
        x = tf.tanh(x @ weights[0])
        x = tf.tanh(x @ weights[1])
        return x @ weights[2]

    return dynamics, weights


def peak(gradient, mode, hidden=32, **options):
    """Bytes held at most during a gradient, above what was there before."""
    dynamics, weights = network(hidden)
    y0 = tf.ones(STATE)
    t = tf.constant([0.0, 1.0], tf.float64)

    def compute():
        with tf.GradientTape() as tape:
            tape.watch(y0)
            y = tfsymadj.odeint(dynamics, y0, t, gradient=gradient, **options)
            value = tf.reduce_sum(y[-1])
        return tape.gradient(value, [y0, *weights])

    compiled = tf.function(compute, jit_compile=mode == "xla") if mode != "eager" else compute
    run(compiled, "eager")  # traces and compiles
    gc.collect()
    before = tf.config.experimental.get_memory_info("CPU:0")["current"]
    tf.config.experimental.reset_memory_stats("CPU:0")
    result = compiled()
    del result
    return tf.config.experimental.get_memory_info("CPU:0")["peak"] - before


def rk4(num_steps):
    return dict(method="rk4", num_steps=num_steps)
