"""Configs: what makes objects equal, printable and savable."""

import dataclasses

import keras
import numpy as np
import pytest
import tensorflow as tf
from helpers.stubs import Most, Scaled

import tfsymadj
from tfsymadj import (
    METHODS,
    ConstantSteps,
    ContinuousAdjoint,
    Controller,
    Gradient,
    PIController,
    SymplecticAdjoint,
)
from tfsymadj.bijectors import HutchinsonTrace, HutchPlusPlusTrace
from tfsymadj.bijectors.traces import ExactTrace, Trace
from tfsymadj.config import Configured, is_int, is_real
from tfsymadj.steps import TabulatedSteps


def decay(t, y):
    return -y


@pytest.mark.parametrize("base", [Configured, Controller, Gradient, Trace, PIController, Scaled])
@pytest.mark.parametrize("name", ["__init__", "__new__"])
def test_a_constructor_with_arguments_needs_a_config(base, name):
    with pytest.raises(TypeError, match="`Wrong`.*`get_config`.*Received: "):
        type("Wrong", (base,), {name: lambda self, option: None})
    with pytest.raises(TypeError, match="`Wrong`"):
        type("Wrong", (base,), {name: lambda self, *options: None})
    # A config above the constructor can't know its arguments; one beside it or below does.
    methods = {name: lambda self, option: None, "get_config": lambda self: {}}
    right = type("Right", (base,), methods)
    assert type("Below", (right,), {}).get_config is right.get_config
    type("Without", (base,), {"__init__": lambda self: None})


def test_a_constructor_of_a_mixin_needs_a_config():
    class Mixin:
        def __init__(self, option):
            self.option = option

    with pytest.raises(TypeError, match="`Mixed`"):
        type("Mixed", (Mixin, Gradient), {})


class Options(Configured):
    def __init__(self, value):
        self.value = value

    def get_config(self):
        return {"value": self.value}


VALUES = [
    1,
    True,
    1.0,
    -1.0,
    0.0,
    -0.0,
    np.nan,
    "1",
    None,
    1j,
    (1.0, 2.0),
    [1.0, 2.0],
    [1.0, (2.0,)],
    {"a": 1.0},
    {"a": [1.0]},
    {"b": 1.0},
    np.ones(2),
    np.ones(2, "float32"),
    np.ones([2, 1]),
    np.array([1.0, 2.0]),
    {"a": np.zeros(2), "b": (np.ones(1), 1)},
    METHODS["rk4"],
    METHODS["heun"],
    tf.constant([3.0, 4.0]),
]


@pytest.mark.parametrize("i", range(len(VALUES)))
def test_equal_by_config(i):
    value = VALUES[i]
    same = tf.nest.map_structure(lambda x: x.copy() if isinstance(x, np.ndarray) else x, value)
    a, b = Options(value), Options(same)
    assert a == b
    assert hash(a) == hash(b)
    assert len({a, b}) == 1
    for j, other in enumerate(VALUES):
        if i != j:
            assert a != Options(other)
            assert len({a, Options(other)}) == 2


def test_unequal_objects():
    class More(Options):
        pass

    assert Options(1) != More(1)
    assert Options(1) != 1
    # Attributes that the config doesn't tell of, and values that can't be compared.
    a, b = Scaled(1.0), Scaled(1.0)
    b.factor = 2.0
    assert a != b
    assert Options({1}) != Options({1})


def test_dataclasses_are_not_merged():
    @dataclasses.dataclass(frozen=True)
    class Weighted(Gradient):
        weight: float = 1.0

    assert Weighted(1.0) == Weighted(1.0) != Weighted(2.0)


def test_repr():
    assert repr(Scaled(2.0)) == "Scaled(scale=2.0, shift=0.0)"
    assert repr(ConstantSteps(3)) == "ConstantSteps(num_steps=3, step_size=None)"
    assert repr(ExactTrace()) == "ExactTrace()"
    assert "rtol=array([0.1" in repr(PIController(np.array([0.1, 0.2])))
    assert "ends=" in repr(TabulatedSteps([1.0], [1.0], [True]))


@pytest.mark.parametrize(
    "make",
    [
        lambda: PIController(np.full(3, 1e-4), {"a": 1e-6, "b": (np.ones(2), 1e-3)}),
        lambda: PIController((1e-3, 1e-4), [1e-6, 1e-7], integral=0.8, derivative=0.1),
        lambda: PIController(1e-5, 0),
        lambda: ConstantSteps(step_size=0.1),
        lambda: SymplecticAdjoint(30),
        lambda: ContinuousAdjoint(1e-3, method=METHODS["bosh3"]),
        lambda: HutchinsonTrace("gaussian", 2),
        lambda: HutchPlusPlusTrace(np.int64(6)),
        lambda: ExactTrace(),
        lambda: Scaled(2.0),
    ],
)
def test_config_round_trip(make):
    x = make()
    assert x == make()
    assert hash(x) == hash(make())
    assert type(x).from_config(x.get_config()) == x
    with keras.saving.custom_object_scope({type(x).__name__: type(x)}):
        config = keras.saving.serialize_keras_object(x)
        assert keras.saving.deserialize_keras_object(config) == x


def test_numbers():
    assert is_int(3) and is_int(np.int32(3), 3) and not is_int(2, 3)
    assert not is_int(True) and not is_int(3.0) and not is_int("3")
    assert is_real(3) and is_real(np.float32(3)) and not is_real(False) and not is_real("3")


@pytest.mark.parametrize(
    "make, name",
    [
        (lambda: PIController(proportional="a"), "proportional"),
        (lambda: PIController(derivative=np.nan), "derivative"),
        (lambda: PIController(integral="a"), "integral"),
        (lambda: PIController(integral=True), "integral"),
        (lambda: PIController(safety=True), "safety"),
        (lambda: PIController(rtol=True), "rtol"),
        (lambda: PIController(atol={"a": 1.0, "b": "c"}), "atol"),
        (lambda: ConstantSteps(True), "num_steps"),
        (lambda: ConstantSteps(np.float64(2)), "num_steps"),
        (lambda: ConstantSteps(step_size=True), "step_size"),
        (lambda: ContinuousAdjoint(rtol="a"), "rtol"),
        (lambda: ContinuousAdjoint(atol=True), "atol"),
        (lambda: SymplecticAdjoint(True), "checkpoints"),
        (lambda: HutchinsonTrace(num_samples=True), "num_samples"),
        (lambda: HutchPlusPlusTrace(3.0), "num_samples"),
    ],
)
def test_wrong_options(make, name):
    with pytest.raises(ValueError, match=f"`{name}`.*Received: "):
        make()


def test_tolerance_that_is_a_tensor_of_a_graph():
    with pytest.raises(ValueError, match="`rtol`(.|\n)*Received: "):
        tf.function(lambda x: PIController(rtol=x).rtol)(tf.constant(1e-3))


def test_own_gradients_in_eager_solves():
    options = dict(method="euler", num_steps=2)
    for scale in (1.0, 10.0, 1.0):
        y = tfsymadj.odeint(decay, 1.0, [0.0, 1.0], gradient=Scaled(scale), **options)
        assert float(y[-1]) == 0.25 * scale


def test_subclasses_in_a_saved_layer(tmp_path):
    with keras.saving.custom_object_scope({"Most": Most, "Scaled": Scaled}):
        layer = tfsymadj.ODELayer(
            keras.layers.Dense(2), controller=Most(1e-4, most=0.2), gradient=Scaled(2.0)
        )
        model = keras.Sequential([keras.Input((2,)), layer])
        model.save(tmp_path / "model.keras")
        loaded = keras.models.load_model(tmp_path / "model.keras")
    for option in ("controller", "gradient"):
        again, first = (getattr(x.options, option) for x in (loaded.layers[0], layer))
        assert again == first
        assert hash(again) == hash(first)
    np.testing.assert_array_equal(loaded(tf.ones([1, 2])), model(tf.ones([1, 2])))
