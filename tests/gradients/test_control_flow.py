"""Solves inside of loops, branches, vectorized maps, and dynamics with a trace of their own."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from helpers.gradients import FLOAT64, gradients, relative_error
from helpers.modes import run, slow
from helpers.problems import loss, mlp

import tfsymadj
from tfsymadj import Backprop, SymplecticAdjoint

SHORT = dict(method="rk4", num_steps=3)


# Inside loops, branches, vectorized maps


def nested_map(problem, solve):
    return tf.map_fn(lambda y: solve(y[tf.newaxis])[-1, 0], problem.y0)


def nested_while(problem, solve):
    def body(i, y):
        return i + 1, solve(y)[-1]

    return tf.while_loop(lambda i, y: i < 3, body, (0, problem.y0), maximum_iterations=3)[1]


def nested_cond(problem, solve):
    y = problem.y0
    return tf.cond(tf.reduce_sum(y * y) > 0.0, lambda: solve(y)[-1], lambda: y)


def nested_loops(problem, solve):
    def inner(x):
        def branch():
            return tf.while_loop(
                lambda i, y: i < 2,
                lambda i, y: (i + 1, solve(y)[-1]),
                (0, x[tf.newaxis]),
                maximum_iterations=2,
            )[1]

        return tf.cond(x[0] > -100.0, branch, lambda: x[tf.newaxis])[0]

    return tf.map_fn(inner, problem.y0)


@pytest.mark.parametrize(
    "context, mode",
    [
        slow(nested_map, "graph"),
        slow(nested_while, "graph"),
        (nested_cond, "graph"),
        slow(nested_map, "xla"),
        slow(nested_while, "xla"),
        slow(nested_cond, "xla"),
        slow(nested_map, "eager"),
        slow(nested_while, "eager"),
        slow(nested_cond, "eager"),
    ],
)
def test_inside_control_flow(context, mode):
    check_nested(context, mode, SHORT)


@pytest.mark.slow
@pytest.mark.parametrize("context", [nested_map, nested_loops])
def test_inside_control_flow_adaptive(context):
    check_nested(context, "graph", dict(method="bosh3", rtol=1e-2, max_steps=30))


@pytest.mark.slow
def test_closed_over_tensor_inside_a_loop():
    """A tensor made outside of the `tf.function` that the loop is in."""
    check_nested(nested_map, "graph", SHORT, tf.constant([0.3, -0.2, 0.5], tf.float64))


def check_nested(context, mode, options, closed=None):
    problem = mlp(batch=3, hidden=4)
    sources = [problem.y0, problem.t, *problem.variables]
    if closed is not None:
        sources.append(closed)

    def dynamics(t, y):
        dy = problem.dynamics(t, y)
        return dy if closed is None else dy * closed

    def compute(gradient):
        def solve(y):
            return tfsymadj.odeint(
                dynamics,
                y,
                problem.t,
                gradient=gradient,
                on_failure="status",
                **options,
            )

        with tf.GradientTape() as tape:
            tape.watch([x for x in sources if not isinstance(x, tf.Variable)])
            y = context(problem, solve)
            value = loss(y)
        return [y, *tape.gradient(value, sources)]

    actual = run(lambda: compute(SymplecticAdjoint("sqrt")), mode)
    # TensorFlow can't compile the gradient of a loop inside of a branch: back-propagate in a graph.
    expected = run(lambda: compute(Backprop()), "graph" if mode == "xla" else mode)
    for i, (a, b) in enumerate(zip(actual, expected)):
        assert a is not None, f"no gradient for source {i - 1}"
        assert relative_error(a, b) < FLOAT64, i


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["eager", "graph"])
def test_solve_inside_the_dynamics(mode):
    inner_problem = mlp(batch=2, hidden=4, t=(0.0, 0.5), seed=1)
    w = tf.Variable(0.5, dtype=tf.float64)

    def compute(gradient):
        def dynamics(t, y):
            inner = tfsymadj.odeint(
                inner_problem.dynamics,
                y,
                inner_problem.t,
                method="heun",
                num_steps=2,
                gradient=gradient,
                on_failure="status",
            )
            return w * inner[-1] * t

        with tf.GradientTape() as tape:
            tape.watch(inner_problem.y0)
            y = tfsymadj.odeint(
                dynamics, inner_problem.y0, [0.0, 1.0], method="heun", num_steps=2,
                gradient=gradient,
            )  # fmt: skip
            value = loss(y)
        return tape.gradient(value, [w, inner_problem.y0, *inner_problem.variables])

    actual = run(lambda: compute(SymplecticAdjoint("sqrt")), mode)
    # TensorFlow can't compile the gradient of a loop inside of a branch: back-propagate in a graph.
    expected = run(lambda: compute(Backprop()), "graph" if mode == "xla" else mode)
    for a, b in zip(actual, expected):
        assert relative_error(a, b) < FLOAT64


@pytest.mark.parametrize("jit", [False, slow(True)], ids=["graph", "xla"])
def test_inside_a_keras_rnn(jit):
    class Cell(keras.layers.Layer):
        """An ODE-RNN: the state evolves between two observations."""

        state_size = output_size = 3

        def __init__(self, gradient):
            super().__init__(dtype="float64")
            self.net = keras.layers.Dense(3, activation="tanh", dtype="float64")
            self.jump = keras.layers.Dense(3, activation="tanh", dtype="float64")
            self.gradient = gradient

        def build(self, shape):
            self.net.build((None, 3))
            self.jump.build((None, 3 + shape[-1]))

        def call(self, x, states):
            y = tfsymadj.odeint(
                self.net, states[0], [0.0, 0.3], gradient=self.gradient, on_failure="status",
                **SHORT,
            )[-1]  # fmt: skip
            y = self.jump(tf.concat([y, x], -1))
            return y, [y]

    random = np.random.default_rng(5)
    x = tf.constant(random.normal(size=[2, 4, 2]))
    weights = None
    results = []
    for gradient in (SymplecticAdjoint("sqrt"), Backprop()):
        layer = keras.layers.RNN(Cell(gradient), return_sequences=True, dtype="float64")
        layer.build(x.shape)
        weights = weights or [random.normal(size=w.shape) for w in layer.get_weights()]
        layer.set_weights(weights)

        def compute(layer=layer):
            with tf.GradientTape() as tape:
                tape.watch(x)
                value = loss(layer(x))
            return tape.gradient(value, [x, *(w.value for w in layer.trainable_variables)])

        results.append(tf.function(compute, jit_compile=jit)())
    assert len(results[0]) == 5
    for a, b in zip(*results):
        assert relative_error(a, b) < FLOAT64


@pytest.mark.slow
@pytest.mark.parametrize("mode", [slow("eager"), "graph"])
def test_vectorized_map(mode):
    problem = mlp(batch=3, hidden=4)
    sources = [problem.y0, *problem.variables]

    def solve(y):
        return tfsymadj.odeint(problem.dynamics, y, problem.t, on_failure="status", **SHORT)

    def compute(mapped):
        with tf.GradientTape() as tape:
            tape.watch(problem.y0)
            if mapped:
                y = tf.vectorized_map(lambda y: solve(y[tf.newaxis])[:, 0], problem.y0)
            else:
                y = tf.transpose(solve(problem.y0), [1, 0, 2])
            value = loss(y)
        return [y, *tape.gradient(value, sources)]

    actual, expected = (run(lambda mapped=m: compute(mapped), mode) for m in (True, False))
    for a, b in zip(actual, expected):
        assert relative_error(a, b) < FLOAT64


@pytest.mark.slow
@pytest.mark.parametrize(
    "options", [SHORT, slow(dict(method="bosh3", rtol=1e-2))], ids=["rk4", "bosh3"]
)
def test_jacobian(options):
    problem = mlp(batch=1, hidden=4)
    sources = [problem.y0, problem.t, *problem.variables]

    @tf.function
    def compute(gradient):
        with tf.GradientTape(persistent=isinstance(gradient, Backprop)) as tape:
            tape.watch(sources[:2])
            y = tfsymadj.odeint(
                problem.dynamics, problem.y0, problem.t, gradient=gradient, **options
            )[-1, 0]
            entries = tf.unstack(y)
        # Backprop's loop has no vectorized gradient in general: one row after the other.
        if isinstance(gradient, Backprop):
            rows = [tape.gradient(entry, sources) for entry in entries]
            return [tf.stack(row) for row in zip(*rows)]
        return tape.jacobian(y, sources)

    actual, expected = compute(SymplecticAdjoint("sqrt")), compute(Backprop())
    for a, b in zip(actual, expected):
        assert relative_error(a, b) < FLOAT64


# Dynamics with a trace of their own


@pytest.mark.parametrize(
    "inner, mode",
    [
        pytest.param(False, "eager", id="is-eager"),
        slow(False, "graph", id="is-graph"),
        slow(False, "xla", id="is-xla"),
        slow(True, "eager", id="calls-eager"),
        pytest.param(True, "graph", id="calls-graph"),
        slow(True, "xla", id="calls-xla"),
    ],
)
def test_traced_dynamics(mode, inner):
    problem = mlp(hidden=4)
    traced = tf.function(problem.dynamics)
    traced(tf.constant(0.0, tf.float64), problem.y0)
    factor = tf.Variable(1.5, dtype=tf.float64)

    def calls(t, y):
        return factor * traced(t, y)

    def plain(t, y):
        return factor * problem.dynamics(t, y)

    variables = (factor, *problem.variables) if inner else problem.variables
    y0, t = problem.y0, problem.t
    dynamics = calls if inner else traced
    reference = plain if inner else problem.dynamics
    actual, expected = (
        gradients(type(problem)(f, y0, t, variables=variables), g, mode, **SHORT)
        for f, g in ((dynamics, SymplecticAdjoint("sqrt")), (reference, Backprop()))
    )
    assert relative_error(actual, expected) < FLOAT64


def test_traced_dynamics_inside_a_loop():
    problem = mlp(batch=2, hidden=4)
    traced = tf.function(problem.dynamics)
    traced(tf.constant(0.0, tf.float64), problem.y0[:1])

    @tf.function
    def compute(dynamics):
        with tf.GradientTape() as tape:
            y = tf.map_fn(
                lambda y: tfsymadj.odeint(dynamics, y[tf.newaxis], problem.t, **SHORT), problem.y0
            )
            value = loss(y)
        return tape.gradient(value, problem.variables)

    # The same sums, in the order that TensorFlow's optimizer puts them.
    for actual, expected in zip(compute(traced), compute(problem.dynamics)):
        np.testing.assert_allclose(actual, expected, rtol=1e-14)


def test_concrete_function_inside_a_loop():
    """Its variables can't be handed over: a clear refusal, never a missing gradient."""
    problem = mlp(batch=2, hidden=4)
    specs = tf.TensorSpec([], tf.float64), tf.TensorSpec([1, 3], tf.float64)
    concrete = tf.function(problem.dynamics).get_concrete_function(*specs)

    @tf.function
    def compute():
        with tf.GradientTape() as tape:
            y = tf.map_fn(
                lambda y: tfsymadj.odeint(concrete, y[tf.newaxis], problem.t, **SHORT), problem.y0
            )
            value = loss(y)
        return tape.gradient(value, problem.variables)

    with pytest.raises(ValueError, match="the Python function itself. Received: variables"):
        compute()
