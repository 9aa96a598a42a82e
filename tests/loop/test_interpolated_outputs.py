"""Outputs inside of steps: exact in value order and gradient, at no evaluation."""

import numpy as np
import pytest
import tensorflow as tf
from helpers.gradients import FLOAT64, gradients, relative_error
from helpers.modes import MODES, partly_slow, run, slow
from helpers.problems import everything, loss, mlp, pendulum, pendulum_exactly
from helpers.tableaus import EXTENDED

import tfsymadj
from tfsymadj import METHODS, Backprop, SymplecticAdjoint
from tfsymadj.methods import get_method

ADAPTIVE = [name for name, x in METHODS.items() if x.adaptive and x.explicit]
INTERPOLATED = ("dopri5", "tsit5", "bosh3", "adaptive_heun", "fehlberg2", "dop853")
MANY = tuple(np.linspace(0.0, 1.1, 40))


def pendulum_at(times, outputs="auto", **options):
    y0 = tf.constant([1.0, 0.5], tf.float64)
    return tfsymadj.solve(pendulum, y0, times, outputs=outputs, **options)


# The choice


@pytest.mark.parametrize("method", partly_slow(ADAPTIVE, "fehlberg2", "adaptive_heun", "dopri8"))
def test_auto_interpolates_where_the_order_is_kept(method):
    times = np.linspace(0.0, 1.0, 30)
    options = dict(method=method, rtol=1e-2, atol=1e-2)
    auto = int(pendulum_at(times, **options).stats.num_accepted)
    step = int(pendulum_at(times, outputs="step", **options).stats.num_accepted)
    between = int(pendulum_at(times, outputs="interpolate", **options).stats.num_accepted)
    assert step >= 29 > between
    assert auto == (between if method in INTERPOLATED else step)


def test_equal_steps_end_at_outputs():
    times = np.linspace(0.0, 1.0, 5)
    options = dict(method="dopri5", num_steps=2)
    states = [pendulum_at(times, outputs=x, **options).y for x in ("auto", "step", "interpolate")]
    np.testing.assert_array_equal(states[0], states[1])
    np.testing.assert_array_equal(states[0], states[2])


def test_wrong_outputs():
    with pytest.raises(ValueError, match="`outputs` must be one of .*'interpolate'"):
        pendulum_at([0.0, 1.0], outputs="dense")


def test_outputs_do_not_count_as_steps():
    """More entries of `t` than `max_steps` are fine if no step has to end at them."""
    times = np.linspace(0.0, 0.1, 100)
    assert pendulum_at(times, max_steps=20).success
    with pytest.raises(ValueError, match="`max_steps` must be at least"):
        pendulum_at(times, max_steps=20, outputs="step")


# Values


@pytest.mark.parametrize("mode", partly_slow(MODES, "xla"))
@pytest.mark.parametrize("direction", [1.0, -1.0])
@pytest.mark.parametrize("method", ["dopri5", slow("dop853")])
def test_values(method, direction, mode):
    times = direction * np.array([0.0, 0.01, 0.4, 0.41, 2.0, 2.5, 3.0])
    options = dict(method=method, rtol=1e-9, atol=1e-9)
    y = run(lambda: pendulum_at(times, **options).y, mode)
    np.testing.assert_allclose(y, pendulum_exactly(times), atol=1e-7)
    np.testing.assert_array_equal(y[0], [1.0, 0.5])
    ends = run(lambda: pendulum_at(times[[0, -1]], **options).y, mode)
    np.testing.assert_allclose(y[-1], ends[-1], rtol=1e-14)


@pytest.mark.parametrize("count", [3, 16, 17, 33])
def test_number_of_outputs(count):
    """Around the size of a block, and several blocks to a step and steps to a block."""
    times = np.linspace(0.0, 3.0, count)
    for rtol in (1e-2, 1e-9):
        y = pendulum_at(times, rtol=rtol, atol=rtol).y
        np.testing.assert_allclose(y, pendulum_exactly(times), atol=200 * rtol)


def test_large_states_go_one_by_one():
    y0 = tf.ones([300, 300], tf.float64)
    times = [0.0, 0.1, 0.25, 0.5, 1.0]
    y = tfsymadj.odeint(lambda t, y: -y, y0, times, rtol=1e-8, atol=1e-8, outputs="auto")
    np.testing.assert_allclose(y[:, 7, 7], np.exp(-np.array(times)), atol=1e-7)


def test_number_of_times_unknown_when_traced():
    @tf.function(input_signature=[tf.TensorSpec([None], tf.float64)])
    def solve(times):
        with tf.GradientTape() as tape:
            tape.watch(times)
            y = tfsymadj.odeint(
                lambda t, y: -y, tf.ones([], tf.float64), times, rtol=1e-8, outputs="auto"
            )
            value = tf.reduce_sum(y)
        return y, tape.gradient(value, times)

    for count in (2, 3, 40):
        times = np.linspace(0.0, 1.0, count)
        y, found = solve(tf.constant(times))
        np.testing.assert_allclose(y, np.exp(-times), atol=1e-5)
        expected = -np.exp(-times)
        expected[0] = np.sum(np.exp(-times)[1:])  # a later start moves all states
        np.testing.assert_allclose(found, expected, atol=1e-4)


def pendulum_step(method, t, h, y):
    """A step, and what outputs inside of it take."""
    dynamics = lambda t, ys: [pendulum(t, ys[0])]  # noqa: E731
    at = [tf.constant(t, tf.float64), tf.constant(h, tf.float64), [y]]
    return method.extended(dynamics, *at, method.step(dynamics, *at), wanted=tf.constant(True))


@pytest.mark.parametrize(
    "method, largest",
    [(name, 0.1) for name in ("dopri5", "tsit5", "bosh3", "rk4", "heun", "euler")]
    + [("dop853", 1.6)],  # or its errors would be those of rounding
)
def test_order_within_a_step(method, largest):
    """The error inside of a step of size h is of order h^(p + 1), as claimed."""
    extended = get_method(method).with_interpolant()
    thetas, y0 = np.linspace(0.1, 0.9, 9), tf.constant([2.5, 0.5], tf.float64)
    powers = thetas[:, np.newaxis] ** np.arange(1, extended.dense.shape[1] + 1)
    sizes, errors = largest / 2.0 ** np.arange(4), []
    for h in sizes:
        slopes = np.stack([slope[0] for slope in pendulum_step(extended, 0.0, h, y0).slopes])
        inside = y0 + h * powers @ extended.dense.T @ slopes
        expected = pendulum_exactly([0.0, *h * thetas], y0)[1:]
        errors.append(np.abs(inside - expected).max())
    observed = np.log2(errors[-2] / errors[-1]) - 1.0
    assert abs(observed - extended.dense_order) < 0.2


# Gradients


@pytest.mark.parametrize(
    "gradient",
    [
        SymplecticAdjoint(),
        slow(SymplecticAdjoint("steps")),
        slow(SymplecticAdjoint("stages")),
        slow(SymplecticAdjoint(12)),
        slow(tfsymadj.StepCheckpoint()),
        slow(tfsymadj.SolveCheckpoint()),
    ],
    ids=str,
)
@pytest.mark.parametrize("mode", ["graph", slow("eager"), slow("xla")])
def test_gradients_are_those_of_backprop(gradient, mode):
    problem = everything(MANY)
    options = dict(rtol=1e-4, atol=1e-4, max_steps=64, outputs="auto")
    actual = gradients(problem, gradient, mode, **options)
    expected = gradients(problem, Backprop(), "graph", **options)
    assert relative_error(actual, expected) < FLOAT64


@pytest.mark.slow
@pytest.mark.parametrize(
    "gradient",
    [
        SymplecticAdjoint(),
        slow(SymplecticAdjoint("steps")),
        slow(SymplecticAdjoint("stages")),
        slow(SymplecticAdjoint(9)),
        slow(tfsymadj.StepCheckpoint()),
        slow(tfsymadj.SolveCheckpoint()),
    ],
    ids=str,
)
@pytest.mark.parametrize("mode", ["graph", slow("eager"), slow("xla")])
def test_gradients_with_a_row_of_the_extension(gradient, mode):
    """Where some steps have outputs inside, and others have none."""
    options = dict(method=EXTENDED, rtol=1e-3, atol=1e-3, max_steps=64, outputs="auto")
    check_extended(everything(), gradient, mode, 1, **options)


@pytest.mark.slow
@pytest.mark.parametrize(
    "gradient, mode",
    [
        (SymplecticAdjoint(), "eager"),
        (SymplecticAdjoint(), "graph"),
        (SymplecticAdjoint(), "xla"),
        (SymplecticAdjoint("steps"), "graph"),
        (SymplecticAdjoint("stages"), "graph"),
        (SymplecticAdjoint(20), "graph"),
        (tfsymadj.StepCheckpoint(), "graph"),
        (tfsymadj.SolveCheckpoint(), "graph"),
    ],
    ids=str,
)
def test_gradients_of_dop853(gradient, mode):
    options = dict(method="dop853", rtol=1e-8, atol=1e-8, max_steps=64, outputs="auto")
    check_extended(everything(), gradient, mode, 3, **options)


def check_extended(problem, gradient, mode, further, **options):
    solution = tfsymadj.solve(problem.dynamics, problem.y0, problem.t, args=problem.args, **options)
    stats, s = solution.stats, get_method(options["method"]).stages
    with_outputs = (int(stats.num_evaluations) - 2 - s * int(stats.num_steps)) // further
    assert 0 < with_outputs < int(stats.num_accepted)
    actual = gradients(problem, gradient, mode, **options)
    expected = gradients(problem, Backprop(), "graph", **options)
    assert relative_error(actual, expected) < FLOAT64


@pytest.mark.slow
@pytest.mark.parametrize("mode", [slow("eager"), "graph", slow("xla")])
def test_gradients_in_each_mode(mode):
    problem = mlp(t=tuple(np.linspace(1.0, -0.5, 9)))
    options = dict(rtol=1e-5, max_steps=64, outputs="auto")
    actual = gradients(problem, SymplecticAdjoint(), mode, **options)
    expected = gradients(problem, Backprop(), "graph", **options)
    assert relative_error(actual, expected) < FLOAT64


@pytest.mark.slow
@pytest.mark.parametrize("method", [name for name in ADAPTIVE if name != "dopri5"])
def test_gradients_of_each_method(method):
    options = dict(method=method, rtol=1e-3, atol=1e-3, max_steps=64, outputs="interpolate")
    problem = mlp(t=(0.0, 0.11, 0.37, 0.38, 1.0))
    actual = gradients(problem, SymplecticAdjoint(), "graph", **options)
    expected = gradients(problem, Backprop(), "graph", **options)
    assert relative_error(actual, expected) < FLOAT64


def test_gradient_for_times_by_differences():
    """Those of outputs inside of steps: the derivative of the interpolating polynomial."""
    times = np.array([0.0, 0.2, 0.5, 1.3])

    def value(times):
        with tf.GradientTape() as tape:
            t = tf.constant(times)
            tape.watch(t)
            y = pendulum_at(t, rtol=1e-10, atol=1e-10).y
            total = loss(y)
        return float(total), tape.gradient(total, t)

    _, found = value(times)
    for i in range(4):
        shift = 1e-5 * np.eye(4)[i]
        difference = (value(times + shift)[0] - value(times - shift)[0]) / 2e-5
        np.testing.assert_allclose(found[i], difference, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["bosh3", "dopri5", "dop853", EXTENDED], ids=str)
def test_second_derivatives(method):
    problem = everything((0.0, 0.3, 0.5, 1.0))
    options = dict(method=method, rtol=1e-2, atol=1e-2, max_steps=16, outputs="auto")

    @tf.function
    def second(gradient):
        sources = list(problem.sources.values())
        with tf.GradientTape() as outer:
            outer.watch([x for x in sources if not isinstance(x, tf.Variable)])
            with tf.GradientTape() as inner:
                inner.watch([x for x in sources if not isinstance(x, tf.Variable)])
                y = tfsymadj.odeint(
                    problem.dynamics, problem.y0, problem.t, args=problem.args, gradient=gradient,
                    **options,
                )  # fmt: skip
                value = loss(y)
            mixed = loss([x for x in inner.gradient(value, sources) if x is not None])
        return [tf.convert_to_tensor(x) for x in outer.gradient(mixed, sources)]

    actual, expected = second(SymplecticAdjoint()), second(Backprop())
    for name, a, b in zip(problem.sources, actual, expected):
        assert relative_error(a, b) < 1e-10, name


# Evaluations


@pytest.mark.parametrize("checkpoints", ["auto", "steps", slow("stages")])
def test_outputs_cost_no_evaluations(checkpoints):
    options = dict(rtol=1e-4, atol=1e-4, gradient=SymplecticAdjoint(checkpoints), max_steps=64)
    few = pendulum_at([0.0, 1.0, 2.0], **options).stats
    many = pendulum_at(np.linspace(0.0, 2.0, 200), **options).stats
    assert [int(x) for x in few] == [int(x) for x in many]


@pytest.mark.parametrize("times, fine", [([0.0, 1.0], True), ([0.0, 0.5, 1.0], False)])
def test_failure_in_a_row_of_the_extension(times, fine):
    """Dynamics that are not finite where no other row is: at the end of a tenth of the step."""

    def dynamics(t, y):
        return tf.where(tf.abs(t - 0.1) < 1e-3, np.nan * y, tf.ones_like(y))

    y0 = tf.zeros([], tf.float64)
    options = dict(method="dop853", first_step=1.0, outputs="auto", on_failure="status")
    solution = tfsymadj.solve(dynamics, y0, times, **options)
    assert solution.success == fine
    assert np.isfinite(solution.y).all() == fine


def test_an_extended_method_for_ends_of_steps():
    extended = get_method("dop853").with_interpolant()
    for options in (dict(outputs="step"), dict(num_steps=2)):
        expected = pendulum_at([0.0, 0.5, 1.0], method="dop853", **options)
        actual = pendulum_at([0.0, 0.5, 1.0], method=extended, **options)
        np.testing.assert_array_equal(actual.y, expected.y)
        assert int(actual.stats.num_evaluations) == int(expected.stats.num_evaluations)


def test_failure_inside():
    times = np.linspace(0.0, 2.0, 9)
    solution = tfsymadj.solve(
        lambda t, y: y**2, tf.constant(1.0, tf.float64), times, on_failure="status", outputs="auto"
    )
    assert not solution.success
    # y = 1 / (1 - t): the states before the pole are there, those after it are not.
    np.testing.assert_allclose(solution.y[:4], 1.0 / (1.0 - times[:4]), rtol=1e-2)
    assert np.isnan(solution.y[4:]).all()


# The solver's own steps

ADAPTIVE_OR_EQUAL = pytest.mark.parametrize(
    "options", [dict(rtol=1e-4, max_steps=30), dict(method="rk4", num_steps=5)]
)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(
    "options", [dict(rtol=1e-4, max_steps=30), dict(method="rk4", num_steps=5)]
)
def test_every_step(options, mode):
    def solve():
        solution = pendulum_at([0.0, 1.0, 3.0], outputs="steps", **options)
        return solution.t, solution.y, solution.stats.num_accepted

    t, y, n = run(solve, mode)
    n = int(n)
    assert len(t) == len(y) == options.get("max_steps", 10) + 1
    assert t[0] == 0.0 and t[n] == 3.0 and 1.0 in t[:n].numpy()
    assert np.all(np.diff(t[: n + 1]) > 0)
    np.testing.assert_array_equal(t[n:], np.full(len(t) - n, 3.0))
    np.testing.assert_array_equal(y[n:], np.broadcast_to(y[n], [len(t) - n, 2]))
    np.testing.assert_allclose(y[: n + 1], pendulum_exactly(t[: n + 1].numpy()), atol=1e-2)


@pytest.mark.slow
@pytest.mark.parametrize(
    "gradient", [SymplecticAdjoint(), slow(SymplecticAdjoint(12)), slow("aca"), slow("baseline")]
)
@pytest.mark.parametrize(
    "options", [dict(rtol=1e-4, max_steps=30), slow(dict(method="rk4", num_steps=5))]
)
def test_gradients_of_every_step(gradient, options):
    problem, options = mlp(), dict(options, outputs="steps")
    actual = gradients(problem, gradient, "graph", **options)
    expected = gradients(problem, Backprop(), "graph", **options)
    assert relative_error(actual, expected) < FLOAT64


def test_every_step_of_a_failed_solve():
    solution = tfsymadj.solve(
        lambda t, y: y**2, tf.constant(1.0, tf.float64), [0.0, 2.0], outputs="steps",
        on_failure="status", max_steps=200,
    )  # fmt: skip
    n = int(solution.stats.num_accepted)
    assert np.isfinite(solution.y[: n + 1]).all() and np.isnan(solution.y[n + 1 :]).all()


def test_every_equal_step_of_a_failed_solve():
    """Also the parts of the state that stay finite."""

    def dynamics(t, y):
        return {"a": 1.0 / tf.maximum(0.55 - t, 0.0), "b": -y["b"]}

    y0 = {"a": tf.constant(1.0, tf.float64), "b": tf.constant(1.0, tf.float64)}
    solution = tfsymadj.solve(
        dynamics, y0, [0.0, 1.0], method="euler", num_steps=10, outputs="steps", on_failure="status"
    )
    assert not solution.success
    for y in solution.y.values():
        assert np.isfinite(y[:7]).all() and np.isnan(y[7:]).all()


def test_every_step_is_for_solve():
    with pytest.raises(ValueError, match="is for `solve`"):
        tfsymadj.ODELayer(lambda t, y: -y, outputs="steps")
    with pytest.raises(ValueError, match="no continuous adjoint"):
        pendulum_at([0.0, 1.0], outputs="steps", gradient="continuous_adjoint")


# A bound of the steps


@pytest.mark.slow
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_largest_step(sign, mode):
    options = dict(rtol=1e-2, atol=1e-2, outputs="steps", max_steps=80)

    def sizes(**more):
        solution = run(lambda: pendulum_at([0.0, sign * 2.03], **options, **more), mode)
        n = int(solution.stats.num_accepted)
        return sign * np.diff(solution.t[: n + 1])

    assert np.max(sizes()) > 0.1
    bounded = sizes(max_step=0.05)
    assert np.max(bounded) <= 0.05 * (1.0 + 1e-12)
    assert len(bounded) == 41 + (bounded[0] < 0.05 * (1.0 - 1e-6))


@pytest.mark.parametrize("outputs", ["step", "steps"])
@pytest.mark.parametrize("start", [0.0, 1e9])
@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_largest_step_between_outputs_as_far_apart(sign, start, outputs):
    """By rounding 0.4 - 0.3 is more than 0.1, and 0.3 + 0.1 is 0.4 all the same."""
    times = sign * (start + np.arange(11) / 10)
    options = dict(rtol=1e-2, atol=1e-2, max_step=0.1, first_step=0.1, max_steps=20)
    solution = pendulum_at(times, outputs=outputs, **options)
    assert int(solution.stats.num_steps) == 10
    np.testing.assert_array_equal(solution.t[:11], times)


@pytest.mark.slow
def test_gradient_with_a_largest_step():
    problem, options = mlp(), dict(rtol=1e-2, max_step=0.1, max_steps=64)
    actual = gradients(problem, SymplecticAdjoint(), "graph", **options)
    expected = gradients(problem, Backprop(), "graph", **options)
    assert relative_error(actual, expected) < FLOAT64


def test_wrong_largest_step():
    with pytest.raises(ValueError, match="`max_step` must be a positive"):
        pendulum_at([0.0, 1.0], max_step=0.0)
    with pytest.raises(ValueError, match="bounds adaptive steps.*`step_size`"):
        pendulum_at([0.0, 1.0], max_step=0.1, num_steps=3)
