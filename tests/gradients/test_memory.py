"""The memory that gradients hold at their peak, in bytes of TensorFlow's CPU allocator."""

import keras
import pytest
import tensorflow as tf
from helpers.memory import MIB, STATE_SIZE, peak, rk4
from helpers.modes import MODES, slow

import tfsymadj
from tfsymadj import Backprop, ContinuousAdjoint, SolveCheckpoint, StepCheckpoint, SymplecticAdjoint


@pytest.mark.parametrize("mode", [slow("eager"), "graph", slow("xla")])
def test_square_root_of_the_steps(mode):
    """2 sqrt(1000 * 4) states are 16 MiB, every step would be 125 MiB, every stage 500 MiB."""
    assert peak(SymplecticAdjoint("sqrt"), mode, **rk4(1000)) < 40 * MIB


@pytest.mark.slow
@pytest.mark.parametrize("mode", MODES)
def test_square_root_of_the_steps_of_a_wide_network(mode):
    assert peak(SymplecticAdjoint("sqrt"), mode, hidden=256, **rk4(1000)) < 40 * MIB


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["graph", "xla"])
def test_what_costs_nothing(mode):
    """Of 1,000 states of 128 KiB those that 64 MiB hold, a step's tape included."""
    assert peak(SymplecticAdjoint(), mode, **rk4(1000)) < 64 * MIB + 16 * MIB


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["graph", "xla"])
def test_four_times_the_steps_double_the_memory(mode):
    few, many = (peak(SymplecticAdjoint("sqrt"), mode, **rk4(n)) for n in (1000, 4000))
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
    assert peak(SymplecticAdjoint("sqrt"), mode, **options) < 80 * MIB


@pytest.mark.slow
def test_network_depth_is_held_once():
    """One use of the network at a time: a wider one adds its activations once, not N s times."""
    narrow, wide = (
        peak(SymplecticAdjoint("sqrt"), "graph", hidden, **rk4(100)) for hidden in (32, 512)
    )
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
    assert everything > 10 * peak(SymplecticAdjoint("sqrt"), "graph", **rk4(400))


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["graph", "xla"])
def test_memory_of_aca(mode):
    """A state a step, as the symplectic adjoint in the paper, and the tapes of a whole step."""
    aca, symplectic = (
        peak(g, mode, hidden=256, **rk4(200))
        for g in (StepCheckpoint(), SymplecticAdjoint("steps"))
    )
    # Where XLA puts its buffers is its own affair.
    assert 200 * STATE_SIZE < symplectic < aca + (MIB if mode == "xla" else 0)


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["graph", "xla"])
def test_memory_of_the_continuous_adjoint(mode):
    few, many = (peak(ContinuousAdjoint(), mode, **rk4(n)) for n in (100, 1000))
    assert abs(many - few) < MIB


@pytest.mark.slow
@pytest.mark.parametrize(
    "gradient, states",
    [
        (SymplecticAdjoint("sqrt"), 14),
        (SymplecticAdjoint(), 50),
        (StepCheckpoint(), 50),
        (SolveCheckpoint(), 1),
    ],
    ids=repr,
)
@pytest.mark.parametrize("mode", ["graph", "xla"])
def test_memory_of_stacked_components(gradient, states, mode):
    """The backward pass of one component at a time: three more add their checkpoints only."""

    def stacked(count):
        layers = [
            tfsymadj.ODELayer(
                keras.Sequential([keras.layers.Dense(256, "tanh"), keras.layers.Dense(64)]),
                method="rk4", num_steps=50, gradient=gradient,
            )
            for _ in range(count)
        ]  # fmt: skip
        model = keras.Sequential([keras.Input([64]), *layers])
        x = tf.ones([512, 64])

        def compute():
            with tf.GradientTape() as tape:
                value = tf.reduce_sum(model(x))
            return tape.gradient(value, model.trainable_variables)

        compiled = tf.function(compute, jit_compile=mode == "xla")
        compiled()
        before = tf.config.experimental.get_memory_info("CPU:0")["current"]
        tf.config.experimental.reset_memory_stats("CPU:0")
        compiled()
        return tf.config.experimental.get_memory_info("CPU:0")["peak"] - before

    one, four = stacked(1), stacked(4)
    # States kept, the output of two, and one between two components.
    weights = 4 * (64 * 256 * 2 + 320)
    assert four - one < 3 * ((states + 3) * STATE_SIZE + 3 * weights)
