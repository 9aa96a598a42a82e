"""`Reversible`: a scheme of its own, exact for it, at no checkpoints."""

import numpy as np
import pytest
import tensorflow as tf
from helpers.gradients import FLOAT64, gradients, relative_error
from helpers.memory import MIB, peak, rk4
from helpers.modes import MODES, partly_slow, run, slow
from helpers.problems import PENDULUM0, everything, mlp, pendulum, pendulum_exactly

import tfsymadj
from tfsymadj import Reversible


class Unrolled(Reversible):
    """Back-propagation through the same steps."""

    def solve(self, problem):
        outcome = tfsymadj.Backprop().solve(self.discretised(problem))
        return outcome._replace(ys=outcome.ys[: len(problem.ys)])


FIXED = dict(method="rk4", num_steps=10)
ADAPTIVE = dict(method="dopri5", rtol=1e-4, atol=1e-6, max_steps=40)


@pytest.mark.slow
@pytest.mark.parametrize("mode", partly_slow(MODES, "eager", "xla"))
@pytest.mark.parametrize(
    "options",
    [
        FIXED,
        slow(ADAPTIVE),
        slow(dict(ADAPTIVE, method="bosh3", first_step=0.01)),
        slow(dict(method="euler", num_steps=30)),
        slow(dict(ADAPTIVE, jumps=[0.25, 0.6])),
    ],
    ids=["rk4", "dopri5", "bosh3", "euler", "jumps"],
)
def test_exact_for_its_own_steps(options, mode):
    problem = everything()
    found = gradients(problem, Reversible(), mode, **options)
    expected = gradients(problem, Unrolled(), "graph", **options)
    # Rounding errors of the way back grow by 1 / 0.999 in each of some dozens of steps.
    assert relative_error(found, expected) < FLOAT64


@pytest.mark.slow
@pytest.mark.parametrize("coupling", [0.99, 0.999])
def test_rounding_errors_grow_as_the_coupling_says(coupling):
    """By 1 / coupling a step on the way back, whatever the dynamics."""
    steps = 300
    problem = mlp()
    options = dict(method="midpoint", num_steps=steps)
    found = gradients(problem, Reversible(coupling), "graph", **options)
    expected = gradients(problem, Unrolled(coupling), "graph", **options)
    assert relative_error(found, expected) < FLOAT64 * coupling ** (-2 * steps)


@pytest.mark.slow
def test_a_tape_for_each_stage(monkeypatch):
    """Where the activations of a step are too many for one tape."""
    problem = mlp()
    expected = gradients(problem, Unrolled(), "graph", **FIXED)
    monkeypatch.setattr("tfsymadj.checkpoints.memory.FREE", 0)
    assert relative_error(gradients(problem, Reversible(), "graph", **FIXED), expected) < FLOAT64


def test_finite_differences():
    w = tf.Variable(0.8, dtype=tf.float64)

    def value(x):
        y0 = tf.constant([0.3, 1.0], tf.float64)
        options = dict(method="bosh3", num_steps=5, gradient="reversible")
        y = tfsymadj.odeint(lambda t, y: tf.sin(x * y + t), y0, [0.0, 1.0], **options)
        return tf.reduce_sum(y[-1] ** 2)

    with tf.GradientTape() as tape:
        found = value(w)
    exact = tape.gradient(found, w)
    ahead, behind = (float(value(tf.constant(0.8 + d, tf.float64))) for d in (1e-5, -1e-5))
    np.testing.assert_allclose(exact, (ahead - behind) / 2e-5, rtol=1e-8)


@pytest.mark.parametrize("method", [slow("euler"), "midpoint", slow("bosh3"), "rk4"])
def test_order(method):
    """That of the method: the error goes down with h^p, or faster."""
    order, errors = tfsymadj.METHODS[method].order, []
    for n in (40, 80):
        y = tfsymadj.odeint(
            pendulum, PENDULUM0, [0.0, 2.0], method=method, num_steps=n, gradient="reversible"
        )
        errors.append(np.max(np.abs(y[-1] - pendulum_exactly([0.0, 2.0])[-1])))
    assert np.log2(errors[0] / errors[1]) > order - 0.3


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["eager", "graph"])
def test_second_derivatives(mode):
    w = tf.Variable(0.7, dtype=tf.float64)
    y0 = tf.constant([0.5, -1.0], tf.float64)

    def compute(gradient):
        with tf.GradientTape() as outer:
            with tf.GradientTape() as tape:
                y = tfsymadj.odeint(
                    lambda t, y: tf.sin(w * y), y0, [0.0, 1.0], gradient=gradient,
                    method="midpoint", num_steps=4,
                )  # fmt: skip
                value = tf.reduce_sum(y[-1] ** 2)
            first = tape.gradient(value, w)
        return first, outer.gradient(first, w)

    found = run(lambda: compute(Reversible()), mode)
    np.testing.assert_allclose(found, run(lambda: compute(Unrolled()), "graph"), rtol=1e-12)


@pytest.mark.slow
@pytest.mark.parametrize("mode", MODES)
def test_no_memory_for_more_steps(mode):
    """Their times and sizes, 48 bytes a step, and no states."""
    few, many = (peak(Reversible(), mode, **rk4(n)) for n in (50, 400))
    assert many < few + 2 * MIB  # 350 states are 44 MiB


@pytest.mark.parametrize("mode", ["graph", slow("xla")])
def test_a_way_back_that_is_lost(mode):
    """Solutions that come together cannot be told apart on the way back."""
    y0 = tf.constant([1.0, 2.0])

    def compute():
        with tf.GradientTape() as tape:
            tape.watch(y0)
            y = tfsymadj.odeint(
                lambda t, y: -20.0 * y, y0, [0.0, 1.0], method="rk4", num_steps=40,
                gradient="reversible",
            )  # fmt: skip
            value = tf.reduce_sum(y[-1])
        return tape.gradient(value, y0)

    if mode == "xla":
        assert np.all(np.isnan(run(compute, mode)))
        return
    with pytest.raises(tf.errors.InvalidArgumentError, match="be taken back"):
        run(compute, mode)


def test_statistics():
    options = dict(gradient="reversible", method="rk4", num_steps=5)
    stats = tfsymadj.solve(lambda t, y: -y, [1.0, 2.0], [0.0, 1.0, 2.0], **options).stats
    assert int(stats.num_evaluations) == 10 * 8 == int(stats.num_backward_evaluations)
    assert int(stats.num_states) == 2
    stats = tfsymadj.solve(lambda t, y: -y, [1.0], [0.0, 1.0], gradient="reversible").stats
    assert int(stats.num_evaluations) == 2 + 13 * int(stats.num_steps)


def test_no_gradient_solves_the_same_scheme():
    options = dict(gradient="reversible", method="euler", num_steps=5)
    wanted = tfsymadj.odeint(lambda t, y: -y, [1.0, 2.0], [0.0, 1.0, 2.0], **options)
    with tfsymadj.no_gradient():
        found = tfsymadj.odeint(lambda t, y: -y, [1.0, 2.0], [0.0, 1.0, 2.0], **options)
    np.testing.assert_array_equal(found, wanted)


@pytest.mark.parametrize(
    "options, message",
    [
        (dict(method="kvaerno3"), "`method`"),
        (dict(method="stormer_verlet", num_steps=3), "`method`"),
        (dict(outputs="interpolate"), "`outputs='interpolate'`"),
        (dict(dense=True), "`dense`"),
        (dict(event=tfsymadj.Event(lambda t, y: y[0][0])), "`event`"),
        (dict(batch_axis=0), "`batch_axis`"),
        (dict(batch_axis=0, lanes=1), "`batch_axis`"),
    ],
    ids=["implicit", "splitting", "interpolate", "dense", "event", "batch_axis", "lanes"],
)
def test_refused(options, message):
    y0 = (tf.ones([2]), tf.ones([2]))
    with pytest.raises(ValueError, match=f"{message}.*Use another `gradient`.*Received"):
        tfsymadj.solve(
            lambda t, y: (y[1], -y[0]), y0, [0.0, 0.5, 1.0], gradient="reversible", **options
        )


def test_jvp_is_refused():
    with pytest.raises(ValueError, match="`tangents`.*Use another `gradient`"):
        tfsymadj.jvp(
            lambda t, y: -y, [1.0], [0.0, 1.0], tangents={"y0": [1.0]}, gradient="reversible",
        )  # fmt: skip


@pytest.mark.parametrize("coupling", [0.0, -1.0, 1.1, float("nan"), "0.9", True])
def test_wrong_coupling(coupling):
    with pytest.raises(ValueError, match="`coupling`.*Received"):
        Reversible(coupling)
