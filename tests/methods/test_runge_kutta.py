"""Steps and their symplectic partners."""

import numpy as np
import pytest
import tensorflow as tf
from helpers.modes import slow
from helpers.problems import mlp, pendulum
from helpers.tableaus import EXTENDED

from tfsymadj import METHODS
from tfsymadj.dynamics.calling import as_function
from tfsymadj.dynamics.closing import Sources, close
from tfsymadj.methods import get_method


@pytest.mark.parametrize("method", ["rk4", *map(slow, ("euler", "midpoint", "dopri5", "dopri8"))])
def test_bilinear_form_is_conserved(method):
    """lambda^T delta, adjoint and variational variable, is the same after each of 20 steps."""
    problem = mlp()
    method = get_method(method).without_error()
    function = as_function(lambda: problem.dynamics, problem.y0, (), False)
    h = tf.constant(0.1, tf.float64)

    @tf.function
    def forward(t, y, delta):
        dynamics = close(function, [y])
        # The derivative in a direction is the derivative of the vjp for its (arbitrary) weights.
        weights = tf.zeros_like(y)
        with tf.GradientTape() as outer:
            outer.watch(weights)
            with tf.GradientTape() as inner:
                inner.watch(y)
                (end,) = method.step(dynamics, t, h, [y]).ys
            vjp = inner.gradient(end, y, output_gradients=weights)
        return end, outer.gradient(vjp, weights, output_gradients=delta)

    @tf.function
    def backward(t, y, adjoint):
        dynamics = close(function, [y])
        stages = tf.stack([stage for (stage,) in method.step(dynamics, t, h, [y]).stages])
        zeros = Sources([tf.zeros_like(y)], [tf.zeros_like(x) for x in dynamics.captured], [], [])
        sums = method.adjoint(dynamics, t, h, lambda i: [stages[i]], [adjoint], zeros)
        return adjoint + sums.ys[0]

    random = np.random.default_rng(4)
    times = tf.unstack(h * tf.range(20, dtype=tf.float64))
    ys, deltas = [problem.y0], [tf.constant(random.normal(size=[5, 3]))]
    for t in times:
        y, delta = forward(t, ys[-1], deltas[-1])
        ys.append(y)
        deltas.append(delta)
    adjoints = [tf.constant(random.normal(size=[5, 3]))]
    for t, y in zip(reversed(times), reversed(ys[:-1])):
        adjoints.insert(0, backward(t, y, adjoints[0]))

    forms = np.array([np.sum(a * d) for a, d in zip(adjoints, deltas)])
    scale = max(np.linalg.norm(a) * np.linalg.norm(d) for a, d in zip(adjoints, deltas))
    # Rounding in 20 steps of some 10 operations each. The variational variable itself changes.
    assert np.ptp(forms) < 1e-14 * scale
    assert np.linalg.norm(deltas[-1] - deltas[0]) > 0.1


@pytest.mark.parametrize("tableau, size", [(EXTENDED, 0.02), (METHODS["dop853"], 0.1)], ids=str)
def test_order_of_two_error_estimates(tableau, size):
    """Of h^(q + 1) and h^(r + 1): the square of one over the other."""
    method, y0 = get_method(tableau), tf.constant([2.5, 0.5], tf.float64)
    errors = []
    for h in (size, size / 2.0):
        at = tf.zeros([], tf.float64), tf.constant(h, tf.float64), [y0]
        (error,) = method.step(lambda t, ys: [pendulum(t, ys[0])], *at).errors
        errors.append(np.max(np.abs(error)))
    observed = np.log2(errors[0] / errors[1]) - 1.0
    assert abs(observed - method.embedded_order) < 0.2
