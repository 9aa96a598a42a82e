"""Long runs, many threads and processes, files from elsewhere."""

import ast
import concurrent.futures
import gc
import multiprocessing
import os
import pathlib
import subprocess
import sys
import weakref

import keras
import numpy as np
import pytest
import tensorflow as tf
from helpers.modes import slow
from helpers.processes import Batches, end_of_decay, fit_on_data, small_model

import tfsymadj
from tfsymadj.layers import ConcatTime, ODELayer

PACKAGE = pathlib.Path(tfsymadj.__file__).parent


def resident():
    """Bytes of this process in memory."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * 4096


class Traces(tf.Module):
    def __init__(self):
        super().__init__()
        self.w = tf.Variable(0.1 * tf.eye(8))
        self.calls = 0

    def __call__(self, t, y):
        self.calls += 1
        return tf.tanh(y @ self.w)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("options", [dict(method="heun", num_steps=2), dict(rtol=1e-2)])
def test_ten_thousand_steps_of_changing_sizes(options):
    dynamics, random = Traces(), np.random.default_rng(0)

    def train():
        size, count = random.integers(1, 64), random.integers(2, 7)
        times = np.cumsum(random.uniform(0.1, 0.3, size=count))
        x = tf.constant(random.normal(size=[size, 8]), tf.float32)
        with tf.GradientTape() as tape:
            value = tf.reduce_mean(tfsymadj.odeint(dynamics, x, times, **options) ** 2)
        dynamics.w.assign_sub(0.01 * tape.gradient(value, dynamics.w))

    for _ in range(1000):
        train()
    calls = dynamics.calls
    gc.collect()
    before = resident()
    for _ in range(10_000):
        train()
    gc.collect()
    assert dynamics.calls == calls  # no trace more
    # What a thousand steps would leak of one small state each, or allocators may keep.
    assert resident() - before < 30 * 2**20


def test_a_deleted_layer_is_collected():
    layer = ODELayer(ConcatTime(keras.layers.Dense(3)), method="heun", num_steps=2)
    x = tf.ones([2, 3])
    with tf.GradientTape() as tape:
        value = tf.reduce_sum(layer(x))
    assert None not in tape.gradient(value, [v.value for v in layer.trainable_variables])
    dead = weakref.ref(layer), weakref.ref(layer.dynamics)
    del layer, tape, value
    gc.collect()
    assert [reference() for reference in dead] == [None, None]


@pytest.mark.parametrize("options", [slow(dict(method="heun", num_steps=3)), slow(dict(rtol=1e-3))])
def test_eight_threads_share_a_layer(options):
    layer = ODELayer(ConcatTime(keras.layers.Dense(3, "tanh")), **options)
    layer(tf.ones([1, 3]))
    weights = [v.value for v in layer.trainable_variables]

    def compute(i):
        x = tf.constant(np.random.default_rng(i % 8).normal(size=[4 + i % 3, 3]), tf.float32)
        with tf.GradientTape() as tape:
            value = tf.reduce_sum(layer(x) ** 2)
        return [value, *tape.gradient(value, weights)]

    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        together = list(pool.map(compute, range(24)))
    for i, found in enumerate(together):
        for a, b in zip(found, compute(i)):
            np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


@pytest.mark.slow
def test_spawned_processes():
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        found = pool.map(end_of_decay, [0.5, 1.0])
    np.testing.assert_allclose(found, np.exp([-0.5, -1.0]), rtol=1e-5)


@pytest.mark.slow
def test_training_on_data_in_spawned_processes():
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        for losses in pool.map(fit_on_data, [0.5, 1.0]):
            assert losses[-1] < losses[0]


@pytest.mark.slow
def test_training_on_data_of_worker_processes():
    data = Batches(workers=2, use_multiprocessing=True)
    losses = small_model().fit(data, epochs=3, verbose=0).history["loss"]
    assert losses[-1] < losses[0]


_FIRST = """
import tensorflow as tf
import tfsymadj

w = tf.Variable(1.0)
solve = tf.function(lambda x: tfsymadj.odeint(lambda t, y: w * y, x, [0.0, 1.0]))
with tf.GradientTape() as tape:
    y = solve(tf.ones([]))
assert len(tape.watched_variables()) == 1 and tape.watched_variables()[0] is w
assert [v is w for v in solve.get_concrete_function(tf.ones([])).graph.variables] == [True]
"""


@pytest.mark.slow
def test_the_first_solve_of_a_process_adds_no_variable_to_its_caller():
    subprocess.run([sys.executable, "-c", _FIRST], check=True, timeout=120, cwd=PACKAGE.parent)


_FORK = """
import os, sys
import tfsymadj
child = os.fork()  # before TensorFlow has computed anything: afterwards it can't be forked
y = float(tfsymadj.odeint(lambda t, y: -y, [1.0], [0.0, 1.0], rtol=1e-6)[-1, 0])
assert abs(y - 0.36788) < 1e-4
if child:
    _, status = os.waitpid(child, 0)
    sys.exit(os.waitstatus_to_exitcode(status))
"""


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
def test_forked_processes():
    subprocess.run([sys.executable, "-c", _FORK], check=True, timeout=120, cwd=PACKAGE.parent)


# Files from elsewhere


def test_a_file_runs_no_code(tmp_path):
    inner = keras.Sequential([keras.Input((2,)), keras.layers.Lambda(lambda y: -y)])
    layer = ODELayer(inner, method="heun", num_steps=2)
    model = keras.Sequential([keras.Input((2,)), layer])
    model.save(tmp_path / "model.keras")
    with pytest.raises(ValueError, match="(?i)lambda.*(unsafe|safe_mode|arbitrary code)"):
        keras.models.load_model(tmp_path / "model.keras")


@pytest.mark.parametrize(
    "change, name",
    [
        (dict(method="magic"), "method"),
        (dict(max_steps=2**40), "max_steps"),
        (dict(max_steps="many"), "max_steps"),
        (dict(gradient="none at all"), "gradient"),
        (dict(num_steps=1e9), "num_steps"),
        (dict(t=[0.0]), "t"),
        (dict(t=[0.0, float("nan")]), "t"),
        (dict(rtol=-1.0), "rtol"),
        (dict(on_failure="ignore"), "on_failure"),
        (dict(dynamics=3), "dynamics"),
    ],
)
def test_configs_that_make_no_sense(change, name):
    config = ODELayer(keras.layers.Dense(2)).get_config()
    with pytest.raises((ValueError, TypeError), match=f"`{name}`"):
        ODELayer.from_config(config | change)


def test_the_package_downloads_and_unpickles_nothing():
    refused = {"pickle", "dill", "marshal", "shelve", "urllib", "requests", "http", "socket"}
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                names = [node.module or ""]
            elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
                assert node.func.id not in ("eval", "exec"), path
            assert not refused & {name.split(".")[0] for name in names}, path
