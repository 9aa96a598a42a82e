"""Controllers of a user's own."""

import numpy as np
import pytest
import tensorflow as tf
from helpers.modes import MODES, XLA_SLOW, run
from helpers.stubs import Most

import tfsymadj
from tfsymadj import ConstantSteps, ContinuousAdjoint, Controller
from tfsymadj.steps import Proposal


def decay(t, y):
    return -y


class Halving(Controller):
    """By the methods that CONTRIBUTING names, and no others."""

    adaptive = True

    def initial_state(self, first_step):
        return first_step

    def propose(self, state, t, start, end):
        hits_end = state >= end - t
        one = tf.ones([], tf.float64)
        return Proposal(
            tf.minimum(state, end - t),
            tf.where(hits_end, end, t + state),
            hits_end,
            0.0 * one,
            tf.cast(hits_end, tf.float64),
        )

    def adapt(self, state, proposal, error):
        accepted = error <= 1.0
        return accepted, tf.where(accepted, state, state / 2.0)

    def error_norm(self, errors, ys, ends):
        # Of the state's dtype in each case, as the loop gives them.
        changes = [tf.abs(end - y) for y, end in zip(ys, ends)]
        largest = [tf.reduce_max(tf.abs(e) - 0.0 * c) for e, c in zip(errors, changes)]
        return tf.cast(tf.reduce_max(tf.stack(largest)), tf.float64) / 1e-4


@pytest.mark.parametrize("mode", XLA_SLOW)
@pytest.mark.parametrize("dtype", [tf.float32, tf.float64, tf.complex64])
@pytest.mark.parametrize("method", ["dopri5", "adaptive_heun"])
def test_controller_by_the_documented_methods(method, dtype, mode):
    y0 = tf.ones([2], dtype)

    def compute():
        with tf.GradientTape() as tape:
            tape.watch(y0)
            solution = tfsymadj.solve(
                decay, y0, [0.0, 0.4, 1.0], controller=Halving(), method=method
            )
            value = tf.math.real(solution.y[-1])
        return solution.y, tape.gradient(value, y0)

    y, gradient = run(compute, mode)
    np.testing.assert_allclose(y[:, 0], np.exp([0.0, -0.4, -1.0]), atol=1e-3)
    np.testing.assert_allclose(gradient, np.full(2, np.exp(-1.0)), atol=1e-3)
    assert repr(Halving()) == "Halving()"
    assert Halving() == Halving()


@pytest.mark.parametrize("mode", MODES)
def test_subclass_of_the_controller_keeps_its_overrides(mode):
    def compute(controller):
        return tfsymadj.solve(decay, tf.ones([1]), [0.0, 10.0], controller=controller).stats

    assert int(run(lambda: compute(Most(1e-3, 1e-6)), mode).num_accepted) >= 100
    assert int(run(lambda: compute(Most(1e-3, 1e-6, most=0.5)), mode).num_accepted) < 30


class Halves(ConstantSteps):
    """Equal steps, but for the first half of each interval in one step."""

    def propose(self, state, t, start, end):
        p = super().propose(state, t, start, end)
        first = tf.equal(state, 0)
        step = tf.where(first, (end - start) / 2.0, (end - start) / 4.0)
        return p._replace(step=step, end=tf.where(p.hits_end, end, t + step))


def test_subclass_of_constant_steps_keeps_its_overrides():
    def solve():
        return float(
            tfsymadj.odeint(
                decay, tf.ones([1]), [0.0, 1.0], method="euler", controller=Halves(num_steps=3)
            )[-1, 0]
        )

    assert solve() == 0.5 * 0.75 * 0.75
    with tfsymadj.no_gradient():  # which has a table for steps that are known beforehand
        assert solve() == 0.5 * 0.75 * 0.75


@pytest.mark.parametrize(
    "gradient, tolerances",
    [
        (ContinuousAdjoint(), (np.full(3, 1e-3), 1e-6)),
        (ContinuousAdjoint(), (1e-3, 1e-6)),
        (ContinuousAdjoint(rtol=1e-4), (1e-3, [1e-6])),
        (ContinuousAdjoint(atol=1e-4, method="bosh3"), (1e-3, 1e-6)),
    ],
)
def test_subclass_of_the_controller_in_the_backward_solve(gradient, tolerances):
    norms = {}  # number of tensors -> the tolerance

    class Watching(Most):
        def error_norm(self, errors, ys, ends):
            norms[len(ys)] = self.rtol
            return super().error_norm(errors, ys, ends)

    y0 = tf.ones([3])
    with tf.GradientTape() as tape:
        tape.watch(y0)
        controller = Watching(*tolerances, most=0.3)
        y = tfsymadj.odeint(decay, y0, [0.0, 1.0], controller=controller, gradient=gradient)
        value = tf.reduce_sum(y[-1])
    np.testing.assert_allclose(tape.gradient(value, y0), np.full(3, np.exp(-1.0)), rtol=1e-3)
    assert set(norms) == {1, 2}  # the state, and with its adjoint
    if gradient.rtol is not None:
        assert norms[2] == gradient.rtol


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
