"""Tests of the forward solve: orders of convergence, step sizes, output times, tolerances."""

import math

import numpy as np
import pytest
import scipy.integrate
import tensorflow as tf

import tfsymadj
from tfsymadj import METHODS, ButcherTableau, ConstantSteps, Controller, PIController
from tfsymadj.steps import Proposal

ADAPTIVE = [name for name, tableau in METHODS.items() if tableau.adaptive]


def pendulum(t, y):
    """Without symmetries and time-dependent, so that no order condition holds by chance."""
    return tf.stack([y[1] + 0.3 * tf.cos(t), -tf.sin(y[0]) - 0.1 * y[1] * y[0]])


PENDULUM0 = np.array([1.0, 0.5])


def pendulum_exactly(times):
    def numpy_pendulum(t, y):
        return [y[1] + 0.3 * np.cos(t), -np.sin(y[0]) - 0.1 * y[1] * y[0]]

    span = (times[0], times[-1])
    options = dict(method="DOP853", t_eval=times, rtol=1e-13, atol=1e-15)
    return scipy.integrate.solve_ivp(numpy_pendulum, span, PENDULUM0, **options).y.T


# Accuracy


# The end, and the numbers of steps: so many that the asymptotic regime is reached (late for tsit5,
# whose leading error terms are small), so few that rounding and the reference (1e-14) have no part.
GRIDS = {1: (2.0, (256, 512, 1024)), 8: (6.0, (24, 32, 45)), "tsit5": (20.0, (362, 512, 724))}


@pytest.mark.parametrize("method", METHODS)
def test_order_of_convergence(method):
    order = METHODS[method].order
    end, counts = GRIDS.get(method) or GRIDS.get(order, (2.0, (32, 64, 128)))
    exact = pendulum_exactly([0.0, end])[-1]
    errors = []
    for n in counts:
        y = tfsymadj.odeint(pendulum, PENDULUM0, [0.0, end], method=method, step_size=end / n)
        errors.append(np.linalg.norm(y[-1] - exact))
    slope = np.polyfit(np.log(counts), np.log(errors), 1)[0]
    assert abs(-slope - order) < 0.2, errors


@pytest.mark.parametrize("method", ADAPTIVE)
def test_adaptive_steps_reach_the_tolerance(method):
    times = [0.0, 0.7, 3.0]
    tolerance = 1e-4 if METHODS[method].order < 3 else 1e-7
    y = tfsymadj.odeint(
        pendulum, PENDULUM0, times, method=method, rtol=tolerance, atol=tolerance, max_steps=20000
    )
    # The tolerance is that of one step, errors add up over the steps. fehlberg2 estimates its error
    # by 1 / 512 of the difference of two slopes.
    bound = 1000 if method == "fehlberg2" else 100
    assert np.max(np.abs(y - pendulum_exactly(times))) < bound * tolerance


def test_tighter_tolerances_make_smaller_errors():
    exact = pendulum_exactly([0.0, 3.0])[-1]
    errors = []
    for tolerance in (1e-3, 1e-6, 1e-9):
        y = tfsymadj.odeint(pendulum, PENDULUM0, [0.0, 3.0], rtol=tolerance, atol=tolerance)
        errors.append(np.max(np.abs(y[-1] - exact)))
    assert errors[0] > 30 * errors[1] > 900 * errors[2]


@pytest.mark.parametrize("options", [dict(num_steps=40), dict(rtol=1e-9, atol=1e-9)])
def test_complex_state(options):
    y0 = tf.constant([1.0, 1j], tf.complex128)
    times = [0.0, 1.0, 2.0]
    y = tfsymadj.odeint(lambda t, y: 1j * y, y0, times, **options)
    assert y.dtype == tf.complex128
    np.testing.assert_allclose(y, np.exp(1j * np.array(times))[:, None] * y0, atol=1e-8)


@pytest.mark.parametrize("options", [dict(num_steps=60), dict(rtol=1e-9, atol=1e-9)])
def test_decreasing_times_invert(options):
    forward = tfsymadj.odeint(pendulum, PENDULUM0, [0.0, 0.4, 2.0], **options)
    backward = tfsymadj.odeint(pendulum, forward[-1], [2.0, 0.4, 0.0], **options)
    # dopri5 at h = 1/30, and tolerances of 1e-9
    np.testing.assert_allclose(backward, forward[::-1], atol=1e-7)


def test_scalar_state_of_python_numbers():
    y = tfsymadj.odeint(lambda t, y: -y, 1.0, [0.0, 1.0], rtol=1e-6)
    assert y.shape == (2,)
    np.testing.assert_allclose(y[-1], np.exp(-1.0), rtol=1e-5)


# Output times


@pytest.mark.parametrize(
    "options",
    [dict(method="rk4", num_steps=3), dict(step_size=0.07), dict(rtol=1e-3)],
    ids=["num_steps", "step_size", "adaptive"],
)
def test_outputs_are_at_exactly_the_requested_times(options):
    times = [0.1, 0.3, 0.35, 1.0 / 3.0 + 0.1, 1.1]
    # dy/dt = 1: y is the time, but for roundings.
    solution = tfsymadj.solve(lambda t, y: tf.ones_like(y), np.array([0.1]), times, **options)
    np.testing.assert_array_equal(solution.t, times)
    np.testing.assert_allclose(solution.y[:, 0], times, rtol=1e-14)
    np.testing.assert_array_equal(solution.y[0], [0.1])


def test_outputs_between_do_not_change_the_fixed_grid():
    coarse = tfsymadj.odeint(pendulum, PENDULUM0, [0.0, 1.0], method="rk4", num_steps=8)
    fine = tfsymadj.odeint(pendulum, PENDULUM0, np.linspace(0.0, 1.0, 5), method="rk4", num_steps=2)
    np.testing.assert_allclose(fine[-1], coarse[-1], rtol=1e-14)


def test_all_times_of_one_interval_are_visited_once():
    """The times of fixed steps are start + j h, never a running sum: y' = cos t sums them up."""
    n = 1000
    y = tfsymadj.odeint(lambda t, y: tf.cos(t), 0.0 * PENDULUM0[0], [0.0, 1.0], method="euler",
                        num_steps=n)  # fmt: skip
    expected = math.fsum(np.cos(np.arange(n) / n)) / n
    np.testing.assert_allclose(y[-1], expected, rtol=1e-12)


def test_many_outputs_cost_little():
    options = dict(rtol=1e-6, atol=1e-6)
    few = tfsymadj.solve(pendulum, PENDULUM0, [0.0, 20.0], **options).stats
    many = tfsymadj.solve(pendulum, PENDULUM0, np.linspace(0.0, 20.0, 50), **options).stats
    # At most the step that is cut at each output is added.
    assert int(many.num_steps) <= int(few.num_steps) + 49


def test_proposal_is_kept_after_an_output_time():
    # An output just behind another one must not make the controller start over.
    options = dict(rtol=1e-6, atol=1e-6)
    without = tfsymadj.solve(pendulum, PENDULUM0, [0.0, 10.0, 20.0], **options)
    close_by = [0.0, 10.0, 10.0 + 1e-9, 20.0]
    within = tfsymadj.solve(pendulum, PENDULUM0, close_by, **options)
    assert int(within.stats.num_steps) <= int(without.stats.num_steps) + 2


# Step sizes and counts


@pytest.mark.parametrize(
    "step_size, times, steps",
    [
        (0.1, [0.0, 1.0], 10),  # 1.0 / 0.1 and sums of 0.1 are whole but for rounding
        (0.1, [0.0, 0.3], 3),
        (0.1, [0.2, 0.3, 0.7], 5),
        (0.3, [0.0, 1.0], 4),
        (5.0, [0.0, 1.0], 1),
        (0.25, [1.0, 0.0, -0.1], 5),
        (1e-3, [0.0, 1.0], 1000),
    ],
)
def test_step_size_is_an_upper_bound(step_size, times, steps):
    solution = tfsymadj.solve(
        lambda t, y: -y, np.ones(1), times, method="euler", step_size=step_size
    )
    assert int(solution.stats.num_steps) == steps
    np.testing.assert_allclose(
        solution.y[-1, 0],
        np.prod([
            (1 - (b - a) / n) ** n
            for a, b in zip(times, times[1:])
            for n in [math.ceil(abs(b - a) / step_size - 1e-9)]
        ]),
        rtol=1e-12,
    )  # fmt: skip


@pytest.mark.parametrize("method", METHODS)
def test_counts_of_fixed_steps(method):
    stats = tfsymadj.solve(pendulum, PENDULUM0, [0.0, 0.5, 1.0], method=method, num_steps=3).stats
    n, s = 6, METHODS[method].stages
    assert int(stats.num_steps) == int(stats.num_accepted) == n
    assert int(stats.num_rejected) == 0
    assert int(stats.num_evaluations) == n * s


@pytest.mark.parametrize("method", ADAPTIVE)
@pytest.mark.parametrize("first_step", [None, 0.1])
def test_counts_of_adaptive_steps(method, first_step):
    stats = tfsymadj.solve(
        pendulum, PENDULUM0, [0.0, 0.5, 1.0], method=method, first_step=first_step
    ).stats
    tableau = METHODS[method]
    assert int(stats.num_steps) == int(stats.num_accepted) + int(stats.num_rejected)
    # The start of a FSAL method, the choice of the first step; both share one evaluation.
    extra = 2 if first_step is None else int(tableau.fsal)
    assert int(stats.num_evaluations) == int(stats.num_steps) * tableau.stages + extra


def test_first_step_is_taken():
    # Euler's method is of first order for y' = t: an error estimate of zero accepts any step.
    def count(first_step):
        solution = tfsymadj.solve(
            lambda t, y: tf.zeros_like(y), np.ones(1), [0.0, 1.0], first_step=first_step
        )
        return int(solution.stats.num_steps)

    assert count(1.0) == 1
    assert count(0.5) == 2
    assert count(0.01) == 3  # 0.01, 0.1, and what is left


def test_first_step_too_long_is_rejected():
    solution = tfsymadj.solve(pendulum, PENDULUM0, [0.0, 10.0], first_step=10.0, rtol=1e-6)
    assert int(solution.stats.num_rejected) > 0
    np.testing.assert_allclose(solution.y[-1], pendulum_exactly([0.0, 10.0])[-1], atol=1e-4)


# Tolerances and controllers


def test_tolerances_as_nests_and_arrays():
    def dynamics(t, y):
        return {"a": pendulum(t, y["a"]), "b": -y["b"]}

    y0 = {"a": PENDULUM0, "b": np.ones([3, 2])}
    times = [0.0, 3.0]

    def steps(**tolerances):
        return int(tfsymadj.solve(dynamics, y0, times, **tolerances).stats.num_steps)

    scalar = steps(rtol=1e-7, atol=1e-7)
    nest = {"a": 1e-7, "b": 1e-7}
    assert steps(rtol=nest, atol=nest) == scalar
    arrays = {"a": np.full(2, 1e-7), "b": np.full([3, 1], 1e-7)}
    assert steps(rtol=arrays, atol=arrays) == scalar
    # A part that doesn't matter makes the steps longer, a mixed-up one does not.
    assert steps(rtol={"a": 1.0, "b": 1e-7}, atol={"a": 1.0, "b": 1e-7}) < scalar
    only_b = tfsymadj.solve(lambda t, y: -y, y0["b"], times, rtol=1e-7, atol=1e-7)
    assert steps(rtol=0.0, atol={"a": 1e30, "b": 1e-7}) >= int(only_b.stats.num_steps) - 2


def test_tolerance_for_each_entry():
    y0 = np.array([1.0, 1.0])
    rates = np.array([1.0, 30.0])

    def steps(atol):
        solution = tfsymadj.solve(
            lambda t, y: -rates * y, y0, [0.0, 0.5], rtol=0.0, atol=atol, max_steps=4000
        )
        return int(solution.stats.num_steps)

    fast, slow = steps([1e30, 1e-9]), steps([1e-9, 1e30])
    assert fast > 2 * slow


def test_wrong_nest_of_tolerances():
    y0 = {"a": np.ones(2), "b": np.ones(2)}
    with pytest.raises(ValueError, match="`rtol` and `atol`.*Received: "):
        tfsymadj.solve(lambda t, y: y, y0, [0.0, 1.0], rtol={"a": 1e-3})


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


def test_custom_controller():
    class Doubling(Controller):
        """Accepts everything; each step is twice as long as the one before."""

        def initial_state(self, first_step):
            return tf.constant(0.1, tf.float64)

        def propose(self, state, t, start, end):
            hits_end = t + state >= end
            step = tf.where(hits_end, end - t, state)
            one = tf.cast(hits_end, tf.float64)
            return Proposal(step, t + step, hits_end, tf.zeros_like(one), one)

        def adapt(self, state, proposal, error):
            return tf.constant(True), 2.0 * state

    t = tf.constant([0.0, 1.0], tf.float64)
    a = tf.Variable(1.0, dtype=tf.float64)
    grads = []
    for gradient in ("symplectic_adjoint", "backprop"):
        with tf.GradientTape() as tape:
            tape.watch(t)
            solution = tfsymadj.solve(
                lambda t, y: -a * y,
                np.ones(1),
                t,
                method="euler",
                controller=Doubling(),
                gradient=gradient,
            )
            end = solution.y[-1, 0]
        assert int(solution.stats.num_steps) == 4  # 0.1, 0.2, 0.4 and 0.3
        np.testing.assert_allclose(end, 0.9 * 0.8 * 0.6 * 0.7, rtol=1e-14)
        grads.append(tape.gradient(end, [t, a]))
    for actual, expected in zip(*grads):
        np.testing.assert_allclose(actual, expected, rtol=1e-13)


def test_controller_object_is_the_same_as_the_options():
    for controller, options in (
        (ConstantSteps(num_steps=5), dict(num_steps=5)),
        (ConstantSteps(step_size=0.3), dict(step_size=0.3)),
        (PIController(1e-5, 1e-7), dict(rtol=1e-5, atol=1e-7)),
    ):
        a = tfsymadj.odeint(pendulum, PENDULUM0, [0.0, 1.0], controller=controller)
        b = tfsymadj.odeint(pendulum, PENDULUM0, [0.0, 1.0], **options)
        np.testing.assert_array_equal(a, b)


def test_own_tableau():
    # Heun's third order method, not in the list.
    heun3 = ButcherTableau(
        name="heun3",
        order=3,
        c=(0, 1 / 3, 2 / 3),
        a=((), (1 / 3,), (0, 2 / 3)),
        b=(1 / 4, 0, 3 / 4),
    )
    errors = [
        np.max(
            np.abs(
                tfsymadj.odeint(pendulum, PENDULUM0, [0.0, 2.0], method=heun3, num_steps=n)[-1]
                - pendulum_exactly([0.0, 2.0])[-1]
            )
        )
        for n in (64, 128)
    ]
    assert abs(np.log2(errors[0] / errors[1]) - 3) < 0.2


@pytest.mark.parametrize("options", [dict(method="rk4", num_steps=10), dict(rtol=1e-4)])
def test_large_times_with_a_float32_state(options):
    """Times are float64 inside: in float32, 1e6 + 0.1 would be 1e6 + 0.125."""

    # Autonomous, so that the shift leaves the problem as it is.
    def solve(start):
        return tfsymadj.solve(
            lambda t, y: tf.stack([y[1], -tf.sin(y[0])]),
            tf.constant(PENDULUM0, tf.float32),
            [start, start + 0.25, start + 1.0],
            **options,
        )

    near, far = solve(0.0), solve(1e6)
    assert far.y.dtype == tf.float32
    # t0 + c h has rounding errors of 1e-10, a float32 state of 6e-8 a step.
    np.testing.assert_allclose(far.y, near.y, rtol=1e-6)
    assert int(far.stats.num_steps) == int(near.stats.num_steps)


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
