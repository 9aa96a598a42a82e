"""`Split` dynamics and additive methods: orders, exact gradients, operators, layers."""

import dataclasses

import keras
import numpy as np
import pytest
import tensorflow as tf
from helpers.gradients import gradients, relative_error
from helpers.modes import MODES, slow
from helpers.problems import PENDULUM0, Problem, pendulum, pendulum_exactly

import tfsymadj
from tfsymadj import METHODS, Backprop, NoGradient, Split, SymplecticAdjoint
from tfsymadj.methods import order_conditions

linalg = tf.linalg

#: Equal sums in another order; the stages and their cotangents are solved to rounding.
EXACT = 1e-11

KENCARP4 = METHODS["kencarp4"]


# Tables


def test_additive_order_conditions():
    table = KENCARP4
    checked = [(table.b_vector, 4), (table.b_vector - table.error_vector, 3)]
    for weights, order in checked:
        for n in range(1, order + 1):
            found = order_conditions.residuals(table.matrices, weights, n)
            assert len(found) == len(order_conditions.rooted_trees(n)) * 2 ** (n - 1)
            assert max(abs(residual) for _, residual, _ in found) < 1e-14
        found = order_conditions.residuals(table.matrices, weights, order + 1)
        assert max(abs(residual) for _, residual, _ in found) > 1e-4


def test_any_wrong_explicit_coefficient_is_found():
    """Also where the row's sum is kept, and the explicit part alone has its order."""
    for i in range(2, 6):
        rows = [list(row) for row in KENCARP4.a_explicit]
        rows[i][0] += 1e-7
        with pytest.raises(ValueError, match=rf"`a_explicit\[{i}\]` must sum to `c\[{i}\]`"):
            dataclasses.replace(KENCARP4, a_explicit=rows)
        rows[i][1] -= 1e-7
        with pytest.raises(ValueError, match="violated"):
            dataclasses.replace(KENCARP4, a_explicit=rows)


@pytest.mark.parametrize(
    "changes, message",
    [
        (dict(a_explicit=((), (1,), (1,))), "`a_explicit` must have 2 entries"),
        (dict(a_explicit=((), (1 / 2, 1 / 2))), r"`a_explicit\[1\]` must have 1 entries"),
        (dict(a=((), (1,))), "`a` must have entries on its diagonal"),
    ],
)
def test_wrong_additive_tables(changes, message):
    """About the trapezoidal rule and Heun's method."""
    table = dict(name="cnh", order=2, c=(0, 1), a=((), (1 / 2, 1 / 2)), b=(1 / 2, 1 / 2))
    table |= dict(a_explicit=((), (1,)))
    assert tfsymadj.ButcherTableau(**table).a_explicit == ((), (1.0,))
    with pytest.raises(ValueError, match=f"(?s){message}.*Received: "):
        tfsymadj.ButcherTableau(**(table | changes))


# `Split`


def test_wrong_parts():
    with pytest.raises(TypeError, match="`explicit` must be callable. Received: 3"):
        Split(3, lambda t, y: y)
    with pytest.raises(TypeError, match="`implicit` must be callable, or.*Received: 3"):
        Split(lambda t, y: y, 3)
    wrong = Split(lambda t, y: y, lambda t, y: y[:1])
    with pytest.raises(ValueError, match="`dynamics` must return the shape of `y0`"):
        tfsymadj.odeint(wrong, tf.ones([3]), [0.0, 1.0])


SPLIT = Split(lambda t, y: pendulum(t, y) + 3 * y * tf.sin(t), lambda t, y: -3 * y * tf.sin(t))


@pytest.mark.parametrize("method", ["dopri5", slow("kvaerno3")])
def test_other_methods_solve_the_sum(method):
    options = dict(method=method, num_steps=20, gradient=NoGradient())
    y = tfsymadj.odeint(SPLIT, PENDULUM0, [0.0, 1.0], **options)
    assert np.max(np.abs(y[-1] - pendulum_exactly([0.0, 1.0])[-1])) < 1e-5


@pytest.mark.parametrize("dynamics", [slow(SPLIT), slow(pendulum)], ids=["split", "implicit"])
def test_observed_order(dynamics):
    exact, errors = pendulum_exactly([0.0, 2.0])[-1], []
    for n in (16, 32, 64):
        options = dict(method="kencarp4", num_steps=n, gradient=NoGradient())
        errors.append(
            np.linalg.norm(tfsymadj.odeint(dynamics, PENDULUM0, [0.0, 2.0], **options)[-1] - exact)
        )
    assert abs(-np.polyfit(np.log([16, 32, 64]), np.log(errors), 1)[0] - 4) < 0.2, errors


@pytest.mark.slow
def test_interpolated_outputs_reach_the_tolerance():
    times = np.linspace(0.0, 2.0, 9)
    options = dict(method="kencarp4", rtol=1e-6, atol=1e-6, gradient=NoGradient())
    solution = tfsymadj.solve(SPLIT, PENDULUM0, times, **options)
    assert np.max(np.abs(solution.y - pendulum_exactly(times))) < 1e-4
    alone = tfsymadj.solve(SPLIT, PENDULUM0, times[[0, -1]], **options)
    assert int(solution.stats.num_accepted) == int(alone.stats.num_accepted)


@pytest.mark.slow
def test_jumps_events_and_the_interpolant():
    def explicit(t, y):
        return tf.where(t < 0.3, tf.ones_like(y), -tf.ones_like(y))

    dynamics = Split(explicit, lambda t, y: -50.0 * y)
    options = dict(method="kencarp4", rtol=1e-7, atol=1e-9, gradient=NoGradient())
    y0 = tf.constant([1.0], tf.float64)
    y = tfsymadj.odeint(dynamics, y0, [0.0, 0.3, 1.0], jumps=[0.3], outputs="step", **options)
    np.testing.assert_allclose(y[1:, 0], [0.02 + 0.98 * np.exp(-15), -0.02], rtol=1e-5)
    event = tfsymadj.Event(lambda t, y: y[0] - 0.5)
    found = tfsymadj.solve(dynamics, y0, [0.0, 1.0], jumps=[0.3], event=event, **options).event
    np.testing.assert_allclose(found.t, np.log(0.98 / 0.48) / 50, rtol=1e-5)
    dense = tfsymadj.solve(dynamics, y0, [0.0, 0.3], dense=True, max_steps=200, **options)
    times = np.array([0.01, 0.05])
    expected = 0.02 + 0.98 * np.exp(-50 * times)
    np.testing.assert_allclose(dense.interpolant(times)[:, 0], expected, rtol=1e-5)


# Gradients


def compare(problem, reference, gradient, mode, **options):
    options = dict(method="kencarp4", num_steps=3) | options
    actual = gradients(problem, gradient, mode, **options)
    expected = gradients(reference or problem, Backprop(), "graph", **options)
    assert relative_error(actual, expected) < EXACT


def parts(seed=3):
    """Two parts that depend on the time, on variables, `args` and closed-over tensors."""
    random = np.random.default_rng(seed)
    w, v = (tf.Variable(random.normal(size=[3, 3])) for _ in range(2))
    closed = tf.constant(random.normal(size=[3]))

    def explicit(t, y, shift):
        return tf.tanh(y @ w + t) * shift

    def implicit(t, y, shift):
        return -20.0 * (y @ (tf.transpose(v) @ v) + y**3) * (1.0 + t) + closed * shift

    y0, times = tf.constant(random.normal(size=[4, 3])), tf.constant([0.0, 0.3, 1.0], tf.float64)
    args = (tf.constant(0.7, tf.float64),)
    return Problem(Split(explicit, implicit), y0, times, args, (w, v), (closed,))


ALL = ["symplectic_adjoint", SymplecticAdjoint("sqrt"), SymplecticAdjoint("steps"),
       SymplecticAdjoint("stages"), SymplecticAdjoint(12), "aca", "baseline"]  # fmt: skip


def test_equals_backprop():
    compare(parts(), None, SymplecticAdjoint("stages"), "graph", num_steps=1)


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["graph", "xla"])
@pytest.mark.parametrize("gradient", ALL, ids=str)
def test_equals_backprop_everywhere(gradient, mode):
    compare(parts(), None, gradient, mode)


@pytest.mark.slow
@pytest.mark.parametrize("gradient", ["symplectic_adjoint", SymplecticAdjoint("sqrt")], ids=str)
def test_equals_backprop_with_interpolated_outputs(gradient):
    problem = dataclasses.replace(parts(), t=tf.constant(np.linspace(0.0, 1.0, 9)))
    options = dict(rtol=1e-4, atol=1e-4, max_steps=60, outputs="interpolate", num_steps=None)
    compare(problem, None, gradient, "graph", **options)


@pytest.mark.slow
def test_equals_backprop_by_example():
    def explicit(t, y):
        return tf.sin(y) * t[:, tf.newaxis]

    dynamics = Split(explicit, lambda t, y: -50.0 * y**3 * t[:, tf.newaxis])
    problem = dataclasses.replace(parts(), dynamics=dynamics, args=(), variables=(), closed=())
    options = dict(rtol=1e-4, atol=1e-4, max_steps=60, num_steps=None, batch_axis=0)
    compare(problem, None, SymplecticAdjoint(), "graph", **options)


# Operators

_RANDOM = np.random.default_rng(5)
_FREQUENCIES = np.array([0, 1, 2, 0, -2, -1])


def _operator(kind):
    """An operator of six columns, the variables that it has, and it as a function."""
    if kind == "diagonal":
        diagonal = tf.Variable(-_RANDOM.uniform(size=6) * 30)
        return linalg.LinearOperatorDiag(diagonal), (diagonal,), lambda y: y * diagonal
    if kind == "circulant":
        factor = tf.Variable(2.0, dtype=tf.float64)
        spectrum = tf.constant(-3.0 * _FREQUENCIES**2 + 0.3j * _FREQUENCIES, tf.complex128)
        scale = linalg.LinearOperatorScaledIdentity(6, factor)
        circulant = linalg.LinearOperatorCirculant(spectrum, input_output_dtype=tf.float64)
        matrix = circulant.to_dense()
        operator = linalg.LinearOperatorComposition([scale, circulant])
        return operator, (factor,), lambda y: factor * y @ tf.transpose(matrix)
    if kind == "fields":
        spectrum = tf.Variable([[0, -9.0, -9.0], [-4.0, -13.0, -13.0]], dtype=tf.float64)
        real = linalg.LinearOperatorCirculant2D(
            tf.cast(spectrum, tf.complex128), input_output_dtype=tf.float64
        )
        return real, (), lambda y: y @ tf.transpose(real.to_dense())
    if kind == "tridiagonal":
        rows = tf.Variable(_RANDOM.uniform(size=[3, 6]) * 20 - [[0.0], [60.0], [0.0]])

        def function(y):
            above, middle, below = tf.unstack(rows)
            matrix = (
                linalg.diag(above[:-1], k=1) + linalg.diag(middle) + linalg.diag(below[1:], k=-1)
            )
            return y @ tf.transpose(matrix)

        return linalg.LinearOperatorTridiag(rows), (rows,), function
    matrix = tf.Variable(_RANDOM.normal(size=[6, 6]) - 10.0 * np.eye(6))
    return linalg.LinearOperatorFullMatrix(matrix), (matrix,), lambda y: y @ tf.transpose(matrix)


def of_operator(kind):
    """The problem of an operator, and the same one of a function."""
    operator, variables, function = _operator(kind)
    w = tf.Variable(_RANDOM.normal(size=[6, 6]) * 0.5)

    def explicit(t, y):
        return tf.tanh(y @ w + (t[:, tf.newaxis] if t.shape.rank else t))

    y0, times = tf.constant(_RANDOM.normal(size=[4, 6])), tf.constant([0.0, 0.3, 1.0], tf.float64)
    return [
        Problem(Split(explicit, part), y0, times, variables=(w, *variables))
        for part in (operator, lambda t, y: function(y))
    ]


KINDS = ["diagonal", "circulant", "fields", "tridiagonal", "matrix"]


@pytest.mark.slow
def test_operator_equals_function():
    compare(*of_operator("circulant"), SymplecticAdjoint("stages"), "graph", num_steps=1)


@pytest.mark.slow
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("kind", KINDS)
def test_operator_equals_function_everywhere(kind, mode):
    compare(*of_operator(kind), SymplecticAdjoint(), mode, num_steps=2)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_operator_equals_function_by_example(kind):
    compare(*of_operator(kind), SymplecticAdjoint("sqrt"), "graph", batch_axis=0)


@pytest.mark.slow
def test_operators_of_a_nest():
    """With axes of a batch, a field, and a part of which the operator is zero."""
    random = np.random.default_rng(2)
    scales = -random.uniform(size=[2, 3]) * 30
    operator = linalg.LinearOperatorDiag(tf.constant(scales.reshape([2 * 3])))
    y0 = tf.constant(random.normal(size=[4, 2, 3])), tf.constant(random.normal(size=[4]))

    def explicit(t, y):
        return tf.sin(y[0]), tf.reduce_sum(y[0], [1, 2])

    def implicit(t, y):
        return y[0] * scales, tf.zeros_like(y[1])

    times = tf.constant([0.0, 1.0], tf.float64)
    problems = [Problem(Split(explicit, x), y0, times) for x in ((operator, None), implicit)]
    compare(*problems, SymplecticAdjoint("stages"), "graph")


def test_operators_that_do_not_fit():
    def solve(operator, y0):
        return tfsymadj.odeint(Split(lambda t, y: y, operator), y0, [0.0, 1.0], method="kencarp4")

    diagonal = linalg.LinearOperatorDiag(tf.ones([4]))
    with pytest.raises(ValueError, match="as many columns as some of the last axes"):
        solve(diagonal, tf.ones([3]))
    with pytest.raises(ValueError, match="`implicit` must have the structure of `y0`"):
        solve((diagonal, None), tf.ones([4]))
    circulant = linalg.LinearOperatorCirculant(tf.ones([4], tf.complex64))
    with pytest.raises(ValueError, match="take `input_output_dtype`"):
        solve(circulant, tf.ones([4]))


# Layers


@keras.saving.register_keras_serializable(package="tests")
def decay(t, y):
    return -100.0 * y


@pytest.mark.slow
def test_layer(tmp_path):
    network = keras.Sequential([keras.layers.Dense(8, "tanh"), keras.layers.Dense(3)])
    layer = tfsymadj.ODELayer(Split(network, decay), method="kencarp4", num_steps=2)
    model = keras.Sequential([keras.Input([3]), layer])
    assert len(model.trainable_variables) == 4 and layer.layers == [network]
    x = np.random.default_rng(0).normal(size=[8, 3]).astype("float32")
    model.compile("sgd", "mse", jit_compile=True)
    model.fit(x, x, epochs=1, verbose=0)
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(loaded.predict(x, verbose=0), model.predict(x, verbose=0))
    options = dict(method="kencarp4", num_steps=2)
    expected = tfsymadj.odeint(Split(network, decay), x, [0.0, 1.0], **options)
    np.testing.assert_allclose(model(x), expected[-1], atol=1e-6)


@pytest.mark.slow
def test_layer_of_an_operator():
    network = keras.Sequential([keras.layers.Dense(3, "tanh")])
    rates = tf.Variable([-100.0, -50.0, -1.0])
    dynamics = Split(network, linalg.LinearOperatorDiag(rates))
    layer = tfsymadj.ODELayer(dynamics, method="kencarp4", num_steps=4)
    x = tf.ones([2, 3])
    with tf.GradientTape() as tape:
        value = tf.reduce_sum(layer(x))
    assert len(layer.trainable_variables) == 3
    assert all(g is not None for g in tape.gradient(value, layer.trainable_variables))


def _operators():
    circulant = linalg.LinearOperatorCirculant(
        tf.constant([-1.0, -5.0, -3.0, -5.0], tf.complex64), input_output_dtype=tf.float32
    )
    rate = linalg.LinearOperatorScaledIdentity(4, tf.Variable(2.0))
    yield "multiple of a circulant one", linalg.LinearOperatorComposition([rate, circulant])
    rows = tf.constant([[1.0, 1, 1, 0], [-2.0, -2, -2, -2], [0.0, 1, 1, 1]])
    yield "tridiagonal", linalg.LinearOperatorTridiag(rows, "compact")
    yield "diagonal", linalg.LinearOperatorDiag(tf.Variable([-3.0, -2.0, -1.0, 0.0]))


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["keras", "saved_model"])
@pytest.mark.parametrize("name", [name for name, _ in _operators()])
def test_saved_with_an_operator(name, kind, tmp_path):
    """Saved with the values that its variables have by then, and the same numbers again."""
    network = keras.Sequential([keras.layers.Dense(4, "tanh")])
    dynamics = Split(network, dict(_operators())[name])
    layer = tfsymadj.ODELayer(dynamics, method="kencarp4", num_steps=4)
    model = keras.Sequential([keras.Input([4]), layer])
    for variable in model.trainable_variables:
        variable.assign(1.1 * variable + 0.01)
    x = np.random.default_rng(0).normal(size=[2, 4]).astype("float32")
    expected = model(x)
    if kind == "keras":
        model.save(tmp_path / "model.keras")
        loaded = keras.models.load_model(tmp_path / "model.keras")
        assert len(loaded.trainable_variables) == len(model.trainable_variables)
        found = loaded(x)
    else:
        model.export(tmp_path / "model", verbose=False)
        loaded = tf.saved_model.load(tmp_path / "model")
        found = loaded.serve(x)
    np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_an_operator_of_another_class_is_not_saved():
    class Mine(linalg.LinearOperatorDiag):
        pass

    layer = tfsymadj.ODELayer(Split(decay, Mine(tf.ones([3]))), method="kencarp4", num_steps=4)
    with pytest.raises(TypeError, match="`implicit` must be operators of `tf.linalg`"):
        layer.get_config()
