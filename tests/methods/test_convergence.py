"""Orders of convergence of the forward solve, and states of all kinds."""

import numpy as np
import pytest
import tensorflow as tf
from helpers.modes import partly_slow
from helpers.problems import PENDULUM0, pendulum, pendulum_exactly

import tfsymadj
from tfsymadj import METHODS, ButcherTableau

ADAPTIVE = [name for name, tableau in METHODS.items() if tableau.adaptive]


# The end, and the numbers of steps: so many that the asymptotic regime is reached (late for tsit5,
# whose leading error terms are small), so few that rounding and the reference (1e-14) have no part.
GRIDS = {1: (2.0, (256, 512, 1024)), 8: (6.0, (24, 32, 45)), "tsit5": (20.0, (362, 512, 724))}


# One or two of each kind; the order conditions of all are checked when they are made.
FAST = ("euler", "heun", "rk4", "tsit5", "dopri5", "dop853", "trbdf2")


@pytest.mark.parametrize("method", partly_slow(METHODS, *(set(METHODS) - {*FAST})))
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


@pytest.mark.parametrize("method", partly_slow(ADAPTIVE, *(set(ADAPTIVE) - {*FAST, "bosh3"})))
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
