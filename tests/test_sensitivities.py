"""Forward mode: transposes of gradients, Jacobians, and gradients of it."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from helpers.gradients import FLOAT64, Counted, relative_error
from helpers.memory import network
from helpers.modes import MODES, run, slow
from helpers.problems import Problem, everything, mlp

import tfsymadj

#: Two sums over some hundred numbers, each with rounding errors of its own.
TRANSPOSED = 1e-13

RK4, DOPRI5 = dict(method="rk4", num_steps=3), dict(method="dopri5")


def normal(x, random):
    values = random.normal(size=x.shape)
    if x.dtype.is_complex:
        values = values + 1j * random.normal(size=x.shape)
    return tf.constant(values, x.dtype)


def inner(xs, ys):
    total = tf.zeros([], tf.float64)
    for x, y in zip(tf.nest.flatten(xs), tf.nest.flatten(ys), strict=True):
        total += tf.cast(tf.reduce_sum(tf.math.real(tf.math.conj(x) * y)), tf.float64)
    return total


def direction(problem, with_times=True, seed=3):
    """Tangents of all that a problem is made of."""
    random = np.random.default_rng(seed)
    y0, args, t = tf.nest.map_structure(
        lambda x: normal(x, random), (problem.y0, problem.args, problem.t)
    )
    variables = [(v, normal(v, random)) for v in problem.variables]
    tangents = {"y0": y0, "args": args, "variables": variables}
    return tangents | ({"t": t} if with_times else {})


def products(problem, mode, with_times=True, **options):
    """`(<w, J v>, <J^T w, v>)` relative to the size of w and J v, and both solutions."""
    tangents = direction(problem, with_times)
    arguments = (problem.dynamics, problem.y0, problem.t)
    options = {"args": problem.args, **options}
    w = None

    def forward():
        return tfsymadj.jvp(*arguments, tangents=tangents, **options)

    def backward():
        with tf.GradientTape() as tape:
            tape.watch(tf.nest.flatten([problem.y0, problem.args, problem.t]))
            solution = tfsymadj.solve(*arguments, **options)
            value = inner(w, solution.y)
        sources = {"y0": problem.y0, "args": problem.args, "variables": list(problem.variables)}
        return tape.gradient(value, sources | ({"t": problem.t} if with_times else {})), solution

    along, dy = run(forward, mode)
    random = np.random.default_rng(4)
    w = tf.nest.map_structure(lambda x: normal(x, random), dy)
    gradient, solution = run(backward, mode)
    found = {**tangents, "variables": [d for _, d in tangents["variables"]]}
    scale = tf.sqrt(inner(w, w) * inner(dy, dy))
    pair = float(inner(w, dy) / scale), float(inner(gradient, found) / scale)
    return *pair, along, solution


@pytest.mark.parametrize(
    "options",
    [
        RK4,
        slow(DOPRI5),
        slow(dict(method="dopri5", outputs="step")),
        slow(dict(method="dopri5", max_step=0.07)),
        slow(dict(method="dopri5", gradient="backprop")),
        slow(dict(method="bosh3", jit_compile=True)),
        slow(dict(method="dopri5", outputs="interpolate", first_step=0.01)),
        *(
            slow(dict(method=name) if table.adaptive else dict(method=name, num_steps=3))
            for name, table in tfsymadj.METHODS.items()
            if table.explicit and name not in ("rk4", "dopri5")
        ),
    ],
    ids=str,
)
@pytest.mark.parametrize("mode", [slow("eager"), "graph", slow("xla")])
def test_the_transpose_of_the_gradient(options, mode):
    forward, backward, along, solution = products(everything(), mode, **options)
    assert abs(forward - backward) < TRANSPOSED
    for name in ("num_steps", "num_rejected", "num_evaluations"):
        assert getattr(along.stats, name) == getattr(solution.stats, name)
    if mode != "xla":  # which adds up errors in another order, so that other steps are taken
        tf.nest.map_structure(np.testing.assert_array_equal, along.y, solution.y)


@pytest.mark.slow
def test_tangents_do_not_choose_the_steps():
    problem = mlp()
    for scale in (1.0, 1e6):
        solution, dy = tfsymadj.jvp(
            problem.dynamics, problem.y0, problem.t, tangents={"y0": scale * problem.y0}
        )
        expected = tfsymadj.solve(problem.dynamics, problem.y0, problem.t)
        np.testing.assert_array_equal(solution.y, expected.y)
    np.testing.assert_array_equal(dy[0], 1e6 * problem.y0)


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [
        dict(method="trbdf2"),
        dict(method="kvaerno5"),
        dict(method="implicit_midpoint", num_steps=3),
        dict(method="gauss4", num_steps=3),
    ],
    ids=str,
)
@pytest.mark.parametrize("with_times", [False, True])
def test_implicit_methods(options, with_times):
    """Newton's iteration goes on until rounding errors are all that is left."""
    forward, backward, along, solution = products(mlp(), "graph", with_times, **options)
    assert abs(forward - backward) < TRANSPOSED
    assert relative_error(along.y, solution.y) < FLOAT64


def lanes():
    def dynamics(t, y, a):
        return tf.tanh(y @ (0.3 * tf.ones([3, 3], y.dtype)) + t[:, tf.newaxis]) * a

    problem = mlp()
    scales = tf.constant([[1.0], [2.0], [0.1], [5.0], [1.0]], tf.float64)
    args = (tf.constant([0.7, -1.2, 0.4], tf.float64),)
    return Problem(dynamics, scales * problem.y0, problem.t, args)


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [dict(rtol=1e-6, atol=1e-8), RK4, dict(method="kvaerno3"), dict(outputs="step")],
    ids=str,
)
def test_lanes(options):
    forward, backward, along, solution = products(
        lanes(), "graph", with_times=False, batch_axis=0, **options
    )
    assert abs(forward - backward) < TRANSPOSED
    np.testing.assert_array_equal(along.stats.num_steps, solution.stats.num_steps)


@pytest.mark.slow
def test_jumps():
    found = products(mlp(), "graph", with_times=False, jumps=[0.4, 0.5])
    assert abs(found[0] - found[1]) < TRANSPOSED


@pytest.mark.slow
@pytest.mark.parametrize("options", [RK4, DOPRI5], ids=str)
@pytest.mark.parametrize("mode", MODES)
def test_jacobians(options, mode):
    problem = mlp(batch=2)
    a, number = tf.constant([0.3, -0.2], tf.float64), tf.constant(2)

    def dynamics(t, y, a, n):
        return problem.dynamics(t, y) * a[0] + a[1] * y * t * tf.cast(n, y.dtype)

    args, variables = (a, number), problem.variables[:1]
    arguments = (dynamics, problem.y0, problem.t)

    def forward():
        return tfsymadj.sensitivities(
            *arguments, args=args, wrt=("y0", "t", "args"), variables=variables, **options
        )

    def backward():
        with tf.GradientTape(persistent=True) as tape:
            tape.watch([problem.y0, problem.t, a])
            y = tfsymadj.odeint(*arguments, args=args, **options)
        return tape.jacobian(y, [problem.y0, problem.t, a, *variables])

    found, expected = run(forward, mode), run(backward, "graph")
    jacobians = [found.y0, found.t, found.args[0], *found.variables]
    assert found.args[1] is None
    assert max(map(relative_error, jacobians, expected)) < FLOAT64


@pytest.mark.slow
def test_jacobians_of_nests():
    def dynamics(t, y, k):
        return {"a": -k["x"] * y["a"], "b": y["a"] - k["y"][1] * y["b"]}

    y0 = {"a": tf.constant([1.0, 2.0]), "b": tf.constant([0.5, 0.1])}
    args = ({"x": 0.7, "y": tf.constant([0.1, 0.2])},)
    found = tfsymadj.sensitivities(dynamics, y0, [0.0, 0.5, 1.0], args=args, rtol=1e-5)
    assert found.y0["a"]["b"].shape == (3, 2, 2) and found.t is None and found.variables is None
    assert found.args["b"][0]["y"].shape == (3, 2, 2)
    assert np.all(found.args["b"][0]["y"][..., 0] == 0.0)
    times = found.solution.t.numpy()[:, np.newaxis]
    expected = -times * np.exp(-0.7 * times) * y0["a"].numpy()
    np.testing.assert_allclose(found.args["a"][0]["x"], expected, atol=1e-4)


def second_products(problem, options, mode):
    """Hessian-vector products for a loss, forward over reverse and reverse over reverse."""
    tangents = direction(problem, with_times=False)
    pairs, watched = tangents["variables"], [problem.y0, problem.t]
    sources = [*watched, *problem.variables]

    def loss(y):
        return tf.reduce_sum(tf.sin(y) * y)

    def of_product():
        with tf.GradientTape() as tape:
            tape.watch(watched)
            solution, dy = tfsymadj.jvp(
                problem.dynamics, problem.y0, problem.t, tangents=tangents, **options
            )
            with tf.GradientTape() as inside:
                inside.watch(solution.y)
                value = loss(solution.y)
            slope = tf.reduce_sum(inside.gradient(value, solution.y) * dy)
        return tape.gradient(slope, sources)

    def of_gradient():
        with tf.GradientTape() as tape:
            tape.watch(watched)
            with tf.GradientTape() as inside:
                inside.watch(problem.y0)
                value = loss(tfsymadj.odeint(problem.dynamics, problem.y0, problem.t, **options))
            found = inside.gradient(value, [problem.y0, *problem.variables])
            slope = inner(found, [tangents["y0"], *(d for _, d in pairs)])
        return tape.gradient(slope, sources)

    return run(of_product, mode), run(of_gradient, "graph")


@pytest.mark.slow
@pytest.mark.parametrize(
    "options, mode",
    [
        (RK4, "graph"),
        slow(RK4, "eager"),
        slow(RK4, "xla"),
        slow(DOPRI5, "eager"),
        slow(DOPRI5, "graph"),
        slow(DOPRI5, "xla"),
        slow({**DOPRI5, "gradient": "backprop"}, "graph"),
        slow({**DOPRI5, "gradient": "aca"}, "graph"),
        slow({**RK4, "gradient": tfsymadj.SymplecticAdjoint("sqrt")}, "xla"),
        slow({**RK4, "gradient": tfsymadj.SymplecticAdjoint("stages")}, "graph"),
        slow({**RK4, "gradient": tfsymadj.SymplecticAdjoint(12)}, "graph"),
    ],
    ids=str,
)
def test_hessian_vector_products(options, mode):
    found, expected = second_products(mlp(batch=2, hidden=4), options, mode)
    assert max(map(relative_error, found, expected)) < FLOAT64


@pytest.mark.slow
def test_hessian_vector_products_by_differences():
    problem, h = mlp(batch=2, hidden=4), 1e-5
    tangents = direction(problem, with_times=False)
    found, _ = second_products(problem, RK4, "graph")

    def gradient(step):
        moved = [v + step * d for v, d in tangents["variables"]]
        before = [tf.identity(v) for v in problem.variables]
        for v, x in zip(problem.variables, moved):
            v.assign(x)
        y0 = problem.y0 + step * tangents["y0"]
        with tf.GradientTape() as tape:
            tape.watch(y0)
            y = tfsymadj.odeint(problem.dynamics, y0, problem.t, **RK4)
            value = tf.reduce_sum(tf.sin(y) * y)
        result = tape.gradient(value, [y0, *problem.variables])
        for v, x in zip(problem.variables, before):
            v.assign(x)
        return result

    expected = [(a - b) / (2.0 * h) for a, b in zip(gradient(h), gradient(-h))]
    # h^2 and the rounding error divided by h.
    assert max(map(relative_error, [found[0], *found[2:]], expected)) < 1e-8


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["graph", "xla"])
def test_memory_of_hessian_vector_products(mode):
    """At most three times that of a gradient."""
    dynamics, weights = network(64)
    y0, t = tf.ones([512, 64]), tf.constant([0.0, 1.0], tf.float64)
    options = dict(method="rk4", num_steps=200, gradient=tfsymadj.SymplecticAdjoint("sqrt"))

    def gradient():
        with tf.GradientTape() as tape:
            value = tf.reduce_sum(tfsymadj.odeint(dynamics, y0, t, **options)[-1])
        return tape.gradient(value, weights)

    def product():
        with tf.GradientTape() as tape:
            pairs = [(w, tf.ones_like(w)) for w in weights]
            _, dy = tfsymadj.jvp(dynamics, y0, t, tangents={"variables": pairs}, **options)
            value = tf.reduce_sum(dy[-1])
        return tape.gradient(value, weights)

    peaks = []
    for function in (gradient, product):
        function = tf.function(function, jit_compile=mode == "xla")
        function()
        before = tf.config.experimental.get_memory_info("CPU:0")["current"]
        tf.config.experimental.reset_memory_stats("CPU:0")
        function()
        peaks.append(tf.config.experimental.get_memory_info("CPU:0")["peak"] - before)
    assert peaks[1] <= 3 * peaks[0]


@pytest.mark.slow
def test_evaluations_are_those_of_a_solve():
    dynamics, y0 = Counted(), tf.ones([2, 3], tf.float64)
    found = tfsymadj.sensitivities(dynamics, y0, [0.0, 0.7, 2.0], wrt="y0")
    assert len(dynamics.evaluations) == found.solution.stats.num_evaluations
    expected = tfsymadj.solve(dynamics, y0, [0.0, 0.7, 2.0])
    assert found.solution.stats.num_evaluations == expected.stats.num_evaluations


def test_a_layer_and_new_weights():
    """A second call takes the same trace, with the weights that there are then."""
    layer = keras.layers.Dense(2, use_bias=False, dtype="float64")
    y0 = tf.ones([1, 2], tf.float64)
    layer.build(y0.shape)
    for factor in (0.5, -1.5):
        layer.kernel.assign(factor * np.eye(2))
        pairs = [(layer.kernel, np.eye(2))]
        _, dy = tfsymadj.jvp(
            layer, y0, [0.0, 1.0], tangents={"variables": pairs}, rtol=1e-9, atol=1e-9
        )
        # d/da exp(a t) at t = 1
        np.testing.assert_allclose(dy[-1], np.full([1, 2], np.exp(factor)), atol=1e-7)


def test_accumulators_are_told_of_it():
    y0 = tf.constant([1.0, 2.0])

    @tf.function
    def forward(x):
        with tf.autodiff.ForwardAccumulator(x, tf.ones_like(x)) as accumulator:
            y = tfsymadj.odeint(lambda t, y, x: -x * y, y0, [0.0, 1.0], args=(x,), **RK4)
        return accumulator.jvp(y)

    with pytest.raises(ValueError, match="use `tfsymadj.jvp`"):
        forward(tf.constant([1.0, 1.0]))
    weight = tf.Variable([1.0, 1.0])

    @tf.function
    def of_variable():
        with tf.autodiff.ForwardAccumulator(weight, tf.ones_like(weight)):
            tfsymadj.odeint(lambda t, y: -weight * y, y0, [0.0, 1.0], **RK4)

    with pytest.raises(ValueError, match="use `tfsymadj.jvp`"):
        of_variable()


def test_moving_times_have_no_second_derivatives():
    y0, t = tf.ones([2]), tf.constant([0.0, 1.0], tf.float64)
    with tf.GradientTape() as tape:
        tape.watch(y0)
        _, dy = tfsymadj.jvp(lambda t, y: -y, y0, t, tangents={"t": [0.0, 1.0]}, **RK4)
    np.testing.assert_allclose(dy[-1], np.full(2, -np.exp(-1.0)), rtol=1e-3)
    with pytest.raises(tf.errors.InvalidArgumentError, match="of `jvp` or `sensitivities`"):
        tape.gradient(dy, y0)


@pytest.mark.slow
@pytest.mark.parametrize("count", [2, slow(3)])
def test_a_clock_is_no_example(count):
    y0, t = tf.ones([count, 3], tf.float64), tf.constant([0.0, 1.0], tf.float64)
    options = dict(method="trbdf2", num_steps=2)
    _, dy = tfsymadj.jvp(lambda t, y: -y * t, y0, t, tangents={"t": [0.0, 1.0]}, **options)
    with tf.GradientTape() as tape:
        tape.watch(t)
        y = tfsymadj.odeint(lambda t, y: -y * t, y0, t, **options)
        last = tf.reduce_sum(y[-1])
    expected = tape.gradient(last, t)
    np.testing.assert_allclose(tf.reduce_sum(dy[-1]), expected[-1], rtol=1e-12)


@pytest.mark.parametrize(
    "change, message",
    [
        (dict(tangents={"y": [1.0]}), "`tangents` must be a dict"),
        (dict(tangents=[1.0]), "`tangents` must be a dict"),
        (dict(tangents={"y0": [1.0, 2.0]}), "`tangents` must have, for 'y0'"),
        (dict(tangents={"y0": {"a": 1.0}}), "`tangents` must have, for 'y0'"),
        (dict(tangents={"args": (1.0, 2.0)}), "`tangents` must have, for 'args'"),
        (dict(tangents={"args": (tf.constant(1),)}), "`tangents` must have, for 'args'"),
        (dict(tangents={"t": [1.0]}), "`tangents` must have, for 't'"),
        (dict(tangents={"variables": [(tf.Variable(1.0), [1.0])]}), "for 'variables'"),
        (dict(event=tfsymadj.Event(lambda t, y, a: y[0])), "`event` can't be given"),
        (dict(dense=True), "`dense` can't be given"),
        (dict(batch_axis=0, lanes=2), "`lanes` can't be given"),
        (dict(tangents={"t": [0.0, 1.0]}, jumps=[0.5]), "`jumps` can't be given"),
        (dict(tangents={"args": (1.0,)}, jumps=[tf.constant(0.5)]), "`jumps` must be numbers"),
        (dict(num_step=3), "did you mean `num_steps`"),
    ],
)
def test_refusals(change, message):
    given = {"tangents": {"y0": [1.0]}, "args": (2.0,), **change}
    kind = TypeError if "did you" in message else ValueError
    with pytest.raises(kind, match=message):
        tfsymadj.jvp(lambda t, y, a: -a * y, [1.0], [0.0, 1.0], **given)


@pytest.mark.parametrize(
    "change, message",
    [
        (dict(wrt="y"), "`wrt` must be some of"),
        (dict(wrt=()), "`wrt` must be some of"),
        (dict(batch_axis=0), "`batch_axis` can't be given"),
        (dict(args=(1j,)), "`args` must be real"),
    ],
)
def test_refusals_of_sensitivities(change, message):
    given = {"args": (2.0,), **change}
    with pytest.raises(ValueError, match=message):
        tfsymadj.sensitivities(lambda t, y, a: -a * y, tf.ones([1]), [0.0, 1.0], **given)


def test_variables_are_variables():
    with pytest.raises(TypeError, match="`variables` must hold variables"):
        tfsymadj.sensitivities(lambda t, y: -y, [1.0], [0.0, 1.0], variables=[tf.ones([2])])
