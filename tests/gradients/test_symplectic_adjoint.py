"""The symplectic adjoint against back-propagation over the same steps."""

import numpy as np
import pytest
import tensorflow as tf
from helpers.gradients import FLOAT32, FLOAT64, gradients, relative_error
from helpers.modes import MODES, partly_slow, run, slow
from helpers.problems import everything, loss, mlp

import tfsymadj
from tfsymadj import METHODS, Backprop, SymplecticAdjoint

# The others are in `tests/methods/test_implicit.py`.
EXPLICIT = [name for name, tableau in METHODS.items() if tableau.explicit]
ADAPTIVE = [name for name in EXPLICIT if METHODS[name].adaptive]
SHORT = dict(method="rk4", num_steps=3)
RK4, PI = dict(method="rk4", num_steps=5), dict(rtol=1e-4, max_steps=64)


def compare(problem, gradient, mode, tolerance, **options):
    actual = gradients(problem, gradient, mode, **options)
    expected = gradients(problem, Backprop(), mode, **options)
    assert relative_error(actual, expected) < tolerance
    return actual


# The tables are tested for the condition that makes the partner exact; here, a few of each kind.
@pytest.mark.parametrize(
    "method",
    partly_slow(
        EXPLICIT, "euler", "midpoint", "ralston", "rk38", "fehlberg2", "adaptive_heun", "bosh3",
        "fehlberg45", "dopri5", "dopri8", "dop853",
    ),
)  # fmt: skip
def test_equals_backprop_fixed_steps(method):
    compare(mlp(), SymplecticAdjoint("sqrt"), "graph", FLOAT64, method=method, num_steps=7)


@pytest.mark.parametrize(
    "method", ["dopri5", *(slow(name) for name in ADAPTIVE if name != "dopri5")]
)
def test_equals_backprop_adaptive_steps(method):
    options = dict(method=method, rtol=1e-4, atol=1e-4)
    compare(mlp(), SymplecticAdjoint("sqrt"), "graph", FLOAT64, **options)


@pytest.mark.parametrize("checkpoints", ["sqrt", slow("steps"), slow("stages")])
@pytest.mark.parametrize("options", [RK4, slow(PI)], ids=["rk4", "pi"])
def test_equals_backprop_with_everything(checkpoints, options):
    compare(everything(), SymplecticAdjoint(checkpoints), "graph", FLOAT64, **options)


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["eager", "xla"])
def test_equals_backprop_with_everything_eager_and_xla(mode):
    options = dict(method="midpoint", num_steps=3)
    compare(everything(), SymplecticAdjoint("sqrt"), mode, FLOAT64, **options)


@pytest.mark.parametrize(
    "options, checkpoints, mode",
    [
        slow(PI, "sqrt", "eager", id="pi-sqrt-eager"),
        pytest.param(RK4, "sqrt", "xla", id="rk4-sqrt-xla"),
        slow(RK4, "sqrt", "eager", id="rk4-sqrt-eager"),
        slow(PI, "sqrt", "xla", id="pi-sqrt-xla"),
        slow(RK4, "steps", "eager", id="rk4-steps-eager"),
        slow(RK4, "stages", "eager", id="rk4-stages-eager"),
        slow(PI, "steps", "eager", id="pi-steps-eager"),
        slow(PI, "stages", "eager", id="pi-stages-eager"),
        slow(RK4, "steps", "xla", id="rk4-steps-xla"),
        slow(RK4, "stages", "xla", id="rk4-stages-xla"),
        slow(PI, "steps", "xla", id="pi-steps-xla"),
        slow(PI, "stages", "xla", id="pi-stages-xla"),
    ],
)
def test_equals_backprop_eager_and_xla(options, checkpoints, mode):
    compare(mlp(), SymplecticAdjoint(checkpoints), mode, FLOAT64, **options)


@pytest.mark.parametrize(
    "checkpoints, num_steps",
    [
        slow("sqrt", 1),
        slow("sqrt", 2),
        slow("sqrt", 100),
        ("sqrt", 103),
        ("steps", 9),
        slow("stages", 9),
        slow("steps", 1),
        slow("stages", 1),
    ],
)
def test_segments_of_all_lengths(checkpoints, num_steps):
    # 100 steps make 20 full segments of 5, the other numbers one that is not full.
    problem = mlp(t=(0.0, 1.0))
    options = dict(method="rk4", num_steps=num_steps)
    compare(problem, SymplecticAdjoint(checkpoints), "graph", FLOAT64, **options)


@pytest.mark.parametrize("options", [RK4, slow(PI)], ids=["rk4", "pi"])
def test_decreasing_times(options):
    problem = mlp(t=(1.0, 0.7, 0.1, -0.2))
    compare(problem, SymplecticAdjoint("sqrt"), "graph", FLOAT64, **options)


@pytest.mark.parametrize("mode", [slow("eager"), "graph", slow("xla")])
def test_step_size_of_traced_times(mode):
    # The number of steps is a matter of values that the trace doesn't know.
    compare(
        mlp(), SymplecticAdjoint("sqrt"), mode, FLOAT64, method="rk4", step_size=0.07, max_steps=99
    )


@pytest.mark.slow
@pytest.mark.parametrize("mode", [slow("eager"), "graph", slow("xla")])
@pytest.mark.parametrize("options", [RK4, PI], ids=["rk4", "pi"])
def test_float32(mode, options):
    compare(mlp(tf.float32), SymplecticAdjoint("sqrt"), mode, FLOAT32, **options)


@pytest.mark.slow
def test_float32_with_everything():
    # Sums over all entries into a scalar lose a little more.
    problem = everything(dtype=tf.float32)
    compare(problem, SymplecticAdjoint("sqrt"), "graph", 5 * FLOAT32, num_steps=3)


@pytest.mark.slow
def test_modes_agree():
    options = dict(method="bosh3", rtol=1e-4, max_steps=100)
    eager, graph, xla = (gradients(mlp(), "symplectic_adjoint", mode, **options) for mode in MODES)
    assert relative_error(graph, eager) < FLOAT64
    assert relative_error(xla, eager) < FLOAT64


def test_scalar_and_empty_states():
    a = tf.constant(0.5, tf.float64)
    y0 = {"scalar": tf.constant(1.0, tf.float64), "none": tf.zeros([0, 3], tf.float64)}
    t = tf.constant([0.0, 1.0], tf.float64)
    with tf.GradientTape() as tape:
        tape.watch([a, y0])
        y = tfsymadj.odeint(
            lambda t, y: {"scalar": a * y["scalar"], "none": y["none"]}, y0, t, num_steps=100
        )
        value = y["scalar"][-1]
    da, dy0 = tape.gradient(value, [a, y0])
    # y = y0 exp(a t): dopri5 with n steps is off by n (1/600 - 1/720) (a/n)^6, 4e-16, and the
    # derivative for a by 6 / a times that
    np.testing.assert_allclose(da, np.exp(0.5), rtol=1e-12)
    np.testing.assert_allclose(dy0["scalar"], np.exp(0.5), rtol=1e-11)
    assert dy0["none"].shape == (0, 3)


@pytest.mark.parametrize("small", [True, False])
def test_closed_over_tensors_eagerly_and_again(small):
    """TensorFlow turns small tensors into constants of the trace; later calls must see them."""
    a = tf.constant(0.5 * np.ones([3] if small else [300]))
    y0 = tf.ones_like(a)

    def dynamics(t, y):
        return a * y

    for _ in range(2):
        with tf.GradientTape() as tape:
            tape.watch(a)
            y = tfsymadj.odeint(dynamics, y0, [0.0, 1.0], num_steps=10)[-1]
        np.testing.assert_allclose(tape.gradient(y, a), np.exp(0.5) * y0, rtol=1e-9)


def test_gradient_of_args_only():
    def dynamics(t, y, rate):
        return -rate * y

    rate = tf.constant([1.0, 2.0], tf.float64)
    with tf.GradientTape() as tape:
        tape.watch(rate)
        y0 = np.ones(2)
        y = tfsymadj.odeint(dynamics, y0, [0.0, 1.0], args=rate, num_steps=50)[-1]
    # dopri5's global error at h = 0.02 and a rate of 2: 0.04^5 / 1000
    np.testing.assert_allclose(tape.gradient(y, rate), -np.exp(-rate), rtol=1e-9)


# Unknown batch sizes


@pytest.mark.slow
@pytest.mark.parametrize(
    "jit, options",
    [
        pytest.param(None, dict(method="bosh3", rtol=1e-3), id="graph-pi"),
        slow(True, dict(method="rk4", num_steps=5), id="xla-rk4"),
        slow(None, dict(method="rk4", num_steps=5), id="graph-rk4"),
        slow(True, dict(method="bosh3", rtol=1e-3), id="xla-pi"),
    ],
)
def test_unknown_batch_size(jit, options):
    problem = mlp(batch=6)
    signature = [tf.TensorSpec([None, 3], tf.float64)]
    results = {}
    for gradient in ("symplectic_adjoint", "backprop"):

        @tf.function(input_signature=signature, jit_compile=jit)
        def compute(y0, gradient=gradient):
            with tf.GradientTape() as tape:
                tape.watch(y0)
                y = tfsymadj.odeint(
                    problem.dynamics, y0, problem.t, gradient=gradient, max_steps=99, **options
                )
                value = loss(y)
            return [y, *tape.gradient(value, [y0, *problem.variables])]

        results[gradient] = [compute(problem.y0[:n]) for n in (2, 6)]
    for actual, expected in zip(results["symplectic_adjoint"], results["backprop"]):
        for a, b in zip(actual, expected):
            assert relative_error(a, b) < FLOAT64


# Frozen weights


@pytest.mark.parametrize("mode", ["eager", "graph", slow("xla")])
def test_frozen_variable(mode):
    problem = mlp()
    w0, *others = problem.variables
    frozen = tf.Variable(w0, trainable=False)

    def dynamics(t, y):
        w, b, *rest = frozen, *others
        time = t * tf.ones_like(y[:, :1])
        return tf.tanh(tf.concat([y, time], 1) @ w + b) @ rest[0] + rest[1]

    def compute():
        with tf.GradientTape() as tape:
            value = loss(tfsymadj.odeint(dynamics, problem.y0, problem.t, **SHORT))
        found = tape.gradient(value, [frozen, *others])
        assert found[0] is None
        return found[1:]

    actual = run(compute, mode)
    expected = gradients(problem, Backprop(), mode, **SHORT)
    for i, gradient in enumerate(actual):
        assert relative_error(gradient, expected[f"variables[{i + 1}]"]) < FLOAT64


# Parts of the state that nothing depends on


@pytest.mark.parametrize("mode", partly_slow(MODES, "eager", "xla"))
@pytest.mark.parametrize("checkpoints", ["sqrt", slow("steps"), "stages", slow(9)])
def test_integrals_along_the_solution(checkpoints, mode):
    """They are neither kept nor computed again, and their gradients are exact."""
    weight = tf.Variable(0.7, dtype=tf.float64)
    y0 = {"integral": tf.constant(0.3, tf.float64), "y": tf.constant([0.5, 1.0], tf.float64)}

    def dynamics(t, state):
        y = state["y"]
        return {"integral": tf.reduce_sum(tf.sin(weight * y)) * t, "y": -weight * y**2}

    def compute(gradient):
        with tf.GradientTape() as tape:
            tape.watch(y0)
            y = tfsymadj.odeint(
                dynamics, y0, [0.0, 0.4, 1.0], method="rk4", num_steps=6, gradient=gradient
            )
            value = loss(y)
        return tf.nest.flatten(tape.gradient(value, [y0, weight]))

    found = run(lambda: compute(SymplecticAdjoint(checkpoints)), mode)
    for a, b in zip(found, compute(Backprop())):
        assert relative_error(a, b) < 1e-12


def test_dynamics_that_depend_on_the_time_only():
    y0, rate = tf.constant([1.0, 2.0], tf.float64), tf.Variable(0.5, dtype=tf.float64)
    with tf.GradientTape() as tape:
        tape.watch(y0)
        y = tfsymadj.odeint(lambda t, y: rate * t * tf.ones_like(y), y0, [0.0, 2.0], rtol=1e-9)[-1]
    gradients = tape.gradient(y, [y0, rate])
    assert relative_error(gradients[0], [1.0, 1.0]) < 1e-14
    assert relative_error(gradients[1], 4.0) < 1e-12
