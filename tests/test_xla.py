"""`jit_compile`: the solve compiles itself, whoever calls."""

import re

import keras
import numpy as np
import pytest
import tensorflow as tf
import tensorflow_probability as tfp
from helpers.gradients import FLOAT64, gradients, relative_error
from helpers.modes import slow
from helpers.problems import mlp, pendulum

import tfsymadj
from tfsymadj import Backprop, Event, SymplecticAdjoint
from tfsymadj.bijectors import CNF

FIXED = dict(method="rk4", num_steps=3)
ADAPTIVE = dict(rtol=1e-5, atol=1e-5, max_steps=40, outputs="auto")


def compiled_functions(function, *args):
    """How many calls of functions that XLA must compile there are in a plain graph, bodies too."""
    graph = tf.function(function, autograph=False).get_concrete_function(*args).graph.as_graph_def()
    nodes = [*graph.node, *(n for f in graph.library.function for n in f.node_def)]
    return sum(n.op.endswith("PartitionedCall") and n.attr["_XlaMustCompile"].b for n in nodes)


@pytest.mark.parametrize("options", [FIXED, slow(ADAPTIVE)], ids=["fixed", "adaptive"])
@pytest.mark.parametrize(
    "gradient",
    [
        "symplectic_adjoint",
        slow(SymplecticAdjoint("steps")),
        slow(SymplecticAdjoint("stages")),
        slow(SymplecticAdjoint(11)),
        slow("backprop"),
        slow("aca"),
        slow("baseline"),
        slow("continuous_adjoint"),
    ],
    ids=str,
)
@pytest.mark.parametrize("mode", [slow("eager"), "graph", slow("xla")])
def test_gradients_are_those_of_a_plain_graph(gradient, options, mode):
    expected = gradients(mlp(), gradient, "graph", **options)
    actual = gradients(mlp(), gradient, mode, jit_compile=True, **options)
    assert relative_error(actual, expected) < FLOAT64


def gradient_of(jit_compile, **options):
    def compute(y0):
        with tf.GradientTape() as tape:
            tape.watch(y0)
            y = tfsymadj.odeint(pendulum, y0, [0.0, 0.4, 1.0], jit_compile=jit_compile, **options)
        return tape.gradient(y, y0)

    return compute


@pytest.mark.parametrize("options", [FIXED, ADAPTIVE], ids=["fixed", "adaptive"])
def test_forward_and_backward_are_compiled(options):
    y0 = tf.constant([1.0, 0.5], tf.float64)
    assert compiled_functions(gradient_of(True, **options), y0) == 2
    assert compiled_functions(gradient_of(False, **options), y0) == 0
    assert compiled_functions(gradient_of(None, **options), y0) == 0


@pytest.mark.parametrize("num_steps", [slow(12), 11])
@pytest.mark.parametrize(
    "gradient",
    [
        "symplectic_adjoint",
        SymplecticAdjoint("sqrt"),
        slow(SymplecticAdjoint("steps")),
        slow(SymplecticAdjoint("stages")),
        slow("aca"),
    ],
    ids=str,
)
def test_the_length_of_loops_of_fixed_steps_is_known(gradient, num_steps):
    """On a GPU XLA asks the host before each pass of any other loop."""
    y0 = tf.constant([1.0, 0.5], tf.float64)
    compute = gradient_of(None, method="rk4", num_steps=num_steps, gradient=gradient)
    function = tf.function(compute, autograph=False, jit_compile=True)
    code = function.experimental_get_compiler_ir(y0)(stage="optimized_hlo")
    loops = [line for line in code.splitlines() if re.search(r" while\(", line)]
    assert len(loops) >= 2
    assert all("known_trip_count" in line for line in loops)


@pytest.mark.slow
@pytest.mark.parametrize("gradient", ["symplectic_adjoint", "backprop"])
def test_second_derivatives(gradient):
    y0 = tf.constant([1.0, 0.5], tf.float64)

    def hessian(jit_compile):
        compute = gradient_of(jit_compile, gradient=gradient, **FIXED)

        @tf.function
        def run(y0):
            with tf.GradientTape() as tape:
                tape.watch(y0)
                value = tf.reduce_sum(compute(y0) ** 2)
            return tape.gradient(value, y0)

        return run(y0)

    np.testing.assert_allclose(hessian(True), hessian(None), rtol=1e-11)


@pytest.mark.slow
def test_jacobian():
    y0 = tf.constant([1.0, 0.5], tf.float64)

    @tf.function
    def jacobian(y0, jit_compile):
        with tf.GradientTape() as tape:
            tape.watch(y0)
            y = tfsymadj.odeint(pendulum, y0, [0.0, 1.0], jit_compile=jit_compile, **FIXED)[-1]
        return tape.jacobian(y, y0)

    np.testing.assert_allclose(jacobian(y0, True), jacobian(y0, None), rtol=1e-12)


@pytest.mark.slow
@pytest.mark.parametrize("construct", ["map_fn", "while_loop", "cond"])
def test_variables_inside_of_constructs(construct):
    start = tf.constant([[1.0, 0.5], [0.3, 0.2]], tf.float64)
    w = tf.Variable(0.5, dtype=tf.float64)

    @tf.function
    def compute(jit_compile):
        def end(y):
            return tfsymadj.odeint(
                lambda t, y: -w * y * y, y, [0.0, 1.0], jit_compile=jit_compile, **FIXED
            )[-1]

        with tf.GradientTape() as tape:
            if construct == "map_fn":
                y = tf.map_fn(end, start)
            elif construct == "while_loop":
                passes = dict(maximum_iterations=2)
                y = tf.while_loop(lambda y: True, lambda y: (end(y),), (start,), **passes)[0]
            else:
                y = tf.cond(start[0, 0] > 0.0, lambda: end(start), lambda: start)
            loss = tf.reduce_sum(y**2)
        return tape.gradient(loss, w)

    np.testing.assert_allclose(compute(True), compute(None), rtol=1e-12)


@pytest.mark.slow
@pytest.mark.parametrize("construct", ["map_fn", "while_loop", "cond", "vectorized_map"])
def test_inside_of_constructs(construct):
    start = tf.constant([[1.0, 0.5], [0.3, 0.2]], tf.float64)

    def compute(jit_compile):
        def end(y0):
            return tfsymadj.odeint(pendulum, y0, [0.0, 1.0], jit_compile=jit_compile, **FIXED)[-1]

        def each(y0):
            if construct == "map_fn":
                return tf.map_fn(end, y0)
            if construct == "vectorized_map":
                return tf.vectorized_map(end, y0)
            if construct == "cond":
                return tf.cond(y0[0, 0] > 0.0, lambda: end(y0[0]), lambda: y0[0])
            return tf.while_loop(lambda i, y: i < 2, lambda i, y: (i + 1, end(y)), (0, y0[0]))[1]

        @tf.function
        def run(y0):
            with tf.GradientTape() as tape:
                tape.watch(y0)
                y = each(y0)
            return y, tape.gradient(y, y0)

        return run(start)

    for actual, expected in zip(compute(True), compute(None)):
        np.testing.assert_allclose(actual, expected, rtol=1e-12)


@pytest.mark.slow
def test_events():
    w = tf.constant(1.3, tf.float64)

    def event(jit_compile):
        @tf.function
        def run(w):
            with tf.GradientTape() as tape:
                tape.watch(w)
                solution = tfsymadj.solve(
                    lambda t, y, w: tf.stack([y[1], -w * w * y[0]]),
                    tf.constant([1.0, 0.0], tf.float64),
                    [0.0, 1.0, 10.0],
                    args=(w,),
                    event=Event(lambda t, y: y[0]),
                    rtol=1e-9,
                    atol=1e-9,
                    jit_compile=jit_compile,
                    max_steps=200,
                )
                t, speed = solution.event.t, solution.event.y[1]
                value = t + 2.0 * speed + solution.y[1, 0]
            return t, speed, tape.gradient(value, w)

        return run(w)

    for actual, expected in zip(event(True), event(None)):
        np.testing.assert_allclose(actual, expected, rtol=1e-10)
    np.testing.assert_allclose(event(True)[0], 0.5 * np.pi / 1.3, rtol=1e-8)


@pytest.mark.slow
@pytest.mark.parametrize("options", [dict(dense=True), dict(jumps=[0.3]), dict(outputs="steps")])
def test_other_outputs(options):
    y0 = tf.constant([1.0, 0.5], tf.float64)

    def compute(jit_compile):
        @tf.function
        def run(y0):
            with tf.GradientTape() as tape:
                tape.watch(y0)
                solution = tfsymadj.solve(
                    pendulum, y0, [0.0, 1.0], max_steps=30, jit_compile=jit_compile, **options
                )
                y = solution.interpolant([0.3, 0.6]) if "dense" in options else solution.y
            return y, tape.gradient(y, y0)

        return run(y0)

    for actual, expected in zip(compute(True), compute(None)):
        np.testing.assert_allclose(actual, expected, rtol=1e-11)


@pytest.mark.slow
def test_steady_state():
    a = tf.constant([4.0], tf.float64)

    @tf.function
    def run(a):
        with tf.GradientTape() as tape:
            tape.watch(a)
            found = tfsymadj.steady_state(
                lambda t, y, a: a - y * y, tf.ones_like(a), args=(a,), jit_compile=True
            )
        return found.y, tape.gradient(found.y, a)

    y, slope = run(a)
    np.testing.assert_allclose(y, [2.0], rtol=1e-5)
    np.testing.assert_allclose(slope, [0.25], rtol=1e-4)


@pytest.mark.slow
def test_fit_and_export(tmp_path):
    keras.utils.set_random_seed(0)

    def model(jit_compile):
        inner = keras.Sequential([keras.layers.Dense(8, "tanh"), keras.layers.Dense(2)])
        layer = tfsymadj.ODELayer(inner, jit_compile=jit_compile, **FIXED)
        return keras.Sequential([keras.Input((2,)), layer])

    first, second = model(True), model(None)
    second.set_weights(first.get_weights())
    x = np.random.default_rng(0).normal(size=(32, 2)).astype("float32")
    for each in (first, second):
        each.compile("adam", "mse", jit_compile=False)
        each.fit(x, -x, batch_size=16, epochs=2, verbose=0)
    np.testing.assert_allclose(first(x), second(x), rtol=1e-4, atol=1e-5)
    first.export(str(tmp_path / "model"), verbose=False)
    loaded = tf.saved_model.load(str(tmp_path / "model"))
    np.testing.assert_allclose(loaded.serve(x), first(x), rtol=1e-5, atol=1e-6)
    config = first.layers[0].get_config()
    assert tfsymadj.ODELayer.from_config(config).get_config()["jit_compile"] is True


@pytest.mark.slow
def test_flow():
    keras.utils.set_random_seed(0)
    layers = [keras.layers.Dense(8, "tanh"), keras.layers.Dense(2)]
    inner = keras.Sequential([keras.Input((2,)), *layers])
    x = tf.constant(np.random.default_rng(0).normal(size=(4, 2)), tf.float32)
    base = tfp.distributions.MultivariateNormalDiag([0.0, 0.0])

    def found(jit_compile):
        flow = CNF(inner, jit_compile=jit_compile, **FIXED)
        flow = tfp.distributions.TransformedDistribution(base, flow)

        @tf.function
        def run(x):
            with tf.GradientTape() as tape:
                value = tf.reduce_mean(flow.log_prob(x))
            return value, tape.gradient(value, inner.trainable_variables)

        return tf.nest.flatten(run(x))

    for actual, expected in zip(found(True), found(None)):
        np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-6)


def test_failures_raise_and_gradients_are_nan():
    y0 = tf.ones([])

    def solved(on_failure):
        return tfsymadj.solve(
            lambda t, y: y * y,
            y0,
            [0.0, 2.0],
            max_steps=60,
            on_failure=on_failure,
            jit_compile=True,
        )

    with pytest.raises(tf.errors.InvalidArgumentError, match="`max_steps`|smaller"):
        solved("raise")
    with pytest.raises(tf.errors.InvalidArgumentError):
        tf.function(lambda: solved("raise").y)()
    with tf.GradientTape() as tape:
        tape.watch(y0)
        solution = solved("status")
    assert not solution.success
    assert np.isnan(tape.gradient(solution.y, y0))


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [
        dict(batch_axis=0, **ADAPTIVE),
        slow(dict(jumps=[0.3, 0.5], **ADAPTIVE)),
        slow(dict(event=Event(lambda t, y: y[0, 0] - 5.0), **ADAPTIVE)),
        slow(dict(batch_axis=0, jumps=[0.3], **ADAPTIVE)),
        slow(dict(batch_axis=0, gradient=SymplecticAdjoint(11), **ADAPTIVE)),
        slow(dict(gradient=SymplecticAdjoint(11), **ADAPTIVE)),
        slow(dict(dense=True, **ADAPTIVE)),
        slow(FIXED),
    ],
    ids=lambda options: "-".join(sorted(options)),
)
def test_other_numbers_are_no_other_code(options):
    weight = tf.Variable(np.random.default_rng(0).normal(size=(3, 3)))

    def gradient(y0, t):
        with tf.GradientTape() as tape:
            tape.watch([y0, t])
            solution = tfsymadj.solve(lambda t, y: tf.tanh(y @ weight), y0, t, **options)
            states = solution.event.y if "event" in options else solution.y
            value = tf.reduce_sum(states**2)
        return tape.gradient(value, [y0, t, weight])

    compiled = tf.function(gradient, jit_compile=True)
    y0, t, code = np.ones((2, 3)), np.array([0.0, 0.4, 1.0]), []
    for factor in (1.0, 1.25):
        weight.assign(factor * weight)
        inputs = tf.constant(factor * y0), tf.constant(factor * t)
        text = compiled.experimental_get_compiler_ir(*inputs)(stage="hlo")
        # Constants are counted from one call to the next.
        code.append(re.sub(r"metadata=\{[^}]*\}|%_\d+", "", text))
    assert code[0] == code[1]


@pytest.mark.parametrize("mode", ["eager", "graph"])
def test_what_can_not_be_compiled(mode):
    def dynamics(t, y):
        return tf.linalg.lu(y)[0]

    def solved():
        return tfsymadj.odeint(dynamics, tf.eye(2), [0.0, 1.0], jit_compile=True, **FIXED)

    with pytest.raises(ValueError, match="XLA can't compile the `dynamics`.* of type Lu"):
        (tf.function(solved) if mode == "graph" else solved)()


@pytest.mark.slow
def test_two_tapes_around_eager_code_are_refused():
    y0 = tf.constant([1.0, 0.5], tf.float64)
    with tf.GradientTape() as outer:
        outer.watch(y0)
        with pytest.raises(RuntimeError, match="inside of a `tf.function`"):
            gradient_of(True, gradient="aca", **FIXED)(y0)


def test_wrong_values():
    with pytest.raises(ValueError, match="`jit_compile` must be True, False or None"):
        tfsymadj.odeint(lambda t, y: -y, [1.0], [0.0, 1.0], jit_compile="auto")


def test_equal_steps_of_an_eager_solve():
    """Their number is known to XLA: another one is another trace."""
    for steps in (2, 5, 2):
        y = tfsymadj.odeint(
            lambda t, y: -y, [1.0], [0.0, 1.0], method="euler", num_steps=steps, jit_compile=True
        )
        np.testing.assert_allclose(y[-1], [(1.0 - 1.0 / steps) ** steps], rtol=1e-6)


def test_gradients_of_back_propagation_are_computed_again():
    """XLA can't hand out what they need."""
    y0 = tf.constant([1.0, 0.5], tf.float64)
    compute = gradient_of(True, gradient=Backprop(), **FIXED)
    assert compiled_functions(compute, y0) == 2
