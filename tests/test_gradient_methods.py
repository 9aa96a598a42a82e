"""Tests of the gradient methods beside the symplectic adjoint, against each other."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from conftest import MODES, XLA_SLOW, everything, gradients, loss, mlp, relative_error, run, slow
from test_gradients import FLOAT64, counts
from test_memory import MIB, STATE_SIZE, peak, rk4

import tfsymadj
from tfsymadj import (
    Backprop,
    ContinuousAdjoint,
    SolveCheckpoint,
    StepCheckpoint,
    SymplecticAdjoint,
)
from tfsymadj.gradients import GRADIENTS

EXACT = [SolveCheckpoint(), StepCheckpoint()]
FIXED = dict(method="rk4", num_steps=4)
ADAPTIVE = dict(method="dopri5", rtol=1e-5, atol=1e-5, max_steps=64)
TIGHT = ContinuousAdjoint(rtol=1e-12, atol=1e-12, method="dopri8")


@pytest.mark.parametrize("mode", [slow("eager"), "graph", slow("xla")])
@pytest.mark.parametrize("options", [FIXED, ADAPTIVE], ids=["rk4", "dopri5"])
@pytest.mark.parametrize("gradient", EXACT, ids=repr)
def test_exact_methods_agree(gradient, options, mode):
    actual = gradients(everything(), gradient, mode, **options)
    expected = gradients(everything(), Backprop(), mode, **options)
    assert relative_error(actual, expected) < FLOAT64


@pytest.mark.parametrize("mode", ["eager", slow("graph"), slow("xla")])
def test_continuous_adjoint_of_everything(mode):
    """Where both solves are converged, discrete and continuous gradients are one."""
    problem = everything()
    options = dict(method="dopri8", rtol=1e-12, atol=1e-12, max_steps=300)
    actual = gradients(problem, ContinuousAdjoint(), mode, **options)
    expected = gradients(problem, Backprop(), "graph", **options)
    # The gradient for a time is that of the flow, here; the steps' own has an error estimate less.
    assert relative_error(actual, expected) < 1e-9


def test_continuous_adjoint_is_as_exact_as_its_tolerance():
    exact = gradients(mlp(), Backprop(), "graph", method="dopri8", rtol=1e-13, atol=1e-13)
    errors = []
    for tolerance in (1e-4, 1e-6, 1e-8, 1e-10):
        options = dict(method="dopri5", rtol=tolerance, atol=tolerance)
        found = gradients(mlp(), ContinuousAdjoint(), "graph", **options)
        errors.append(relative_error(found, exact))
        # Local errors of one tolerance each, over ten to a hundred steps.
        assert errors[-1] < 100 * tolerance
    assert errors[-1] < 1e-3 * errors[0]


def test_continuous_adjoint_with_fixed_steps_has_the_order_of_the_method():
    exact = gradients(mlp(), Backprop(), "graph", method="dopri8", rtol=1e-13, atol=1e-13)
    errors = [
        relative_error(
            gradients(mlp(), ContinuousAdjoint(), "graph", method="rk4", num_steps=n), exact
        )
        for n in (8, 32)
    ]
    assert abs(np.log(errors[0] / errors[1]) / np.log(4) - 4) < 0.4


def test_continuous_adjoint_takes_tolerances_of_each_tensor():
    problem = everything()
    options = dict(method="dopri5", rtol={"a": 1e-7, "z": 1e-8}, atol=1e-9)
    actual = gradients(problem, ContinuousAdjoint(), "graph", **options)
    expected = gradients(problem, Backprop(), "graph", **options)
    assert relative_error(actual, expected) < 1e-5


def test_continuous_adjoint_of_a_decreasing_time():
    problem = mlp(t=(1.0, 0.4, -0.5))
    options = dict(method="dopri8", rtol=1e-12, atol=1e-12)
    actual = gradients(problem, ContinuousAdjoint(), "graph", **options)
    expected = gradients(problem, Backprop(), "graph", **options)
    assert relative_error(actual, expected) < 1e-9


@pytest.mark.parametrize("mode", MODES)
def test_continuous_adjoint_refuses_second_derivatives(mode):
    y0 = tf.constant([1.0])

    def compute():
        with tf.GradientTape() as outer:
            outer.watch(y0)
            with tf.GradientTape() as inner:
                inner.watch(y0)
                y = tfsymadj.odeint(lambda t, y: y * y, y0, [0.0, 0.5], gradient=TIGHT)
            first = inner.gradient(y, y0)
        return outer.gradient(first, y0)

    with pytest.raises(RuntimeError, match="no second derivatives"):
        run(compute, mode)


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


@pytest.mark.parametrize("options", [FIXED, dict(ADAPTIVE, first_step=1.0)], ids=["rk4", "dopri5"])
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


@pytest.mark.parametrize("mode", XLA_SLOW)
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


@pytest.mark.parametrize("mode", MODES)
def test_a_failed_backward_solve_gives_nan(mode):
    """Forward a decay; backward the same is an explosion that needs more steps than allowed."""
    y0 = tf.constant([1.0])

    def compute():
        with tf.GradientTape() as tape:
            tape.watch(y0)
            y = tfsymadj.odeint(
                lambda t, y: -20.0 * y, y0, [0.0, 2.0], max_steps=100, rtol=1e-3, atol=1e-3,
                gradient=ContinuousAdjoint(rtol=1e-12, atol=1e-30),
            )  # fmt: skip
        return tape.gradient(y, y0)

    assert np.all(np.isnan(run(compute, mode)))


@pytest.mark.parametrize("name", GRADIENTS)
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


@pytest.mark.parametrize(
    "arguments", [dict(rtol=-1.0), dict(atol=np.inf), dict(rtol=[1e-3]), dict(method="rk5")]
)
def test_bad_arguments_of_the_continuous_adjoint(arguments):
    with pytest.raises(ValueError, match="must be"):
        ContinuousAdjoint(**arguments)


def test_continuous_adjoint_needs_an_error_estimate_for_tolerances():
    with pytest.raises(ValueError, match="no error estimate"):
        tfsymadj.odeint(
            lambda t, y: -y, [1.0], [0.0, 1.0], gradient=ContinuousAdjoint(rtol=1e-3), **FIXED
        )


# Rounding


def contractive(dtype):
    """A stable network, whose state and gradients keep their size."""
    random = np.random.default_rng(0)
    w0 = tf.Variable(random.normal(size=[8, 32]) / 8**0.5, dtype=dtype)
    b0 = tf.Variable(random.normal(size=[32]), dtype=dtype)  # or the state would decay to zero
    w1 = tf.Variable(0.5 * random.normal(size=[32, 8]) / 32**0.5, dtype=dtype)
    y0 = tf.constant(random.normal(size=[4, 8]), dtype)
    return (lambda t, y: tf.tanh(y @ w0 + b0) @ w1 - y), y0, (w0, b0, w1)


def long_gradients(dtype, gradient, num_steps, mode):
    dynamics, y0, weights = contractive(dtype)

    def compute():
        with tf.GradientTape() as tape:
            tape.watch(y0)
            y = tfsymadj.odeint(
                dynamics, y0, [0.0, 10.0], method="rk4", num_steps=num_steps, gradient=gradient
            )
            value = tf.reduce_mean(y[-1] ** 2)
        return tape.gradient(value, [y0, *weights])

    return np.concatenate([np.ravel(g).astype(np.float64) for g in run(compute, mode)])


@pytest.mark.parametrize("mode", ["graph", slow("xla")])
@pytest.mark.parametrize("num_steps", [100, slow(10_000)])
def test_rounding_does_not_grow_with_the_steps(num_steps, mode):
    """Within a few roundings of the exact gradient of the same steps, however many."""
    exact = long_gradients(tf.float64, SymplecticAdjoint(), num_steps, mode)
    error = {
        repr(gradient): np.linalg.norm(
            long_gradients(tf.float32, gradient, num_steps, mode) - exact
        )
        / np.linalg.norm(exact)
        for gradient in (SymplecticAdjoint(), SymplecticAdjoint("stages"), StepCheckpoint())
    }
    assert max(error.values()) < 5e-7, error
    backprop = long_gradients(tf.float32, Backprop(), num_steps, mode) - exact
    assert error[repr(SymplecticAdjoint())] <= np.linalg.norm(backprop) / np.linalg.norm(exact)


# Memory


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["graph", "xla"])
def test_memory_of_aca(mode):
    """A state a step, as the symplectic adjoint in the paper, and the tapes of a whole step."""
    aca, symplectic = (
        peak(g, mode, hidden=256, **rk4(200))
        for g in (StepCheckpoint(), SymplecticAdjoint("steps"))
    )
    assert 200 * STATE_SIZE < symplectic < aca


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["graph", "xla"])
def test_memory_of_the_continuous_adjoint(mode):
    few, many = (peak(ContinuousAdjoint(), mode, **rk4(n)) for n in (100, 1000))
    assert abs(many - few) < MIB


@pytest.mark.slow
@pytest.mark.parametrize("name", ["symplectic_adjoint", "baseline"])
@pytest.mark.parametrize("mode", ["graph", "xla"])
def test_memory_of_stacked_components(name, mode):
    """The backward pass of one component at a time: three more add their checkpoints only."""

    def stacked(count):
        layers = [
            tfsymadj.ODELayer(
                keras.Sequential([keras.layers.Dense(256, "tanh"), keras.layers.Dense(64)]),
                method="rk4", num_steps=50, gradient=name,
            )
            for _ in range(count)
        ]  # fmt: skip
        model = keras.Sequential([keras.Input([64]), *layers])
        x = tf.ones([512, 64])

        def compute():
            with tf.GradientTape() as tape:
                value = tf.reduce_sum(model(x))
            return tape.gradient(value, model.trainable_variables)

        compiled = tf.function(compute, jit_compile=mode == "xla")
        compiled()
        before = tf.config.experimental.get_memory_info("CPU:0")["current"]
        tf.config.experimental.reset_memory_stats("CPU:0")
        compiled()
        return tf.config.experimental.get_memory_info("CPU:0")["peak"] - before

    one, four = stacked(1), stacked(4)
    # States kept, the output of two, and one between two components.
    states = (14 if name == "symplectic_adjoint" else 1) + 3
    weights = 4 * (64 * 256 * 2 + 320)
    assert four - one < 3 * (states * STATE_SIZE + 3 * weights)


# Several dtypes


@pytest.mark.parametrize("mode", XLA_SLOW)
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
