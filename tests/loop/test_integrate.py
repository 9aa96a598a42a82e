"""The loop alone, with controllers that do as they are told and dynamics made by hand."""

import numpy as np
import pytest
import tensorflow as tf
from helpers.stubs import KEEP, ByHand, Refusing, Told, TwoEulers, accepted_steps, loop

import tfsymadj
from tfsymadj import Status


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_loop_takes_the_steps_proposed(sign):
    steps = [0.1, 0.2, 0.3, 0.4]
    result = loop(Told(steps), (0.0, sign), recording=KEEP)
    assert int(result.status) == Status.SUCCESS
    assert (int(result.stats.num_steps), int(result.stats.num_accepted)) == (4, 4)
    h, hits_end = accepted_steps(result)
    np.testing.assert_allclose(h, sign * np.array(steps), rtol=1e-14)
    np.testing.assert_array_equal(hits_end, [0, 0, 0, 1])
    np.testing.assert_allclose(result.ys[0][:, 0], [0.0, sign], rtol=1e-14)
    # The states before the steps are what is recorded.
    before = sign * np.array([0.0, 0.1, 0.3, 0.6])
    np.testing.assert_allclose(result.record.kept.states[0][:4, 0], before, atol=1e-15)


def test_loop_repeats_a_rejected_step_from_the_same_state():
    errors = [2.0, 1.0, 7.0, 1.0, 1.0, 0.0]
    controller = Told([0.5, 0.25, 0.5, 0.1, 0.15, 0.5], errors)
    dynamics = ByHand(lambda t: 1.0 + 0.0 * t)
    result = loop(controller, dynamics=dynamics, recording=KEEP)
    assert controller.seen == errors
    assert (int(result.stats.num_steps), int(result.stats.num_accepted)) == (6, 4)
    h, _ = accepted_steps(result)
    np.testing.assert_allclose(h, [0.25, 0.1, 0.15, 0.5], rtol=1e-14)
    # Heun's method for dy/dt = y + 1, over the steps that were accepted
    expected = np.cumprod(1.0 + h + h**2 / 2) - 1.0
    np.testing.assert_allclose(result.ys[0][1], np.full(2, expected[-1]), rtol=1e-13)
    np.testing.assert_allclose(result.record.kept.states[0][1:4, 0], expected[:3], rtol=1e-13)
    assert max(dynamics.times) <= 1.0


@pytest.mark.parametrize("rejections", [1, 5, 49])
def test_loop_survives_rejections_in_a_row(rejections):
    controller = Told([1.0], [2.0] * rejections)
    result = loop(controller)
    assert int(result.status) == Status.SUCCESS
    assert int(result.stats.num_steps) == rejections + 1
    assert int(result.stats.num_accepted) == 1


def test_loop_stops_at_the_bound_of_steps():
    for controller, taken in ((Told([0.1]), 5), (Told([0.1], [2.0] * 100), 0)):
        result = loop(controller, (0.0, 0.2, 1.0), max_steps=5)
        assert int(result.status) == Status.MAX_STEPS_REACHED
        assert (int(result.stats.num_steps), int(result.stats.num_accepted)) == (5, taken)
        np.testing.assert_allclose(result.time, 0.1 * taken, rtol=1e-14)
        reached = 2 if taken else 1
        assert np.isfinite(result.ys[0][:reached]).all()
        assert np.isnan(result.ys[0][reached:]).all()
    # Exactly enough is enough.
    assert int(loop(Told([0.25]), max_steps=4).status) == Status.SUCCESS
    assert int(loop(Told([0.25]), max_steps=3).status) == Status.MAX_STEPS_REACHED


def test_loop_ends_a_step_at_each_of_several_outputs_in_a_row():
    ts = [0.0, 0.1, 0.1 + 1e-12, 0.2, 0.9, 1.0]
    result = loop(Told([0.5]), ts, recording=KEEP)
    h, hits_end = accepted_steps(result)
    np.testing.assert_allclose(h, [0.1, 1e-12, 0.1, 0.5, 0.2, 0.1], rtol=1e-3)
    np.testing.assert_array_equal(hits_end, [1, 1, 1, 0, 1, 1])
    np.testing.assert_array_equal(result.record.grid.interval[:6], [0, 1, 2, 3, 3, 4])
    np.testing.assert_allclose(result.ys[0][:, 1], ts, rtol=1e-14)


@pytest.mark.parametrize("step", [0.0, 1e-20])
def test_loop_accepts_no_step_of_zero(step):
    result = loop(Told([0.5, step]), (1.0, 2.0))
    assert int(result.status) == Status.STEP_UNDERFLOW
    assert (int(result.stats.num_steps), int(result.stats.num_accepted)) == (2, 1)
    assert float(result.time) == 1.5
    assert np.isnan(result.ys[0][1]).all()


def test_loop_stops_below_the_least_step():
    rejected = Told([0.5, 0.2, 0.05, 0.01], [2.0] * 50)
    result = loop(rejected, min_step=0.1)
    assert int(result.status) == Status.STEP_UNDERFLOW
    assert int(result.stats.num_steps) == 2
    # What is accepted may be shorter, as at the end of an interval.
    assert int(loop(Told([0.95]), min_step=0.1).status) == Status.SUCCESS


def test_loop_tells_the_controller_of_what_is_not_finite():
    controller = Told([0.9, 0.3, 0.2, 0.0])
    result = loop(controller, dynamics=ByHand(nan_after=0.45))
    assert controller.seen == [np.inf, 0.5, np.inf]
    assert int(result.status) == Status.NON_FINITE_DYNAMICS
    assert float(result.time) == 0.3


def test_loop_counts_evaluations_and_reuses_the_last_slope():
    dynamics = ByHand()
    result = loop(Told([0.25], [2.0]), dynamics=dynamics, first_step=0.1)
    assert int(result.stats.num_evaluations) == len(dynamics.times)


def test_loop_of_fixed_steps_asks_for_no_error():
    class Fixed(Told):
        adaptive = False

        def adapt(self, state, proposal, error):
            assert error is None
            return tf.constant(True), state + 1

    result = loop(Fixed([0.5, 0.3, 0.2]), dynamics=ByHand(lambda t: 1.0 + 0.0 * t))
    np.testing.assert_allclose(result.ys[0][1, 0], ((0.5 * 1.3 + 0.3) * 1.2 + 0.2), rtol=1e-14)
    assert int(result.stats.num_steps) == 3


def test_loop_takes_the_counts_of_a_method_that_counts():
    dynamics = ByHand(lambda t: 1.0 + 0.0 * t)
    result = loop(Refusing([0.25], []), dynamics=dynamics, method=TwoEulers())
    assert int(result.status) == Status.SUCCESS
    assert int(result.stats.num_evaluations) == len(dynamics.times) == 2 * 1 + 2 * 2
    np.testing.assert_allclose(result.ys[0][1], 1.25**2 * 1.125**4 - 1.0, rtol=1e-14)


@pytest.mark.parametrize("gradient", ["backprop", tfsymadj.NoGradient()], ids=repr)
def test_counts_of_a_method_that_counts_arrive_in_the_statistics(gradient):
    solution = tfsymadj.solve(
        lambda t, y: y, [1.0], [0.0, 1.0], method=TwoEulers(), num_steps=4, gradient=gradient
    )
    assert int(solution.stats.num_evaluations) == 6
    np.testing.assert_allclose(solution.y[-1], [1.25**2 * 1.125**4], rtol=1e-6)


@pytest.mark.parametrize("refused", [[0], [1], [0, 1, 3], [4]])
def test_loop_of_fixed_steps_stays_where_it_was_after_a_refused_one(refused):
    steps = [0.1, 0.2, 0.15, 0.25, 0.05, 0.5, 0.5, 0.5]
    dynamics = ByHand(lambda t: 1.0 + 0.0 * t)
    result = loop(Refusing(steps, refused), dynamics=dynamics, recording=KEEP)
    assert int(result.status) == Status.SUCCESS
    assert int(result.stats.num_rejected) == len(refused)
    h, _ = accepted_steps(result)
    taken = [x for i, x in enumerate(steps) if i not in refused][: len(h) - 1]
    np.testing.assert_allclose(h, [*taken, 1.0 - sum(taken)], rtol=1e-13)
    states = np.cumprod(1.0 + h) - 1.0
    np.testing.assert_allclose(result.ys[0][1], np.full(2, states[-1]), rtol=1e-13)
    np.testing.assert_allclose(result.record.kept.states[0][1 : len(h), 0], states[:-1], rtol=1e-13)
