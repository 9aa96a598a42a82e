"""Times at which the dynamics jump: steps end there, on either side, exactly and differentiably."""

import numpy as np
import pytest
import tensorflow as tf
from helpers.gradients import EXACT, FLOAT64, relative_error
from helpers.modes import XLA_SLOW, run, slow

import tfsymadj
from tfsymadj import Backprop

TIMES = (0.0, 0.2, 0.5, 0.9, 1.5)
WAYS = (
    slow(dict(outputs="interpolate")),
    slow(dict(outputs="step")),
    slow(dict(method="tsit5", outputs="interpolate")),
    dict(method="rk4", num_steps=20),
    slow(dict(method="dopri5", step_size=0.05)),
)


def switched(t, y, s):
    """Grows until s, and decays from there on."""
    return tf.where(t < s, y, -0.5 * y * y)


def exactly(y0, s, t):
    before = y0 * np.exp(np.minimum(t, s))
    return before / (1.0 + 0.5 * before * np.maximum(t - s, 0.0))


def gradients(gradient, mode, s=0.6, times=TIMES, others=(), **options):
    """The states, and the gradients for the switch, the initial state and the times."""
    options = {"rtol": 1e-8, "atol": 1e-8, **options}

    def compute():
        y0, t = tf.constant([1.0, 2.0], tf.float64), tf.constant(times, tf.float64)
        at = tf.constant(s, tf.float64)
        with tf.GradientTape() as tape:
            tape.watch([y0, t, at])
            y = tfsymadj.odeint(
                switched, y0, t, args=(at,), jumps=[at, *others], gradient=gradient, **options
            )
            value = tf.reduce_sum(
                tf.cos(y) * tf.range(1.0, len(times) + 1.0, dtype=y.dtype)[:, None]
            )
        return y, *tape.gradient(value, [at, y0, t])

    return [x.numpy() for x in run(compute, mode)]


@pytest.mark.parametrize("mode", XLA_SLOW)
@pytest.mark.parametrize("options", WAYS)
def test_values_and_the_switch(options, mode):
    y, ds, _, dt = gradients("symplectic_adjoint", mode, **options)
    times = np.array(TIMES)[:, None]
    np.testing.assert_allclose(y, exactly(np.array([1.0, 2.0]), 0.6, times), rtol=3e-6)

    def value(s):
        y = exactly(np.array([1.0, 2.0]), s, times)
        return np.sum(np.cos(y) * np.arange(1.0, len(TIMES) + 1.0)[:, None])

    np.testing.assert_allclose(ds, (value(0.6 + 1e-6) - value(0.6 - 1e-6)) / 2e-6, rtol=1e-5)
    # To shift everything in time changes nothing.
    np.testing.assert_allclose(ds + np.sum(dt), 0.0, atol=1e-4)


@pytest.mark.parametrize("options", WAYS)
@pytest.mark.parametrize("gradient", EXACT)
def test_gradients_are_those_of_back_propagation(gradient, options):
    expected = gradients(Backprop(), "graph", **options)
    assert (
        relative_error(
            dict(enumerate(gradients(gradient, "graph", **options))), dict(enumerate(expected))
        )
        < FLOAT64
    )


@pytest.mark.slow
@pytest.mark.parametrize("gradient", ["symplectic_adjoint", slow("backprop")])
@pytest.mark.parametrize("options", WAYS)
def test_a_jump_at_the_start_has_no_derivative(gradient, options):
    """As an earlier one: what it switches off has never been on."""
    y, ds, *others = gradients(gradient, "graph", s=0.0, **options)
    np.testing.assert_allclose(
        y, exactly(np.array([1.0, 2.0]), 0.0, np.array(TIMES)[:, None]), rtol=3e-6
    )
    assert ds == 0.0
    expected = gradients(gradient, "graph", s=-0.5, **options)[2:]
    np.testing.assert_allclose(others[0], expected[0], rtol=1e-6)
    np.testing.assert_allclose(others[1], expected[1], rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("outputs", ["step", "interpolate"])
def test_a_jump_at_an_output_time_comes_after_it(outputs):
    """Its derivative is that of a later jump, which the output does not see."""
    y, ds, _, dt = gradients("symplectic_adjoint", "eager", s=0.5, outputs=outputs)
    expected, later, *_ = gradients("symplectic_adjoint", "eager", s=0.5 + 1e-9, outputs=outputs)
    np.testing.assert_allclose(y, expected, rtol=1e-6)
    np.testing.assert_allclose(ds, later, rtol=1e-6)
    np.testing.assert_allclose(ds + np.sum(dt), 0.0, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("mode", [slow("eager"), "graph", slow("xla")])
@pytest.mark.parametrize("outputs", ["step", slow("interpolate")])
def test_jumps_outside_count_for_nothing(outputs, mode):
    """Nor do those at the ends, and equal ones are one."""
    expected = gradients("symplectic_adjoint", mode, outputs=outputs)
    others = (-1.0, 0.0, 0.6, 1.5, 2.0, 2.0)
    found = gradients("symplectic_adjoint", mode, outputs=outputs, others=others)
    np.testing.assert_allclose(found[0], expected[0], rtol=1e-12)
    np.testing.assert_allclose(found[2], expected[2], rtol=1e-10)


@pytest.mark.parametrize("direction", [1.0, -1.0])
@pytest.mark.parametrize("dtype", [slow(tf.float64), tf.float32])
@pytest.mark.parametrize("inclusive", [False, True])
def test_evaluations_stay_on_their_side(dtype, direction, inclusive):
    """Constant slopes are integrated exactly, whatever the dynamics say at the jump itself."""

    def steps(t, y):
        before = t * direction <= 1.0 if inclusive else t * direction < 1.0
        return direction * tf.where(before, tf.ones_like(y), 3.0 * tf.ones_like(y))

    y0 = tf.zeros([1], dtype)
    for options in (
        dict(method="rk4", num_steps=1),
        dict(method="dopri5"),
        dict(method="rk38", num_steps=2),
    ):
        y = tfsymadj.odeint(steps, y0, [0.0, 2.0 * direction], jumps=[direction], **options)
        np.testing.assert_allclose(y[-1], [4.0], rtol=2e-6 if dtype == tf.float32 else 1e-12)


def test_jumps_at_all_output_times():
    floor = lambda t, y: tf.floor(t) * tf.ones_like(y)  # noqa: E731
    times = [0.0, 1.0, 2.0, 3.0]
    y = tfsymadj.odeint(floor, [0.0], times, method="rk4", num_steps=1, jumps=times)
    np.testing.assert_allclose(y[:, 0], [0.0, 0.0, 1.0, 3.0], rtol=1e-6)


def test_a_forcing_that_is_switched_off():
    """y' = -y + 2 (t < s): dy(2)/ds = 2 exp(s - 2), and nothing at all without `jumps`."""
    s = tf.Variable(1.0, dtype=tf.float64)
    forced = lambda t, y: -y + tf.where(t < s, tf.constant(2.0, y.dtype), 0.0)  # noqa: E731
    y0, options = tf.zeros([], tf.float64), dict(rtol=1e-10, atol=1e-10)
    for told, expected in ((dict(jumps=[s]), 2.0 * np.exp(-1.0)), ({}, 0.0)):
        with tf.GradientTape() as tape:
            y = tfsymadj.odeint(forced, y0, [0.0, 2.0], **told, **options)[-1]
        np.testing.assert_allclose(tape.gradient(y, s), expected, rtol=1e-8)


def test_few_steps_where_the_solution_is_smooth_but_for_a_jump():
    s, y0 = tf.constant(0.6, tf.float64), tf.ones([2], tf.float64)
    options = dict(args=(s,), rtol=1e-9, atol=1e-9)
    told = tfsymadj.solve(switched, y0, [0.0, 1.5], jumps=[0.6], **options).stats
    untold = tfsymadj.solve(switched, y0, [0.0, 1.5], **options).stats
    assert int(told.num_steps) < 0.7 * int(untold.num_steps)


def test_evaluations_are_counted():
    """Of a method with the last slope as the next one's first, one more after the jump."""
    calls = []

    def counted(t, y):
        calls.append(1)
        return tf.where(t < 0.5, 1.0, -1.0) * y

    tf.config.run_functions_eagerly(True)
    try:
        solution = tfsymadj.solve(counted, [1.0], [0.0, 1.0], jumps=[0.5], rtol=1e-4)
    finally:
        tf.config.run_functions_eagerly(False)
    stats = solution.stats
    assert int(stats.num_evaluations) == 2 + 6 * int(stats.num_steps) + 1


def test_times_and_jumps_that_are_known_when_they_run():
    @tf.function(input_signature=[tf.TensorSpec([None], tf.float64)] * 2)
    def solve(t, jumps):
        y0 = tf.constant([1.0], tf.float64)
        return tfsymadj.odeint(switched, y0, t, args=(jumps[0],), jumps=jumps, rtol=1e-9, atol=1e-9)

    for times, jumps in (([0.0, 1.0], [0.5]), ([0.0, 0.3, 1.0, 2.0], [0.4, 0.7, 0.8])):
        y = solve(tf.constant(times, tf.float64), tf.constant(jumps, tf.float64))
        np.testing.assert_allclose(y[:, 0], exactly(1.0, jumps[0], np.array(times)), rtol=1e-6)


@pytest.mark.slow
def test_second_derivatives():
    y0, s = tf.constant(1.0, tf.float64), tf.constant(0.6, tf.float64)
    with tf.GradientTape() as outer:
        outer.watch(s)
        with tf.GradientTape() as inner:
            inner.watch(s)
            y = tfsymadj.odeint(
                switched, y0, [0.0, 1.0], args=(s,), jumps=[s], method="rk4", num_steps=40
            )[-1]
        first = inner.gradient(y, s)
    second = outer.gradient(first, s)
    e = 1e-4
    expected = [exactly(1.0, 0.6 + k * e, 1.0) for k in (-1, 0, 1)]
    np.testing.assert_allclose(first, (expected[2] - expected[0]) / (2 * e), rtol=1e-5)
    np.testing.assert_allclose(
        second, (expected[2] - 2 * expected[1] + expected[0]) / e**2, rtol=1e-4
    )


def test_layers_have_jumps():
    layer = tfsymadj.ODELayer(
        lambda t, y: tf.where(t < 0.5, 1.0, 3.0) * tf.ones_like(y),
        jumps=[0.5],
        method="rk4",
        num_steps=1,
    )
    np.testing.assert_allclose(layer(tf.zeros([2, 1])), [[2.0]] * 2, rtol=1e-6)


@pytest.mark.parametrize("jumps", [0.5, [[0.5]], [float("nan")]])
def test_wrong_jumps(jumps):
    with pytest.raises(ValueError, match="`jumps` must be 1-D, of finite times"):
        tfsymadj.solve(lambda t, y: -y, [1.0], [0.0, 1.0], jumps=jumps)


def test_no_continuous_adjoint():
    with pytest.raises(ValueError, match="`jumps` have no continuous adjoint"):
        tfsymadj.solve(
            lambda t, y: -y, [1.0], [0.0, 1.0], jumps=[0.5], gradient="continuous_adjoint"
        )


def test_equal_jumps_share_their_derivative():
    """The dynamics can't tell whose a change is, but no share depends on what is not changed."""
    s = tf.constant([0.5, 0.5, 0.2, 0.5], tf.float64)
    rate = lambda t, y, s: -y * tf.reduce_sum(tf.cast(t >= s, y.dtype))  # noqa: E731
    with tf.GradientTape() as tape:
        tape.watch(s)
        y = tfsymadj.odeint(
            rate, tf.ones([], tf.float64), [0.0, 1.0], args=(s,), jumps=s, rtol=1e-9, atol=1e-9
        )[-1]
    np.testing.assert_allclose(y, np.exp(-0.8 - 3 * 0.5), rtol=1e-7)
    np.testing.assert_allclose(tape.gradient(y, s), [y] * 4, rtol=1e-6)


@pytest.mark.parametrize("outputs", ["step", slow("interpolate")])
def test_as_many_jumps_as_there_are_at_run_time(outputs):
    rate = lambda t, y, s: -y * tf.reduce_sum(tf.cast(t >= s, y.dtype))  # noqa: E731

    @tf.function(input_signature=[tf.TensorSpec([None], tf.float64)])
    def solved(s):
        y0 = tf.ones([], tf.float64)
        return tfsymadj.odeint(rate, y0, [0.0, 0.5, 1.0], args=(s,), jumps=s, outputs=outputs)[-1]

    for s in ([], [0.4], [0.7, 0.4]):
        y = solved(tf.constant(s, tf.float64))
        np.testing.assert_allclose(y, np.exp(np.sum(s) - len(s)), rtol=1e-3)
