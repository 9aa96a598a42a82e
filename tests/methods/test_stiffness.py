"""Steps that are as long as is stable, counted."""

import numpy as np
import pytest
import tensorflow as tf
from helpers.modes import partly_slow, slow

import tfsymadj
from tfsymadj.methods import METHODS, ButcherTableau

TELLING = ("dopri5", "tsit5", "dop853")


def stats(rate, method="dopri5", mode="graph", **options):
    """Of y' = -rate (y - cos t), whose solution is as smooth for one rate as for another."""
    y0 = tf.constant([0.0, 1.0], options.pop("dtype", tf.float64))
    options = dict(rtol=1e-5, atol=1e-5, max_steps=10_000) | options

    def solve():
        rates = tf.cast(rate, y0.dtype)
        return tfsymadj.solve(
            lambda t, y, k: -k * (y - tf.cast(tf.cos(t), y.dtype)), y0, [0.0, 10.0],
            args=(rates,), method=method, **options,
        ).stats  # fmt: skip

    if mode == "eager":
        return solve()
    return tf.function(solve, jit_compile=mode == "xla")()


@pytest.mark.parametrize(
    "name, limit",
    [("euler", 2.0), ("heun", 2.0), ("rk4", 2.785), ("bosh3", 2.513), ("dopri5", 3.307)],
)
def test_interval_of_absolute_stability(name, limit):
    # From 1 + z + z^2/2 + ...: Hairer, Wanner, Solving Ordinary Differential Equations II, IV.2.
    assert METHODS[name].stability_limit == pytest.approx(limit, abs=0.01)


def test_interval_of_a_stabilised_method():
    # R is the Chebyshev polynomial T_2(1 + z/4), which stays within 1 to 2 n^2 = 8.
    tableau = ButcherTableau(
        name="chebyshev", order=1, c=(0, 1 / 4), a=((), (1 / 4,)), b=(1 / 2, 1 / 2)
    )
    assert tableau.stability_limit == pytest.approx(8.0, abs=0.02)


@pytest.mark.parametrize("method", partly_slow(TELLING, *TELLING[1:]))
def test_stiff_or_not(method):
    stiff, smooth = stats(1000.0, method), stats(1.0, method)
    assert int(stiff.num_stiff) > 0.9 * int(stiff.num_accepted)
    assert smooth.num_stiff == 0 and smooth.num_accepted < 50


@pytest.mark.parametrize("mode", ["eager", "xla"])
@pytest.mark.parametrize("dtype", [tf.float32, tf.complex64])
def test_modes_and_dtypes(mode, dtype):
    found = stats(300.0, mode=mode, dtype=dtype, atol=1e-3, rtol=1e-3)
    assert found.num_stiff.dtype == tf.int32
    assert int(found.num_stiff) > 0.9 * int(found.num_accepted)


def test_backwards_in_time():
    found = tfsymadj.solve(
        lambda t, y: 1000.0 * y, tf.constant([1.0]), [1.0, 0.0], rtol=1e-3, atol=1e-3
    ).stats
    assert int(found.num_stiff) > 0.8 * int(found.num_accepted)


def test_each_example_by_itself():
    found = stats([1000.0, 1.0], batch_axis=0)
    assert int(found.num_stiff[0]) > 0.9 * int(found.num_accepted[0])
    assert found.num_stiff[1] == 0


def test_lanes():
    y0 = tf.ones([3, 1], tf.float64)
    rates = tf.constant([[500.0], [1.0], [500.0]], tf.float64)
    found = tfsymadj.solve(
        lambda t, y, k: -k * y, y0, [0.0, 2.0], args=(rates,), batch_axis=0, lanes=2, rtol=1e-4
    ).stats
    assert np.all((found.num_stiff > 50) == [True, False, True])


@pytest.mark.parametrize(
    "options",
    [
        dict(method="bosh3"),
        slow(dict(method="kvaerno5")),
        dict(num_steps=10),
        dict(batch_axis=0, method="bosh3"),
    ],
)
def test_what_can_not_tell(options):
    assert np.all(stats(1.0, **options).num_stiff == -1)


def test_what_can_not_tell_in_parts():
    """Steps from a table are solved interval by interval without a gradient."""
    y0 = tf.ones([1])
    found = tfsymadj.solve(
        lambda t, y: -y, y0, [0.0, 0.5, 1.0], num_steps=3, gradient=tfsymadj.NoGradient()
    )
    assert found.stats.num_stiff == -1


def test_no_part_in_the_gradient():
    y0 = tf.constant([1.0, 2.0], tf.float64)

    def gradient(method):
        with tf.GradientTape() as tape:
            tape.watch(y0)
            solution = tfsymadj.solve(
                lambda t, y: -30.0 * y, y0, [0.0, 1.0], gradient=method, rtol=1e-4, max_steps=100
            )
            loss = tf.reduce_sum(solution.y[-1])
        assert solution.stats.num_stiff > 0
        return tape.gradient(loss, y0)

    np.testing.assert_allclose(gradient("symplectic_adjoint"), gradient("backprop"), rtol=1e-12)


def test_tangents_do_not_count():
    """The counts of `jvp` are those of `solve`."""
    y0, options = tf.constant([1.0, 2.0], tf.float64), dict(rtol=1e-4, max_steps=500)

    def dynamics(t, y, k):
        return -k * (y - tf.cos(t))

    expected = tfsymadj.solve(dynamics, y0, [0.0, 1.0], args=(100.0,), **options).stats
    solution, _ = tfsymadj.jvp(
        dynamics, y0, [0.0, 1.0], args=(100.0,), tangents={"args": (1e3,)}, **options
    )
    assert 0 < expected.num_stiff < expected.num_accepted
    assert solution.stats.num_stiff == expected.num_stiff
