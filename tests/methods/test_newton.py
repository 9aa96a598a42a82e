"""`Newton`'s arguments, and small linear systems."""

import functools

import numpy as np
import pytest
import tensorflow as tf
from helpers.modes import MODES, run

import tfsymadj
from tfsymadj import Newton
from tfsymadj.methods.linear import inverse_of
from tfsymadj.methods.newton import converge


@pytest.mark.parametrize(
    "options, message",
    [
        (dict(jacobian="sparse"), "`jacobian` must be one of"),
        (dict(tolerance=0.0), "`tolerance` must be a number between 0 and 1"),
        (dict(tolerance="small"), "`tolerance` must be a number between 0 and 1"),
        (dict(max_iterations=1), "`max_iterations` must be an integer, at least 2"),
        (dict(max_iterations=5.0), "`max_iterations` must be an integer, at least 2"),
    ],
)
def test_wrong_arguments(options, message):
    with pytest.raises(ValueError, match=f"{message}.*Received: "):
        Newton(**options)


def test_config():
    newton = Newton("whole", 1e-6, 12)
    assert newton == Newton.from_config(newton.get_config()) != Newton()
    assert hash(newton) == hash(Newton("whole", 1e-6, 12))


def test_newton_as_an_option():
    with pytest.raises(TypeError, match="`newton` must be a `Newton` or None. Received: 'dense'"):
        tfsymadj.odeint(lambda t, y: -y, [1.0], [0.0, 1.0], method="trbdf2", newton="dense")
    with pytest.raises(ValueError, match="`newton` is for implicit methods.*method='dopri5'"):
        tfsymadj.odeint(lambda t, y: -y, [1.0], [0.0, 1.0], newton=Newton())


def test_tolerance_and_iterations():
    """Fewer iterations with a tolerance, and an error of its order."""

    def solve(newton):
        options = dict(method="gauss4", num_steps=2, newton=newton, on_failure="status")
        y0 = tf.constant([1.0], tf.float64)
        return tfsymadj.solve(lambda t, y: -tf.exp(y), y0, [0.0, 1.0], **options)

    exact, loose = solve(None), solve(Newton(tolerance=1e-3))
    assert loose.stats.num_evaluations < exact.stats.num_evaluations
    assert 0 < abs(float(exact.y[-1, 0] - loose.y[-1, 0])) < 1e-3
    assert solve(Newton(max_iterations=2)).status == tfsymadj.Status.NEWTON_FAILED


@pytest.mark.parametrize("mode", MODES)
def test_inverse(mode):
    random = np.random.default_rng(0)
    for n in (1, 2, 5):
        matrices = random.normal(size=[3, n, n])
        if n > 1:
            matrices[0, 0, 0] = 0.0  # to be exchanged with another row
            matrices[1] = np.ones([n, n])
        found = run(functools.partial(inverse_of, tf.constant(matrices)), mode).numpy()
        regular = [0, 1, 2] if n == 1 else [0, 2]
        np.testing.assert_allclose(found[regular], np.linalg.inv(matrices[regular]), rtol=1e-11)
        assert n == 1 or not np.all(np.isfinite(found[1]))


def test_updates_that_are_rounding():
    # They go up and down, so that many an iteration never sees them get no smaller.
    def residual(x):
        return 1e-13 * x * tf.sin(1e20 * x)

    x = tf.constant(np.random.default_rng(0).uniform(1.0, 2.0, (500, 3)))
    x = tf.concat([x[:, :1], 1e-6 * x[:, 1:]], 1) * [[1e-4, 1.0, 1.0]]
    kept, newton = tf.eye(3, batch_shape=[500], dtype=tf.float64), Newton()

    @tf.function
    def found(linear):
        return converge(
            residual, x, kept, lambda kept, x, r: r, lambda x: kept, tf.abs, newton, (0, 0), linear
        ).converged

    assert np.all(found(True)) and not np.all(found(False))
