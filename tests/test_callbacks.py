"""What can be seen of a training run: counts of steps, memory, names in profiles."""

import re

import keras
import numpy as np
import pytest
import tensorflow as tf
from helpers.modes import slow

import tfsymadj
from tfsymadj import SymplecticAdjoint
from tfsymadj.callbacks import GradientMemory
from tfsymadj.layers import ConcatTime, ODELayer

X = np.random.default_rng(0).normal(size=(16, 2)).astype("float32")
COUNTS = {"ode_evaluations", "ode_accepted_steps", "ode_rejected_steps"}


def model_of(jit=False, **options):
    keras.utils.set_random_seed(0)
    dynamics = ConcatTime(keras.layers.Dense(2, "tanh"))
    layer = ODELayer(dynamics, name="ode", track_stats=True, max_steps=64, **options)
    model = keras.Sequential([keras.Input((2,)), layer])
    model.compile("sgd", "mse", jit_compile=jit)
    return model


@pytest.mark.parametrize("jit", [False, slow(True)])
def test_counts_in_the_logs(jit, capsys):
    model = model_of(jit, rtol=1e-5)
    history = model.fit(X, X, batch_size=8, epochs=2, validation_data=(X, X), verbose=2).history
    assert {*COUNTS, *(f"val_{name}" for name in COUNTS)} < set(history)
    assert "ode_evaluations: " in capsys.readouterr().out
    # Means over two solves of each epoch, not sums over epochs.
    logs = model.evaluate(X, X, return_dict=True, verbose=0)
    stats = tfsymadj.solve(model.layers[0].dynamics, X, (0.0, 1.0), rtol=1e-5, max_steps=64).stats
    assert logs["ode_evaluations"] == int(stats.num_evaluations)
    assert logs["ode_accepted_steps"] == int(stats.num_accepted) > 1
    assert logs["ode_rejected_steps"] == int(stats.num_rejected)


def test_counts_in_early_stopping_and_tensorboard(tmp_path):
    model = model_of(method="rk4", num_steps=3)
    stop = keras.callbacks.EarlyStopping("ode_evaluations", mode="min", patience=1)
    board = keras.callbacks.TensorBoard(tmp_path)
    history = model.fit(X, X, epochs=9, verbose=0, callbacks=[stop, board]).history
    # Three steps of four stages, always: no improvement after the first epoch.
    assert history["ode_evaluations"] == [12.0, 12.0]
    found = {}
    for path in tmp_path.rglob("events*"):
        for event in tf.compat.v1.train.summary_iterator(str(path)):
            for value in event.summary.value:
                if value.tag.startswith("epoch_"):
                    found[value.tag] = float(tf.make_ndarray(value.tensor))
    assert found["epoch_ode_evaluations"] == 12.0


def test_no_counts_unless_asked_for():
    layer = ODELayer(keras.layers.Dense(2))
    assert layer.metrics == []
    assert not layer.track_stats


@pytest.mark.slow
def test_counts_survive_saving_and_serving(tmp_path):
    model = model_of(method="rk4", num_steps=3)
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    assert COUNTS < set(loaded.evaluate(X, X, return_dict=True, verbose=0))
    model.export(str(tmp_path / "exported"), verbose=False)
    served = tf.saved_model.load(str(tmp_path / "exported"))
    np.testing.assert_allclose(served.serve(X), model(X), rtol=1e-6)


class Peaks(keras.callbacks.Callback):
    """What other callbacks see in the logs."""

    def on_epoch_end(self, epoch, logs=None):
        self.seen = logs["gradient_memory_mib"]


def test_gradient_memory():
    """Back-propagation keeps all steps, the symplectic adjoint of least memory a part of them."""
    x = np.ones((256, 64), "float32")
    state = x.nbytes / 2**20
    found = {}
    for name, gradient in (("backprop", "backprop"), ("sqrt", SymplecticAdjoint("sqrt"))):
        layer = ODELayer(
            keras.layers.Dense(64, "tanh"), method="euler", num_steps=100, gradient=gradient
        )
        model = keras.Sequential([keras.Input((64,)), layer])
        model.compile("sgd", "mse", jit_compile=False)
        peaks = Peaks()
        history = model.fit(
            x, x, batch_size=256, epochs=2, verbose=0, callbacks=[GradientMemory(), peaks]
        ).history
        found[name] = history["gradient_memory_mib"][-1] / state
        assert peaks.seen == history["gradient_memory_mib"][-1]
    assert found["backprop"] > 100
    # 2 sqrt(100) checkpoints, and a few states and activations.
    assert 20 <= found["sqrt"] < 50


def test_gradient_memory_of_an_unknown_device():
    model = model_of(method="rk4", num_steps=3)
    with pytest.raises(ValueError, match="`device`.*Received: 'CPU:9'"):
        model.fit(X, X, verbose=0, callbacks=[GradientMemory("CPU:9")])


@pytest.mark.parametrize(
    "checkpoints, loops",
    [("auto", ["adjoint"]), ("sqrt", ["segments", "adjoint_of_stages"])],
)
def test_names_in_profiles(checkpoints, loops):
    gradient = SymplecticAdjoint(checkpoints)
    model = model_of(method="rk4", num_steps=3, gradient=gradient)

    @tf.function
    def step(x):
        with tf.GradientTape() as tape:
            value = tf.reduce_sum(model(x))
        return tape.gradient(value, [v.value for v in model.trainable_variables])

    definition = step.get_concrete_function(tf.constant(X)).graph.as_graph_def()
    names = [node.name for node in definition.node]
    inner = [node.name for f in definition.library.function for node in f.node_def]
    assert any(re.search(r"/ode[_0-9]*/integrate$", name) for name in names)
    assert any(name.endswith(f"SymplecticAdjoint/{loops[0]}") for name in names)
    for loop in loops[1:]:
        assert any(loop in name for name in inner)
    for stage in (1, 4):
        assert any(f"stage_{stage}/" in name for name in inner)
