"""Keras' own test of layers: configs, saving, building, dtypes, calls, training."""

import pathlib

import keras
import numpy as np
import pytest
from keras.src import testing

import tfsymadj.layers
from tfsymadj.layers import (
    CDELayer,
    ConcatSquash,
    ConcatTime,
    EnergyDynamics,
    HamiltonianDynamics,
    ODELayer,
    PeriodicDifference,
    RescaledTime,
    SecondOrderDynamics,
    TimeSequential,
)


def counts(trainable):
    return dict(
        expected_num_trainable_weights=trainable,
        expected_num_non_trainable_weights=0,
        expected_num_seed_generators=0,
        expected_num_losses=0,
    )


class TestLayers(testing.TestCase):
    def test_ode_layer(self):
        self.run_layer_test(
            ODELayer,
            init_kwargs={
                "dynamics": keras.layers.Dense(3, "tanh"),
                "method": "rk4",
                "num_steps": 2,
            },
            input_shape=(2, 3),
            expected_output_shape=(2, 3),
            supports_masking=True,
            **counts(2),
        )

    @pytest.mark.slow
    def test_ode_layer_of_sequences(self):
        self.run_layer_test(
            ODELayer,
            init_kwargs={
                "dynamics": ConcatTime(keras.layers.Dense(3, "tanh")),
                "t": (0.0, 0.5, 1.0),
                "return_sequences": True,
                "rtol": 1e-2,
                "max_steps": 32,
            },
            input_shape=(2, 3),
            expected_output_shape=(2, 3, 3),
            supports_masking=True,
            **counts(2),
        )

    def test_concat_time(self):
        self.run_layer_test(
            ConcatTime,
            init_kwargs={"layer": keras.layers.Dense(4)},
            input_shape={"t_shape": (), "y_shape": (2, 3)},
            expected_output_shape=(2, 4),
            run_training_check=False,  # a scalar time is no input of `fit`
            **counts(2),
        )

    def test_concat_squash(self):
        self.run_layer_test(
            ConcatSquash,
            init_kwargs={"units": 4, "activation": "tanh"},
            input_shape={"t_shape": (), "y_shape": (2, 3)},
            expected_output_shape=(2, 4),
            run_training_check=False,  # a scalar time is no input of `fit`
            **counts(5),
        )

    def test_time_sequential(self):
        self.run_layer_test(
            TimeSequential,
            init_kwargs={"layers": [ConcatSquash(4, "tanh"), ConcatTime(keras.layers.Dense(3))]},
            input_shape={"t_shape": (), "y_shape": (2, 3)},
            expected_output_shape=(2, 3),
            run_training_check=False,  # a scalar time is no input of `fit`
            **counts(7),
        )

    def test_rescaled_time(self):
        self.run_layer_test(
            RescaledTime,
            init_kwargs={"dynamics": ConcatTime(keras.layers.Dense(3))},
            input_shape={"s_shape": (), "y_shape": (2, 3), "duration_shape": (2,)},
            expected_output_shape=(2, 3),
            run_training_check=False,  # a scalar time is no input of `fit`
            **counts(2),
        )

    @pytest.mark.slow
    def test_cde_layer(self):
        self.run_layer_test(
            CDELayer,
            init_kwargs={
                "network": keras.layers.Dense(9, "tanh"),
                "initial": keras.layers.Dense(3),
                "interpolation": "linear",
                "method": "heun",
                "num_steps": 1,
            },
            input_shape=(2, 4, 2),
            expected_output_shape=(2, 3),
            supports_masking=True,
            **counts(4),
        )

    def test_energy_dynamics(self):
        self.run_layer_test(
            EnergyDynamics,
            init_kwargs={"energy": keras.layers.Dense(4, "tanh"), "G": PeriodicDifference(1)},
            input_shape=(2, 5),
            expected_output_shape=(2, 5),
            **counts(2),
        )

    def test_hamiltonian_dynamics(self):
        self.run_layer_test(
            HamiltonianDynamics,
            init_kwargs={"energy": keras.layers.Dense(4, "tanh")},
            input_shape=(2, 6),
            expected_output_shape=(2, 6),
            **counts(2),
        )

    def test_second_order_dynamics(self):
        self.run_layer_test(
            SecondOrderDynamics,
            init_kwargs={"acceleration": keras.layers.Dense(3, "tanh")},
            input_shape=(2, 6),
            expected_output_shape=(2, 6),
            **counts(2),
        )


def test_call_signatures_are_readable():
    layer = ODELayer(keras.layers.Dense(3))
    with pytest.raises(TypeError, match="y0"):
        layer()
    assert layer(np.ones((2, 3), "float32")).shape == (2, 3)


def test_every_layer_is_tested():
    source = pathlib.Path(__file__).read_text()
    # What Keras makes of shapes is no control: it is tested as the dynamics of a `CDELayer`.
    for name in sorted(set(tfsymadj.layers.__all__) - {"ControlledDynamics"}):
        if issubclass(getattr(tfsymadj.layers, name), keras.Layer):
            assert f"            {name},\n            init_kwargs" in source
