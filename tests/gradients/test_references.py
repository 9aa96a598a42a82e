"""Gradients against another implementation's, and against finite differences."""

import pathlib

import numpy as np
import pytest
import tensorflow as tf
from helpers.gradients import FLOAT64, gradients, relative_error
from helpers.modes import slow
from helpers.problems import everything, loss

import tfsymadj

DATA = sorted((pathlib.Path(__file__).parents[1] / "data").glob("*.npz"))


# Against another implementation


@pytest.mark.parametrize("path", [*DATA[::2], *map(slow, DATA[1::2])], ids=lambda path: path.stem)
def test_reference_files(path):
    data = np.load(path)
    weights = {n: tf.Variable(data[n]) for n in ("W0", "b0", "W1", "b1", "W2", "b2")}

    def dynamics(t, y):
        x = tf.concat([y, t * tf.ones_like(y[:, :1])], 1)
        x = tf.tanh(x @ weights["W0"] + weights["b0"])
        x = tf.tanh(x @ weights["W1"] + weights["b1"])
        return x @ weights["W2"] + weights["b2"]

    fixed = data["tol"] < 0
    # Another controller takes other steps: both are off by about the tolerance in each interval.
    tolerance = FLOAT64 if fixed else 30 * float(data["tol"])
    options = {"num_steps": 1} if fixed else {"rtol": data["tol"], "atol": data["tol"]}
    y0 = tf.constant(data["y0"])

    @tf.function
    def solve():
        with tf.GradientTape() as tape:
            tape.watch(y0)
            method = str(data["method"])
            y = tfsymadj.odeint(dynamics, y0, data["t"], method=method, **options)
            value = tf.reduce_sum(data["cotangent"] * y)
        return y, tape.gradient(value, {"y0": y0, **weights})

    y, found = solve()
    assert relative_error(y, data["y"]) < tolerance
    for name, gradient in found.items():
        assert relative_error(gradient, data[f"grad_{name}"]) < tolerance, name


# Finite differences


def test_finite_differences():
    problem = everything()
    random = np.random.default_rng(3)
    sources = problem.sources

    def direction(x):
        d = random.normal(size=x.shape)
        if x.dtype.is_complex:
            d = d + 1j * random.normal(size=x.shape)
        return d

    @tf.function
    def value(t, y0, args):
        options = dict(args=args, method="rk4", num_steps=4)
        return loss(tfsymadj.odeint(problem.dynamics, y0, t, **options))

    found = gradients(problem, "symplectic_adjoint", "graph", method="rk4", num_steps=4)
    # Central differences: eps^2 of curvature, 1e-16 / eps of rounding.
    eps = 1e-5
    for name, source in sources.items():
        if name.startswith("closed"):  # constants of the trace: compared with back-propagation
            continue
        d = direction(source)
        values = []
        for sign in (1, -1):
            moved = tf.cast(source + sign * eps * d, source.dtype)
            if isinstance(source, tf.Variable):
                kept = tf.identity(source)
                source.assign(moved)
                values.append(value(problem.t, problem.y0, problem.args))
                source.assign(kept)
                continue
            t, y0, args = tf.nest.map_structure(
                lambda x, source=source, moved=moved: moved if x is source else x,
                (problem.t, problem.y0, problem.args),
            )
            values.append(value(t, y0, args))
        expected = float(values[0] - values[1]) / (2 * eps)
        # TensorFlow's gradient of a complex tensor is that of its two parts: Re conj(g) d.
        actual = np.sum(np.real(np.conj(found[name]) * d))
        np.testing.assert_allclose(actual, expected, rtol=1e-7, err_msg=name)
