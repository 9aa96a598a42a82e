"""Uses an installed tfsymadj that has no extras: `python smoke.py VERSION`."""

import os
import sys

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
import tensorflow as tf

import tfsymadj


def main():
    if tfsymadj.__version__ != sys.argv[1]:
        raise SystemExit(f"The version is {tfsymadj.__version__}, not {sys.argv[1]}")
    if "site-packages" not in tfsymadj.__file__:
        raise SystemExit(f"This is not the installed package: {tfsymadj.__file__}")

    rate = tf.Variable(0.5)
    with tf.GradientTape() as tape:
        solution = tfsymadj.solve(lambda t, y: -rate * y, [1.0], [0.0, 2.0], rtol=1e-6, atol=1e-8)
        end = solution.y[-1, 0]
    np.testing.assert_allclose(end, np.exp(-1.0), atol=1e-5)
    np.testing.assert_allclose(tape.gradient(end, rate), -2.0 * np.exp(-1.0), atol=1e-5)

    layer = tfsymadj.ODELayer(keras.layers.Dense(2, activation="tanh"), method="rk4", num_steps=4)
    model = keras.Sequential([keras.Input((2,)), layer])
    model.compile("adam", "mse")
    x = np.ones((8, 2), "float32")
    model.fit(x, 2 * x, epochs=1, verbose=0)
    before = model.evaluate(x, 2 * x, verbose=0)
    model.fit(x, 2 * x, epochs=5, verbose=0)
    if not model.evaluate(x, 2 * x, verbose=0) < before:
        raise SystemExit("Training does not lower the loss")

    try:
        tfsymadj.bijectors  # noqa: B018 - importing it is what is tried
    except ImportError as error:
        if "tfsymadj[tfp]" not in str(error):
            raise SystemExit(f"The error does not name the extra: {error}") from error
    else:
        raise SystemExit("`tfsymadj.bijectors` needs no extra here")
    print(f"tfsymadj {tfsymadj.__version__} works without extras")


if __name__ == "__main__":
    main()
