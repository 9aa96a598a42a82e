"""Arithmetic of states, with numbers for all of a state and with one for each lane."""

import numpy as np
import pytest
import tensorflow as tf
from helpers.gradients import relative_error
from helpers.stubs import Lanes

from tfsymadj import arithmetic
from tfsymadj.dynamics.closing import Sources
from tfsymadj.methods import get_method

# Products of matrices of other sizes round otherwise; dopri5 has terms of ten times their sum.
ROUNDING = 200 * 2.0**-53
H, HS = tf.constant(0.3, tf.float64), tf.constant([0.3, -0.1, 0.0, 2.0], tf.float64)
ROW = (0.5, 0.0, -0.25, 1 / 3)


def state(seed=0):
    """A state of four lanes, and of several dtypes and ranks."""
    random = np.random.default_rng(seed)
    real, complex_, flat = (
        random.normal(size=(4, 3)),
        random.normal(size=(2, 4, 2, 2)),
        [1, 2, 3, 4],
    )
    return [
        tf.constant(real),
        tf.constant(complex_[0] + 1j * complex_[1]),
        tf.constant(flat, tf.float32),
    ]


def lane(xs, i):
    """The state of one lane, as a state of one lane."""
    return [x[i : i + 1] for x in xs]


# The functions


def test_beside():
    y = tf.zeros([4, 3, 2])
    assert arithmetic.beside(H, y) is H
    assert arithmetic.beside(HS, y).shape == (4, 1, 1)
    assert arithmetic.beside(HS, tf.zeros([4])).shape == (4,)


def test_coefficients_leave_out_zeros_and_negate_all_but_the_first():
    ys = state()
    found = arithmetic.coefficients(H, ROW, ys)
    assert [j for j, _ in found] == [0, 2, 3]
    for (j, numbers), sign in zip(found, (1.0, -1.0, -1.0)):
        assert [x.dtype for x in numbers] == [y.dtype for y in ys]
        assert all(x.shape == () for x in numbers)
        for x, precision in zip(numbers, (0.0, 0.0, 1e-7)):
            np.testing.assert_allclose(x, sign * 0.3 * ROW[j], rtol=precision)
    assert arithmetic.coefficients(H, (0.0, 0.0), ys) == []
    assert arithmetic.coefficients(H, (), ys) == []


def test_coefficients_of_lanes():
    ys = state()
    for j, numbers in arithmetic.coefficients(HS, ROW, ys):
        assert [x.shape for x in numbers] == [(4, 1), (4, 1, 1), (4,)]
        expected = HS.numpy() * ROW[j] * (1.0 if j == 0 else -1.0)
        np.testing.assert_array_equal(numbers[0][:, 0], expected)


@pytest.mark.parametrize("h", [H, HS], ids=["scalar", "lanes"])
def test_combine(h):
    terms = [state(seed) for seed in range(len(ROW))]
    found = arithmetic.combine(arithmetic.coefficients(h, ROW, terms[0]), terms, terms[0])
    for k, x in enumerate(found):
        wide = h.numpy().reshape([-1, *[1] * (x.shape.rank - 1)])
        expected = sum(wide * a * terms[j][k].numpy() for j, a in enumerate(ROW))
        assert x.dtype == terms[0][k].dtype
        assert relative_error(x, expected) < (1e-6 if x.dtype == tf.float32 else ROUNDING)


def test_combine_of_nothing_is_zero():
    ys = state()
    for zero, y in zip(arithmetic.combine([], [], ys), ys):
        assert zero.dtype == y.dtype
        np.testing.assert_array_equal(zero, np.zeros(y.shape))


def test_factors():
    ys, table = state(), np.array([[1.0, 0.5, 0.0], [0.0, 2.0, -1.0]])
    for x, y in zip(arithmetic.factors(H, table, ys), ys):
        assert x.dtype == y.dtype
        assert x.shape == (2, 3, *[1] * y.shape.rank)
        np.testing.assert_allclose(tf.reshape(x, [2, 3]), 0.3 * table, rtol=1e-7)
    for x, y in zip(arithmetic.factors(HS, table, ys), ys):
        assert x.dtype == y.dtype
        assert x.shape == (2, 3, 4, *[1] * (y.shape.rank - 1))
        expected = table[:, :, np.newaxis] * HS.numpy()
        np.testing.assert_allclose(tf.reshape(x, [2, 3, 4]), expected, rtol=1e-7)


@pytest.mark.parametrize("low_dtype", [tf.float32, tf.float64])
def test_compensated_sum_loses_nothing(low_dtype):
    totals = {"a": tf.ones([2]), "b": (tf.zeros([]),)}
    lows = tf.nest.map_structure(lambda x: tf.zeros_like(x, low_dtype), totals)
    # Each is less than half of the distance of two numbers beside one.
    for _ in range(1000):
        lows = tf.nest.map_structure(lambda x: x + 2.0**-26, lows)
        totals, lows = arithmetic.compensated_sum(totals, lows)
    assert totals["a"].dtype == tf.float32 and lows["a"].dtype == low_dtype
    for total, low, start in ((totals["a"], lows["a"], 1.0), (totals["b"][0], lows["b"][0], 0.0)):
        exact = start + 1000 * 2.0**-26
        np.testing.assert_array_equal(np.float64(total) + np.float64(low), exact)
        np.testing.assert_allclose(total, exact, rtol=2.0**-24)


def test_what_compensation_keeps_is_constant_for_the_derivative():
    total, low = tf.constant(1.0), tf.constant(1e-3)
    with tf.GradientTape(persistent=True) as tape:
        tape.watch([total, low])
        new, rest = arithmetic.compensated_sum(total, low)
    assert tape.gradient(new, [total, low]) == [1.0, 1.0]
    assert tape.gradient(rest, [total, low]) == [None, None]


def test_inner():
    xs, ys = state(1), state(2)
    parts = [np.real(np.conj(x) * y) for x, y in zip(xs, ys)]
    total, lanes = arithmetic.inner(xs, ys), arithmetic.inner(xs, ys, lanes=1)
    assert total.dtype == lanes.dtype == tf.float64
    np.testing.assert_allclose(total, sum(np.sum(part) for part in parts), rtol=1e-12)
    np.testing.assert_allclose(lanes, sum(part.reshape([4, -1]).sum(1) for part in parts))


def test_add_terms():
    sums = {"a": tf.ones([2], tf.float64), "b": [tf.ones([3, 1]), tf.ones([])]}
    rows = tf.IndexedSlices(tf.ones([1, 1]), [1], [3, 1])
    found = arithmetic.add_terms(sums, {"a": tf.constant([1.0, 2.0]), "b": [rows, None]})
    assert found["a"].dtype == tf.float64
    np.testing.assert_array_equal(found["a"], [2.0, 3.0])
    np.testing.assert_array_equal(found["b"][0], [[1.0], [2.0], [1.0]])
    assert found["b"][1] is sums["b"][1]
    # Nothing that broadcasting would blow up.
    with pytest.raises(tf.errors.InvalidArgumentError):
        arithmetic.add_terms([tf.ones([1])], [tf.ones([2])])
    with pytest.raises(ValueError):
        arithmetic.add_terms([tf.ones([1]), tf.ones([1])], [None])


def test_accumulators_are_never_in_half_precision():
    for dtype, expected in (
        (tf.float16, tf.float32),
        (tf.bfloat16, tf.float32),
        (tf.float32, tf.float32),
        (tf.float64, tf.float64),
        (tf.complex64, tf.complex64),
    ):
        zeros = arithmetic.accumulator(tf.ones([2, 3], dtype))
        assert (zeros.dtype, zeros.shape) == (expected, (2, 3))
        np.testing.assert_array_equal(zeros, np.zeros([2, 3]))


def test_select():
    xs, ys = state(1), state(2)
    for condition, expected in ((True, xs), (False, ys)):
        for x, y in zip(arithmetic.select(tf.constant(condition), xs, ys), expected):
            np.testing.assert_array_equal(x, y)


@pytest.mark.parametrize("jit", [None, True], ids=["graph", "xla"])
def test_after_changes_no_value_but_is_nan_where_what_it_waits_for_is(jit):
    function = tf.function(arithmetic.after, jit_compile=jit)
    ys = state()
    for x, y in zip(function([tf.ones([3]), tf.ones([], tf.complex64)], ys), ys):
        np.testing.assert_array_equal(x, y)
    assert np.isnan(function([tf.constant([np.inf])], [tf.ones([2])])).all()


# Steps of a time and a size of its own for each lane


@pytest.mark.parametrize("dtype", ["float32", "float64", "complex128"])
def test_damped(dtype):
    fine, coarse = [3.0, 0.0, 0.0, 2.0, 1e-30, np.nan], [40.0, 1.0, 0.0, 0.0, 0.0, 1.0]
    x, y = ([tf.cast(tf.constant(a, tf.float64), dtype)] for a in (fine, coarse))
    with tf.GradientTape() as tape:
        tape.watch([x, y])
        (found,) = arithmetic.damped(x, y)
    np.testing.assert_allclose(found, [9.0 / 5.0, 0.0, 0.0, 2.0, 1e-30, np.nan], rtol=1e-6)
    for gradient in tape.gradient(found, [*x, *y]):
        assert np.isfinite(gradient[:-1]).all()


TS = tf.constant([0.0, 1.0, -2.0, 0.5], tf.float64)
STEPS = tf.constant([0.3, -0.1, 0.7, 0.01], tf.float64)
EACH_METHOD = pytest.mark.parametrize("name", ["rk4", "dopri5"])


@EACH_METHOD
def test_step_of_lanes_is_the_step_of_each(name):
    method, dynamics, ys = get_method(name), Lanes(), state()[:2]
    step = method.step(dynamics, TS, STEPS, ys)
    assert (step.errors is not None) == method.adaptive
    for i in range(4):
        alone = method.step(dynamics, TS[i], STEPS[i], lane(ys, i))
        assert alone.evaluations == step.evaluations
        for part in ("ys", "increments", "errors", "stages", "slopes"):
            together, expected = getattr(step, part), getattr(alone, part)
            for x, y in zip(tf.nest.flatten(together), tf.nest.flatten(expected), strict=True):
                if y is not None:
                    # Errors are small differences of large terms.
                    scale = np.max(np.abs(y)) + (part == "errors")
                    assert np.max(np.abs(x[i : i + 1] - y)) < ROUNDING * scale


@EACH_METHOD
def test_step_of_lanes_takes_the_first_slope(name):
    method, dynamics, ys = get_method(name), Lanes(), state()[:2]
    first = dynamics(TS, ys)
    step = method.step(dynamics, TS, STEPS, ys, first)
    assert step.slopes[0] is first
    expected = method.step(dynamics, TS, STEPS, ys)
    assert expected.evaluations == step.evaluations + 1
    for x, y in zip(step.ys, expected.ys):
        np.testing.assert_array_equal(x, y)


def adjoint(method, dynamics, t, h, ys, adjoints, with_time):
    """The derivative of a step as the backward sweep takes it."""
    stages = method.step(dynamics, t, h, ys).stages
    stacked = [tf.stack(parts) for parts in zip(*stages)]
    zeros = Sources(
        [tf.zeros_like(y) for y in ys], [tf.zeros_like(x) for x in dynamics.captured], [], []
    )
    return method.adjoint(
        dynamics, t, h, lambda i: [tf.gather(x, i) for x in stacked], adjoints, zeros, with_time
    )


@pytest.mark.parametrize("with_time", [False, True])
@EACH_METHOD
def test_adjoint_of_lanes_is_the_adjoint_of_each(name, with_time):
    method, dynamics = get_method(name).without_error(), Lanes()
    ys, adjoints = state(1)[:2], state(2)[:2]
    found = adjoint(method, dynamics, TS, STEPS, ys, adjoints, with_time)
    each = [
        adjoint(method, dynamics, TS[i], STEPS[i], lane(ys, i), lane(adjoints, i), with_time)
        for i in range(4)
    ]
    for k, x in enumerate(found.ys):
        assert relative_error(x, np.concatenate([one.ys[k] for one in each])) < ROUNDING
    # What all lanes share gets the sum.
    for k, x in enumerate(found.captured):
        assert relative_error(x, sum(one.captured[k].numpy() for one in each)) < 10 * ROUNDING
    assert len(found.times) == (2 if with_time else 0)
    for k, x in enumerate(found.times):
        assert x.shape == (4,)
        assert relative_error(x, np.stack([one.times[k] for one in each])) < 10 * ROUNDING


@EACH_METHOD
def test_adjoint_of_lanes_is_what_back_propagation_finds(name):
    method, dynamics = get_method(name).without_error(), Lanes()
    ys, adjoints = state(1)[:2], state(2)[:2]
    found = adjoint(method, dynamics, TS, STEPS, ys, adjoints, True)
    sources = dynamics.sources(ys, [TS, STEPS])
    with tf.GradientTape() as tape:
        tape.watch(sources)
        increments = method.step(dynamics, TS, STEPS, ys).increments
    expected = tape.gradient(increments, sources, output_gradients=adjoints)
    zeros = Sources(
        [tf.zeros_like(y) for y in ys], [tf.zeros_like(x) for x in dynamics.captured], [], []
    )
    by_tape = method.vjp(dynamics, TS, STEPS, ys, adjoints, zeros, True)
    for x, y, z in zip(*map(tf.nest.flatten, (found, by_tape, expected)), strict=True):
        assert relative_error(x, z) < 10 * ROUNDING
        assert relative_error(y, z) < 10 * ROUNDING
