"""Tests of the memory that gradients hold at their peak, in bytes of TensorFlow's CPU allocator."""

import gc

import numpy as np
import pytest
import tensorflow as tf
from conftest import MODES, run, slow

import tfsymadj
from tfsymadj import Backprop, SymplecticAdjoint

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


@pytest.mark.parametrize("mode", [slow("eager"), "graph", "xla"])
def test_square_root_of_the_steps(mode):
    """2 sqrt(1000 * 4) states are 16 MiB, every step would be 125 MiB, every stage 500 MiB."""
    assert peak(SymplecticAdjoint(), mode, **rk4(1000)) < 40 * MIB


@pytest.mark.slow
@pytest.mark.parametrize("mode", MODES)
def test_square_root_of_the_steps_of_a_wide_network(mode):
    assert peak(SymplecticAdjoint(), mode, hidden=256, **rk4(1000)) < 40 * MIB


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["graph", "xla"])
def test_four_times_the_steps_double_the_memory(mode):
    few, many = (peak(SymplecticAdjoint(), mode, **rk4(n)) for n in (1000, 4000))
    # Sizes are rounded up to powers of two at the worst: a factor of two may show as a bit more.
    assert many / few < 2.6


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["graph", "xla"])
def test_steps_grow_by_a_state_a_step(mode):
    few, many = (peak(SymplecticAdjoint("steps"), mode, **rk4(n)) for n in (450, 950))
    assert (many - few) / (500 * STATE_SIZE) < 1.25
    # The measurement sees these states.
    assert (many - few) / (500 * STATE_SIZE) > 0.75


@pytest.mark.slow
@pytest.mark.parametrize("mode", MODES)
def test_adaptive_steps_need_no_buffer_of_max_steps(mode):
    """4096 states would be 512 MiB."""
    options = dict(method="dopri5", rtol=1e-5, atol=1e-7, max_steps=4096)
    assert peak(SymplecticAdjoint(), mode, **options) < 80 * MIB


@pytest.mark.slow
def test_network_depth_is_held_once():
    """One use of the network at a time: a wider one adds its activations once, not N s times."""
    narrow, wide = (peak(SymplecticAdjoint(), "graph", hidden, **rk4(100)) for hidden in (32, 512))
    activations = 2 * 512 * 512 * 4
    weights = 3 * 512 * 512 * 4
    # Forward, backward and temporary copies of a single evaluation, and gradients of the weights.
    assert wide - narrow < 8 * (activations + weights)
    assert wide - narrow < 100 * 4 * activations / 10


@pytest.mark.slow
def test_backprop_holds_everything():
    """The yardstick: so the other numbers are not small because nothing was measured."""
    everything = peak(Backprop(), "graph", **rk4(400))
    assert everything > 400 * 4 * STATE_SIZE
    # By the states alone it would be 1600 to 2 sqrt(1600).
    assert everything > 10 * peak(SymplecticAdjoint(), "graph", **rk4(400))
