"""Gradients of a problem, what they cost, and how far apart two of them are."""

import itertools

import numpy as np
import tensorflow as tf

import tfsymadj
from helpers.modes import run, slow
from helpers.problems import loss


def gradients(problem, gradient, mode, **options):
    """The states and all gradients of `loss`, as a dict of arrays by name; steps end at outputs.

    Args:
        problem: `Problem`.
        gradient: see `tfsymadj.solve`.
        mode: one of `MODES`.
        **options: of `tfsymadj.solve`.
    """
    sources, options = problem.sources, {"outputs": "step", **options}

    def compute():
        with tf.GradientTape() as tape:
            tape.watch([x for x in sources.values() if not isinstance(x, tf.Variable)])
            y = tfsymadj.odeint(
                problem.dynamics,
                problem.y0,
                problem.t,
                args=problem.args,
                gradient=gradient,
                **options,
            )
            value = loss(y)
        return tf.nest.flatten(y), tape.gradient(value, list(sources.values()))

    ys, found = run(compute, mode)
    missing = [name for name, g in zip(sources, found) if g is None]
    assert not missing, f"no gradient for {missing}"
    result = {f"y[{i}]": y.numpy() for i, y in enumerate(ys)}
    return result | {name: g.numpy() for name, g in zip(sources, found)}


def relative_error(actual, expected):
    """The largest error of two (dicts of) arrays, relative to the largest entry of each."""
    if isinstance(expected, dict):
        assert actual.keys() == expected.keys()
        return max(relative_error(actual[name], expected[name]) for name in expected)
    actual, expected = np.asarray(actual), np.asarray(expected)
    assert actual.shape == expected.shape
    scale = np.max(np.abs(expected), initial=0.0)
    error = np.max(np.abs(actual - expected), initial=0.0)
    if not np.isfinite(error):
        return np.inf
    return error / scale if scale else error


# Both gradients are the same sums in another order: a few hundred roundings of 1e-16 and 6e-8.
FLOAT64, FLOAT32 = 1e-12, 1e-6


#: The methods that are exact; they share the loop and the sweep, so one stands for all.
EXACT = (
    "symplectic_adjoint",
    slow(tfsymadj.SymplecticAdjoint(checkpoints="sqrt")),
    slow(tfsymadj.SymplecticAdjoint(checkpoints="steps")),
    slow(tfsymadj.SymplecticAdjoint(checkpoints="stages")),
    slow(tfsymadj.SymplecticAdjoint(checkpoints=12)),
    slow("aca"),
    slow("baseline"),
)


# Evaluations


class Counted:
    """Linear dynamics that count their evaluations and vector-Jacobian products as they run."""

    _made = itertools.count()

    def __init__(self):
        self.evaluations, self.vjps = [], []
        # Equal objects share a trace, which counts for the one that it was made for.
        self.number = next(self._made)
        self._weight = tf.Variable(-0.5 * np.eye(3))

    def __call__(self, t, y):
        return tf.sin(t) + self._counted(y) @ self._weight

    @tf.custom_gradient
    def _counted(self, y):
        def backward(g):
            return g * self._one(self.vjps, g)

        return y * self._one(self.evaluations, y), backward

    @staticmethod
    def _one(calls, x):
        def count(_):
            calls.append(1)
            return np.float64(1.0)

        # "Stateless", so that TensorFlow leaves out evaluations whose result nobody uses.
        return tf.ensure_shape(tf.numpy_function(count, [x], tf.float64, stateful=False), [])


def counts(gradient, **options):
    """Evaluations forward and backward, vjps, and what the statistics say; steps end at outputs."""
    dynamics = Counted()
    y0 = tf.ones([2, 3], tf.float64)
    with tf.GradientTape() as tape:
        tape.watch(y0)
        options = {"outputs": "step", **options}
        solution = tfsymadj.solve(dynamics, y0, [0.0, 0.7, 2.0], gradient=gradient, **options)
        value = loss(solution.y)
    forward = len(dynamics.evaluations)
    tape.gradient(value, y0)
    backward = len(dynamics.evaluations) - forward
    stats = tf.nest.map_structure(int, solution.stats)
    return forward, backward, len(dynamics.vjps), stats
