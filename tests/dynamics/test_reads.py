"""Tests of how dynamics may read what they close over: as a loop unrolled by hand would."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from helpers.modes import MODES, XLA_SLOW, partly_slow, run, slow
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

import tfsymadj
from tfsymadj import Backprop, ContinuousAdjoint, SolveCheckpoint, StepCheckpoint, SymplecticAdjoint

STEPS = 2


@pytest.fixture(autouse=True)
def variable_scope():
    """An error inside of `tf.map_fn` leaves the scope as it is in graphs, for all later tests."""
    tf.compat.v1.get_variable_scope()._caching_device = None


METHODS = [
    SymplecticAdjoint(),
    SymplecticAdjoint("stages"),
    SymplecticAdjoint(8),
    StepCheckpoint(),
    SolveCheckpoint(),
    Backprop(),
]
F64 = tf.float64


def unrolled(dynamics, y, steps=STEPS):
    """Euler's method in plain TensorFlow."""
    for n in range(steps):
        y = y + dynamics(tf.constant(n / steps, F64), y) / steps
    return y


def solved(dynamics, y, gradient, steps=STEPS):
    options = dict(method="euler", num_steps=steps, gradient=gradient)
    return tfsymadj.odeint(dynamics, y, tf.constant([0.0, 1.0], F64), **options)[-1]


class Sources:
    """What the dynamics close over."""

    def __init__(self):
        self.w = tf.Variable([0.7, -0.4], dtype=F64)
        self.frozen = tf.Variable([0.3, 0.9], trainable=False, dtype=F64)
        self.c = tf.constant([1.1, 0.6], F64)
        self.y = tf.constant([0.5, -1.2], F64)

    @property
    def all(self):
        return [self.w, self.frozen, self.c, self.y]


def plainly(f):
    return f


def recomputed(f):
    return tf.recompute_grad(f)


def by_hand(f):
    """A custom gradient that finds the variables of its function."""

    @tf.custom_gradient
    def function(y):
        with tf.GradientTape() as tape:
            tape.watch(y)
            value = f(y)

        def backward(d, variables=()):
            with tf.GradientTape() as tape:
                tape.watch(y)
                tape.watch(variables)
                again = f(y)
            found = tape.gradient(again, [y, *variables], d, unconnected_gradients="zero")
            return (found[0], found[1:]) if variables else found[0]

        del tape
        return value, backward

    return function


def in_a_function(f):
    return tf.function(f)


def in_a_traced_function(f):
    function = tf.function(f)
    function(tf.zeros([2], F64))
    return function


def in_a_branch(f):
    return lambda y: tf.cond(tf.reduce_sum(y) < 100.0, lambda: f(y), lambda: tf.zeros_like(y))


def in_a_loop(f):
    def function(y):
        total = tf.zeros_like(y)
        return tf.while_loop(
            lambda i, x: i < 2, lambda i, x: (i + 1, x + f(y)), (0, total), maximum_iterations=2
        )[1]

    return function


def also_stopped(f):
    return lambda y: tf.stop_gradient(f(y)) * 0.5 + f(y)


def by_a_tape(f):
    """A gradient for the state, taken by a tape inside of the dynamics."""

    def function(y):
        with tf.GradientTape() as tape:
            tape.watch(y)
            value = tf.reduce_sum(f(y) ** 2)
        return tape.gradient(value, y)

    return function


def mapped(f):
    return lambda y: tf.map_fn(lambda x: f(x), tf.stack([y, 0.5 * y]))[1]


WAYS = [plainly, recomputed, by_hand, in_a_function, in_a_traced_function, in_a_branch, in_a_loop,
        also_stopped, by_a_tape, mapped]  # fmt: skip


def gathered(v):
    return tf.gather(v, [1, 0])


def sparsely(v):
    return v.sparse_read([0, 1]) if hasattr(v, "sparse_read") else tf.identity(v)


def looked_up(v):
    return tf.nn.embedding_lookup(v, [1, 1])


def gathered_nd(v):
    return tf.gather_nd(v, [[1], [0]])


def sliced(v):
    return v[::-1]


READS = [tf.identity, tf.convert_to_tensor, gathered, sparsely, looked_up, gathered_nd, sliced]


def field(sources, read):
    """A function of the state that uses all that there is."""

    def f(y):
        return tf.tanh(read(sources.w) * y + read(sources.frozen)) * read(sources.c)

    return f


def results(solver, dynamics, sources, mode):
    """The end and all its gradients; None becomes zero, as the field may not use all."""

    def compute():
        with tf.GradientTape() as tape:
            tape.watch(sources.all)
            end = solver(lambda t, y: dynamics(y), sources.y)
            value = tf.reduce_sum(tf.constant([1.0, 0.7], F64) * end)
        found = tape.gradient(value, sources.all, unconnected_gradients="zero")
        return [end, *(tf.convert_to_tensor(g) for g in found)]

    return run(compute, mode)


def check(dynamics, sources, gradient, mode, tolerance=1e-12):
    # Unrolled by hand eagerly: there is no doubt about what it is.
    expected = results(unrolled, dynamics, sources, "eager")
    actual = results(lambda f, y: solved(f, y, gradient), dynamics, sources, mode)
    for a, b in zip(actual, expected):
        np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("mode", partly_slow(MODES, "eager", "xla"))
@pytest.mark.parametrize("read", READS, ids=lambda f: f.__name__)
def test_reads(read, mode):
    sources = Sources()
    check(field(sources, read), sources, SymplecticAdjoint(), mode)


@pytest.mark.parametrize("mode", partly_slow(MODES, "graph", "xla"))
@pytest.mark.parametrize("way", WAYS, ids=lambda f: f.__name__)
def test_ways(way, mode):
    sources = Sources()
    check(way(field(sources, tf.identity)), sources, SymplecticAdjoint(), mode)


@pytest.mark.parametrize("gradient", partly_slow(METHODS, *METHODS[1:3], *METHODS[4:]), ids=str)
@pytest.mark.parametrize("way", WAYS[1:], ids=lambda f: f.__name__)
def test_ways_by_every_gradient(way, gradient):
    sources = Sources()
    check(way(field(sources, tf.identity)), sources, gradient, "graph")


@pytest.mark.parametrize("gradient", partly_slow(METHODS, *METHODS[1:3]), ids=str)
@pytest.mark.parametrize("way", [recomputed, by_hand], ids=lambda f: f.__name__)
def test_custom_gradients_in_branches(way, gradient):
    """Which plain TensorFlow refuses to differentiate in graphs."""
    sources = Sources()
    f = way(variables_only(sources, tf.identity))
    check(in_a_branch(lambda y: f(y) / 2 + f(0.5 * y)), sources, gradient, "graph")


@pytest.mark.parametrize("mode", ["eager", slow("xla")])
@pytest.mark.parametrize("way", [recomputed, by_hand], ids=lambda f: f.__name__)
def test_custom_gradients_in_branches_by_default(way, mode):
    sources = Sources()
    f = way(variables_only(sources, tf.identity))
    check(in_a_branch(lambda y: f(y) / 2 + f(0.5 * y)), sources, SymplecticAdjoint(), mode)


def test_colocation_captures_no_handle():
    """XLA refuses a variable that comes in twice."""
    sources = Sources()
    check(in_a_function(field(sources, looked_up)), sources, SymplecticAdjoint(), "xla")


@pytest.mark.parametrize("way", [*WAYS[:3], *map(slow, WAYS[3:])], ids=lambda f: f.__name__)
def test_ways_by_the_continuous_adjoint(way):
    """Which is exact only for many steps."""
    sources = Sources()
    f = way(field(sources, tf.identity))
    options = dict(method="rk4", num_steps=40, gradient=ContinuousAdjoint())

    def solver(dynamics, y):
        return tfsymadj.odeint(dynamics, y, tf.constant([0.0, 1.0], F64), **options)[-1]

    options_of_backprop = options | {"gradient": Backprop()}

    def backprop(dynamics, y):
        return tfsymadj.odeint(dynamics, y, tf.constant([0.0, 1.0], F64), **options_of_backprop)[-1]

    expected = results(backprop, f, sources, "graph")
    for a, b in zip(results(solver, f, sources, "graph"), expected):
        np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-8)


# Tapes and gradients of their own, for what the dynamics close over


def tape_for(name, read=tf.identity):
    def make(sources):
        x = getattr(sources, name)

        def f(y):
            with tf.GradientTape() as tape:
                tape.watch(x)
                value = tf.reduce_sum(tf.sin(read(x) * y) * read(sources.w))
            found = tape.gradient(value, x, unconnected_gradients="zero")
            return tf.convert_to_tensor(found) * y

        return f

    return make


def symbolic_for(name):
    def make(sources):
        x = getattr(sources, name)

        def f(y):
            value = tf.reduce_sum(tf.sin(tf.identity(x) * y) * sources.w)
            return tf.gradients(value, x)[0] * y

        return f

    return make


@pytest.mark.parametrize("mode", partly_slow(MODES, "eager", "xla"))
@pytest.mark.parametrize("gradient", [METHODS[0], METHODS[4], METHODS[5]], ids=str)
@pytest.mark.parametrize("name", ["w", "frozen", "c"])
def test_tapes_inside(name, gradient, mode):
    sources = Sources()
    check(tape_for(name)(sources), sources, gradient, mode)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["w", slow("frozen"), slow("c")])
def test_tapes_inside_and_adaptive_steps(name):
    """The first evaluation is outside of the loop, where the caller's tape sees it."""
    sources = Sources()
    f = tape_for(name)(sources)
    options = dict(method="bosh3", rtol=1e-3, max_steps=32)

    def solver(gradient):
        return lambda f, y: tfsymadj.odeint(f, y, [0.0, 1.0], gradient=gradient, **options)[-1]

    expected = results(solver(SolveCheckpoint()), f, sources, "graph")
    for gradient in (Backprop(), SymplecticAdjoint()):
        for a, b in zip(results(solver(gradient), f, sources, "graph"), expected):
            np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", ["w", "frozen"])
def test_symbolic_gradients_inside(name):
    sources = Sources()
    symbolic = symbolic_for(name)(sources)
    expected = results(unrolled, tape_for(name)(sources), sources, "eager")
    actual = results(lambda f, y: solved(f, y, SymplecticAdjoint()), symbolic, sources, "graph")
    for a, b in zip(actual, expected):
        np.testing.assert_allclose(a, b, rtol=1e-12)


# Keras


@pytest.mark.parametrize("mode", partly_slow(MODES, "eager", "xla"))
@pytest.mark.parametrize("kind", ["scope", "activations", "remat", "keywords"])
def test_rematerialized_layers(kind, mode):
    keras.utils.set_random_seed(0)
    if kind == "remat":
        inner = keras.layers.Dense(2, activation="tanh")
        inner.build((None, 2))
        function = keras.remat(inner)
    else:
        scope = keras.RematScope(mode="activations" if kind == "activations" else "full")
        with scope:
            inner = keras.layers.Dense(2, activation="tanh")
        inner.build((None, 2))
        function = inner
        if kind == "keywords":
            remat = tf.recompute_grad(lambda y, training=None: inner(y))

            def function(y):
                return remat(y, training=True)

    x = tf.constant([[0.3, -0.5]])
    plain = keras.layers.Dense(2, activation="tanh")
    plain.build((None, 2))
    plain.set_weights(inner.get_weights())

    def compute(function, layer):
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = tfsymadj.odeint(lambda t, y: function(y), x, [0.0, 1.0], method="rk4", num_steps=2)
            value = tf.reduce_sum(y[-1] ** 2)
        return value, *tape.gradient(value, [x, *(v.value for v in layer.trainable_variables)])

    actual = run(lambda: compute(function, inner), mode)
    for a, b in zip(actual, run(lambda: compute(plain, plain), mode)):
        np.testing.assert_allclose(a, b, rtol=1e-6)


@pytest.mark.parametrize("mode", XLA_SLOW)
def test_frozen_kernel_that_is_watched(mode):
    dense = keras.layers.Dense(2, use_bias=False, kernel_initializer="ones")
    dense.build((None, 2))
    dense.trainable = False
    kernel, x = dense.kernel.value, tf.ones([1, 2])

    def compute(watched):
        with tf.GradientTape() as tape:
            tape.watch([x, kernel] if watched else x)
            y = tfsymadj.odeint(dense, x, [0.0, 1.0], method="euler", num_steps=1)[-1]
        return tape.gradient(y, kernel)

    np.testing.assert_array_equal(run(lambda: compute(True), mode), np.ones([2, 2]))
    assert mode == "xla" or run(lambda: compute(False), mode) is None


@pytest.mark.parametrize("gradient", [SymplecticAdjoint(), slow(Backprop())])
def test_a_tape_lists_a_variable_once(gradient):
    """Many take the variables to be trained from there."""
    v, u = tf.Variable(0.3, dtype=F64), tf.Variable([0.5, 2.0], dtype=F64)
    options = dict(method="rk4", num_steps=2, gradient=gradient)

    def watched():
        with tf.GradientTape() as tape:
            tfsymadj.odeint(lambda t, y: v * y + u, tf.ones([2], F64), [0.0, 1.0], **options)
        return {x.ref() for x in tape.watched_variables()}, len(tape.watched_variables())

    found = []
    tf.function(lambda: found.append(watched()))()
    for variables, count in (watched(), watched(), *found):
        assert variables == {v.ref(), u.ref()}
        assert count == 2


def test_module_and_its_functions():
    class Module(tf.Module):
        def __init__(self, sources):
            self.sources = sources

        @tf.function
        def __call__(self, t, y):
            return self.inner(y) * self.sources.c

        @tf.function(input_signature=[tf.TensorSpec([2], F64)])
        def inner(self, y):
            if tf.reduce_sum(y) > 100.0:
                return tf.zeros_like(y)
            return tf.sin(self.sources.w * y)

    sources = Sources()
    module = Module(sources)
    for mode in ("eager", "graph"):
        check(lambda y: module(None, y), sources, SymplecticAdjoint(), mode)
    assert module.inner(sources.y).shape == (2,)


# Inside of other constructs


@pytest.mark.parametrize("way", [recomputed, in_a_function, in_a_branch], ids=lambda f: f.__name__)
@pytest.mark.parametrize("construct", ["map_fn", "cond", "while"])
def test_inside_of_constructs(construct, way):
    sources = Sources()
    f = way(field(sources, tf.identity))

    def solver(dynamics, y):
        def solve(y):
            return solved(dynamics, y, SymplecticAdjoint())

        if construct == "map_fn":
            return tf.map_fn(solve, y[tf.newaxis])[0]
        if construct == "cond":
            return tf.cond(y[0] < 9.0, lambda: solve(y), lambda: y)
        return tf.while_loop(
            lambda i, y: i < 1, lambda i, y: (i + 1, solve(y)), (0, y), maximum_iterations=1
        )[1]

    expected = results(unrolled, f, sources, "eager")
    for a, b in zip(results(solver, f, sources, "graph"), expected):
        np.testing.assert_allclose(a, b, rtol=1e-12)


# The values of the forward pass


ASSIGNED = {
    "plainly": lambda w: lambda y: w * y,
    "gathered": lambda w: lambda y: tf.gather(w, [0, 1]) * y,
    "in a function": lambda w: tf.function(lambda y: w * y),
    "recomputed": lambda w: tf.recompute_grad(lambda y: w * y),
    "by hand": lambda w: by_hand(lambda y: w * y),
    "in a branch": lambda w: in_a_branch(lambda y: w * y),
}


@pytest.mark.parametrize("gradient", [METHODS[0], *map(slow, METHODS[3:5])], ids=str)
@pytest.mark.parametrize(
    "name",
    partly_slow(ASSIGNED, "in a branch", "gathered", "in a function", "recomputed", "by hand"),
)
def test_assigned_between_forward_and_backward(name, gradient):
    w = tf.Variable([2.0, 3.0], dtype=F64)
    y = tf.constant([1.0, 1.0], F64)
    f = ASSIGNED[name](w)

    def compute(twice):
        with tf.GradientTape(persistent=twice) as tape:
            tape.watch(y)
            end = solved(lambda t, y: f(y), y, gradient, 1)
        first = tape.gradient(end, [y, w]) if twice else []
        w.assign([12.0, 13.0])
        second = tape.gradient(end, [y, w])
        w.assign([2.0, 3.0])
        return [tf.convert_to_tensor(x) for x in [*first, *second]]

    # A persistent tape over a `tf.function` asks for second derivatives, which TensorFlow's
    # `recompute_grad` does not have.
    calls = [("eager", False), ("graph", True)] + [("eager", True)] * (name != "recomputed")
    for mode, twice in calls:
        found = run(lambda twice=twice: compute(twice), mode)
        assert len(found) == 2 + 2 * twice
        for x, expected in zip(found, [[3.0, 4.0], [1.0, 1.0]] * 2):
            np.testing.assert_allclose(x, expected)


def saved(w, path):
    module = tf.Module()
    module.w = w
    module.f = tf.function(lambda y: module.w * y, input_signature=[tf.TensorSpec([2], F64)])
    tf.saved_model.save(module, path)
    return tf.saved_model.load(path)


@pytest.mark.parametrize("mode", ["eager", "graph", slow("xla")])
@pytest.mark.parametrize("gradient", METHODS, ids=str)
def test_concrete_functions(gradient, mode):
    w = tf.Variable([2.0, 3.0], dtype=F64)
    y = tf.constant([1.0, 1.0], F64)
    f = tf.function(lambda y: w * y).get_concrete_function(tf.TensorSpec([2], F64))

    def compute():
        with tf.GradientTape() as tape:
            tape.watch(y)
            end = solved(lambda t, y: f(y), y, gradient, 1)
        return tape.gradient(end, [w, y])

    for x, expected in zip(run(compute, mode), [[1.0, 1.0], [3.0, 4.0]]):
        np.testing.assert_allclose(x, expected)


@pytest.mark.parametrize("kind", ["loaded", "concrete"])
def test_what_can_not_be_given_its_value(kind, tmp_path):
    w = tf.Variable([2.0, 3.0], dtype=F64)
    y = tf.constant([1.0, 1.0], F64)
    if kind == "loaded":
        loaded = saved(w, str(tmp_path))
        f, w = loaded.f, loaded.w
    else:
        f = tf.function(lambda y: w * y).get_concrete_function(tf.TensorSpec([2], F64))

    def compute(assigned):
        with tf.GradientTape() as tape:
            tape.watch(y)
            end = solved(lambda t, y: f(y), y, SymplecticAdjoint(), 1)
        if assigned:
            w.assign([12.0, 13.0])
        found = tape.gradient(end, [y, w])
        return [tf.convert_to_tensor(x) for x in found]

    for mode in ("eager", "graph"):
        for x, expected in zip(run(lambda: compute(False), mode), [[3.0, 4.0], [1.0, 1.0]]):
            np.testing.assert_allclose(x, expected)
        with pytest.raises(tf.errors.InvalidArgumentError, match="were assigned between"):
            run(lambda: compute(True), mode)
        w.assign([2.0, 3.0])


def test_raw_operations_on_a_handle_are_refused():
    w = tf.Variable(2.0)

    def dynamics(t, y):
        return tf.raw_ops.ReadVariableOp(resource=w.handle, dtype=tf.float32) * y

    with pytest.raises(ValueError, match="raw operations on its handle"):
        tfsymadj.odeint(dynamics, 1.0, [0.0, 1.0], method="euler", num_steps=1)


# At random


#: Plain TensorFlow's gradients of these see the variables that the function reads, nothing else.
AGAIN = (recomputed, by_hand)


@st.composite
def dynamics(draw, loops_in_branches=True):
    """Compositions of ways to read."""
    outer = draw(st.sampled_from([plainly, in_a_function, in_a_branch]))
    loops = (in_a_loop, mapped) if outer is in_a_branch and not loops_in_branches else ()
    ways = st.sampled_from([way for way in WAYS if way not in loops])
    parts = draw(st.lists(st.tuples(ways, st.sampled_from(READS)), min_size=1, max_size=2))

    def make(sources):
        functions = []
        for way, read in parts:
            inner = field(sources, read)
            if way in AGAIN:
                inner = variables_only(sources, read)
            functions.append(way(inner))
        return outer(lambda y: tf.add_n([g(y) for g in functions]) / 2 + functions[0](0.5 * y))

    return make


def variables_only(sources, read):
    return lambda y: tf.tanh(read(sources.w) * y)


def check_at_random(make, gradient, mode):
    sources = Sources()
    check(make(sources), sources, gradient, mode, 1e-11)


RANDOM = dict(deadline=None, suppress_health_check=list(HealthCheck), phases=[Phase.generate])


@pytest.mark.slow
@given(dynamics())
@settings(max_examples=6, derandomize=True, **RANDOM)
def test_random_dynamics(make):
    check_at_random(make, METHODS[0], "graph")


@pytest.mark.slow
@given(dynamics(), st.sampled_from(METHODS), st.sampled_from(["eager", "graph"]))
@settings(max_examples=140, **RANDOM)
def test_many_random_dynamics(make, gradient, mode):
    check_at_random(make, gradient, mode)


@pytest.mark.slow
# XLA can't compile TensorFlow's gradient of a loop in a branch.
@given(dynamics(loops_in_branches=False))
@settings(max_examples=60, **RANDOM)
def test_many_random_dynamics_under_xla(make):
    check_at_random(make, METHODS[0], "xla")
