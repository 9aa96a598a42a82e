"""What Keras users take for granted: losses, shapes, subclasses, summaries, masks."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from helpers.modes import partly_slow, slow

import tfsymadj
from tfsymadj.layers import (
    ConcatSquash,
    ConcatTime,
    EnergyDynamics,
    HamiltonianDynamics,
    ODELayer,
    RescaledTime,
    SecondOrderDynamics,
    TimeSequential,
)

FEW = dict(method="rk4", num_steps=2)
XLA_SLOW = pytest.mark.parametrize("jit", [False, slow(True)], ids=["graph", "xla"])


def x_and_y(size=2, batch=4):
    x = np.random.default_rng(0).normal(size=(batch, size)).astype("float32")
    return x, 0.5 * x


# Losses


class Encoder(keras.Model):
    """Adds losses of its own before the solve, whose dynamics reach all of the model."""

    def __init__(self, inside=None, **enc):
        super().__init__()
        self.enc = keras.layers.Dense(2, kernel_initializer="ones", **enc)
        self.field = keras.layers.Dense(2, kernel_initializer="zeros")
        self.inside = inside

    def call(self, x):
        z = self.enc(x)
        self.add_loss(tf.reduce_mean(z**2))
        return tfsymadj.odeint(self.dynamics, z, [0.0, 1.0], **FEW)[-1]

    def dynamics(self, t, y):
        if self.inside == "add_loss":
            self.add_loss(tf.reduce_sum(y))
        return self.enc(y) if self.inside == "regularizer" else self.field(y)


def activity_loss(y):
    """That of `L2(0.5)`; Keras takes the mean over the batch from 3.13 on, before that the sum."""
    layer = keras.layers.Activation("linear", activity_regularizer=keras.regularizers.L2(0.5))
    layer(y)
    return float(layer.losses[0])


def test_losses_of_before_the_solve_stay():
    model = Encoder(activity_regularizer=keras.regularizers.L2(0.5))
    for x in (np.ones((2, 2), "float32"), np.full((2, 2), 2.0, "float32")):
        model(x)
        expected = np.mean((2 * x) ** 2), activity_loss(2 * x)
        np.testing.assert_allclose(model.losses, expected, rtol=1e-6)


@XLA_SLOW
def test_losses_of_before_the_solve_are_trained(jit):
    x, _ = x_and_y()
    model = Encoder(activity_regularizer=keras.regularizers.L2(0.5))
    model.compile("sgd", jit_compile=jit)
    before = model.predict(x, verbose=0)  # the field is zero: what the encoder says
    history = model.fit(x, epochs=2, verbose=0, batch_size=4).history["loss"]
    batches = before.reshape(-1, 4, before.shape[-1])
    expected = np.mean(before**2) + np.mean([activity_loss(y) for y in batches])
    np.testing.assert_allclose(history[0], expected, rtol=1e-5)
    assert history[1] < history[0]


@pytest.mark.parametrize("inside", ["add_loss", "regularizer"])
@pytest.mark.parametrize("graph", [False, True], ids=["eager", "graph"])
def test_losses_of_the_dynamics_are_refused_and_taken_back(inside, graph):
    model = Encoder(inside, activity_regularizer=keras.regularizers.L2(0.5))
    call = tf.function(model, autograph=False) if graph else model
    with pytest.raises(ValueError, match="must not add losses.*Received: layer"):
        call(np.ones((2, 2), "float32"))
    model.inside = None
    model(np.ones((2, 2), "float32"))
    assert len(model.losses) == 2


def test_losses_of_the_dynamics_where_its_layer_had_some_before():
    """The layer starts a call of its own in the solve, which forgets those of before."""
    layer = keras.layers.Dense(2, activity_regularizer="l2")
    layer(np.ones((1, 2), "float32"))
    with pytest.raises(ValueError, match="must not add losses"):
        tfsymadj.odeint(lambda t, y: layer(y), tf.ones([1, 2]), [0.0, 1.0], **FEW)


def test_regularizers_of_weights_are_no_losses_of_a_call():
    layer = ODELayer(keras.layers.Dense(2, kernel_regularizer="l2"), **FEW)
    layer(np.ones((1, 2), "float32"))
    assert len(layer.losses) == 1


# Shapes without a call


def time_dependent(units=3):
    return ConcatSquash(units, "tanh")


LAYERS = {
    "ode": (lambda: ODELayer(keras.layers.Dense(3), **FEW), [(4, 3)], (4, 3)),
    "sequential": (lambda: ODELayer(keras.Sequential([keras.layers.Dense(3)]), **FEW), [(4, 3)],
                   (4, 3)),
    "call only": (lambda: ODELayer(CallOnly(3), **FEW), [(4, 3)], (4, 3)),
    "sequences": (lambda: ODELayer(keras.layers.Dense(3), t=(0.0, 0.5, 1.0), return_sequences=True,
                                   **FEW), [(4, 3)], (4, 3, 3)),
    "concat": (lambda: ConcatTime(keras.Sequential([keras.layers.Dense(5)])), [(), (4, 3)], (4, 5)),
    "own": (lambda: ConcatTime(CallOnly()), [(), (4, 3)], (4, 4)),
    "squash": (time_dependent, [(), (4, 3)], (4, 3)),
    "chain": (lambda: TimeSequential([time_dependent(7), ConcatTime(keras.layers.Dense(2))]),
              [(), (4, 3)], (4, 2)),
    "rescaled": (lambda: RescaledTime(time_dependent()), [(), (4, 3), (4,)], (4, 3)),
    "energy": (lambda: EnergyDynamics(keras.layers.Dense(2), [[0.0, 1.0], [-1.0, 0.0]]),
               [(4, 2)], (4, 2)),
    "hamilton": (lambda: HamiltonianDynamics(keras.layers.Dense(2)), [(4, 6)], (4, 6)),
    "second": (lambda: SecondOrderDynamics(keras.layers.Dense(3)), [(4, 6)], (4, 6)),
}  # fmt: skip
EVERY = pytest.mark.parametrize("name", LAYERS)


@keras.saving.register_keras_serializable("test")
class CallOnly(keras.layers.Layer):
    """A layer of the kind that Keras builds by its `call`."""

    def __init__(self, units=4, **kwargs):
        super().__init__(**kwargs)
        self.units = units
        self.hidden, self.out = keras.layers.Dense(5, "tanh"), keras.layers.Dense(units)

    def call(self, y):
        return self.out(self.hidden(y))

    def get_config(self):
        return {**super().get_config(), "units": self.units}


@EVERY
def test_output_shapes(name):
    make, shapes, expected = LAYERS[name]
    assert tuple(make().compute_output_shape(*shapes)) == expected
    symbolic = make()(*[keras.KerasTensor(shape) for shape in shapes])
    layer = make()
    called = layer(*[tf.ones(shape) for shape in shapes])
    assert symbolic.shape == tuple(called.shape) == expected
    assert symbolic.dtype == called.dtype.name
    assert tuple(layer.compute_output_shape(*shapes)) == expected


def test_output_shapes_of_nests():
    layer = ODELayer(lambda t, y: y, t=(0.0, 1.0), return_sequences=True, **FEW)
    shapes = {"a": (None, 3), "b": ((None, 2), [None, 4])}
    expected = {"a": (None, 2, 3), "b": ((None, 2, 2), (None, 2, 4))}
    assert layer.compute_output_shape(shapes) == expected
    assert layer.compute_output_shape((None, 3), t_shape=(7,)) == (None, 7, 3)


@pytest.mark.parametrize("steps", [5, None])
def test_time_distributed(steps):
    layer = ODELayer(keras.layers.Dense(3, "tanh"), **FEW)
    inputs = keras.Input((steps, 3))
    model = keras.Model(inputs, keras.layers.TimeDistributed(layer)(inputs))
    assert model.output_shape == (None, steps, 3)
    x = np.random.default_rng(0).normal(size=(2, 5, 3)).astype("float32")
    expected = np.stack([layer(x[:, i]) for i in range(5)], 1)
    np.testing.assert_allclose(model(x), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.slow
@XLA_SLOW
def test_time_distributed_is_trained(jit):
    layer = ODELayer(keras.layers.Dense(3, "tanh"), **FEW)
    model = keras.Sequential([keras.Input((5, 3)), keras.layers.TimeDistributed(layer)])
    model.compile("adam", "mse", jit_compile=jit)
    x = np.random.default_rng(0).normal(size=(4, 5, 3)).astype("float32")
    losses = model.fit(x, 0.5 * x, epochs=3, verbose=0).history["loss"]
    assert losses[2] < losses[0]


# Subclasses


class Scaled(ODELayer):
    """Takes a factor of the state, which is an argument of the dynamics as well."""

    def call(self, y0, factor, power=1, training=None):
        return super().call(y0 * factor**power, args=factor, training=training)


class Widened(ODELayer):
    """Solves for a wider state, and has weights of its own, before and after."""

    def build(self, x_shape):
        super().build((*x_shape[:-1], 5))
        self.scale = self.add_weight((5,), "ones")
        self.head = keras.layers.Dense(2)

    def call(self, x, extra, t=None):
        return self.head(super().call(self.scale * tf.concat([x, extra], -1), t=t))


@keras.saving.register_keras_serializable("test")
class Conditional(keras.layers.Layer):
    def build(self, t_shape, y_shape, u_shape):
        self.w = self.add_weight((y_shape[-1] + u_shape[-1], y_shape[-1]))

    def call(self, t, y, u):
        return tf.concat([y, u], -1) @ self.w


def test_subclass_that_hands_over_arguments():
    layer = Scaled(Conditional(), **FEW)
    x, u = keras.Input((3,)), keras.Input((1,))
    model = keras.Model([x, u], [layer(x, u), layer(x, factor=u, power=2)])
    assert [y.shape for y in model.outputs] == [(None, 3), (None, 3)]
    a, b = tf.ones([2, 3]), tf.fill([2, 1], 2.0)
    plain = ODELayer(layer.dynamics, **FEW)
    for y, state in zip(model([a, b]), (2.0 * a, 4.0 * a)):
        np.testing.assert_allclose(y, plain(state, args=b), rtol=1e-6)


@pytest.mark.parametrize("symbolic", [True, False])
def test_subclass_with_another_state_and_weights(symbolic):
    layer = Widened(keras.layers.Dense(5, "tanh"), **FEW)
    shapes = [(2, 3), (2, 2)]
    if symbolic:
        inputs = [keras.Input(shape[1:]) for shape in shapes]
        model = keras.Model(inputs, layer(*inputs))
        assert model.output_shape == (None, 2)
    assert layer(*[tf.ones(shape) for shape in shapes]).shape == (2, 2)
    assert [tuple(w.shape) for w in layer.weights] == [(5,), (5, 5), (5,), (5, 2), (2,)]


def test_subclass_with_weights_in_a_file(tmp_path):
    inputs = [keras.Input((3,)), keras.Input((2,))]
    model = keras.Model(inputs, Widened(keras.layers.Dense(5, "tanh"), **FEW)(*inputs))
    model.layers[-1].scale.assign([1.0, 2.0, 3.0, 4.0, 5.0])
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras", {"Widened": Widened})
    x = [tf.ones([2, 3]), tf.ones([2, 2])]
    np.testing.assert_array_equal(loaded(x), model(x))


@XLA_SLOW
def test_subclass_in_fit_and_in_a_file(jit, tmp_path):
    x, u = keras.Input((3,)), keras.Input((1,))
    model = keras.Model([x, u], Scaled(Conditional(), **FEW)(x, u))
    model.compile("sgd", "mse", jit_compile=jit)
    data = [np.ones((4, 3), "float32"), np.full((4, 1), 0.5, "float32")]
    model.fit(data, data[0], epochs=2, verbose=0)
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras", {"Scaled": Scaled})
    np.testing.assert_array_equal(loaded(data), model(data))


def test_shapes_of_a_subclass_whose_call_needs_more():
    layer = Scaled(Conditional(), **FEW)
    with pytest.raises(NotImplementedError, match="`Scaled.call`"):
        layer.compute_output_shape((2, 3))


# States of integers


@pytest.mark.parametrize("dtype", ["int32", "uint8", "bool"])
def test_integer_states_are_refused_when_the_model_is_made(dtype):
    layer = ODELayer(keras.layers.Dense(3), **FEW)
    with pytest.raises(TypeError, match="`y0`.*keras.layers.*Received: dtype .* in 'pixels'"):
        layer(keras.Input((3,), dtype=dtype, name="pixels"))
    with pytest.raises(TypeError, match="`y0`.*keras.layers.*Received"):
        layer(np.ones((2, 3), dtype))
    with pytest.raises(TypeError, match="`y0`.*keras.layers.*Received"):
        keras.Sequential([keras.Input((3,), dtype=dtype), layer])
    layer(keras.Input((3,)))  # nothing is left of it
    with pytest.raises(TypeError, match="`y0`.*keras.layers.*Received: dtype .* in 'pixels'"):
        layer({"x": keras.Input((3,)), "n": keras.Input((3,), dtype=dtype, name="pixels")})
    with pytest.raises(TypeError, match="`y0` must be floating or complex.*Received"):
        layer(np.ones((2, 3), dtype))


# Summaries


@EVERY
def test_summary_expands(name):
    make, shapes, _ = LAYERS[name]
    layer = make()
    layer(*[tf.ones(shape) for shape in shapes])
    inputs = [keras.Input(batch_shape=shape) for shape in shapes]
    model = keras.Model(inputs, layer(*inputs))
    lines = []
    model.summary(expand_nested=True, print_fn=lines.append, line_length=120)
    inner = getattr(layer, "layers", [])
    assert inner or name == "squash"
    for part in inner:
        assert f"└ {part.name}" in lines[0]


@EVERY
def test_summary_expands_after_loading(name, tmp_path):
    make, shapes, _ = LAYERS[name]
    inputs = [keras.Input(batch_shape=shape) for shape in shapes]
    model = keras.Model(inputs, make()(*inputs))
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    for one in (loaded, keras.models.clone_model(model)):
        lines = []
        one.summary(expand_nested=True, print_fn=lines.append, line_length=120)
        assert name == "squash" or "└" in lines[0]
    x = [tf.ones(shape) for shape in shapes]
    np.testing.assert_array_equal(loaded(x), model(x))


# Masks


def last_of(x, mask):
    """Where an example ends, for all of its entries."""
    if mask is None:
        return 0.0 * x
    count = tf.reduce_sum(tf.cast(mask, tf.int32), 1)
    return tf.gather(x, count - 1, batch_dims=1)[:, None] * tf.ones_like(x)


class Last(keras.layers.Layer):
    supports_masking = True

    def call(self, y, mask=None):
        return last_of(y, mask)


class Narrow(keras.layers.Layer):
    """Without the time that `ConcatTime` appends."""

    supports_masking = True

    def call(self, y):
        return y[..., :2]


class LastWithTime(Last):
    def call(self, t, y, args=None, mask=None):
        return super().call(y, mask)


#: Older ones refuse a functional model with an input that is not used.
WITH_UNUSED_INPUTS = pytest.mark.skipif(
    tuple(map(int, keras.__version__.split(".")[:2])) < (3, 13), reason="needs Keras 3.13"
)


def functional_of(layer, time):
    y = keras.Input((3, 2), name="y")
    return keras.Model([keras.Input((1,), name="t"), y] if time else y, layer(y))


@pytest.mark.parametrize(
    "make",
    [
        Last,
        LastWithTime,
        lambda: keras.Sequential([Last()]),
        lambda: functional_of(Last(), False),
        pytest.param(lambda: functional_of(Last(), True), marks=WITH_UNUSED_INPUTS),
        lambda: ConcatTime(keras.Sequential([Last(), Narrow()])),
        lambda: TimeSequential([LastWithTime(), ConcatTime(Narrow())]),
        lambda: RescaledTime(keras.Sequential([Last()])),
    ],
    ids=[
        "layer",
        "time",
        "sequential",
        "functional",
        "functional time",
        "concat",
        "chain",
        "rescaled",
    ],
)
@pytest.mark.parametrize("how", ["attached", "given", "symbolic"])
@pytest.mark.filterwarnings("error")
def test_masks_reach_the_dynamics(make, how):
    x = np.zeros((2, 3, 2), "float32")
    x[0, :2], x[1, :1] = [[1.0, 2.0], [3.0, 4.0]], [[5.0, 6.0]]
    layer = ODELayer(make(), method="euler", num_steps=1)
    args = tf.ones([2]) if isinstance(layer.dynamics, RescaledTime) else ()
    if how == "attached":
        y = layer(keras.layers.Masking()(x), args=args)
    elif how == "given":
        mask = tf.constant([[True, True, False], [True, False, False]])
        y = layer(x, mask=mask, args=args)
    else:
        inputs = keras.Input((3, 2))
        y = keras.Model(inputs, layer(keras.layers.Masking()(inputs), args=args))(x)
    np.testing.assert_array_equal(y[:, 2], [[3.0, 4.0], [5.0, 6.0]])


@XLA_SLOW
def test_masks_in_fit(jit):
    layer = ODELayer(keras.layers.GRU(2, return_sequences=True, use_cudnn=False), **FEW)
    model = keras.Sequential([keras.Input((3, 2)), keras.layers.Masking(), layer])
    model.compile("sgd", "mse", jit_compile=jit)
    x = np.random.default_rng(0).normal(size=(4, 3, 2)).astype("float32")
    x[:, 2] = 0.0
    losses = model.fit(x, x, epochs=2, verbose=0).history["loss"]
    assert losses[1] < losses[0]


# Nothing is said that was not earned

DYNAMICS = {
    "dense": lambda: keras.layers.Dense(2, "tanh"),
    "sequential": lambda: keras.Sequential([keras.layers.Dense(4, "tanh"), keras.layers.Dense(2)]),
    "functional": lambda: pendulum_of_one(),
    "concat": lambda: ConcatTime(keras.Sequential([keras.layers.Dense(2)])),
    "call only": lambda: ConcatTime(CallOnly(2)),
    "chain": lambda: TimeSequential([time_dependent(7), ConcatTime(CallOnly(2))]),
    "rescaled": lambda: RescaledTime(time_dependent(2)),
    "energy": lambda: EnergyDynamics(CallOnly(1), [[0.0, 1.0], [-1.0, 0.0]]),
    "hamilton": lambda: HamiltonianDynamics(CallOnly(1)),
    "second": lambda: SecondOrderDynamics(CallOnly(1)),
    "nested": lambda: ODELayer(keras.layers.Dense(2, "tanh"), **FEW),
}


def pendulum_of_one():
    x = keras.Input((2,))
    return keras.Model(x, keras.layers.Dense(2, "tanh")(x))


@pytest.mark.filterwarnings("error", "ignore:__array__ implementation")
@pytest.mark.parametrize("name", partly_slow(DYNAMICS, "nested"))
def test_ordinary_use_is_silent(name, tmp_path, caplog, capfd):
    x, _ = x_and_y()
    inputs = keras.Input((2,))
    layer = ODELayer(DYNAMICS[name](), method="euler", num_steps=1)
    rescaled = name == "rescaled"
    model = keras.Model(inputs, layer(inputs, args=inputs[:, 0] if rescaled else ()))
    ODELayer(DYNAMICS[name](), **FEW)(x, args=x[:, 0] if rescaled else ())
    model(x)
    model.summary(expand_nested=True, print_fn=lambda line: None)
    model.save(tmp_path / "model.keras")
    if "CallOnly" not in str(model.get_config()):  # of such a layer Keras complains by itself
        keras.models.load_model(tmp_path / "model.keras")
        keras.models.clone_model(model)
    check_silent(caplog, capfd)


def test_many_eager_layers_are_silent(caplog):
    for _ in range(8):
        ODELayer(keras.layers.Dense(2), method="euler", num_steps=1)(tf.ones([1, 2]))
    assert not caplog.records


@pytest.mark.filterwarnings("error", "ignore:__array__ implementation")
@pytest.mark.parametrize("name", [x if x == "call only" else slow(x) for x in DYNAMICS])
def test_training_is_silent(name, caplog, capfd):
    x, y = x_and_y()
    inputs = keras.Input((2,))
    layer = ODELayer(DYNAMICS[name](), method="euler", num_steps=1)
    outputs = layer(inputs, args=inputs[:, 0] if name == "rescaled" else ())
    model = keras.Model(inputs, outputs)
    model.compile("adam", "mse")
    model.fit(x, y, epochs=2, verbose=0, validation_data=(x, y))
    model.predict(x, verbose=0)
    check_silent(caplog, capfd)


def check_silent(caplog, capfd):
    # TensorFlow counts the traces of all models in this process together, and warns of Keras' own.
    said = [r.getMessage() for r in caplog.records if "TensorFlowTrainer" not in r.getMessage()]
    assert not said
    assert "Warning" not in capfd.readouterr().err


# Cells


@keras.saving.register_keras_serializable("test")
class Cell(keras.layers.Layer):
    """An ODE-RNN: the state moves on between the inputs."""

    def __init__(self, units, layer=None, **kwargs):
        super().__init__(**kwargs)
        self.units = self.state_size = self.output_size = units
        self.layer = layer or ODELayer(keras.layers.Dense(units, "tanh"), **FEW)
        self.gru = keras.layers.GRUCell(units)

    def build(self, shape):
        self.layer.build((shape[0], self.units))
        self.gru.build(shape)

    def call(self, inputs, states):
        return self.gru(inputs, [self.layer(states[0])])

    def get_config(self):
        layer = keras.saving.serialize_keras_object(self.layer)
        return {**super().get_config(), "units": self.units, "layer": layer}

    @classmethod
    def from_config(cls, config):
        layer = keras.saving.deserialize_keras_object(config.pop("layer"))
        return cls(layer=layer, **config)


@XLA_SLOW
@pytest.mark.slow
def test_bidirectional_cells_with_masks(jit, tmp_path):
    cells = keras.layers.RNN(Cell(2), return_sequences=True)
    model = keras.Sequential([keras.Input((3, 2)), keras.layers.Masking()])
    model.add(keras.layers.Bidirectional(cells))
    model.add(ODELayer(keras.layers.Dense(4), **FEW))
    model.compile("adam", "mse", jit_compile=jit)
    assert model.output_shape == (None, 3, 4)
    x = np.random.default_rng(0).normal(size=(4, 3, 2)).astype("float32")
    x[:2, 2] = 0.0
    losses = model.fit(x, np.tile(x, 2), epochs=2, verbose=0).history["loss"]
    assert losses[1] < losses[0]
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    np.testing.assert_allclose(loaded(x), model(x), rtol=1e-6)
