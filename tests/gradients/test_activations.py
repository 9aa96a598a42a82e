"""Gradients from activations that the forward pass has kept."""

import numpy as np
import pytest
import tensorflow as tf
from helpers.gradients import FLOAT64, gradients, relative_error
from helpers.modes import MODES, run, slow
from helpers.problems import everything, mlp

import tfsymadj
from tfsymadj import Backprop, SymplecticAdjoint
from tfsymadj.checkpoints import memory as plans
from tfsymadj.checkpoints.budget import budget_recording
from tfsymadj.checkpoints.recording import Recording

#: Up to 8 steps they are kept, more are computed again in segments.
FEW, MANY = dict(rtol=1e-3), dict(rtol=1e-3, max_step=0.04)
CASES = {
    "few": FEW,
    "many": MANY,
    "all": dict(rtol=1e-9, max_steps=60),
    "every output a step": dict(rtol=1e-5, outputs="step"),
    "not FSAL": dict(method="fehlberg45", rtol=1e-3, max_step=0.04),
    "steps of given length": dict(method="rk4", num_steps=5),
}


FAST = {("few", "xla"), ("many", "graph")}


@pytest.fixture
def keeps(monkeypatch):
    """Activations are kept of small states, too."""
    monkeypatch.setattr(plans, "WORTHWHILE", 0)


@pytest.mark.parametrize(
    "case, mode",
    [
        (case, mode) if (case, mode) in FAST else slow(case, mode)
        for case in CASES
        for mode in MODES
    ],
)
def test_gradients(case, mode, keeps):
    options = {"outputs": "auto", **CASES[case]}
    expected = gradients(mlp(), Backprop(), "graph", **options)
    actual = gradients(mlp(), SymplecticAdjoint(), mode, **options)
    assert relative_error(actual, expected) < FLOAT64


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["graph", "xla"])
@pytest.mark.parametrize("options", [FEW, MANY], ids=["few", "many"])
def test_nests(options, mode, keeps):
    """Parts of several dtypes and shapes, arguments, closed-over tensors."""
    expected = gradients(everything(), Backprop(), "graph", **options)
    actual = gradients(everything(), SymplecticAdjoint(), mode, **options)
    assert relative_error(actual, expected) < FLOAT64


def stats_of(gradient, **options):
    problem = mlp()
    return tf.function(
        lambda: (
            tfsymadj.solve(
                problem.dynamics, problem.y0, problem.t, gradient=gradient, **options
            ).stats
        )
    )()


@pytest.mark.slow
def test_evaluations(keeps):
    """None backward but the slope at the end of the last step, if all of them are there."""
    stats = stats_of("symplectic_adjoint", **FEW)
    assert stats.num_accepted <= 8 and stats.num_backward_evaluations == 1
    stats = stats_of("symplectic_adjoint", **MANY)
    recomputed, accepted = (int(stats.num_backward_evaluations) - 1) / 6, int(stats.num_accepted)
    assert accepted - 16 <= recomputed <= accepted - 8
    assert stats_of("symplectic_adjoint", method="rk4", num_steps=5).num_backward_evaluations == 0


def test_small_states_are_computed_again():
    stats = stats_of("symplectic_adjoint", **FEW)
    assert stats.num_backward_evaluations == 6 * stats.num_accepted + 1


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["graph", slow("xla")])
def test_budgets(mode):
    """Activations in segments, and computed again from states by binomial checkpointing."""
    options, expected = dict(MANY, max_steps=300), None
    counts = []
    for memory in ("30 kB", "60 kB", "64 MiB"):
        gradient = SymplecticAdjoint(memory=memory)
        counts.append(int(stats_of(gradient, **options).num_backward_evaluations))
        actual = gradients(mlp(), gradient, mode, **options)
        expected = expected or gradients(mlp(), Backprop(), "graph", **options)
        assert relative_error(actual, expected) < FLOAT64
    assert counts[0] > counts[1] > counts[2] == 1


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["graph", "xla"])
def test_events(mode, keeps):
    """The attempt that the event is found in writes over the activations of an earlier step."""
    problem = mlp()
    event = tfsymadj.Event(lambda t, y: y[0, 0] - tf.cast(0.9 * problem.y0[0, 0], y.dtype))

    def compute(gradient):
        @tf.function(jit_compile=True if mode == "xla" else None)
        def run(y0):
            with tf.GradientTape() as tape:
                tape.watch(y0)
                solution = tfsymadj.solve(
                    problem.dynamics, y0, problem.t, event=event, gradient=gradient, **MANY
                )
                value = tf.reduce_sum(solution.event.y**2) + solution.event.t
            return value, tape.gradient(value, [y0, *problem.variables]), solution.event.index

        return run(problem.y0)

    value, expected, index = compute(Backprop())
    assert index == 0
    found, actual, _ = compute(SymplecticAdjoint())
    assert relative_error(found, value) < FLOAT64
    for x, y in zip(actual, expected):
        assert relative_error(x, y) < FLOAT64


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["graph", "xla"])
def test_second_derivatives(mode, keeps):
    problem = mlp(batch=2)
    w = problem.variables[0]

    def compute(gradient):
        @tf.function(jit_compile=True if mode == "xla" else None)
        def run(y0):
            with tf.GradientTape() as outer:
                outer.watch(y0)
                with tf.GradientTape() as tape:
                    tape.watch(y0)
                    y = tfsymadj.odeint(
                        problem.dynamics, y0, [0.0, 0.4], gradient=gradient, rtol=1e-6, max_steps=12
                    )
                    value = tf.reduce_sum(y[-1] ** 3)
                first = tf.reduce_sum(tape.gradient(value, w) ** 2)
            return outer.gradient(first, [y0, *problem.variables])

        return run(problem.y0)

    for x, y in zip(compute(SymplecticAdjoint()), compute(Backprop())):
        assert relative_error(x, y) < FLOAT64


@pytest.mark.parametrize("mode", ["graph", "xla"])
def test_sizes_are_no_activations(mode):
    """Derivatives read the shapes of what was evaluated, and XLA wants these to be constant."""
    kernel = tf.Variable(tf.random.stateless_normal([3, 2, 2], [0, 1], dtype=tf.float64))
    y0 = tf.random.stateless_normal([1, 4, 2], [0, 2], dtype=tf.float64)

    def dynamics(t, y):
        wide = tf.concat([tf.tanh(y), tf.tile(y[:, :1], [1, 2, 1])], 1)
        return tf.nn.conv1d(wide, kernel, 1, "SAME")[:, : tf.shape(y)[1]]

    def compute(gradient):
        with tf.GradientTape() as tape:
            tape.watch(y0)
            y = tfsymadj.odeint(
                dynamics, y0, [0.0, 1.0], method="rk4", num_steps=2, gradient=gradient
            )
        return tape.gradient(y, [y0, kernel])

    expected = run(lambda: compute(Backprop()), "graph")
    for x, y in zip(run(lambda: compute(SymplecticAdjoint()), mode), expected):
        assert relative_error(x, y) < FLOAT64


@pytest.mark.slow
@pytest.mark.parametrize("options", [dict(method="rk4", num_steps=9), slow(MANY)])
@pytest.mark.parametrize("budget", [None, 14], ids=["every step", "binomial"])
def test_segments_of_one_step(options, budget, monkeypatch):
    """Whose activations are used at once."""

    def plan(problem, halves, size):
        if budget is None:
            return Recording(1, problem.max_steps, 1, halves=halves)
        return budget_recording(problem, budget, keeps_last=True, halves=halves, values=4)

    monkeypatch.setattr(plans, "_activations_recording", plan)
    options = dict(options, max_steps=64)
    expected = gradients(mlp(), Backprop(), "graph", **options)
    actual = gradients(mlp(), SymplecticAdjoint(), "graph", **options)
    assert relative_error(actual, expected) < FLOAT64


def test_what_only_the_derivative_computes(keeps):
    """Is not computed forward: the inverse in the derivative of a determinant may not exist."""
    y0 = tf.constant([[1.0, 2.0], [2.0, 4.0]], tf.float64)

    def dynamics(t, y):
        return tf.linalg.det(y) * y

    for options in (dict(method="rk4", num_steps=3), dict(rtol=1e-3)):
        with tf.GradientTape() as tape:
            tape.watch(y0)
            y = tfsymadj.odeint(dynamics, y0, [0.0, 1.0], **options)
        np.testing.assert_allclose(y[-1], y0, atol=1e-14)
        with pytest.raises(tf.errors.InvalidArgumentError, match="not invertible"):
            tape.gradient(y, y0)


def test_large_constants_are_there_once():
    matrix = np.random.default_rng(0).normal(size=[50, 50])
    y0 = tf.ones([3, 50], tf.float64)

    def compute():
        with tf.GradientTape() as tape:
            tape.watch(y0)
            y = tfsymadj.odeint(
                lambda t, y: tf.tanh(y @ matrix), y0, [0.0, 1.0], method="rk4", num_steps=3
            )
        return tape.gradient(y, y0)

    definition = tf.function(compute).get_concrete_function().graph.as_graph_def()
    nodes = [*definition.node, *(x for f in definition.library.function for x in f.node_def)]
    large = [x for x in nodes if x.op == "Const" and x.ByteSize() > matrix.nbytes]
    assert len(large) == 1
