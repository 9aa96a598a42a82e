"""Two devices: the same losses as on one."""

import json
import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest

ROOT = pathlib.Path(__file__).parents[2]
ENVIRONMENT = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3", "PYTHONPATH": str(ROOT)}
_MIRRORED = """
import contextlib, json, sys
import keras, numpy as np, tensorflow as tf
cpus = tf.config.list_physical_devices("CPU")
tf.config.set_logical_device_configuration(cpus[0], [tf.config.LogicalDeviceConfiguration()] * 2)
import tfsymadj

x = np.random.default_rng(0).normal(size=(64, 4)).astype("float32")
y = np.sum(x**2, 1, keepdims=True)
results = []
kernel = tf.Variable(0.1 * np.eye(4, dtype="float32"))
for strategy in (None, tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])):
    with strategy.scope() if strategy else contextlib.nullcontext():
        keras.utils.set_random_seed(0)
        dynamics = tfsymadj.layers.ConcatTime(keras.layers.Dense(4, "tanh"))
        options = dict(method="rk4", num_steps=3, name="ode", track_stats=True)
        model = keras.Sequential([
            keras.Input((4,)), tfsymadj.ODELayer(dynamics, **options), keras.layers.Dense(1)
        ])
        model.compile(keras.optimizers.Adam(0.01), "mse", jit_compile=False)
    assert strategy is None or strategy.num_replicas_in_sync == 2
    history = model.fit(x, y, batch_size=16, epochs=4, shuffle=False, verbose=0).history
    results.append({"weights": [w.tolist() for w in model.get_weights()], **history})
print(json.dumps(results))
"""


@pytest.mark.slow
def test_mirrored_strategy():
    result = subprocess.run(
        [sys.executable, "-c", _MIRRORED],
        env=ENVIRONMENT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr[-3000:]
    one, two = json.loads(result.stdout.splitlines()[-1])
    # float32: the sum over the batch in another order, sixteen updates
    np.testing.assert_allclose(two["loss"], one["loss"], rtol=1e-5)
    assert one["loss"][-1] < one["loss"][0]
    for a, b in zip(two["weights"], one["weights"]):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)
    assert two["ode_evaluations"] == one["ode_evaluations"] == [12.0] * 4
