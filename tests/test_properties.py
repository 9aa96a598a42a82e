"""Properties of any methods, states, grids and dynamics that hypothesis comes up with."""

import numpy as np
import pytest
import tensorflow as tf
from helpers.gradients import relative_error
from helpers.modes import slow
from helpers.problems import loss
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scipy.integrate import solve_ivp

import tfsymadj
from tfsymadj import ButcherTableau, Status, SymplecticAdjoint

COUNTS = pytest.mark.parametrize("examples", [2, slow(60)])
CHECKPOINTS = st.sampled_from(["auto", "steps", "stages", 14])


def check_all(examples, property_, *strategies):
    """Runs a property on so many examples."""
    profile = settings(
        max_examples=examples, deadline=None, suppress_health_check=list(HealthCheck),
        derandomize=True,
    )  # fmt: skip
    profile(given(*strategies)(property_))()


# Methods

number = st.floats(-1.0, 1.0).map(lambda x: round(x, 3))


@st.composite
def tableaus(draw):
    """Consistent explicit methods of one to eight stages; weights may be zero, also the last."""
    s = draw(st.integers(1, 8))
    a = [tuple(draw(st.lists(number, min_size=i, max_size=i))) for i in range(s)]
    b = draw(st.lists(st.one_of(st.just(0.0), number), min_size=s, max_size=s))
    k = draw(st.integers(0, s - 1))
    b[k] += 1.0 - sum(b)
    return ButcherTableau("random", 1, tuple(sum(row) for row in a), tuple(a), tuple(b))


@COUNTS
def test_gradients_of_random_methods(examples):
    w = tf.Variable([[0.3, -0.8], [0.5, 0.1]], dtype=tf.float64)

    def dynamics(t, y):
        return tf.sin(y @ w + t)

    def check(tableau, checkpoints, steps):
        y0 = tf.constant([[0.4, -0.2]], tf.float64)
        t = tf.constant([0.0, 0.7], tf.float64)

        @tf.function
        def compute(gradient):
            with tf.GradientTape() as tape:
                tape.watch([y0, t])
                y = tfsymadj.odeint(
                    dynamics, y0, t, method=tableau, num_steps=steps, gradient=gradient
                )
                value = loss(y)
            return tape.gradient(value, [y0, t, w])

        actual, expected = compute(SymplecticAdjoint(checkpoints)), compute(tfsymadj.Backprop())
        scale = max(float(tf.reduce_max(tf.abs(g))) for g in expected)
        for a, b in zip(actual, expected):
            # Weights of both signs cancel: rounding is relative to the largest of all.
            np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-12 * scale)

    check_all(examples, check, tableaus(), CHECKPOINTS, st.integers(1, 6))


# States

shapes = st.lists(st.integers(0, 3), max_size=5).map(tuple)
dtypes = st.sampled_from([tf.float32, tf.float64, tf.complex64, tf.complex128])
leaves = st.tuples(shapes, dtypes)
nests = st.recursive(
    leaves.map(lambda leaf: ("leaf", leaf)),
    lambda inner: st.one_of(
        st.lists(inner, min_size=1, max_size=3).map(lambda x: ("tuple", tuple(x))),
        st.dictionaries(st.sampled_from("abc"), inner, min_size=1, max_size=2).map(
            lambda x: ("dict", x)
        ),
    ),
    max_leaves=4,
)


def build(nest, random):
    kind, content = nest
    if kind == "tuple":
        return tuple(build(x, random) for x in content)
    if kind == "dict":
        return {k: build(v, random) for k, v in content.items()}
    shape, dtype = content
    value = random.normal(size=shape)
    if dtype.is_complex:
        value = value + 1j * random.normal(size=shape)
    return tf.constant(value, dtype)


@COUNTS
@pytest.mark.parametrize("mode", [slow("eager"), "graph"])
def test_nests_shapes_and_dtypes(examples, mode):
    def check(nest, checkpoints, adaptive):
        y0 = build(nest, np.random.default_rng(0))
        rate = tf.constant(0.5, tf.float64)
        options = dict(rtol=1e-2, max_steps=16) if adaptive else dict(num_steps=2)

        def dynamics(t, y):
            return tf.nest.map_structure(
                lambda x: tf.cast(rate, x.dtype) * x * (1.0 - 0.1 * x) + tf.cast(t, x.dtype), y
            )

        def compute(gradient):
            with tf.GradientTape() as tape:
                tape.watch([*tf.nest.flatten(y0), rate])
                solution = tfsymadj.solve(
                    dynamics, y0, [0.0, 0.5, 0.8], method="bosh3", gradient=gradient, **options
                )
                value = loss(solution.y)
            return solution, tape.gradient(value, [*tf.nest.flatten(y0), rate])

        run = compute if mode == "eager" else tf.function(compute)
        solution, actual = run(SymplecticAdjoint(checkpoints))
        _, expected = run(tfsymadj.Backprop())
        tf.nest.assert_same_structure(solution.y, y0)
        for y, start in zip(tf.nest.flatten(solution.y), tf.nest.flatten(y0)):
            assert y.dtype == start.dtype and y.shape == [3, *start.shape]
            np.testing.assert_array_equal(y[0], start)
        double = all(x.dtype.real_dtype == tf.float64 for x in tf.nest.flatten(y0))
        for a, b in zip(actual, expected):
            assert (a is None) == (b is None)
            if a is not None:
                np.testing.assert_allclose(
                    a, b, rtol=1e-11 if double else 1e-5, atol=1e-11 if double else 1e-5
                )
        stats = solution.stats
        assert solution.status == Status.SUCCESS
        assert stats.num_steps == stats.num_accepted + stats.num_rejected
        assert stats.num_evaluations <= 3 * stats.num_steps + 2

    check_all(examples, check, nests, st.sampled_from(["auto", "steps", "stages"]), st.booleans())


# Grids


@st.composite
def grids(draw):
    """Times of either direction, clustered or 1e-8 to 1e8 apart, near zero or far from it."""
    gaps = draw(st.lists(st.floats(-8.0, 8.0), min_size=1, max_size=12))
    start = draw(st.sampled_from([0.0, -3.0, 1e6]))
    times = start + draw(st.sampled_from([1.0, -1.0])) * np.cumsum([0.0, *(10.0**g for g in gaps)])
    keep = np.concatenate([[True], np.diff(times) != 0.0])  # so close that they are one
    times = times[keep]
    return times if len(times) > 1 else np.array([0.0, 1.0])


@COUNTS
def test_grids(examples):
    """A linear system of a scale that fits the interval has an answer in closed form."""

    def check(times, adaptive):
        length = abs(times[-1] - times[0])

        def dynamics(t, y, scale):
            return tf.stack([-y[1], y[0]]) * scale

        y0 = tf.constant([1.0, 0.0], tf.float64)
        scale = tf.constant(1.0 / length, tf.float64)
        options = dict(method="dopri8", rtol=1e-9, atol=1e-9) if adaptive else dict(
            method="rk4", num_steps=32
        )  # fmt: skip
        with tf.GradientTape() as tape:
            tape.watch([y0, scale])
            solution = tfsymadj.solve(dynamics, y0, times, args=scale, **options)
            value = tf.reduce_sum(solution.y[-1])
        gradient = tape.gradient(value, [y0, scale])
        angles = (times - times[0]) / length
        expected = np.stack([np.cos(angles), np.sin(angles)], -1)
        np.testing.assert_allclose(solution.y, expected, atol=1e-6)
        c, s = np.cos(angles[-1]), np.sin(angles[-1])
        np.testing.assert_allclose(gradient[0], [c + s, c - s], atol=1e-6)
        derivative = (times[-1] - times[0]) * (c - s)
        np.testing.assert_allclose(gradient[1], derivative, atol=1e-5 * length)

    check_all(examples, check, grids(), st.booleans())


# Dynamics


@COUNTS
@pytest.mark.parametrize(
    "method", ["dopri5", *map(slow, ["tsit5", "dopri8", "bosh3", "fehlberg45"])]
)
def test_solution_is_that_of_scipy(examples, method):
    def check(seed, size, forward):
        random = np.random.default_rng(seed)
        a, b, c = (random.normal(size=[size, size]) for _ in range(3))
        y0 = random.normal(size=size)
        times = np.sort(random.uniform(0.0, 2.0, size=4))
        times = times if forward else times[::-1].copy()

        def scipy_dynamics(t, y):
            return np.tanh(a @ y + np.sin(3.0 * t)) + 0.3 * b @ np.cos(c @ y)

        @tf.function
        def compute():
            return tfsymadj.odeint(
                lambda t, y: tf.tanh(tf.linalg.matvec(a, y) + tf.sin(3.0 * t))
                + 0.3 * tf.linalg.matvec(b, tf.cos(tf.linalg.matvec(c, y))),
                tf.constant(y0), times, method=method, rtol=1e-9, atol=1e-9, max_steps=2**17,
            )  # fmt: skip

        expected = solve_ivp(
            scipy_dynamics, times[[0, -1]], y0, "DOP853", times, rtol=1e-12, atol=1e-12
        ).y.T
        # Local errors of 1e-9 that grow by at most exp(L) over the interval, L about 8.
        assert relative_error(compute(), expected) < 1e-5

    check_all(min(examples, 20), check, st.integers(0, 2**20), st.integers(1, 4), st.booleans())
