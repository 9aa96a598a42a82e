"""Implicit methods: orders, stability, exact gradients, stiff problems, failures."""

import numpy as np
import pytest
import scipy.integrate
import scipy.linalg
import tensorflow as tf
from helpers.gradients import gradients, relative_error
from helpers.modes import slow
from helpers.problems import PENDULUM0, Problem, everything, mlp, pendulum, pendulum_exactly

import tfsymadj
from tfsymadj import METHODS, Backprop, ButcherTableau, NoGradient, Status, SymplecticAdjoint
from tfsymadj.dynamics.calling import as_function
from tfsymadj.dynamics.closing import Sources, close
from tfsymadj.methods import get_method, order_conditions

IMPLICIT = [name for name, tableau in METHODS.items() if not tableau.explicit]
L_STABLE = ["trbdf2", "kvaerno3", "kvaerno5", "kencarp4", "radau5"]
GAUSS = ["implicit_midpoint", "gauss4"]

#: Equal sums in another order; the stages and their cotangents are solved to rounding.
EXACT = 1e-11

# Alexander, SIAM Journal on Numerical Analysis 14 (1977), 1006-1021: not stiffly accurate at its
# start, and with two diagonals, so that there are two matrices in a step.
_X = 1 - np.sqrt(0.5)
SDIRK2 = ButcherTableau(name="sdirk2", order=2, c=(_X, 1), a=((_X,), (1 - _X, _X)), b=(1 - _X, _X))
TWO_DIAGONALS = ButcherTableau(
    name="two_diagonals",
    order=2,
    c=(1 / 4, 3 / 4),
    a=((1 / 4,), (1 / 4, 1 / 2)),
    b=(1 / 2, 1 / 2),
    b_error=(-1 / 2, 1 / 2),
)
# Radau IIA of order 3: all stages at a time, and stiffly accurate.
RADAU3 = ButcherTableau(
    name="radau3", order=3, c=(1 / 3, 1), a=((5 / 12, -1 / 12), (3 / 4, 1 / 4)), b=(3 / 4, 1 / 4)
)


# Tables


@pytest.mark.parametrize("name", IMPLICIT)
def test_order_conditions(name):
    tableau = METHODS[name]
    checked = [(tableau.b_vector, tableau.order)]
    if tableau.adaptive:
        checked.append((tableau.b_vector - tableau.error_vector, tableau.embedded_order))
    for weights, order in checked:
        for n in range(1, order + 1):
            for _, residual, _ in order_conditions.residuals(tableau.a_matrix, weights, n):
                assert abs(residual) < 1e-14


def stability(tableau, z):
    """R(z) = 1 + z b (I - z A)^-1 1."""
    s = tableau.stages
    solved = np.linalg.solve(np.eye(s) - z * tableau.a_matrix, np.ones(s))
    return 1 + z * tableau.b_vector @ solved


@pytest.mark.parametrize("name", IMPLICIT)
def test_stability(name):
    tableau = METHODS[name]
    left = [-0.1, -3.0, -50.0, -2 + 5j, -0.1 + 2j, -1 - 30j]
    assert all(abs(stability(tableau, z)) < 1 for z in left)
    axis = [abs(stability(tableau, 1j * x)) for x in (0.3, 1.0, 3.0, 10.0, 100.0)]
    assert max(axis) <= 1 + 1e-14
    if name in GAUSS:
        np.testing.assert_allclose(axis, 1.0, rtol=1e-14)
    else:
        assert name in L_STABLE and tableau.a[-1] == tableau.b
        assert abs(stability(tableau, -1e8)) < 1e-6 < 1e-4 > abs(stability(tableau, 1e6j))


@pytest.mark.parametrize("name", GAUSS)
def test_gauss_methods_are_their_own_partners(name):
    a, b = METHODS[name].a_matrix, METHODS[name].b_vector
    np.testing.assert_allclose(b[:, None] * a + b * a.T, np.outer(b, b), atol=1e-16)


# Solutions


# Those of the package are in `test_convergence.py`.
@pytest.mark.slow
@pytest.mark.parametrize("method", [RADAU3, SDIRK2, TWO_DIAGONALS], ids=str)
def test_observed_order_of_own_tables(method):
    order, counts, y0 = method.order, (16, 32, 64), tf.constant(PENDULUM0)
    exact = pendulum_exactly([0.0, 2.0])[-1]
    errors = []
    for n in counts:
        options = dict(method=method, num_steps=n, gradient=NoGradient())
        y = tfsymadj.odeint(pendulum, y0, [0.0, 2.0], **options)
        errors.append(np.linalg.norm(y[-1] - exact))
    slope = np.polyfit(np.log(counts), np.log(errors), 1)[0]
    assert abs(-slope - order) < 0.3, errors


@pytest.mark.parametrize("method", ["trbdf2", slow("kvaerno3"), slow("kvaerno5"), slow("radau5")])
def test_interpolated_outputs_reach_the_tolerance(method):
    times = np.linspace(0.0, 3.0, 7)
    options = dict(method=method, rtol=1e-5, atol=1e-5, gradient=NoGradient())
    y = tfsymadj.odeint(pendulum, PENDULUM0, times, outputs="interpolate", **options)
    assert np.max(np.abs(y - pendulum_exactly(times))) < 1e-3


def test_gauss_methods_keep_quadratic_invariants():
    """The length of a rigid body's angular momentum, and its energy, over many steps."""
    inverse = tf.constant([1.0, 0.5, 0.3], tf.float64)

    def dynamics(t, y):
        return tf.linalg.cross(y, inverse * y)

    y0 = tf.constant([[0.9, 0.4, -0.3], [0.1, -1.0, 0.4]], tf.float64)
    for method in GAUSS:
        options = dict(method=method, num_steps=500, gradient=NoGradient())
        y = tfsymadj.odeint(dynamics, y0, [0.0, 100.0], **options).numpy()
        for weights in (np.ones(3), inverse.numpy()):
            before, after = np.sum(weights * y * y, axis=-1)
            np.testing.assert_allclose(after, before, rtol=1e-13)
        assert np.max(np.abs(y[1] - y[0])) > 0.1


def robertson(t, y):
    a, b, c = tf.unstack(y, axis=-1)
    first = 0.04 * a - 1e4 * b * c
    second = 3e7 * b * b
    return tf.stack([-first, first - second, second], -1)


def _numpy_robertson(t, y):
    first, second = 0.04 * y[0] - 1e4 * y[1] * y[2], 3e7 * y[1] ** 2
    return [-first, first - second, second]


@pytest.mark.parametrize("method, most", [("kvaerno5", 250), slow("kvaerno3", 1800)])
def test_robertson(method, most):
    """To 1e11, where stiffness has grown to 1e4 and steps to 1e10."""
    times = [0.0, 0.4, 40.0, 4e3, 4e5, 4e7, 4e9, 1e11]
    scipy_options = dict(method="Radau", t_eval=times, rtol=1e-10, atol=[1e-14, 1e-18, 1e-14])
    y0 = np.array([1.0, 0.0, 0.0])
    exact = scipy.integrate.solve_ivp(_numpy_robertson, (0, 1e11), y0, **scipy_options).y.T
    options = dict(method=method, rtol=1e-6, atol=1e-10, outputs="step", gradient=NoGradient())
    solution = tfsymadj.solve(robertson, y0, times, **options)
    # The tolerance is that of one step.
    error = np.abs(solution.y - exact) / (1e-6 * np.abs(exact) + 1e-10)
    assert np.max(error) < 10 and int(solution.stats.num_steps) < most


@pytest.mark.parametrize("rtol", [1e-4, slow(1e-6)])
def test_radau5_takes_no_more_steps_than_scipys(rtol):
    y0, options = np.array([1.0, 0.0, 0.0]), dict(rtol=rtol, atol=1e-4 * rtol)
    theirs = scipy.integrate.solve_ivp(_numpy_robertson, (0, 1e5), y0, method="Radau", **options)

    @tf.function
    def ours():
        return tfsymadj.solve(
            robertson, y0, [0.0, 1e5], method="radau5", gradient=NoGradient(), **options
        )

    solution = ours()
    assert int(solution.stats.num_accepted) < 1.1 * len(theirs.t)
    np.testing.assert_allclose(solution.y[-1], theirs.y[:, -1], rtol=10 * rtol)


@pytest.mark.slow
def test_van_der_pol():
    def dynamics(t, y):
        return tf.stack([y[1], 1e6 * ((1.0 - y[0] ** 2) * y[1] - y[0])])

    options = dict(method="kvaerno5", rtol=1e-6, atol=1e-8, gradient=NoGradient())
    solution = tfsymadj.solve(dynamics, tf.constant([2.0, 0.0], tf.float64), [0.0, 2.0], **options)
    # SciPy's Radau at 1e-10.
    np.testing.assert_allclose(solution.y[-1], [1.70616773, -0.8928097], rtol=5e-6)
    assert int(solution.stats.num_steps) < 800


@pytest.mark.slow
def test_examples_have_their_own_equations():
    """The same numbers, but for rounding, whatever else is in the batch."""
    y0 = np.array([[0.95, 3.6e-5, 0.05], [0.5, 5e-6, 0.4], [0.9, 3e-5, 0.1]])
    options = dict(method="kvaerno3", num_steps=5, gradient=NoGradient())
    y = tfsymadj.odeint(robertson, y0, [0.0, 10.0], **options)
    for i in range(3):
        one = tfsymadj.odeint(robertson, y0[i], [0.0, 10.0], **options)
        np.testing.assert_allclose(y[:, i], one, rtol=1e-12)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["implicit_midpoint", "trbdf2", "radau5", "gauss4"])
def test_times_and_sizes_of_each_lane(method):
    method = get_method(method).without_error()
    ys = [tf.constant([[1.0, 0.5], [0.3, -0.2], [2.0, 1.0]], tf.float64)]
    ts, hs = tf.constant([0.0, 0.4, 1.0], tf.float64), tf.constant([0.1, 0.3, -0.2], tf.float64)

    def dynamics(t, ys):
        (y,) = ys
        t = t if t.shape.rank == 0 else t[:, tf.newaxis]
        return [tf.stack([y[:, 1], -tf.sin(y[:, 0])], 1) * (1.0 + t)]

    @tf.function
    def step(t, h, ys):
        found = method.step(dynamics, t, h, ys)
        return found.ys[0], found.converged

    together, converged = step(ts, hs, ys)
    assert converged.shape == [3] and np.all(converged)
    for i in range(3):
        alone, _ = step(ts[i], hs[i], [ys[0][i : i + 1]])
        np.testing.assert_allclose(together[i : i + 1], alone, rtol=1e-14)


# Gradients


def compare(problem, gradient, mode, **options):
    actual = gradients(problem, gradient, mode, **options)
    expected = gradients(problem, Backprop(), "graph", **options)
    assert relative_error(actual, expected) < EXACT
    return actual


LARGER = [
    "implicit_midpoint",
    SDIRK2,
    TWO_DIAGONALS,
    RADAU3,
    "kvaerno3",
    "kvaerno5",
    "radau5",
    "gauss4",
]


@pytest.mark.parametrize("method", ["trbdf2", *map(slow, LARGER)], ids=str)
def test_equals_backprop(method):
    compare(mlp(), SymplecticAdjoint(), "graph", method=method, num_steps=2)


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["eager", "graph", "xla"])
@pytest.mark.parametrize("checkpoints", ["auto", "sqrt", "steps", "stages", 12])
@pytest.mark.parametrize("method", IMPLICIT)
def test_equals_backprop_everywhere(method, checkpoints, mode):
    options = dict(method=method, num_steps=3)
    compare(everything(), SymplecticAdjoint(checkpoints), mode, **options)


@pytest.mark.parametrize("gradient", [slow("baseline"), slow("aca"), slow("backprop")])
@pytest.mark.parametrize("method", ["trbdf2", "gauss4"])
def test_other_gradients_are_equal(method, gradient):
    compare(mlp(), gradient, "xla", method=method, num_steps=3)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["implicit_midpoint", "trbdf2", "gauss4"])
def test_equals_backprop_under_xla(method):
    compare(mlp(), SymplecticAdjoint("sqrt"), "xla", method=method, num_steps=2)


@pytest.mark.slow
@pytest.mark.parametrize("method", L_STABLE)
@pytest.mark.parametrize("checkpoints", ["sqrt", "stages"])
def test_equals_backprop_with_interpolated_outputs(method, checkpoints):
    problem = mlp(t=tuple(np.linspace(0.0, 1.0, 9)))
    options = dict(rtol=1e-4, atol=1e-4, max_steps=50, outputs="interpolate")
    compare(problem, SymplecticAdjoint(checkpoints), "graph", method=method, **options)


def with_integrals():
    """Parts that the dynamics don't depend on, among others of another rank, and complex ones."""
    random = np.random.default_rng(3)
    w, v = tf.Variable(0.5 * random.normal(size=[3, 3])), tf.Variable(random.normal(size=[3]))

    def dynamics(t, y):
        x, density, cost = y
        return tf.tanh(x @ w + t), tf.reduce_sum(tf.sin(x * v), 1), t * tf.reduce_sum(x * x)

    y0 = tf.constant(random.normal(size=[4, 3])), tf.zeros([4], tf.float64)
    y0 = (*y0, tf.constant(0.5, tf.float64))
    return Problem(dynamics, y0, tf.constant([0.0, 0.4, 1.0], tf.float64), variables=(w, v))


@pytest.mark.slow
@pytest.mark.parametrize("method", ["implicit_midpoint", "kvaerno3", "gauss4"])
def test_equals_backprop_with_mere_integrals(method):
    compare(with_integrals(), SymplecticAdjoint("stages"), "graph", method=method, num_steps=2)


@pytest.mark.slow
@pytest.mark.parametrize("method", IMPLICIT)
def test_finite_differences(method):
    """Of a stiff problem after its initial layer, for its constants, fixed steps."""
    rates, y0 = np.array([0.04, 3e7, 1e4]), tf.constant([[1.0, 3.6e-5, 0.0]], tf.float64)

    def end(rates):
        def dynamics(t, y):
            a, b, c = tf.unstack(y, axis=-1)
            first, second = rates[0] * a - rates[2] * b * c, rates[1] * b * b
            return tf.stack([-first, first - second, second], -1)

        y = tfsymadj.odeint(dynamics, y0, [0.0, 2.0], method=method, num_steps=4)
        return tf.reduce_sum(y[-1] * [[1.0, 2e4, -0.5]])

    watched = tf.constant(rates)
    with tf.GradientTape() as tape:
        tape.watch(watched)
        value = end(watched)
    gradient = tape.gradient(value, watched).numpy()
    for i in range(3):
        d = 1e-5 * rates[i] * np.eye(3)[i]
        difference = (end(tf.constant(rates + d)) - end(tf.constant(rates - d))) / (2 * d[i])
        np.testing.assert_allclose(gradient[i], difference, rtol=1e-6)


@pytest.mark.slow
def test_bilinear_form_is_conserved():
    """lambda^T delta, adjoint and variational variable, before and after a step."""
    problem, h = mlp(), tf.constant(0.1, tf.float64)
    function = as_function(lambda: problem.dynamics, problem.y0, (), False)
    random = np.random.default_rng(4)
    adjoint = tf.constant(random.normal(size=[5, 3]))
    method = get_method("kvaerno3").without_error()

    @tf.function
    def both(t, y):
        dynamics = close(function, [y])
        with tf.GradientTape() as tape:
            tape.watch(y)
            step = method.step(dynamics, t, h, [y])
        expected = tape.gradient(step.increments, y, output_gradients=[adjoint])
        stages = tf.stack([stage for (stage,) in step.stages])
        zeros = Sources([tf.zeros_like(y)], [tf.zeros_like(x) for x in dynamics.captured], [], [])
        sums = method.adjoint(dynamics, t, h, lambda i: [stages[i]], [adjoint], zeros)
        return expected, sums.ys[0]

    expected, actual = both(tf.zeros([], tf.float64), problem.y0)
    np.testing.assert_allclose(actual, expected, rtol=1e-13, atol=1e-15)


@pytest.mark.slow
@pytest.mark.parametrize("gradient", ["symplectic_adjoint", slow("backprop")])
def test_no_second_derivatives(gradient):
    y0 = tf.constant([1.0])
    options = dict(method="implicit_midpoint", num_steps=1, gradient=gradient)
    # Already where the first derivative is taken: TensorFlow prepares for the second one then.
    with pytest.raises(RuntimeError, match="Implicit methods have no second derivatives"):
        with tf.GradientTape() as outer:
            outer.watch(y0)
            with tf.GradientTape() as tape:
                tape.watch(y0)
                y = tfsymadj.odeint(lambda t, y: -y * y, y0, [0.0, 0.5], **options)
            first = tape.gradient(y, y0)
        outer.gradient(first, y0)


def test_continuous_adjoint_takes_an_explicit_method():
    options = dict(method="kvaerno3", gradient=tfsymadj.ContinuousAdjoint())
    with pytest.raises(ValueError, match="(?s)needs `method`, an explicit one.*Received: "):
        tfsymadj.odeint(lambda t, y: -y, [1.0], [0.0, 0.5], **options)


# Failures


def status_of(dynamics, y0, end=1.0, **options):
    y0 = tf.constant(y0, tf.float64)
    options = dict(gradient=NoGradient(), on_failure="status") | options
    solution = tfsymadj.solve(dynamics, y0, [0.0, end], **options)
    assert np.all(np.isnan(solution.y[-1])) != bool(solution.success)
    return Status(int(solution.status))


MIDPOINT = dict(method="implicit_midpoint", num_steps=1)


@pytest.mark.parametrize("jit_compile", [False, slow(True)])
@pytest.mark.parametrize(
    "dynamics, options, expected",
    [
        (lambda t, y: 2.0 * y, MIDPOINT, Status.NEWTON_FAILED),
        slow(lambda t, y: y * y + 4.0, MIDPOINT, Status.NEWTON_FAILED),
        (lambda t, y: tf.sqrt(y - 9.0), dict(method="trbdf2"), Status.NON_FINITE_DYNAMICS),
        slow(lambda t, y: tf.sqrt(y - 9.0), MIDPOINT, Status.NON_FINITE_DYNAMICS),
        slow(lambda t, y: tf.sqrt(0.5 - t) * y, MIDPOINT | {"num_steps": 3},
             Status.NON_FINITE_DYNAMICS),
    ],
    ids=["singular", "no_solution", "nan", "nan_fixed", "nan_later"],
)  # fmt: skip
def test_failures(dynamics, options, expected, jit_compile):
    assert status_of(dynamics, [1.0, 2.0], jit_compile=jit_compile, **options) is expected


@pytest.mark.slow
def test_singularity_is_not_passed():
    status = status_of(lambda t, y: y * y, [1.0], end=2.0, method="kvaerno5")
    assert status in (Status.STEP_UNDERFLOW, Status.NEWTON_FAILED)


def mixing(t, y):
    return tf.roll(y, 1, 0) - y


def test_examples_that_depend_on_each_other():
    y0 = np.arange(8.0).reshape(4, 2)
    assert status_of(mixing, y0, method="trbdf2") is Status.NEWTON_FAILED
    options = dict(method="gauss4", num_steps=10, newton=tfsymadj.Newton("whole"))
    y = tfsymadj.odeint(mixing, y0, [0.0, 1.0], gradient=NoGradient(), **options)
    matrix = np.roll(np.eye(4), 1, 0) - np.eye(4)
    np.testing.assert_allclose(y[-1], scipy.linalg.expm(matrix) @ y0, rtol=1e-6)


def test_gradients_of_a_failed_solve_are_nan():
    y0 = tf.constant([1.0, 2.0], tf.float64)
    with tf.GradientTape() as tape:
        tape.watch(y0)
        options = dict(**MIDPOINT, on_failure="status")
        y = tfsymadj.odeint(lambda t, y: 2.0 * y, y0, [0.0, 1.0], **options)
    assert np.all(np.isnan(tape.gradient(y, y0)))


def test_the_message_names_the_remedies():
    with pytest.raises(tf.errors.InvalidArgumentError, match="(?s)`max_iterations`.*'whole'"):
        tfsymadj.odeint(lambda t, y: 2.0 * y, [1.0], [0.0, 1.0], **MIDPOINT)


def test_unknown_sizes():
    @tf.function(input_signature=[tf.TensorSpec([None], tf.float64)])
    def solve(y0):
        return tfsymadj.odeint(lambda t, y: -y, y0, [0.0, 1.0], **MIDPOINT)

    with pytest.raises(ValueError, match="`y0` must have a shape that is known"):
        solve(tf.ones([3], tf.float64))


def test_vectorized_map_is_refused():
    def solve(y0):
        return tfsymadj.odeint(lambda t, y: -y, y0, [0.0, 1.0], **MIDPOINT)

    with pytest.raises(ValueError, match="`tf.vectorized_map` if steps .*'implicit_midpoint'"):
        tf.vectorized_map(solve, tf.ones([3, 2]))


def test_unknown_number_of_examples():
    @tf.function(input_signature=[tf.TensorSpec([None, 2], tf.float64)])
    def solve(y0):
        return tfsymadj.odeint(lambda t, y: -y, y0, [0.0, 1.0], method="gauss4", num_steps=4)

    y = solve(tf.ones([3, 2], tf.float64))
    np.testing.assert_allclose(y[-1], np.exp(-1.0) * np.ones([3, 2]), rtol=1e-5)


# With events, jumps and interpolants


@pytest.mark.slow
@pytest.mark.parametrize("method, options", [("kvaerno5", dict(rtol=1e-8)), ("gauss4", {})])
def test_events(method, options):
    """The time and state of an event, and their derivatives, as with an explicit method."""
    w, y0 = tf.Variable(1.3, dtype=tf.float64), tf.constant([1.0, 0.2], tf.float64)

    def dynamics(t, y):
        return tf.stack([y[1], -w * tf.sin(y[0]) - 0.1 * y[1]])

    def solve(method, **options):
        with tf.GradientTape() as tape:
            tape.watch(y0)
            event = tfsymadj.Event(lambda t, y: y[0], terminal=True)
            solution = tfsymadj.solve(
                dynamics, y0, [0.0, 5.0], method=method, event=event, **options
            )
            value = solution.event.t + tf.reduce_sum(solution.event.y * [1.0, 2.0])
        return [value, *tape.gradient(value, [y0, w])]

    expected = solve("dopri5", rtol=1e-10, atol=1e-10)
    for a, b in zip(solve(method, **(options or dict(num_steps=60))), expected):
        np.testing.assert_allclose(a, b, rtol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("gradient", [SymplecticAdjoint("sqrt"), "aca"], ids=str)
@pytest.mark.parametrize("method, options", [("kvaerno3", {}), ("gauss4", dict(num_steps=5))])
def test_jumps_and_interpolants(method, options, gradient):
    """The derivatives for what jumps, when, and through the interpolant: as back-propagation's."""
    random = np.random.default_rng(0)
    sources = [tf.constant(random.normal(size=[3, 2])), tf.constant([0.7], tf.float64)]

    def solve(gradient, **more):
        with tf.GradientTape() as tape:
            tape.watch(sources)
            y0, jump = sources

            def dynamics(t, y):
                push = tf.where(t < jump[0], tf.ones_like(t), -2.0 * tf.ones_like(t))
                return push * tf.stack([y[:, 1], -tf.sin(y[:, 0]) * t], 1)

            more = dict(method=method, gradient=gradient, max_steps=60) | options | more
            solution = tfsymadj.solve(dynamics, y0, [0.0, 1.0, 2.0], jumps=jump, **more)
            times = tf.constant([0.3, 0.77, 1.9], tf.float64)
            y = solution.interpolant(times) if more.get("dense") else solution.y
            value = tf.reduce_sum(
                tf.sin(y) * tf.reshape(tf.range(18.0, dtype=tf.float64), [3, 3, 2])
            )
        return tape.gradient(value, sources)

    for more in ({}, dict(dense=True)):
        for a, b in zip(solve(gradient, **more), solve("backprop", **more)):
            np.testing.assert_allclose(a, b, rtol=1e-11, atol=1e-11)
