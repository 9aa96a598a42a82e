"""Series as functions of the time: what they are, and how solves are driven by them."""

import keras
import numpy as np
import pytest
import scipy.interpolate
import tensorflow as tf
from helpers.gradients import FLOAT64, relative_error
from helpers.modes import MODES, partly_slow, run, slow

import tfsymadj
from tfsymadj import controls

KINDS = ("linear", "hermite", "steps", "rectilinear")
NAN = float("nan")
GRID = np.linspace(-1.0, 6.0, 71)


def series(seed=0, batch=None, n=9, channels=3, missing=0.4):
    """Irregular times and values with holes; of the last channel nothing is observed."""
    random = np.random.default_rng(seed)
    ts = np.sort(random.uniform(0.0, 5.0, n))
    xs = random.normal(size=(*([] if batch is None else [batch]), n, channels))
    xs[random.random(xs.shape) < missing] = NAN
    xs[..., -1] = NAN
    return ts, xs


def make(kind, ts, xs):
    return getattr(controls, kind)(ts, xs)


def test_linear_is_that_of_numpy_for_each_channel():
    ts, xs = series()
    found = controls.linear(ts, xs)(GRID).numpy()
    for c in (0, 1):
        there = ~np.isnan(xs[:, c])
        expected = np.interp(GRID, ts[there], xs[there, c])
        np.testing.assert_allclose(found[:, c], expected, atol=1e-13)
    np.testing.assert_array_equal(found[:, 2], 0.0)


def test_hermite_is_that_of_scipy_for_each_channel():
    ts, xs = series()
    control = controls.hermite(ts, xs)
    found, slopes = control(GRID).numpy(), control.derivative(GRID).numpy()
    for c in (0, 1):
        there = ~np.isnan(xs[:, c])
        t, x = ts[there], xs[there, c]
        chords = np.diff(x) / np.diff(t)
        spline = scipy.interpolate.CubicHermiteSpline(t, x, np.append(chords[0], chords))
        inside = (GRID > t[0]) & (GRID < t[-1])
        np.testing.assert_allclose(found[:, c], spline(np.clip(GRID, t[0], t[-1])), atol=1e-13)
        np.testing.assert_allclose(slopes[:, c], np.where(inside, spline(GRID, 1), 0), atol=1e-12)
    np.testing.assert_array_equal(found[:, 2], 0.0)


def test_steps_hold_and_know_nothing_of_what_comes():
    ts, xs = [0.0, 1.0, 2.0, 4.0], [[NAN], [3.0], [NAN], [5.0]]
    found = controls.steps(ts, xs)([-1.0, 0.5, 1.0, 2.5, 3.9, 4.0, 9.0])[:, 0]
    np.testing.assert_array_equal(found, [0.0, 0.0, 3.0, 3.0, 3.0, 5.0, 5.0])


def test_rectilinear_moves_time_and_values_in_turn():
    ts, xs = [0.0, 2.0, 3.0], [[1.0, 4.0], [NAN, 6.0], [5.0, NAN]]
    control = controls.rectilinear(ts, xs)
    np.testing.assert_array_equal(control.knots, [0.0, 1.0, 2.0, 2.5, 3.0])
    corners = [[0.0, 1.0, 4.0], [2.0, 1.0, 4.0], [2.0, 1.0, 6.0], [3.0, 1.0, 6.0], [3.0, 5.0, 6.0]]
    np.testing.assert_array_equal(control(control.knots), corners)
    np.testing.assert_array_equal(control.derivative([0.5, 1.5])[:, 2], [0.0, 2.0])


@pytest.mark.parametrize("kind", ["steps", "rectilinear"])
def test_what_comes_later_changes_nothing(kind):
    ts, xs = series(missing=0.2)
    other = xs.copy()
    other[5:] = 7.0
    before = np.linspace(ts[0], ts[4], 20)
    np.testing.assert_array_equal(make(kind, ts, xs)(before), make(kind, ts, other)(before))


@pytest.mark.parametrize("kind", KINDS)
def test_shapes_and_grids_of_each_example(kind):
    """The same whether a grid is shared or not, and whether examples are together or alone."""
    ts, xs = series(batch=4)
    times = tf.constant([0.3, 2.0, 4.9, 1.1], tf.float64)
    shared = make(kind, ts, xs)
    own = make(kind, np.tile(ts, (4, 1)), xs)
    alone = [make(kind, ts, x) for x in xs]
    n = shared.coefficients.shape[-1]
    for function in (lambda c, t: c(t), lambda c, t: c.derivative(t)):
        expected = tf.stack([function(c, t) for c, t in zip(alone, times)])
        assert function(alone[0], tf.reshape(times, [2, 2])).shape == (2, 2, n)
        for control in (shared, own):
            np.testing.assert_array_equal(function(control, times), expected)
            both = function(control, tf.stack([times, times[::-1]]))
            np.testing.assert_array_equal(both[0], expected)
            everywhere = function(control, times[0])
            np.testing.assert_array_equal(everywhere[0], expected[0])
            np.testing.assert_array_equal(function(control, times[:, None])[0], everywhere)


def test_values_at_the_knots_and_sides_of_them():
    ts, xs = series(missing=0.0)
    for kind in ("linear", "hermite", "steps"):
        np.testing.assert_allclose(make(kind, ts, xs)(ts)[:, :2], xs[:, :2], atol=1e-13)
    slopes = controls.linear(ts, xs).derivative(ts)[:, 0]
    chords = np.diff(xs[:, 0]) / np.diff(ts)
    np.testing.assert_allclose(slopes, np.append(chords, chords[-1]), rtol=1e-12)


def test_long_tables_are_searched_like_others():
    random = np.random.default_rng(0)
    ts = np.cumsum(random.exponential(size=5003))
    xs = random.normal(size=(5003, 1))
    control = controls.linear(ts, xs)
    times = np.concatenate([ts, random.uniform(-9.0, ts[-1] + 9.0, 500)])
    np.testing.assert_allclose(control(times)[:, 0], np.interp(times, ts, xs[:, 0]), atol=1e-9)
    held = controls.steps(ts, xs)(times)[:, 0]
    index = np.clip(np.searchsorted(ts, times, side="right") - 1, 0, None)
    np.testing.assert_array_equal(held, xs[index, 0])


@pytest.mark.parametrize("kind", KINDS)
def test_rows_may_be_filled_up(kind):
    ts, xs = series(missing=0.2)
    filled = np.append(ts[:6], [ts[5]] * 3)
    rows = np.stack([ts, filled])
    control = make(kind, rows, np.stack([xs, np.where(np.arange(9)[:, None] < 6, xs, 77.0)]))
    alone = make(kind, ts[:6], xs[:6])
    times = np.linspace(-1.0, ts[5], 40)[:, None]
    np.testing.assert_allclose(control(times)[:, 1], alone(times[:, 0]), atol=1e-12)
    slopes = control.derivative(times)[:, 1]
    np.testing.assert_allclose(slopes, alone.derivative(times[:, 0]), atol=1e-12)
    np.testing.assert_allclose(control(99.0)[1], alone(99.0), atol=1e-12)


def test_times_and_values_in_other_precisions():
    """The last time, as who computes in float32 gets it, is not beyond the last time."""
    control = controls.linear([0.0, 0.1], [[0.0], [1.0]])
    assert control.knots.dtype == tf.float64 and control.coefficients.dtype == tf.float32
    last = tf.constant(0.1)
    assert float(np.float32(0.1)) > 0.1
    assert abs(float(control.derivative(last)[0]) - 10.0) < 1e-5
    assert control(last).dtype == tf.float32
    assert control(tf.constant(0.05, tf.float64)).dtype == tf.float64
    assert control(tf.constant(0.05, tf.bfloat16)).dtype == tf.bfloat16
    assert control(0.05).dtype == tf.float32
    half = controls.hermite([0.0, 1.0, 2.0], tf.constant([[0.0], [1.0], [4.0]], tf.float16))
    assert half.coefficients.dtype == tf.float32 and float(half(2.0)[0]) == 4.0


def wrong_calls():
    xs = np.zeros([3, 2])
    yield ValueError, "`ts` must have at least two", [0.0], xs[:1]
    yield ValueError, "`ts` must have a time for each row", [0.0, 1.0], xs
    yield ValueError, "`ts` must have a time for each row", np.zeros([2, 3]), np.zeros([4, 3, 1])
    yield ValueError, "`ts` must be finite and strictly", [0.0, 2.0, 1.0], xs
    yield ValueError, "`ts` must be finite and strictly", [0.0, 1.0, 1.0], xs
    yield ValueError, "`ts` must be finite and strictly", [0.0, 1.0, NAN], xs
    yield ValueError, "`xs` must be of shape", [0.0, 1.0, 2.0], xs[:, 0]
    yield ValueError, "`xs` must be of shape", np.zeros([2, 3]), xs
    yield TypeError, "`xs` must be real", [0.0, 1.0, 2.0], xs.astype(complex)
    yield TypeError, "`xs` must be real", [0.0, 1.0, 2.0], xs.astype(int)
    yield TypeError, "`ts` and `xs` must be arrays", [0.0, 1.0, 2.0], keras.Input((3, 2))


def test_wrong_arguments():
    for error, message, ts, xs in wrong_calls():
        for kind in KINDS:
            with pytest.raises(error, match=message) as raised:
                make(kind, ts, xs)
            assert "Received: " in str(raised.value)


def test_half_precision_by_keras_is_refused():
    control = controls.linear([0.0, 1.0], [[0.0], [1.0]])
    half = tf.nest.map_structure(lambda x: tf.cast(x, tf.float16), control)
    with pytest.raises(TypeError, match="autocast=False.*Received: .*float16"):
        half(0.5)


@pytest.mark.parametrize("mode", ["graph", slow("xla")])
def test_times_that_do_not_increase_are_nan_where_traced(mode):
    times = tf.Variable([[0.0, 1.0, 2.0], [0.0, 2.0, 1.0], [0.0, 0.0, 1.0]], dtype=tf.float64)
    values = tf.ones([3, 3, 1], tf.float64)
    for kind in KINDS if mode == "xla" else KINDS[:1]:
        found = run(lambda kind=kind: make(kind, times + 0.0, values)(0.5), mode)
        assert np.all(np.isfinite(found[0])) and np.all(np.isnan(found[1:]))


@pytest.mark.parametrize("kind", partly_slow(KINDS, "linear", "steps", "rectilinear"))
def test_derivatives(kind):
    """Of the time: `derivative`. Of times and values: differences; none for what is missing."""
    ts, xs = series(batch=2, n=5, missing=0.3)
    ts, xs = tf.constant(ts), tf.constant(xs)
    t = tf.constant([1.7, 2.9], tf.float64)

    def value(ts, xs):
        return tf.reduce_sum(tf.sin(1.0 + make(kind, ts, xs)(t)))

    with tf.GradientTape(persistent=True) as tape:
        tape.watch([t, ts, xs])
        found, total = make(kind, ts, xs)(t), value(ts, xs)
    slope = tape.gradient(found, t, unconnected_gradients="zero")
    expected = tf.reduce_sum(make(kind, ts, xs).derivative(t), -1)
    np.testing.assert_allclose(slope, expected, atol=1e-12)
    for source, at in ((ts, lambda ts: value(ts, xs)), (xs, lambda xs: value(ts, xs))):
        gradient = tape.gradient(total, source, unconnected_gradients="zero").numpy()
        assert np.all(np.isfinite(gradient))
        for i in np.ndindex(*source.shape):
            shift = np.zeros(source.shape)
            shift[i] = 1e-6
            difference = (at(source + shift) - at(source - shift)) / 2e-6
            np.testing.assert_allclose(gradient[i], difference, atol=1e-8)


# Solves


def driven(t, y, control):
    return tf.sin(y) - control(t)[..., :2] * y + 0.1


TS = np.array([0.0, 0.3, 0.7, 1.0])
XS = np.array([[1.0, 0.2], [-0.5, 0.8], [0.3, NAN], [0.9, -0.6]])


def gradients(gradient, mode, kind, jumps=True, lanes=False, **options):
    """The states at the end, and the gradients for start, times and values."""
    options = {"method": "heun", "num_steps": 2, **options}

    def compute():
        y0 = tf.constant([[1.0, 0.5], [0.2, -0.3]] if lanes else [1.0, 0.5], tf.float64)
        ts, xs = (tf.constant(np.stack([x, x]) if lanes else x) for x in (TS, XS))
        with tf.GradientTape() as tape:
            tape.watch([y0, ts, xs])
            control = make(kind, ts, xs)
            y = tfsymadj.odeint(
                driven, y0, [0.0, 1.0], args=(control,), gradient=gradient,
                jumps=control.knots if jumps else None, batch_axis=0 if lanes else None, **options,
            )[-1]  # fmt: skip
            total = tf.reduce_sum(tf.cos(y))
        return y, *tape.gradient(total, [y0, ts, xs])

    return dict(enumerate(x.numpy() for x in run(compute, mode)))


@pytest.mark.parametrize("mode", [slow("eager"), "graph", slow("xla")])
@pytest.mark.parametrize("kind", partly_slow(KINDS, "linear", "hermite", "rectilinear"))
def test_gradients_are_those_of_back_propagation(kind, mode):
    expected = gradients("backprop", "graph", kind)
    assert relative_error(gradients("symplectic_adjoint", mode, kind), expected) < FLOAT64


ADAPTIVE = dict(method="dopri5", num_steps=None, rtol=1e-6, atol=1e-6, max_steps=64)


@pytest.mark.slow
@pytest.mark.parametrize("mode", [slow("eager"), "graph", slow("xla")])
@pytest.mark.parametrize("kind", [slow("linear"), "steps"])
@pytest.mark.parametrize("options", [{"num_steps": 1}, slow(ADAPTIVE)], ids=["equal", "adaptive"])
def test_examples_with_steps_of_their_own(kind, mode, options):
    expected = gradients("backprop", "graph", kind, lanes=True, **options)
    found = gradients("symplectic_adjoint", mode, kind, lanes=True, **options)
    assert relative_error(found, expected) < FLOAT64


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_examples_are_solved_as_if_they_were_alone(kind):
    together = gradients("symplectic_adjoint", "graph", kind, lanes=True, **ADAPTIVE)
    alone = gradients("symplectic_adjoint", "graph", kind, **ADAPTIVE)
    for found, expected in zip(together.values(), alone.values()):
        np.testing.assert_allclose(found[0], expected, rtol=1e-10, atol=1e-12)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS[:3])
def test_gradients_for_knots_are_those_of_the_exact_solution(kind):
    """With `jumps` also where the value jumps: what the shift of a jump does is in them."""
    options = dict(method="rk4", num_steps=40)
    *_, ts, _ = gradients("symplectic_adjoint", "graph", kind, **options).values()

    def value(times):
        control = make(kind, times, XS)
        y = tfsymadj.odeint(
            driven, tf.constant([1.0, 0.5], tf.float64), [0.0, 1.0], args=control,
            jumps=control.knots, **options,
        )  # fmt: skip
        return float(tf.reduce_sum(tf.cos(y[-1])))

    for i in (0, 1, 2):
        shift = 1e-6 * np.eye(4)[i]
        difference = (value(TS + shift) - value(TS - shift)) / 2e-6
        np.testing.assert_allclose(ts[i], difference, atol=3e-6)


@pytest.mark.parametrize("dtype", partly_slow(["float32", "float64"], "float64"))
@pytest.mark.parametrize("mode", [slow("eager"), "graph", slow("xla")])
def test_evaluations_stay_on_their_side_of_a_jump(dtype, mode):
    """One step for each piece is exact, at knots that float32 can't tell exactly."""
    random = np.random.default_rng(0)
    ts, xs = np.cumsum(random.uniform(0.1, 1.0, 12)), random.normal(size=(12, 1))
    held, line = controls.steps(ts, xs), controls.linear(ts, np.cumsum(xs, 0))

    def end(rate, control):
        y = tfsymadj.odeint(
            rate, tf.zeros([1], dtype), [ts[0], ts[-1]], args=control, jumps=control.knots,
            method="rk4", num_steps=1,
        )  # fmt: skip
        return y[-1, 0]

    def compute():
        return end(lambda t, y, u: u(t), held), end(lambda t, y, u: u.derivative(t), line)

    tolerance = 1e-5 if dtype == "float32" else 1e-12
    first, second = run(compute, mode)
    np.testing.assert_allclose(first, np.sum(xs[:-1, 0] * np.diff(ts)), atol=tolerance)
    np.testing.assert_allclose(second, np.sum(xs[1:]), atol=tolerance)


def test_a_control_is_one_argument():
    control = controls.linear(TS, XS)
    y0 = tf.ones([2], tf.float64)
    options = dict(method="euler", num_steps=2)
    alone = tfsymadj.odeint(driven, y0, [0.0, 1.0], args=control, **options)
    in_tuple = tfsymadj.odeint(driven, y0, [0.0, 1.0], args=(control,), **options)
    np.testing.assert_array_equal(alone, in_tuple)


@pytest.mark.slow
@pytest.mark.parametrize("own", [False, True], ids=["shared", "own"])
def test_lanes_that_work_off_a_queue_of_examples(own):
    """Also where there are as many knots, or pieces, as examples: these are no examples' own."""
    ts, xs = TS, np.append(XS, XS[::-1], 1)[:, :2]
    if own:
        ts, xs = np.stack([TS, 1.1 * TS, 0.9 * TS]), np.stack([xs, -xs, 0.5 * xs])
    results = []
    for lanes in (None, 2):
        y0, table = tf.constant([[1.0, 0.5], [0.2, -0.3], [0.4, 0.0]], tf.float64), tf.constant(xs)
        with tf.GradientTape() as tape:
            tape.watch([y0, table])
            y = tfsymadj.odeint(
                driven, y0, [0.0, 1.0], args=controls.linear(ts, table),
                batch_axis=0, lanes=lanes, rtol=1e-6, atol=1e-6, max_steps=64,
            )[-1]  # fmt: skip
            total = tf.reduce_sum(tf.cos(y))
        results.append(dict(enumerate([y, *tape.gradient(total, [y0, table])])))
    assert relative_error(results[1], results[0]) < 1e-10


# Long tables


def table(n=70_000):
    ts = np.linspace(0.0, 1.0, n)
    return controls.steps(ts, np.sin(9.0 * ts)[:, None])


def test_large_arguments_have_gradients_if_they_are_watched():
    """In eager code they are left out where no tape watches them; before and after."""
    control, y0 = table(), tf.ones([1], tf.float64)

    def solve(watched):
        with tf.GradientTape() as tape:
            tape.watch([y0, *watched])
            y = tfsymadj.odeint(
                lambda t, y, u: -y + u(t), y0, [0.0, 1.0], args=control, method="rk4", num_steps=3
            )[-1]
        return tape.gradient(y, [y0, control.coefficients])

    first, none = solve([])
    assert none is None
    second, found = solve([control.coefficients])
    again, _ = solve([])
    assert first == second == again
    # y(1) of one step h is a sum of values times weights that add up to 1 - y's own factor.
    factor = (1 - 1 / 3 + 1 / 18 - 1 / 162 + 1 / 1944) ** 3
    np.testing.assert_allclose(first, factor, rtol=1e-12)
    np.testing.assert_allclose(tf.reduce_sum(found), 1.0 - factor, rtol=1e-12)


@pytest.mark.slow
@pytest.mark.parametrize("mode", MODES)
def test_long_tables_cost_no_memory_where_no_gradient_is_wanted(mode):
    control, y0 = table(2**20), tf.ones([1], tf.float64)

    def compute():
        held = control if mode == "eager" else tf.nest.map_structure(tf.stop_gradient, control)
        with tf.GradientTape() as tape:
            tape.watch(y0)
            y = tfsymadj.odeint(
                lambda t, y, u: -y + u(t), y0, [0.0, 1.0], args=held, method="rk4", num_steps=9
            )[-1]
        return tape.gradient(y, y0)

    compiled = compute
    if mode != "eager":
        compiled = tf.function(compute, jit_compile=mode == "xla")
    compiled()
    before = tf.config.experimental.get_memory_info("CPU:0")["current"]
    tf.config.experimental.reset_memory_stats("CPU:0")
    compiled()
    held = tf.config.experimental.get_memory_info("CPU:0")["peak"] - before
    assert held < 2**20  # the table has 2^23 bytes


# In Keras


@keras.saving.register_keras_serializable(package="tests")
class Driven(keras.Layer):
    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.dense = keras.layers.Dense(2)

    def build(self, t_shape, y_shape, u_shape):
        self.dense.build(y_shape)

    def call(self, t, y, u):
        return self.dense(y) + u(t)


@keras.saving.register_keras_serializable(package="tests")
class FromSeries(tfsymadj.ODELayer):
    """Times and values are inputs of the model."""

    def call(self, y0, ts, xs):
        control = controls.linear(ts, xs)
        return super().call(y0, args=control, jumps=control.knots)


def test_in_functional_models(tmp_path):
    keras.utils.set_random_seed(0)
    control = controls.linear(TS, XS)
    inputs = keras.Input((2,))
    layer = tfsymadj.ODELayer(Driven(), method="rk4", num_steps=2)
    outputs = layer(inputs, args=(control,), jumps=control.knots)
    model, x = keras.Model(inputs, outputs), np.ones([3, 2], "float32")
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(loaded(x), model(x))


@pytest.mark.slow
def test_series_are_inputs_of_a_model(tmp_path):
    keras.utils.set_random_seed(0)
    y0, ts, xs = keras.Input((2,)), keras.Input((4,), dtype="float64"), keras.Input((4, 2))
    layer = FromSeries(Driven(), batch_axis=0, rtol=1e-3, max_steps=64)
    model = keras.Model([y0, ts, xs], layer(y0, ts, xs))
    model.compile("adam", "mse", jit_compile=True)
    data = [np.ones([3, 2], "float32"), np.stack([TS] * 3), np.stack([XS] * 3).astype("float32")]
    model.fit(data, np.zeros([3, 2]), epochs=2, verbose=0)
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    np.testing.assert_allclose(loaded(data), model(data), rtol=1e-6)
