"""Events: found inside of steps, of the method's order, exact in their derivatives."""

import numpy as np
import pytest
import tensorflow as tf
from helpers.gradients import EXACT, FLOAT64, relative_error
from helpers.modes import run, slow

import tfsymadj
from tfsymadj import Backprop, Event, Status

TIGHT = dict(rtol=1e-9, atol=1e-9)


def oscillator(t, y, w):
    """With the angular frequency w."""
    return tf.stack([y[1], -w * w * y[0]])


def start(*values):
    return tf.constant(values, tf.float64)


W = tf.constant(1.3, tf.float64)


def swing(event, t=(0.0, 10.0), y0=(1.0, 0.0), w=W, **options):
    return tfsymadj.solve(oscillator, start(*y0), t, args=(w,), event=event, **{**TIGHT, **options})


def height(t, y):
    return y[0]


# Where they are found


@pytest.mark.parametrize("mode", ["eager", slow("graph"), slow("xla")])
def test_first_root(mode):
    solution = run(lambda: swing(Event(height)), mode)
    assert solution.event.index == 0
    assert solution.status == Status.SUCCESS
    np.testing.assert_allclose(solution.event.t, 0.5 * np.pi / 1.3, rtol=1e-8)
    np.testing.assert_allclose(solution.event.y, [0.0, -1.3], atol=1e-8)
    assert abs(solution.event.y[0]) < 1e-15
    np.testing.assert_array_equal(solution.y[0], [1.0, 0.0])
    assert np.all(np.isnan(solution.y[1]))


@pytest.mark.slow
@pytest.mark.parametrize("direction, turn", [(0, 0.25), (-1, 0.25), (1, 0.75)])
@pytest.mark.parametrize("backward", [False, True])
def test_direction(direction, turn, backward):
    """As the solve goes on, in whichever direction of time."""
    sign = -1.0 if backward else 1.0
    event = swing(Event(height, direction=direction), t=(0.0, 10.0 * sign)).event
    np.testing.assert_allclose(event.t, sign * turn * 2.0 * np.pi / 1.3, rtol=1e-8)


@pytest.mark.slow
def test_no_event():
    solution = swing(Event(lambda t, y: y[0] + 2.0), t=(0.0, 1.0, 3.0))
    assert solution.event.index == -1
    assert np.isnan(solution.event.t)
    assert np.all(np.isnan(solution.event.y))
    np.testing.assert_allclose(solution.y[:, 0], np.cos(1.3 * np.array([0.0, 1.0, 3.0])), rtol=1e-7)


@pytest.mark.slow
@pytest.mark.parametrize("mode, level", [("eager", 2.0), ("eager", 200.0), ("xla", 2.0)])
def test_no_event_leaves_the_gradient_alone(mode, level):
    """However far from its root the function has remained."""

    def compute(event):
        with tf.GradientTape() as tape:
            tape.watch(W)
            solution = swing(event, t=(0.0, 1.0, 3.0))
            value = tf.reduce_sum(solution.y[1:] ** 2)
            if event is not None:
                found = solution.event
                value += tf.where(found.index < 0, tf.zeros_like(found.t), found.t)
        return tape.gradient(value, W)

    found, expected = (
        run(lambda e=e: compute(e), mode) for e in (Event(lambda t, y: y[0] + level), None)
    )
    np.testing.assert_allclose(found, expected, rtol=1e-12)


def test_a_start_on_the_root_does_not_fire():
    event = swing(Event(height), y0=(0.0, 1.0)).event
    np.testing.assert_allclose(event.t, np.pi / 1.3, rtol=1e-8)
    for noise in (1e-17, -1e-17):
        event = swing(Event(height), y0=(noise, 1.0)).event
        np.testing.assert_allclose(event.t, np.pi / 1.3, rtol=1e-8)


@pytest.mark.slow
@pytest.mark.parametrize("dtype, tolerance", [(tf.float32, 1e-5), (tf.bfloat16, 2e-2)])
def test_low_precision(dtype, tolerance):
    fall = lambda t, y: tf.stack([y[1], -tf.ones_like(y[1])])  # noqa: E731
    y0 = tf.constant([1.0, 0.0], dtype)
    event = tfsymadj.solve(fall, y0, [0.0, 3.0], event=Event(height)).event
    assert event.y.dtype == dtype
    np.testing.assert_allclose(event.t, np.sqrt(2.0), rtol=tolerance)
    event = tfsymadj.solve(
        fall, tf.constant([0.0, 1.0], dtype), [0.0, 3.0], event=Event(height)
    ).event
    np.testing.assert_allclose(event.t, 2.0, rtol=tolerance)


def test_a_fast_start_is_no_crossing():
    # In float32 a thousand roundings of this time are twelve times the time constant.
    y0, times = tf.constant([1.1]), [1000.0, 1001.0]
    event = Event(lambda t, y: y[0] - 0.5)  # which y, between 1.1 and 1, never is
    solution = tfsymadj.solve(
        lambda t, y: -100.0 * (y - 1.0), y0, times, method="heun", num_steps=200, event=event
    )
    assert int(solution.event.index) == -1
    np.testing.assert_allclose(solution.y[-1], [1.0], rtol=1e-5)


def test_double_crossing_inside_of_a_large_step():
    """The signs at the ends of the step are equal."""
    inside = Event(lambda t, y: (y[0] - 0.4) * (y[0] - 0.75))
    options = dict(method="rk4", num_steps=1)
    solution = tfsymadj.solve(line, start(0.0), [0.0, 1.0], event=inside, **options)
    np.testing.assert_allclose(solution.event.t, 0.4, rtol=1e-12)
    narrow = Event(lambda t, y: (y[0] - 0.51) * (y[0] - 0.52))
    assert tfsymadj.solve(line, start(0.0), [0.0, 1.0], event=narrow, **options).event.index == -1
    found = tfsymadj.solve(line, start(0.0), [0.0, 1.0], event=narrow, max_step=0.05, **TIGHT).event
    np.testing.assert_allclose(found.t, 0.51, rtol=1e-12)


def relaxing(t, y):
    """Very fast to cos t."""
    return -1e8 * (y - tf.cos(t)[..., tf.newaxis]) - tf.sin(t)[..., tf.newaxis]


LONG = dict(rtol=1e-4, atol=1e-4)


def above(t, y, level):
    return y[0] - level


@pytest.mark.parametrize("method", [slow("radau5"), "trbdf2", slow("kvaerno5")])
def test_a_root_of_the_extension_alone_is_none(method):
    """Inside of long steps of a stiff problem it is far from the solution, at most 1 here."""

    def met(level):
        event = Event(above, args=(tf.constant(level, tf.float64),))
        return tfsymadj.solve(relaxing, start(1.0), [0.0, 10.0], method=method, event=event, **LONG)

    solution = met(1.02)
    assert solution.event.index == -1 and solution.status == Status.SUCCESS
    np.testing.assert_allclose(solution.y[-1], np.cos([10.0]), atol=1e-3)
    event = met(0.5).event
    np.testing.assert_allclose(event.y, [0.5], rtol=1e-14)
    np.testing.assert_allclose(event.t, np.pi / 3.0, rtol=1e-7)


@pytest.mark.slow
@pytest.mark.parametrize("mode", [slow("eager"), "graph", slow("xla")])
def test_a_root_of_the_extension_alone_is_none_of_an_example(mode):
    levels = tf.constant([1.02, 0.5, -0.2], tf.float64)
    event = Event(lambda t, y, level: y[:, 0] - level, args=levels)

    def compute():
        return tfsymadj.solve(
            relaxing,
            tf.ones([3, 1], tf.float64),
            [0.0, 10.0],
            method="radau5",
            event=event,
            batch_axis=0,
            **LONG,
        )

    solution = run(compute, mode)
    np.testing.assert_array_equal(solution.event.index, [-1, 0, 0])
    np.testing.assert_array_equal(solution.status, [0, 0, 0])
    np.testing.assert_allclose(solution.event.y[1:], [[0.5], [-0.2]], rtol=1e-13)
    np.testing.assert_allclose(solution.event.t[1], np.pi / 3.0, rtol=1e-7)
    np.testing.assert_allclose(np.cos(solution.event.t[2]), -0.2, rtol=1e-6)


def test_given_steps_that_are_too_long_for_an_event():
    """They can't be tried again: it is said."""
    far = Event(lambda t, y: y[0] - 1.02)
    options = dict(method="radau5", num_steps=2, event=far)
    with pytest.raises(tf.errors.InvalidArgumentError, match="num_steps.*EVENT_UNCERTAIN"):
        tfsymadj.solve(relaxing, start(1.0), [0.0, 10.0], **options)
    found = tfsymadj.solve(relaxing, start(1.0), [0.0, 10.0], on_failure="status", **options)
    assert found.status == Status.EVENT_UNCERTAIN and found.event.index == -1
    assert np.all(np.isnan(found.event.y)) and np.isnan(found.event.t)
    assert np.all(np.isnan(found.y[1:]))


def line(t, y):
    return tf.ones_like(y)


EARLY = [  # the dynamics, the start, the times, the level, when it is met
    (line, 0.0, (0.0, 1e4), 0.5, 0.5),
    slow(lambda t, y: -y, 1.0, (0.0, 1e4), 0.5, np.log(2.0)),
    slow(line, 0.0, (1e3, 1e3 + 0.1), 0.05, 1e3 + 0.05),
    slow(line, 0.0, (1e4, 1e4 + 1.0), 0.9, 1e4 + 0.9),
    slow(line, 1.0, (1e4, 1e4 + 1.0), 1.9, 1e4 + 0.9),
]


@pytest.mark.parametrize("dynamics, y0, t, level, expected", EARLY)
def test_an_early_root_of_a_long_or_late_solve(dynamics, y0, t, level, expected):
    """In float32 a thousand roundings of these times are longer than it takes."""
    solution = tfsymadj.solve(
        dynamics, tf.constant(y0), t, event=Event(lambda t, y: y - level), rtol=1e-5, atol=1e-7
    )
    assert solution.event.index == 0
    np.testing.assert_allclose(solution.event.t - t[0], expected - t[0], rtol=1e-4)


@pytest.mark.parametrize("slope", [0.3, slow(0.01), slow(1.0 / 1.05), slow(1.5), slow(100.0)])
def test_a_kink_at_the_root_has_no_derivative(slope):
    a = tf.constant(0.3, tf.float64)
    bent = lambda t, y, a: (y[0] - a) * tf.where(y[0] < a, tf.ones_like(a), slope)  # noqa: E731
    with tf.GradientTape() as tape:
        tape.watch(a)
        event = tfsymadj.solve(line, start(0.0), [0.0, 1.0], event=Event(bent, args=a)).event
    np.testing.assert_allclose(event.t, 0.3, atol=1e-9)
    assert np.isnan(tape.gradient(event.t, a))


@pytest.mark.parametrize("options", [{}, slow(dict(method="rk4", num_steps=1))])
def test_nan_beyond_the_root(options):
    event = Event(lambda t, y: tf.math.log(0.9 - y[0]) + 1.0)
    found = tfsymadj.solve(line, start(0.0), [0.0, 1.0], event=event, **options).event
    np.testing.assert_allclose(found.t, 0.9 - np.exp(-1.0), rtol=1e-12)


ONE_STEP = dict(method="rk4", num_steps=1)


def slope_and_time(function):
    """Of an event's time by the start of y' = 1 from zero, in few steps."""
    y0 = start(0.0)
    with tf.GradientTape() as tape:
        tape.watch(y0)
        event = Event(lambda t, y: function(y[0]))
        t = tfsymadj.solve(line, y0, [0.0, 4.0], event=event).event.t
    return tape.gradient(t, y0)[0], t


def test_a_steep_function_has_a_derivative():
    found = slope_and_time(lambda y: tf.exp(100.0 * (y - 1.3)) - 1.0)
    np.testing.assert_allclose(found, [-1.0, 1.3], rtol=1e-10)


COARSE = [  # y' = -y until it has fallen to a part of y(t0)
    (1e6, 1.0, 0.3, dict(max_step=0.01)),
    slow(3e4, 1.0, 0.3, dict(max_step=0.001)),
    slow(1e7, 1.0, 0.3, dict(rtol=1e-6, atol=1e-8)),
    slow(1e5, 1.0, 0.3, dict(method="rk4", step_size=0.001)),
    slow(0.0, 1e9, 1.0 - 3e-9, dict(max_step=1e-10)),
]


@pytest.mark.parametrize("t0, y0, part, options", COARSE)
def test_derivatives_where_rounding_is_coarse_beside_the_step(t0, y0, part, options):
    y0 = start(y0)
    level = part * y0[0]
    with tf.GradientTape() as tape:
        tape.watch(y0)
        event = Event(lambda t, y: y[0] - level)
        times = [t0, t0 + 2.0]
        t = tfsymadj.solve(lambda t, y: -y, y0, times, event=event, max_steps=3000, **options)
        t = t.event.t
    expected = 1.0 / y0[0]
    np.testing.assert_allclose(tape.gradient(t, y0)[0], expected, rtol=1e-4)


def test_derivatives_do_not_go_through_the_loop():
    """It would keep all of its steps for them."""
    graph = tf.function(lambda: slope_and_time(lambda y: y - 1.3)).get_concrete_function().graph
    loops = [op.name for op in graph.get_operations() if op.type.endswith("While")]
    assert any("integrate" in name for name in loops)
    assert not any("integrate_grad" in name for name in loops)


@pytest.mark.parametrize(
    "roots, direction, expected, options",
    [
        ((0.5, 0.875), 0, 0.5, ONE_STEP),
        slow((-0.2, 0.5, 0.8), 1, 0.8, ONE_STEP),
        slow((0.125, 0.625, 0.75), -1, 0.625, ONE_STEP),
        ((0.125, 0.625, 0.75), -1, 0.625, dict(first_step=1.0)),
        slow((0.125, 0.375, 0.5, 0.875), 1, 0.375, dict(first_step=1.0)),
    ],
)
def test_several_roots_inside_of_a_step(roots, direction, expected, options):
    """Some of them where signs are looked at."""
    product = lambda t, y: tf.reduce_prod(y[0] - tf.constant(roots, tf.float64))  # noqa: E731
    event = Event(product, direction=direction)
    found = tfsymadj.solve(line, start(0.0), [0.0, 1.0], event=event, **options).event
    np.testing.assert_allclose(found.t, expected, rtol=1e-12)


@pytest.mark.slow
def test_both_crossings_inside_of_a_step():
    """It is tried again, so that it ends between them."""
    inside = lambda t, y: (y[0] - 0.4) * (y[0] - 0.75)  # noqa: E731
    for direction, expected in ((0, 0.4), (-1, 0.4), (1, 0.75)):
        event = Event(inside, direction=direction)
        options = dict(event=event, first_step=1.0, **TIGHT)
        found = tfsymadj.solve(line, start(0.0), [0.0, 1.0], **options)
        np.testing.assert_allclose(found.event.t, expected, rtol=1e-12)
        assert found.stats.num_rejected == 1


@pytest.mark.slow
def test_a_root_without_a_change_of_sign_is_none():
    touching = Event(lambda t, y: (y[0] - 0.4137) ** 2)
    assert tfsymadj.solve(line, start(0.0), [0.0, 1.0], event=touching).event.index == -1


@pytest.mark.slow
@pytest.mark.parametrize("outputs", [slow("step"), "interpolate"])
def test_root_at_an_output_time(outputs):
    """The output is the event's state, those before it are as ever, those after it NaN."""
    times = [0.0, 0.25, 0.5, 0.75, 1.0]
    event = Event(lambda t, y: y[0] - 0.5)
    y = tfsymadj.solve(line, start(0.0), times, event=event, outputs=outputs).y[:, 0]
    np.testing.assert_allclose(y, [0.0, 0.25, 0.5, np.nan, np.nan], rtol=1e-12)


@pytest.mark.slow
def test_root_at_the_end():
    solution = tfsymadj.solve(line, start(0.0), [0.0, 1.0], event=Event(lambda t, y: y[0] - 1.0))
    assert solution.event.index == 0
    np.testing.assert_allclose(solution.event.t, 1.0, rtol=1e-12)
    np.testing.assert_allclose(solution.y[-1], [1.0], rtol=1e-12)


def test_outputs_inside_of_the_last_step():
    times = np.linspace(0.0, 3.0, 61)
    options = dict(rtol=1e-6, atol=1e-6)
    solution = swing(Event(height), t=times, outputs="interpolate", **options)
    reached = times <= 0.5 * np.pi / 1.3
    assert int(solution.stats.num_accepted) < 20
    y = solution.y.numpy()
    np.testing.assert_allclose(y[reached, 0], np.cos(1.3 * times[reached]), atol=1e-4)
    assert np.all(np.isnan(y[~reached]))


@pytest.mark.slow
def test_the_solvers_own_steps_end_at_the_event():
    solution = swing(Event(height), outputs="steps", max_steps=100)
    n = int(solution.stats.num_accepted)
    np.testing.assert_allclose(solution.t[n], solution.event.t)
    np.testing.assert_array_equal(solution.y[n], solution.event.y)
    np.testing.assert_array_equal(solution.t[n:], np.full(101 - n, solution.event.t))


# Several


@pytest.mark.slow
def test_earliest_in_time_not_in_order():
    events = [Event(lambda t, y, c: y[0] - c, args=(x,)) for x in (0.2, 0.9, 0.5)]
    for options in ({}, dict(method="rk4", num_steps=2), dict(method="rk4", num_steps=40)):
        if options:
            options = dict(t=(0.0, 2.0), **options)
        event = swing(events, **options).event
        assert event.index == 1
        np.testing.assert_allclose(event.t, np.arccos(0.9) / 1.3, rtol=2e-2 if options else 1e-8)


@pytest.mark.parametrize("mode", ["graph", slow("eager"), slow("xla")])
def test_earliest_of_each_example(mode):
    speeds = start(1.0, 3.0, -2.0)
    ground = Event(lambda t, y: y[:, 0], direction=-1)
    above = Event(lambda t, y: y[:, 0] - 0.01, direction=-1)
    never = Event(lambda t, y: t - 100.0)

    def fall(events):
        with tf.GradientTape() as tape:
            tape.watch(speeds)
            event = tfsymadj.solve(
                lambda t, y: tf.stack([y[:, 1], -9.81 * tf.ones_like(t)], 1),
                tf.stack([tf.ones_like(speeds), speeds], 1),
                [0.0, 3.0],
                event=events,
                batch_axis=0,
                max_steps=100,
            ).event
        return event.index, event.t, tape.gradient(event.t, speeds)

    for events, index, height in (([ground, above], 1, 0.01), ([ground, never], 0, 0.0)):
        found, t, gradient = run(lambda events=events: fall(events), mode)
        np.testing.assert_array_equal(found, [index] * 3)
        root = np.sqrt(speeds**2 + 2.0 * 9.81 * (1.0 - height))
        np.testing.assert_allclose(t, (speeds + root) / 9.81, rtol=1e-13)
        np.testing.assert_allclose(gradient, (1.0 + speeds / root) / 9.81, rtol=1e-12)


@pytest.mark.slow
def test_one_that_is_not_terminal():
    """The solve goes on, and tells of the first one; of a terminal one if there is one later."""
    through = Event(height, terminal=False)
    solution = swing(through, t=(0.0, 2.0, 5.0))
    np.testing.assert_allclose(solution.y[:, 0], np.cos(1.3 * np.array([0.0, 2.0, 5.0])), atol=1e-7)
    np.testing.assert_allclose(solution.event.t, 0.5 * np.pi / 1.3, rtol=1e-8)
    solution = swing([through, Event(lambda t, y: y[0] + 0.5)], t=(0.0, 5.0))
    assert solution.event.index == 1
    np.testing.assert_allclose(solution.event.t, np.arccos(-0.5) / 1.3, rtol=1e-8)
    assert np.all(np.isnan(solution.y[1]))


# Derivatives

WAYS = (
    slow({}),
    slow(dict(outputs="interpolate", t=(0.0, 0.3, 0.9, 1.1, 4.0))),
    slow(dict(outputs="step", t=(0.0, 0.3, 0.9, 1.1, 4.0))),
    dict(method="rk4", num_steps=50),
    slow(dict(terminal=False)),
)


def derivatives(gradient, mode, terminal=True, t=(0.1, 4.0), weights=(1.0, 0.7, 1.3), **options):
    """Of time and state, weighted, for the initial state, an argument, the times, the event's
    argument and a variable.
    """
    y0, w, level = start(1.0, 0.5), tf.constant(1.3, tf.float64), tf.constant(0.2, tf.float64)
    times, slope = tf.constant(t, tf.float64), tf.Variable(0.1, dtype=tf.float64)
    sources = [y0, w, level, times, slope]

    def compute():
        with tf.GradientTape() as tape:
            tape.watch(sources[:-1])
            event = Event(lambda t, y, c: y[0] - c - slope * t, terminal=terminal, args=(level,))
            solution = tfsymadj.solve(
                oscillator, y0, times, args=(w,), event=event, gradient=gradient,
                **{"rtol": 1e-7, "atol": 1e-7, **options},
            )  # fmt: skip
            found, (a, b, c) = solution.event, weights
            value = a * found.t + b * found.y[0] + c * found.y[1]
            if len(t) > 2:
                reached = tf.math.is_finite(solution.y)
                value += tf.reduce_sum(
                    tf.where(reached, solution.y, tf.zeros_like(solution.y)) ** 2
                )
        return [found.t, *tape.gradient(value, sources)]

    return [x.numpy() for x in run(compute, mode)]


@pytest.mark.parametrize("options", WAYS)
@pytest.mark.parametrize("gradient", EXACT)
def test_derivatives_are_those_of_back_propagation(gradient, options):
    expected = dict(enumerate(derivatives(Backprop(), "graph", **options)))
    found = dict(enumerate(derivatives(gradient, "graph", **options)))
    assert relative_error(found, expected) < 10 * FLOAT64


@pytest.mark.parametrize("mode", [slow("eager"), "graph", slow("xla")])
def test_derivatives_by_the_implicit_function_theorem(mode):
    """Of the closed form a cos(w s) + b sin(w s) at s = t - 0.1, to the solve's own accuracy."""
    tight = dict(rtol=1e-12, atol=1e-12)
    t, *found = derivatives("symplectic_adjoint", mode, weights=(1.0, 0.0, 0.0), **tight)
    w, s = 1.3, t - 0.1
    a, b = 1.0, 0.5 / w
    speed = w * (b * np.cos(w * s) - a * np.sin(w * s)) - 0.1
    dt = {
        "y0": -np.array([np.cos(w * s), np.sin(w * s) / w]) / speed,
        "w": -(s * (b * np.cos(w * s) - a * np.sin(w * s)) - b / w * np.sin(w * s)) / speed,
        "level": 1.0 / speed,
        "times": np.array([(speed + 0.1) / speed, 0.0]),
        "slope": t / speed,
    }
    for x, expected in zip(found, dt.values()):
        np.testing.assert_allclose(x, expected, rtol=1e-10, atol=1e-10)


@pytest.mark.slow
def test_second_derivatives():
    def root(w):
        return np.arccos(0.2) / w

    w = tf.constant(1.3, tf.float64)
    event = Event(lambda t, y: y[0] - 0.2)
    with tf.GradientTape() as outer:
        outer.watch(w)
        with tf.GradientTape() as inner:
            inner.watch(w)
            t = swing(event, w=w, rtol=1e-11, atol=1e-11).event.t
        first = inner.gradient(t, w)
    np.testing.assert_allclose(first, -root(1.3) / 1.3, rtol=1e-8)
    np.testing.assert_allclose(outer.gradient(first, w), 2.0 * root(1.3) / 1.3**2, rtol=1e-8)


@pytest.mark.slow
def test_twentieth_crossing_and_its_derivative():
    """By restarts, each on the root of the one before."""
    w = tf.constant(1.3, tf.float64)
    tight = dict(rtol=1e-12, atol=1e-12)

    @tf.function
    def crossing(w):
        t, y = tf.zeros([], tf.float64), start(1.0, 0.0)
        for _ in tf.range(20):
            event = tfsymadj.solve(
                oscillator, y, tf.stack([t, tf.constant(60.0, tf.float64)]), args=(w,),
                event=Event(height), **tight,
            ).event  # fmt: skip
            t, y = event.t, event.y
        return t

    with tf.GradientTape() as tape:
        tape.watch(w)
        t = crossing(w)
    expected = 19.5 * np.pi / 1.3
    np.testing.assert_allclose(t, expected, rtol=1e-10)
    np.testing.assert_allclose(tape.gradient(t, w), -expected / 1.3, rtol=1e-10)


@pytest.mark.slow
def test_a_function_that_jumps_is_found_but_has_no_derivative():
    w = tf.constant(1.3, tf.float64)
    event = Event(lambda t, y: tf.where(y[0] > 0.0, tf.ones_like(t), -tf.ones_like(t)))
    with tf.GradientTape() as tape:
        tape.watch(w)
        t = swing(event, w=w).event.t
    np.testing.assert_allclose(t, 0.5 * np.pi / 1.3, rtol=1e-6)
    assert np.isnan(tape.gradient(t, w))


@pytest.mark.slow
def test_order_of_the_events_state():
    """That of the method, not of its continuous extension."""
    errors = []
    for n in (8, 16, 32):
        event = swing(Event(height), t=(0.0, 2.0), method="rk4", num_steps=n).event
        errors.append(abs(float(event.t) - 0.5 * np.pi / 1.3))
    orders = np.log2(np.array(errors[:-1]) / errors[1:])
    np.testing.assert_allclose(orders, 4.0, atol=0.5)


# Nests, jumps, layers, caches


@pytest.mark.slow
def test_nest_and_complex_states():
    def turn(t, y):
        return {
            "z": tf.complex(tf.zeros_like(t), tf.ones_like(t)) * y["z"],
            "a": [tf.ones([2], tf.float64)],
        }

    y0 = {"z": tf.constant(1.0, tf.complex128), "a": [tf.zeros([2], tf.float64)]}
    event = Event(lambda t, y: tf.math.real(y["z"]))
    found = tfsymadj.solve(turn, y0, [0.0, 3.0], event=event, **TIGHT).event
    np.testing.assert_allclose(found.t, 0.5 * np.pi, rtol=1e-8)
    np.testing.assert_allclose(found.y["a"][0], [0.5 * np.pi] * 2, rtol=1e-8)


@pytest.mark.slow
def test_event_beside_a_jump():
    """Of the dynamics, after which the event is; its derivative for the jump is that of a ramp."""
    s = tf.constant(0.4, tf.float64)
    ramp = lambda t, y, s: tf.where(t < s, tf.ones_like(y), 3.0 * tf.ones_like(y))  # noqa: E731
    for level, expected, slope in ((1.0, 0.6, 2.0 / 3.0), (0.4, 0.4, None), (0.2, 0.2, 0.0)):
        with tf.GradientTape() as tape:
            tape.watch(s)
            event = Event(lambda t, y, c: y[0] - c, args=(level,))
            t = tfsymadj.solve(
                ramp, start(0.0), [0.0, 1.0], args=(s,), jumps=[s], event=event
            ).event.t
        np.testing.assert_allclose(t, expected, rtol=1e-10)
        if slope is not None:
            np.testing.assert_allclose(tape.gradient(t, s), slope, atol=1e-10)


@pytest.mark.slow
def test_a_changed_level_is_seen():
    class Level:
        def __init__(self):
            self.value = 0.2
            self.tensor = tf.constant(0.0, tf.float64)
            self.variable = tf.Variable(0.0, dtype=tf.float64)

        def __call__(self, t, y):
            return y[0] - self.value - self.tensor - self.variable

    level = Level()
    event = Event(level)
    times = []
    for change in ({}, {"value": 0.5}, {"tensor": tf.constant(0.1, tf.float64)}):
        vars(level).update(change)
        times.append(float(swing(event).event.t))
    level.variable.assign(0.1)
    times.append(float(swing(event).event.t))
    np.testing.assert_allclose(times, np.arccos([0.2, 0.5, 0.6, 0.7]) / 1.3, rtol=1e-8)
    with tf.GradientTape() as tape:
        t = swing(event).event.t
    expected = -1.0 / (1.3 * np.sin(1.3 * float(t)))
    np.testing.assert_allclose(tape.gradient(t, level.variable), expected, rtol=1e-7)


def test_equal_events_share_a_trace():
    traces = []

    def f(t, y, w):
        traces.append(1)
        return oscillator(t, y, w)

    for level in (0.1, 0.2, 0.3):
        tfsymadj.solve(
            f,
            start(1.0, 0.0),
            [0.0, 10.0],
            args=(W,),
            event=Event(lambda t, y, c: y[0] - c, args=(level,)),
        )
        if level == 0.1:
            traces.clear()
    assert not traces


# What is refused


def test_nan_in_the_function():
    event = Event(lambda t, y: tf.sqrt(y[0] - 0.5))
    with pytest.raises(tf.errors.InvalidArgumentError, match="function of an `Event` returned NaN"):
        swing(event)
    assert swing(event, on_failure="status").status == Status.NON_FINITE_EVENT


@pytest.mark.parametrize("result", [lambda t, y: y, lambda t, y: y[0] > 0.0, lambda t, y: None])
def test_wrong_results(result):
    with pytest.raises(ValueError, match="function of an `Event` must return a real scalar"):
        swing(Event(result))


def test_wrong_arguments():
    with pytest.raises(TypeError, match="`event` must be an `Event`"):
        swing(height)
    with pytest.raises(TypeError, match="`function` of an `Event` must be callable"):
        Event(0.0)
    with pytest.raises(ValueError, match="`direction` must be -1, 0 or 1"):
        Event(height, direction=2)
    with pytest.raises(TypeError, match="`terminal` must be True or False"):
        Event(height, terminal=1)
    with pytest.raises(ValueError, match="`event` and `dense` are for `solve`"):
        tfsymadj.ODELayer(lambda t, y: -y, event=Event(height))
    with pytest.raises(ValueError, match="`event` has no continuous adjoint"):
        swing(Event(height), gradient="continuous_adjoint")
    with pytest.raises(ValueError, match="no `event`.*no continuous extension.*stormer_verlet"):
        halves = (start(1.0), start(0.0))
        tfsymadj.solve(
            lambda t, y: (y[1], -y[0]), halves, [0.0, 4.0], method="stormer_verlet", num_steps=9,
            event=Event(lambda t, y: y[0][0]),
        )  # fmt: skip
