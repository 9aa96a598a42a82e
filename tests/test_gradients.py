"""Tests of the gradients: against other implementations, back-propagation, finite differences."""

import pathlib

import keras
import numpy as np
import pytest
import tensorflow as tf
from conftest import (
    MODES,
    XLA_SLOW,
    everything,
    gradients,
    loss,
    mlp,
    relative_error,
    run,
    slow,
)

import tfsymadj
from tfsymadj import METHODS, Backprop, ButcherTableau, SymplecticAdjoint
from tfsymadj.dynamics.calling import as_function
from tfsymadj.dynamics.closing import Sources, close
from tfsymadj.methods import get_method

DATA = sorted((pathlib.Path(__file__).parent / "data").glob("*.npz"))
ADAPTIVE = [name for name, tableau in METHODS.items() if tableau.adaptive]

# Both gradients are the same sums in another order: a few hundred roundings of 1e-16 and 6e-8.
FLOAT64, FLOAT32 = 1e-12, 1e-6


SHORT = dict(method="rk4", num_steps=3)
FIXED_OR_PI = pytest.mark.parametrize(
    "options", [dict(method="rk4", num_steps=5), dict(rtol=1e-4, max_steps=64)], ids=["rk4", "pi"]
)


# Against another implementation


@pytest.mark.parametrize("path", DATA, ids=lambda path: path.stem)
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


# Against back-propagation over the same steps


def compare(problem, gradient, mode, tolerance, **options):
    actual = gradients(problem, gradient, mode, **options)
    expected = gradients(problem, Backprop(), mode, **options)
    assert relative_error(actual, expected) < tolerance
    return actual


@pytest.mark.parametrize("method", METHODS)
def test_equals_backprop_fixed_steps(method):
    compare(mlp(), SymplecticAdjoint(), "graph", FLOAT64, method=method, num_steps=7)


@pytest.mark.parametrize("method", ADAPTIVE)
def test_equals_backprop_adaptive_steps(method):
    options = dict(method=method, rtol=1e-4, atol=1e-4)
    compare(mlp(), SymplecticAdjoint(), "graph", FLOAT64, **options)


@pytest.mark.parametrize("checkpoints", ["auto", slow("steps"), slow("stages")])
@FIXED_OR_PI
def test_equals_backprop_with_everything(checkpoints, options):
    compare(everything(), SymplecticAdjoint(checkpoints), "graph", FLOAT64, **options)


@pytest.mark.parametrize("mode", [slow("eager"), "xla"])
def test_equals_backprop_with_everything_eager_and_xla(mode):
    options = dict(method="midpoint", num_steps=3)
    compare(everything(), SymplecticAdjoint(), mode, FLOAT64, **options)


@pytest.mark.parametrize("mode", ["eager", "xla"])
@pytest.mark.parametrize("checkpoints", ["auto", slow("steps"), slow("stages")])
@FIXED_OR_PI
def test_equals_backprop_eager_and_xla(mode, checkpoints, options):
    compare(mlp(), SymplecticAdjoint(checkpoints), mode, FLOAT64, **options)


@pytest.mark.parametrize(
    "checkpoints, num_steps",
    [
        ("auto", 1),
        ("auto", 2),
        ("auto", 100),
        ("auto", 103),
        ("steps", 9),
        ("stages", 9),
        slow("steps", 1),
        slow("stages", 1),
    ],
)
def test_segments_of_all_lengths(checkpoints, num_steps):
    # 100 steps make 20 full segments of 5, the other numbers one that is not full.
    problem = mlp(t=(0.0, 1.0))
    options = dict(method="rk4", num_steps=num_steps)
    compare(problem, SymplecticAdjoint(checkpoints), "graph", FLOAT64, **options)


@FIXED_OR_PI
def test_decreasing_times(options):
    problem = mlp(t=(1.0, 0.7, 0.1, -0.2))
    compare(problem, SymplecticAdjoint(), "graph", FLOAT64, **options)


@pytest.mark.parametrize("mode", [slow("eager"), "graph", "xla"])
def test_step_size_of_traced_times(mode):
    # The number of steps is a matter of values that the trace doesn't know.
    compare(mlp(), SymplecticAdjoint(), mode, FLOAT64, method="rk4", step_size=0.07, max_steps=99)


@pytest.mark.parametrize("mode", [slow("eager"), "graph", slow("xla")])
@FIXED_OR_PI
def test_float32(mode, options):
    compare(mlp(tf.float32), SymplecticAdjoint(), mode, FLOAT32, **options)


@pytest.mark.slow
def test_float32_with_everything():
    # Sums over all entries into a scalar lose a little more.
    problem = everything(dtype=tf.float32)
    compare(problem, SymplecticAdjoint(), "graph", 5 * FLOAT32, num_steps=3)


def test_modes_agree():
    options = dict(method="bosh3", rtol=1e-4, max_steps=100)
    eager, graph, xla = (gradients(mlp(), "symplectic_adjoint", mode, **options) for mode in MODES)
    assert relative_error(graph, eager) < FLOAT64
    assert relative_error(xla, eager) < FLOAT64


def test_scalar_and_empty_states():
    a = tf.constant(0.5, tf.float64)
    y0 = {"scalar": tf.constant(1.0, tf.float64), "none": tf.zeros([0, 3], tf.float64)}
    t = tf.constant([0.0, 1.0], tf.float64)
    with tf.GradientTape() as tape:
        tape.watch([a, y0])
        y = tfsymadj.odeint(
            lambda t, y: {"scalar": a * y["scalar"], "none": y["none"]}, y0, t, num_steps=100
        )
        value = y["scalar"][-1]
    da, dy0 = tape.gradient(value, [a, y0])
    # y = y0 exp(a t): dopri5 with n steps is off by n (1/600 - 1/720) (a/n)^6, 4e-16, and the
    # derivative for a by 6 / a times that
    np.testing.assert_allclose(da, np.exp(0.5), rtol=1e-12)
    np.testing.assert_allclose(dy0["scalar"], np.exp(0.5), rtol=1e-11)
    assert dy0["none"].shape == (0, 3)


@pytest.mark.parametrize("small", [True, False])
def test_closed_over_tensors_eagerly_and_again(small):
    """TensorFlow turns small tensors into constants of the trace; later calls must see them."""
    a = tf.constant(0.5 * np.ones([3] if small else [300]))
    y0 = tf.ones_like(a)

    def dynamics(t, y):
        return a * y

    for _ in range(2):
        with tf.GradientTape() as tape:
            tape.watch(a)
            y = tfsymadj.odeint(dynamics, y0, [0.0, 1.0], num_steps=10)[-1]
        np.testing.assert_allclose(tape.gradient(y, a), np.exp(0.5) * y0, rtol=1e-9)


def test_gradient_of_args_only():
    def dynamics(t, y, rate):
        return -rate * y

    rate = tf.constant([1.0, 2.0], tf.float64)
    with tf.GradientTape() as tape:
        tape.watch(rate)
        y0 = np.ones(2)
        y = tfsymadj.odeint(dynamics, y0, [0.0, 1.0], args=rate, num_steps=50)[-1]
    # dopri5's global error at h = 0.02 and a rate of 2: 0.04^5 / 1000
    np.testing.assert_allclose(tape.gradient(y, rate), -np.exp(-rate), rtol=1e-9)


# Unknown batch sizes


@pytest.mark.parametrize(
    "jit, options",
    [
        pytest.param(None, dict(method="bosh3", rtol=1e-3), id="graph-pi"),
        pytest.param(True, dict(method="rk4", num_steps=5), id="xla-rk4"),
        slow(None, dict(method="rk4", num_steps=5), id="graph-rk4"),
        slow(True, dict(method="bosh3", rtol=1e-3), id="xla-pi"),
    ],
)
def test_unknown_batch_size(jit, options):
    problem = mlp(batch=6)
    signature = [tf.TensorSpec([None, 3], tf.float64)]
    results = {}
    for gradient in ("symplectic_adjoint", "backprop"):

        @tf.function(input_signature=signature, jit_compile=jit)
        def compute(y0, gradient=gradient):
            with tf.GradientTape() as tape:
                tape.watch(y0)
                y = tfsymadj.odeint(
                    problem.dynamics, y0, problem.t, gradient=gradient, max_steps=99, **options
                )
                value = loss(y)
            return [y, *tape.gradient(value, [y0, *problem.variables])]

        results[gradient] = [compute(problem.y0[:n]) for n in (2, 6)]
    for actual, expected in zip(results["symplectic_adjoint"], results["backprop"]):
        for a, b in zip(actual, expected):
            assert relative_error(a, b) < FLOAT64


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


# The bilinear form


@pytest.mark.parametrize("method", ["euler", "midpoint", "rk4", "dopri5", slow("dopri8")])
def test_bilinear_form_is_conserved(method):
    """lambda^T delta, adjoint and variational variable, is the same after each of 20 steps."""
    problem = mlp()
    method = get_method(method).without_error()
    function = as_function(lambda: problem.dynamics, problem.y0, (), False)
    h = tf.constant(0.1, tf.float64)

    @tf.function
    def forward(t, y, delta):
        dynamics = close(function, [y])
        # The derivative in a direction is the derivative of the vjp for its (arbitrary) weights.
        weights = tf.zeros_like(y)
        with tf.GradientTape() as outer:
            outer.watch(weights)
            with tf.GradientTape() as inner:
                inner.watch(y)
                (end,) = method.step(dynamics, t, h, [y]).ys
            vjp = inner.gradient(end, y, output_gradients=weights)
        return end, outer.gradient(vjp, weights, output_gradients=delta)

    @tf.function
    def backward(t, y, adjoint):
        dynamics = close(function, [y])
        stages = tf.stack([stage for (stage,) in method.step(dynamics, t, h, [y]).stages])
        zeros = Sources([tf.zeros_like(y)], [tf.zeros_like(x) for x in dynamics.captured], [], [])
        sums = method.adjoint(dynamics, t, h, lambda i: [stages[i]], [adjoint], zeros)
        return adjoint + sums.ys[0]

    random = np.random.default_rng(4)
    times = tf.unstack(h * tf.range(20, dtype=tf.float64))
    ys, deltas = [problem.y0], [tf.constant(random.normal(size=[5, 3]))]
    for t in times:
        y, delta = forward(t, ys[-1], deltas[-1])
        ys.append(y)
        deltas.append(delta)
    adjoints = [tf.constant(random.normal(size=[5, 3]))]
    for t, y in zip(reversed(times), reversed(ys[:-1])):
        adjoints.insert(0, backward(t, y, adjoints[0]))

    forms = np.array([np.sum(a * d) for a, d in zip(adjoints, deltas)])
    scale = max(np.linalg.norm(a) * np.linalg.norm(d) for a, d in zip(adjoints, deltas))
    # Rounding in 20 steps of some 10 operations each. The variational variable itself changes.
    assert np.ptp(forms) < 1e-14 * scale
    assert np.linalg.norm(deltas[-1] - deltas[0]) > 0.1


# Second derivatives


HEUN, BOSH3 = dict(method="heun", num_steps=3), dict(method="bosh3", rtol=1e-3, max_steps=50)


@pytest.mark.parametrize(
    "mode, options, checkpoints",
    [
        pytest.param("graph", HEUN, "auto", id="graph-heun-auto"),
        slow("eager", HEUN, "auto", id="eager-heun-auto"),
        slow("graph", HEUN, "steps", id="graph-heun-steps"),
        slow("graph", HEUN, "stages", id="graph-heun-stages"),
        slow("graph", BOSH3, "auto", id="graph-bosh3-auto"),
        slow("graph", BOSH3, "stages", id="graph-bosh3-stages"),
    ],
)
def test_second_derivatives(mode, options, checkpoints):
    w = tf.Variable([[0.5, -0.3], [0.2, 0.7]], dtype=tf.float64)
    closed = tf.constant([0.3, -0.2], tf.float64)
    y0 = tf.constant([[1.0, -0.5], [0.2, 0.8]], tf.float64)
    t = tf.constant([0.0, 0.4, 1.0], tf.float64)
    sources = [y0, t, closed, w]

    def dynamics(t, y):
        return tf.tanh(y @ w) + closed * tf.sin(t + y * closed)

    def compute(gradient):
        with tf.GradientTape() as outer:
            outer.watch(sources[:3])
            with tf.GradientTape() as inner:
                inner.watch(sources[:3])
                value = loss(tfsymadj.odeint(dynamics, y0, t, gradient=gradient, **options))
            mixed = loss(inner.gradient(value, sources))
        return outer.gradient(mixed, sources)

    actual = run(lambda: compute(SymplecticAdjoint(checkpoints)), mode)
    # TensorFlow can't compile the gradient of a loop inside of a branch: back-propagate in a graph.
    expected = run(lambda: compute(Backprop()), "graph" if mode == "xla" else mode)
    for i, (a, b) in enumerate(zip(actual, expected)):
        assert a is not None, f"no second derivative for source {i}"
        assert relative_error(a, b) < FLOAT64, i


def test_second_derivative_of_a_known_solution():
    # y = y0 exp(a t): d2y/da2 = t^2 y, d2y/da dt = (1 + a t) y.
    a = tf.Variable(0.7, dtype=tf.float64)
    t = tf.constant([0.0, 1.5], tf.float64)

    @tf.function
    def compute():
        with tf.GradientTape() as outer:
            outer.watch(t)
            with tf.GradientTape() as inner:
                y = tfsymadj.odeint(
                    lambda t, y: a * y, np.ones([1]), t, method="midpoint", num_steps=200
                )[-1, 0]
            da = inner.gradient(y, a)
        return outer.gradient(da, [a, t])

    daa, dat = compute()
    end = np.exp(0.7 * 1.5)
    # A method of order two: (a h)^2 = 3e-5
    np.testing.assert_allclose(daa, 1.5**2 * end, rtol=1e-4)
    np.testing.assert_allclose(dat[1], (1 + 0.7 * 1.5) * end, rtol=1e-4)


# Evaluations


class Counted:
    """Linear dynamics that count their evaluations and vector-Jacobian products as they run."""

    def __init__(self):
        self.evaluations, self.vjps = [], []
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
    """Evaluations forward and backward, vjps, and what the statistics say."""
    dynamics = Counted()
    y0 = tf.ones([2, 3], tf.float64)
    with tf.GradientTape() as tape:
        tape.watch(y0)
        solution = tfsymadj.solve(dynamics, y0, [0.0, 0.7, 2.0], gradient=gradient, **options)
        value = loss(solution.y)
    forward = len(dynamics.evaluations)
    tape.gradient(value, y0)
    backward = len(dynamics.evaluations) - forward
    stats = tf.nest.map_structure(int, solution.stats)
    return forward, backward, len(dynamics.vjps), stats


@pytest.mark.parametrize(
    "method, checkpoints",
    [
        ("euler", "auto"),
        ("rk4", "auto"),
        ("rk4", "steps"),
        ("rk4", "stages"),
        ("dopri5", "auto"),
        slow("bosh3", "auto"),
        slow("dopri8", "auto"),
        slow("dopri8", "stages"),
    ],
)
def test_evaluations_of_fixed_steps(method, checkpoints):
    n, s = 2 * 9, METHODS[method].stages
    forward, backward, vjps, stats = counts(
        SymplecticAdjoint(checkpoints), method=method, num_steps=9
    )
    assert forward == stats.num_evaluations == n * s
    assert vjps == n * s
    planned = n * s if checkpoints == "stages" else 2 * n * s
    assert stats.num_backward_evaluations == planned
    # In the last step of a segment no evaluation has a use that no later stage depends on.
    a = METHODS[method].without_error().a_matrix
    unused = int(np.sum(~np.any(a != 0, axis=0)))
    assert planned - n * unused <= backward <= planned


MAX_STEPS = 24  # so that some steps of some solves are recomputed


@pytest.mark.parametrize("method", ["bosh3", "dopri5", slow("fehlberg45")])
@pytest.mark.parametrize("tolerance", [1e-3, slow(1e-4)])
def test_evaluations_of_adaptive_steps(method, tolerance):
    s = METHODS[method].stages
    options = dict(
        method=method, rtol=tolerance, atol=tolerance, first_step=1.0, max_steps=MAX_STEPS
    )
    forward, backward, vjps, stats = counts(SymplecticAdjoint(), **options)
    assert stats.num_steps == stats.num_accepted + stats.num_rejected
    assert forward <= stats.num_evaluations <= stats.num_steps * s + 2
    # FSAL: the evaluation at the end of the last step is not used if nothing follows.
    assert forward >= stats.num_steps * s
    assert vjps == stats.num_accepted * s
    # The stage values of the last steps are kept.
    kept = min(round(np.sqrt(MAX_STEPS / s)), stats.num_accepted)
    assert backward <= stats.num_backward_evaluations == (2 * stats.num_accepted - kept) * s


def test_rejected_steps_cost_nothing_backward():
    options = dict(method="dopri5", rtol=1e-8, atol=1e-8, first_step=2.0)
    _, backward, _, stats = counts(SymplecticAdjoint(), **options)
    assert stats.num_rejected > 0
    assert backward <= 2 * stats.num_accepted * 6


def test_stages_of_weight_zero_cost_no_vjp():
    # Two rows, the second one useless, would be Euler's method with a FSAL row.
    useless = ButcherTableau(
        name="useless", order=1, c=(0, 1 / 2, 1 / 3), a=((), (1 / 2,), (1 / 3, 0)), b=(1, 0, 0)
    )
    assert useless.active_stages == (True, False, False)
    forward, backward, vjps, stats = counts(SymplecticAdjoint(), method=useless, num_steps=10)
    assert forward <= 20 * 3
    assert vjps == 20
    assert backward <= stats.num_backward_evaluations == 20 * (3 + 1)


def test_dopri5_has_no_vjp_for_its_seventh_row():
    _, _, vjps, stats = counts(SymplecticAdjoint(), method="dopri5", rtol=1e-5, atol=1e-5)
    assert vjps == 6 * stats.num_accepted


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
        (nested_map, "graph"),
        (nested_while, "graph"),
        (nested_cond, "graph"),
        (nested_map, "xla"),
        slow(nested_while, "xla"),
        slow(nested_cond, "xla"),
        slow(nested_map, "eager"),
        slow(nested_while, "eager"),
        slow(nested_cond, "eager"),
    ],
)
def test_inside_control_flow(context, mode):
    check_nested(context, mode, SHORT)


@pytest.mark.parametrize("context", [slow(nested_map), nested_loops])
def test_inside_control_flow_adaptive(context):
    check_nested(context, "graph", dict(method="bosh3", rtol=1e-2, max_steps=30))


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

    actual = run(lambda: compute(SymplecticAdjoint()), mode)
    # TensorFlow can't compile the gradient of a loop inside of a branch: back-propagate in a graph.
    expected = run(lambda: compute(Backprop()), "graph" if mode == "xla" else mode)
    for i, (a, b) in enumerate(zip(actual, expected)):
        assert a is not None, f"no gradient for source {i - 1}"
        assert relative_error(a, b) < FLOAT64, i


@pytest.mark.parametrize("mode", [slow("eager"), "graph"])
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

    actual = run(lambda: compute(SymplecticAdjoint()), mode)
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
    for gradient in (SymplecticAdjoint(), Backprop()):
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


@pytest.mark.parametrize(
    "options", [SHORT, slow(dict(method="bosh3", rtol=1e-2))], ids=["rk4", "bosh3"]
)
def test_jacobian(options):
    problem = mlp(batch=1, hidden=4)
    sources = [problem.y0, problem.t, *problem.variables]

    @tf.function
    def compute(gradient):
        with tf.GradientTape(persistent=True) as tape:
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

    actual, expected = compute(SymplecticAdjoint()), compute(Backprop())
    for a, b in zip(actual, expected):
        assert relative_error(a, b) < FLOAT64


# Dynamics with a trace of their own


@pytest.mark.parametrize("mode", ["eager", "graph", slow("xla")])
@pytest.mark.parametrize("inner", [False, True], ids=["is", "calls"])
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
        for f, g in ((dynamics, SymplecticAdjoint()), (reference, Backprop()))
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

    for actual, expected in zip(compute(traced), compute(problem.dynamics)):
        np.testing.assert_array_equal(actual, expected)


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


# Frozen weights


@pytest.mark.parametrize("mode", ["eager", "graph", slow("xla")])
def test_frozen_variable(mode):
    problem = mlp()
    w0, *others = problem.variables
    frozen = tf.Variable(w0, trainable=False)

    def dynamics(t, y):
        w, b, *rest = frozen, *others
        time = t * tf.ones_like(y[:, :1])
        return tf.tanh(tf.concat([y, time], 1) @ w + b) @ rest[0] + rest[1]

    def compute():
        with tf.GradientTape() as tape:
            value = loss(tfsymadj.odeint(dynamics, problem.y0, problem.t, **SHORT))
        found = tape.gradient(value, [frozen, *others])
        assert found[0] is None
        return found[1:]

    actual = run(compute, mode)
    expected = gradients(problem, Backprop(), mode, **SHORT)
    for i, gradient in enumerate(actual):
        assert relative_error(gradient, expected[f"variables[{i + 1}]"]) < FLOAT64


def test_frozen_layer_is_not_differentiated():
    y0 = tf.ones([4, 3], tf.float64)
    model = keras.Sequential(
        [
            keras.layers.Dense(8, activation="tanh", dtype="float64"),
            keras.layers.Dense(3, dtype="float64"),
        ]
    )
    model.build((None, 3))
    first, last = model.layers

    def captured():
        function = as_function(lambda: model, y0, (), True)
        dynamics = []
        tf.function(lambda: dynamics.append(close(function, [y0], owner=model)))()
        return len(dynamics[0].captured)

    def compute():
        with tf.GradientTape() as tape:
            tape.watch(y0)
            value = loss(tfsymadj.odeint(model, y0, [0.0, 1.0], **SHORT))
        return tape.gradient(value, [y0, *(w.value for w in last.weights)])

    expected = compute()
    assert captured() == 4
    first.trainable = False
    assert captured() == 2
    for a, b in zip(compute(), expected):
        assert relative_error(a, b) < FLOAT64


# Parts of the state that nothing depends on


@pytest.mark.parametrize("mode", XLA_SLOW)
@pytest.mark.parametrize("checkpoints", ["auto", "steps", "stages", 9])
def test_integrals_along_the_solution(checkpoints, mode):
    """They are neither kept nor computed again, and their gradients are exact."""
    weight = tf.Variable(0.7, dtype=tf.float64)
    y0 = {"integral": tf.constant(0.3, tf.float64), "y": tf.constant([0.5, 1.0], tf.float64)}

    def dynamics(t, state):
        y = state["y"]
        return {"integral": tf.reduce_sum(tf.sin(weight * y)) * t, "y": -weight * y**2}

    def compute(gradient):
        with tf.GradientTape() as tape:
            tape.watch(y0)
            y = tfsymadj.odeint(
                dynamics, y0, [0.0, 0.4, 1.0], method="rk4", num_steps=6, gradient=gradient
            )
            value = loss(y)
        return tf.nest.flatten(tape.gradient(value, [y0, weight]))

    found = run(lambda: compute(SymplecticAdjoint(checkpoints)), mode)
    for a, b in zip(found, compute(Backprop())):
        assert relative_error(a, b) < 1e-12


def test_dynamics_that_depend_on_the_time_only():
    y0, rate = tf.constant([1.0, 2.0], tf.float64), tf.Variable(0.5, dtype=tf.float64)
    with tf.GradientTape() as tape:
        tape.watch(y0)
        y = tfsymadj.odeint(lambda t, y: rate * t * tf.ones_like(y), y0, [0.0, 2.0], rtol=1e-9)[-1]
    gradients = tape.gradient(y, [y0, rate])
    assert relative_error(gradients[0], [1.0, 1.0]) < 1e-14
    assert relative_error(gradients[1], 4.0) < 1e-12


def test_live_parts():
    ys = [tf.constant([1.0]), tf.constant([2.0]), tf.constant([3.0])]
    with tf.Graph().as_default():
        ys = [tf.constant(y.numpy()) for y in ys]
        closed = close(
            lambda t, ys: [
                ys[1],
                2.0 * ys[1],
                tf.cond(ys[0][0] > 0.0, lambda: ys[1], lambda: ys[0]),
            ],
            ys,
        )
    assert closed.live == [0, 1]
