"""The solution at any time: exact in value order and in every gradient."""

import numpy as np
import pytest
import tensorflow as tf
from helpers.gradients import EXACT, FLOAT64, relative_error
from helpers.modes import run, slow
from helpers.problems import loss, mlp, pendulum, pendulum_exactly

import tfsymadj
from tfsymadj import Backprop

WAYS = (
    slow({}),
    slow(dict(outputs="step")),
    dict(method="rk4", num_steps=4),
    slow(dict(jumps=[0.55])),
)
OPTIONS = dict(rtol=1e-4, atol=1e-4, max_steps=30)


def solved(t=(0.0, 3.0), **options):
    y0 = tf.constant([1.0, 0.5], tf.float64)
    return tfsymadj.solve(pendulum, y0, t, dense=True, **{"rtol": 1e-9, "atol": 1e-9, **options})


@pytest.mark.parametrize("mode", ["eager", slow("graph"), slow("xla")])
@pytest.mark.parametrize("direction", [1.0, -1.0])
def test_values(mode, direction):
    times = direction * np.array([0.0, 0.01, 0.4, 1.3, 2.0, 2.9, 3.0])

    def compute():
        solution = solved(t=(0.0, 3.0 * direction), max_steps=200)
        return solution.interpolant(times), solution.y

    y, ends = run(compute, mode)
    np.testing.assert_allclose(y, pendulum_exactly(times), atol=1e-7)
    np.testing.assert_allclose(tf.gather(y, [0, 6]), ends, rtol=1e-12)


@pytest.mark.parametrize("options", WAYS)
def test_outputs_come_from_it(options):
    times = np.linspace(0.0, 3.0, 17)
    solution = solved(t=times, **options)
    np.testing.assert_allclose(solution.y, solution.interpolant(times), rtol=1e-13)
    others = {name: x for name, x in options.items() if name != "outputs"}
    if "num_steps" not in options:
        np.testing.assert_allclose(solution.y, pendulum_exactly(times), atol=1e-6)
    expected = tfsymadj.odeint(
        pendulum, tf.constant([1.0, 0.5], tf.float64), times, rtol=1e-9, atol=1e-9,
        **{"outputs": "interpolate", **others} if "num_steps" not in options else options,
    )  # fmt: skip
    np.testing.assert_allclose(solution.y, expected, atol=1e-7 if "outputs" in options else 1e-12)


def test_shapes_of_times():
    y0 = {"a": tf.ones([2, 3]), "b": (tf.ones([]),)}
    dynamics = lambda t, y: tf.nest.map_structure(tf.negative, y)  # noqa: E731
    interpolant = tfsymadj.solve(dynamics, y0, [0.0, 1.0], dense=True).interpolant
    for shape in ((), (5,), (4, 2), (0,)):
        y = interpolant(tf.fill(shape, 0.5))
        assert y["a"].shape == (*shape, 2, 3)
        assert y["b"][0].shape == shape
        np.testing.assert_allclose(y["a"], np.full([*shape, 2, 3], np.exp(-0.5)), rtol=1e-3)


def test_outside_it_is_nan():
    y = solved().interpolant([-0.1, 0.0, 3.0, 3.1])
    assert np.all(np.isnan(y[0])) and np.all(np.isnan(y[3]))
    assert np.all(np.isfinite(y[1:3]))


def gradients(gradient, mode, **options):
    """For everything, and the interpolant's own times."""
    problem = mlp(t=(0.1, 0.4, 1.0))
    at = tf.constant([0.1, 0.15, 0.31, 0.55, 0.77, 0.98, 1.0], tf.float64)
    sources = [*problem.sources.values(), at]

    def compute():
        with tf.GradientTape() as tape:
            tape.watch([x for x in sources if not isinstance(x, tf.Variable)])
            solution = tfsymadj.solve(
                problem.dynamics, problem.y0, problem.t, gradient=gradient, dense=True,
                **{**OPTIONS, **options},
            )  # fmt: skip
            y = solution.interpolant(at)
            value = loss(y) + loss(solution.y)
        return [y, *tape.gradient(value, sources)]

    return dict(enumerate(x.numpy() for x in run(compute, mode)))


@pytest.mark.parametrize("options", WAYS)
@pytest.mark.parametrize("gradient", EXACT)
def test_gradients_are_those_of_back_propagation(gradient, options):
    expected = gradients(Backprop(), "graph", **options)
    assert relative_error(gradients(gradient, "graph", **options), expected) < FLOAT64


@pytest.mark.slow
@pytest.mark.parametrize("gradient", [tfsymadj.SymplecticAdjoint(checkpoints=20), "aca"])
def test_gradients_of_dop853(gradient):
    expected = gradients(Backprop(), "graph", method="dop853")
    assert relative_error(gradients(gradient, "graph", method="dop853"), expected) < FLOAT64


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["eager", "xla"])
def test_gradients_are_the_same_in_all_modes(mode):
    expected = gradients("symplectic_adjoint", "graph")
    assert relative_error(gradients("symplectic_adjoint", mode), expected) < FLOAT64


def test_the_derivative_for_the_time_is_that_of_the_solution():
    times = tf.constant([0.5, 1.7], tf.float64)
    with tf.GradientTape() as tape:
        tape.watch(times)
        y = solved().interpolant(times)
        value = tf.reduce_sum(y[:, 0])
    expected = [pendulum(t, x)[0] for t, x in zip(times, y)]
    np.testing.assert_allclose(tape.gradient(value, times), expected, rtol=1e-6)


def test_leaves_a_function():
    solution = tf.function(lambda: solved(max_steps=100))()
    np.testing.assert_allclose(
        solution.interpolant(1.3), pendulum_exactly([0.0, 1.3])[1], atol=1e-7
    )


def test_what_is_refused():
    with pytest.raises(ValueError, match="`dense` can't be given together with"):
        solved(outputs="steps")
    with pytest.raises(ValueError, match="`dense` can't be given together with"):
        solved(event=tfsymadj.Event(lambda t, y: y[0]))
    with pytest.raises(TypeError, match="`dense` must be True or False"):
        tfsymadj.solve(pendulum, [1.0, 0.5], [0.0, 1.0], dense=1)
    with pytest.raises(ValueError, match="`dense` has no continuous adjoint"):
        solved(gradient="continuous_adjoint")
    with pytest.raises(ValueError, match="`dense` holds"):
        tfsymadj.solve(lambda t, y: -y, tf.ones([200_000]), [0.0, 1.0], dense=True)
    with pytest.raises(ValueError, match="`event` and `dense` are for `solve`"):
        tfsymadj.ODELayer(lambda t, y: -y, dense=True)


@pytest.mark.parametrize("direction", [1.0, -1.0])
def test_a_solve_that_takes_no_step(direction):
    """Its start is all that there is: nothing else may look like a solution."""
    times = direction * np.array([0.0, 1.0, 2.0])
    lost = lambda t, y: y * tf.sqrt(-1.0 - tf.abs(y))  # noqa: E731
    solution = tfsymadj.solve(lost, [1.0], times, dense=True, max_steps=20, on_failure="status")
    assert not solution.success
    np.testing.assert_array_equal(solution.y[:, 0], [1.0, np.nan, np.nan])
    np.testing.assert_array_equal(solution.interpolant(times)[:, 0], [1.0, np.nan, np.nan])
