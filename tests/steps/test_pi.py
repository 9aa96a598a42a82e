"""Steps chosen from errors."""

import numpy as np
import pytest
import tensorflow as tf
from helpers.modes import partly_slow
from helpers.problems import PENDULUM0, pendulum, pendulum_exactly

import tfsymadj
from tfsymadj import METHODS, ConstantSteps, PIController

ADAPTIVE = [name for name, x in METHODS.items() if x.adaptive and x.explicit]


@pytest.mark.parametrize("method", partly_slow(ADAPTIVE, "fehlberg2", "fehlberg45", "dopri8"))
@pytest.mark.parametrize("first_step", [None, 0.1])
def test_counts_of_adaptive_steps(method, first_step):
    stats = tfsymadj.solve(
        pendulum, PENDULUM0, [0.0, 0.5, 1.0], method=method, first_step=first_step, outputs="step"
    ).stats
    tableau = METHODS[method]
    assert int(stats.num_steps) == int(stats.num_accepted) + int(stats.num_rejected)
    # The start of a FSAL method, the choice of the first step; both share one evaluation.
    extra = 2 if first_step is None else int(tableau.fsal)
    assert int(stats.num_evaluations) == int(stats.num_steps) * tableau.stages + extra


@pytest.mark.parametrize(
    "coefficients",
    [
        dict(),
        dict(proportional=0.0, integral=1.0),
        dict(proportional=0.4, integral=0.3, derivative=0.0),
        dict(proportional=1 / 18, integral=1 / 9, derivative=1 / 18),
    ],
    ids=["default", "I", "PI", "PID"],
)
def test_filters_reach_the_tolerance(coefficients):
    controller = PIController(1e-7, 1e-7, **coefficients)
    solution = tfsymadj.solve(pendulum, PENDULUM0, [0.0, 10.0], controller=controller)
    exact = pendulum_exactly([0.0, 10.0])
    assert np.max(np.abs(solution.y - exact)) < 1e-5
    assert int(solution.stats.num_rejected) <= 0.3 * int(solution.stats.num_steps)


@pytest.mark.parametrize("options", [{}, {"max_step": 1.3e-6}], ids=["own", "largest"])
def test_steps_add_up_where_times_are_coarse(options):
    """Near 1e6 a time is rounded by 6e-11, of this interval 6e-6; the whole of it is integrated."""
    times = np.array([1e6, 1e6 + 1e-5])
    solution = tfsymadj.solve(
        lambda t, y: tf.ones_like(y), tf.zeros([1], tf.float64), times, rtol=1e-9, atol=1e-9,
        first_step=1.1e-6, outputs="step", **options,
    )  # fmt: skip
    assert int(solution.stats.num_accepted) > 1
    np.testing.assert_allclose(solution.y[-1], times[1] - times[0], rtol=1e-14)


def test_integral_controller_follows_the_textbook():
    """The step after an accepted one is h 0.9 e^(-1/k), in limits; after a rejected one too."""
    controller = PIController(proportional=0.0, integral=1.0).for_method(METHODS["dopri5"])
    zero = tf.constant(0.0, tf.float64)
    state = controller.initial_state(tf.constant(0.1, tf.float64))
    proposal = controller.propose(state, zero, zero, zero + 9.0)
    for error, accepted, step in (
        (0.5, True, 0.1 * 0.9 * 0.5 ** (-1 / 5)),
        (1e-9, True, 0.1 * 10.0),
        (3.0, False, 0.1 * 0.9 * 3.0 ** (-1 / 5)),
        (np.inf, False, 0.1 * 0.2),
    ):
        decision, after = controller.adapt(state, proposal, tf.constant(error, tf.float64))
        assert bool(decision) is accepted
        np.testing.assert_allclose(after.step, step, rtol=1e-12)


def test_controller_object_is_the_same_as_the_options():
    for controller, options in (
        (ConstantSteps(num_steps=5), dict(num_steps=5)),
        (ConstantSteps(step_size=0.3), dict(step_size=0.3)),
        (PIController(1e-5, 1e-7), dict(rtol=1e-5, atol=1e-7)),
    ):
        a = tfsymadj.odeint(pendulum, PENDULUM0, [0.0, 1.0], controller=controller)
        b = tfsymadj.odeint(pendulum, PENDULUM0, [0.0, 1.0], **options)
        np.testing.assert_array_equal(a, b)


def test_splitting_the_state_leaves_the_steps():
    """The error norm is over all entries, however they are grouped into tensors."""
    random = np.random.default_rng(0)
    y0 = random.normal(size=[6, 3])
    w = random.normal(size=[3, 3])

    def whole(t, y):
        return tf.sin(y @ w) * tf.cos(t)

    def split(t, y):
        return {"a": whole(t, y["a"]), "b": (whole(t, y["b"][0]),)}

    options = dict(rtol=1e-6, atol=1e-8)
    a = tfsymadj.solve(whole, y0, [0.0, 2.0], **options)
    b = tfsymadj.solve(split, {"a": y0[:5], "b": (y0[5:],)}, [0.0, 2.0], **options)
    assert int(a.stats.num_steps) == int(b.stats.num_steps)
    joined = np.concatenate([b.y["a"], b.y["b"][0]], 1)
    # The same steps but for the rounding of the norm.
    np.testing.assert_allclose(joined, a.y, rtol=1e-12)


def test_a_step_that_rounding_ends_at_an_output_time():
    """Of 1e9 + 0.1 the distance is more than 0.1; a step of 0.1 ends there all the same."""
    times = tf.constant([1e9, 1e9 + 0.1], tf.float64)
    with tf.GradientTape() as tape:
        tape.watch(times)
        y = tfsymadj.odeint(lambda t, y: -y, tf.constant(1.0, tf.float64), times, first_step=0.1)[
            -1
        ]
    np.testing.assert_allclose(tape.gradient(y, times), [y, -y], rtol=1e-6)
