"""What all gradient methods have in common."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from helpers.gradients import FLOAT64, counts, gradients, relative_error
from helpers.modes import MODES, partly_slow, run, slow
from helpers.problems import everything, loss, mlp

import tfsymadj
from tfsymadj import Backprop, ContinuousAdjoint, SolveCheckpoint, StepCheckpoint, SymplecticAdjoint
from tfsymadj.gradients import GRADIENTS

EXACT = [SolveCheckpoint(), StepCheckpoint()]
FIXED = dict(method="rk4", num_steps=4)
ADAPTIVE = dict(method="dopri5", rtol=1e-5, atol=1e-5, max_steps=64)
TIGHT = ContinuousAdjoint(rtol=1e-12, atol=1e-12, method="dopri8")


@pytest.mark.parametrize("mode", [slow("eager"), "graph", slow("xla")])
@pytest.mark.parametrize(
    "gradient, options",
    [
        pytest.param(EXACT[0], FIXED, id=f"{EXACT[0]}-rk4"),
        slow(EXACT[0], ADAPTIVE, id=f"{EXACT[0]}-dopri5"),
        slow(EXACT[1], FIXED, id=f"{EXACT[1]}-rk4"),
        slow(EXACT[1], ADAPTIVE, id=f"{EXACT[1]}-dopri5"),
    ],
)
def test_exact_methods_agree(gradient, options, mode):
    actual = gradients(everything(), gradient, mode, **options)
    expected = gradients(everything(), Backprop(), mode, **options)
    assert relative_error(actual, expected) < FLOAT64


@pytest.mark.slow
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("gradient", EXACT, ids=repr)
def test_second_derivatives_are_exact(gradient, mode):
    problem = mlp(batch=2)

    def compute(gradient):
        sources = [problem.y0, *problem.variables]
        with tf.GradientTape() as outer:
            outer.watch(problem.y0)
            with tf.GradientTape() as inner:
                inner.watch(problem.y0)
                y = tfsymadj.odeint(
                    problem.dynamics, problem.y0, problem.t, method="heun", num_steps=2,
                    gradient=gradient, on_failure="status",
                )  # fmt: skip
                value = loss(y)
            mixed = loss(inner.gradient(value, sources))
        return outer.gradient(mixed, sources)

    for a, b in zip(run(lambda: compute(gradient), mode), compute(Backprop())):
        assert relative_error(a, b) < FLOAT64


@pytest.mark.parametrize(
    "options", [FIXED, slow(dict(ADAPTIVE, first_step=1.0))], ids=["rk4", "dopri5"]
)
def test_evaluations(options):
    s = 4 if options is FIXED else 6
    forward, backward, vjps, stats = counts(StepCheckpoint(), **options)
    n = stats.num_accepted
    assert forward >= n * s
    assert backward == stats.num_backward_evaluations == vjps == n * s

    _, backward, _, stats = counts(SolveCheckpoint(), **options)
    assert backward <= stats.num_backward_evaluations == stats.num_evaluations

    _, backward, _, stats = counts(ContinuousAdjoint(), **options)
    if options is FIXED:
        assert backward == stats.num_backward_evaluations == n * s
    else:
        assert stats.num_backward_evaluations == -1 and backward > 0


@pytest.mark.parametrize("mode", partly_slow(MODES, "eager", "xla"))
@pytest.mark.parametrize("name", GRADIENTS)
def test_a_failed_solve_has_no_gradient(name, mode):
    y0 = tf.constant([1.0, 2.0])

    def compute():
        with tf.GradientTape() as tape:
            tape.watch(y0)
            solution = tfsymadj.solve(
                lambda t, y: y**2, y0, [0.0, 3.0], gradient=name, on_failure="status", max_steps=40
            )
        return solution.status, tape.gradient(solution.y, y0)

    status, gradient = run(compute, mode)
    assert int(status) != tfsymadj.Status.SUCCESS
    assert np.all(np.isnan(gradient))


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    partly_slow(GRADIENTS, "backprop", "baseline", "aca", "continuous_adjoint", "reversible"),
)
def test_in_a_layer(name, tmp_path):
    keras.utils.set_random_seed(0)
    layer = tfsymadj.ODELayer(
        keras.layers.Dense(3, "tanh"), gradient=name, method="rk4", num_steps=3
    )
    model = keras.Sequential([keras.Input([3]), layer, keras.layers.Dense(1)])
    model.compile("adam", "mse", jit_compile=True)
    x = np.random.default_rng(0).normal(size=[64, 3]).astype(np.float32)
    y = np.sum(x, axis=1, keepdims=True)
    history = model.fit(x, y, epochs=3, verbose=0).history["loss"]
    assert history[-1] < history[0]
    model.save(tmp_path / "model.keras")
    again = keras.models.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(again.predict(x, verbose=0), model.predict(x, verbose=0))


def test_layers_restore_gradient_objects():
    own = ContinuousAdjoint(method=tfsymadj.METHODS["tsit5"])
    for gradient in (TIGHT, own, SymplecticAdjoint(12), StepCheckpoint(), SolveCheckpoint()):
        layer = tfsymadj.ODELayer(keras.layers.Dense(2), gradient=gradient)
        again = tfsymadj.ODELayer.from_config(layer.get_config())
        assert again.options.gradient == gradient


@pytest.mark.slow
@pytest.mark.parametrize("mode", partly_slow(MODES, "eager", "xla"))
@pytest.mark.parametrize("gradient", [SymplecticAdjoint(), *EXACT], ids=repr)
def test_parts_of_several_dtypes(gradient, mode):
    weight = tf.Variable(0.5)
    y0 = {"narrow": tf.constant([1.0, 2.0]), "wide": tf.constant([0.5], tf.float64)}
    gain = tf.constant(0.7, tf.float64)

    def dynamics(t, y, gain):
        narrow = tf.tanh(weight * y["narrow"]) * tf.cast(gain * y["wide"][0], tf.float32)
        return {"narrow": narrow, "wide": gain * y["wide"] * tf.cast(weight, tf.float64)}

    def compute(gradient):
        sources = [y0["narrow"], y0["wide"], gain, weight]
        with tf.GradientTape() as tape:
            tape.watch(sources[:3])
            y = tfsymadj.odeint(dynamics, y0, [0.0, 1.0], args=(gain,), gradient=gradient, **FIXED)
            value = loss(y)
        return tape.gradient(value, sources)

    for a, b in zip(run(lambda: compute(gradient), mode), compute(Backprop())):
        # Single precision: 2^-24 for each of a step's twenty operations or so.
        assert relative_error(a, b) < 20 * FIXED["num_steps"] * 2.0**-24
