"""Dynamics made of an energy: kept or dissipated whatever the weights, differentiated exactly."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from helpers.gradients import relative_error
from helpers.modes import MODES, partly_slow, run, slow
from hypothesis import given, settings
from hypothesis import strategies as st

import tfsymadj
from tfsymadj.dynamics import contents
from tfsymadj.layers import (
    EnergyDynamics,
    HamiltonianDynamics,
    ODELayer,
    PeriodicDifference,
    SecondOrderDynamics,
)

TIGHT = dict(method="dopri8", rtol=1e-10, atol=1e-10)


def network(seed, *widths):
    def dense(width, activation, i):
        initializer = keras.initializers.RandomNormal(0.0, 1.0, seed=seed + i)
        return keras.layers.Dense(
            width, activation, kernel_initializer=initializer, dtype="float64"
        )

    return keras.Sequential(
        [dense(w, "tanh", i) for i, w in enumerate(widths)] + [dense(1, None, 9)]
    )


def field(seed):
    """An energy density at each point of a periodic grid, of the point and its neighbours."""
    dense = network(seed, 8)

    def energy(u):
        return dense(tf.stack([tf.roll(u, 1, 1), u, tf.roll(u, -1, 1)], -1))

    return energy


def states(seed, *shape):
    return tf.constant(np.random.default_rng(seed).normal(size=shape))


@pytest.mark.parametrize("derivative", [0, 1, 2])
def test_operators_do_not_let_energies_grow(derivative):
    factor = -1.5 if derivative == 0 else 1.5
    operator = PeriodicDifference(derivative, 0.5, factor)
    matrix = operator(np.eye(7)).numpy().T
    if derivative == 1:
        np.testing.assert_array_equal(matrix, -matrix.T)
    else:
        np.testing.assert_array_equal(matrix, matrix.T)
        assert np.linalg.eigvalsh(matrix)[-1] < 1e-12
    # (n, c) as well as (n)
    v = states(0, 2, 7, 3)
    np.testing.assert_allclose(operator(v)[..., 1], operator(v[..., 1]))


@pytest.mark.parametrize("derivative", [1, 2])
def test_operators_are_of_second_order(derivative):
    errors = []
    for n in (32, 64):
        x = np.linspace(0.0, 2.0 * np.pi, n, endpoint=False)
        v = PeriodicDifference(derivative, x[1])(np.sin(x)[None])[0]
        errors.append(np.max(np.abs(v - (np.cos(x) if derivative == 1 else -np.sin(x)))))
    assert abs(np.log2(errors[0] / errors[1]) - 2.0) < 0.05


@settings(max_examples=2, deadline=None)
@given(st.integers(0, 2**20))
def test_hamiltonian_is_kept_whatever_the_weights(seed):
    dynamics = HamiltonianDynamics(network(seed, 16, 16), dtype="float64")
    y = tfsymadj.odeint(dynamics, states(seed, 3, 4), [0.0, 0.5, 1.0], **TIGHT)
    energies = np.array([dynamics.energy_of(x) for x in y])
    slope = np.linalg.norm(dynamics(y[0]), axis=1)
    assert np.all(np.abs(energies - energies[0]) < 1e-7 * (1 + slope))
    assert np.any(np.abs(y[-1] - y[0]) > 1e-3)


@pytest.mark.slow
@settings(max_examples=2, deadline=None)
@given(st.integers(0, 2**20), st.sampled_from([0, 1, 2]))
def test_energy_of_a_field(seed, derivative):
    operator = PeriodicDifference(derivative, 1.0, -1.0 if derivative == 0 else 1.0)
    dynamics = EnergyDynamics(field(seed), operator, dtype="float64")
    times = np.linspace(0.0, 0.5, 6)
    y = tfsymadj.odeint(dynamics, states(seed, 2, 8), times, **TIGHT)
    energies = np.array([dynamics.energy_of(x) for x in y])
    if derivative == 1:
        assert np.all(np.abs(energies - energies[0]) < 1e-7)
    else:
        assert np.all(np.diff(energies, axis=0) < 0)
    if derivative > 0:  # a difference around the circle sums to zero: the mass is kept
        np.testing.assert_allclose(tf.reduce_sum(y, 2), tf.reduce_sum(y[:1], 2) + 0 * y[:, :, 0],
                                   atol=1e-9)  # fmt: skip


def test_matrices():
    energy = network(0, 16)
    conservative = EnergyDynamics(energy, [[0.0, 1.0], [-1.0, 0.0]], dtype="float64")
    hamiltonian = HamiltonianDynamics(energy, dtype="float64")
    y = states(0, 3, 2)
    np.testing.assert_allclose(conservative(y), hamiltonian(y), rtol=1e-12)
    damped = EnergyDynamics(energy, [[0.0, 1.0], [-1.0, -0.5]], dtype="float64")
    path = tfsymadj.odeint(damped, y, [0.0, 0.5, 1.0, 2.0], **TIGHT)
    assert np.all(np.diff([damped.energy_of(x) for x in path], axis=0) < 0)


def test_pairs():
    dynamics = HamiltonianDynamics(network(0, 16), dtype="float64")
    y = states(0, 3, 4)
    expected = tfsymadj.odeint(dynamics, y, [0.0, 1.0], method="rk4", num_steps=4)[-1]
    q, p = ODELayer(dynamics, method="rk4", num_steps=4, dtype="float64")((y[:, :2], y[:, 2:]))
    np.testing.assert_allclose(tf.concat([q, p], -1), expected, rtol=1e-12)


def test_second_order():
    dynamics = SecondOrderDynamics(lambda y: -4.0 * y[:, :1], dtype="float64")
    y = tfsymadj.odeint(dynamics, tf.constant([[1.0, 0.0]], tf.float64), [0.0, 1.0], **TIGHT)[-1]
    np.testing.assert_allclose(y, [[np.cos(2.0), -2.0 * np.sin(2.0)]], atol=1e-8)


@pytest.mark.parametrize("mode", partly_slow(MODES, "eager", "xla"))
@pytest.mark.parametrize(
    "options", [dict(method="rk4", num_steps=3), slow(dict(rtol=1e-3, max_steps=40))]
)
def test_gradient_of_a_gradient(mode, options):
    """The adjoint differentiates dynamics that are themselves a gradient."""
    dynamics = EnergyDynamics(field(0), PeriodicDifference(1), dtype="float64")
    y0 = states(1, 2, 6)
    dynamics(y0)
    weights = [v.value for v in contents.keras_variables(dynamics.energy).values()]

    def compute(gradient):
        with tf.GradientTape() as tape:
            tape.watch(y0)
            y = tfsymadj.odeint(dynamics, y0, [0.0, 1.0], gradient=gradient, **options)[-1]
            value = tf.reduce_sum(y**3)
        return tape.gradient(value, [y0, *weights])

    actual = run(lambda: compute("symplectic_adjoint"), mode)
    expected = run(lambda: compute("backprop"), "graph" if mode == "xla" else mode)
    # The last bias shifts the energy, which nothing depends on.
    assert len(actual) == 5
    for a, b in zip(actual[:4], expected):
        assert relative_error(a, b) < 1e-12


def test_training_and_files(tmp_path):
    """A pendulum's energy is learned from its motion."""
    random = np.random.default_rng(0)
    y = random.uniform(-1.0, 1.0, size=[128, 2]).astype("float32")

    def pendulum(t, y):
        return tf.stack([y[:, 1], -tf.sin(y[:, 0])], -1)

    ends = tfsymadj.odeint(pendulum, y, [0.0, 0.5], rtol=1e-6)[-1]
    keras.utils.set_random_seed(0)
    energy = keras.Sequential([keras.layers.Dense(32, "tanh"), keras.layers.Dense(1)])
    layer = ODELayer(HamiltonianDynamics(energy), t=(0.0, 0.5), method="rk4", num_steps=2)
    model = keras.Sequential([keras.Input((2,)), layer])
    model.compile(keras.optimizers.Adam(0.02), "mse", jit_compile=False)
    losses = model.fit(y, ends, batch_size=32, epochs=30, verbose=0).history["loss"]
    assert losses[-1] < 0.02 * losses[0]
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(loaded(y), model(y))


@pytest.mark.parametrize(
    "make",
    [
        lambda e: EnergyDynamics(e, PeriodicDifference(2, 0.1)),
        lambda e: EnergyDynamics(e, [[0.0, 1.0], [-1.0, -0.1]]),
        lambda e: HamiltonianDynamics(e),
        lambda e: SecondOrderDynamics(e),
    ],
)
def test_configs(make):
    energy = keras.Sequential([keras.layers.Dense(4, "tanh"), keras.layers.Dense(1)])
    layer = make(energy)
    y = np.ones([2, 2], "float32")
    expected = layer(y)
    copy = type(layer).from_config(layer.get_config())
    copy.build((None, 2))
    copy.set_weights(layer.get_weights())
    np.testing.assert_array_equal(copy(y), expected)


def test_wrong_arguments():
    energy = keras.layers.Dense(1)
    with pytest.raises(ValueError, match="`G`.*energies would grow.*Received"):
        EnergyDynamics(energy, [[0.0, 1.0], [-1.0, 0.1]])
    with pytest.raises(ValueError, match="`G`.*square.*Received"):
        EnergyDynamics(energy, [1.0, 2.0])
    with pytest.raises(TypeError, match="`energy`.*Received: 3"):
        HamiltonianDynamics(3)
    with pytest.raises(TypeError, match="`acceleration`.*Received: None"):
        SecondOrderDynamics(None)
    with pytest.raises(ValueError, match="`y` must hold q and p.*Received"):
        HamiltonianDynamics(energy)(np.ones([2, 3], "float32"))
    for arguments, name in [((3,), "derivative"), ((1, 0.0), "spacing"), ((2, 1.0, -1.0), "factor"),
                            ((0, 1.0, 1.0), "factor")]:  # fmt: skip
        with pytest.raises(ValueError, match=f"`{name}`.*Received"):
            PeriodicDifference(*arguments)
