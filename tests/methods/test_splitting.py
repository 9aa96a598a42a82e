"""Drifts and kicks: orders, structure, gradients, costs."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from helpers.gradients import FLOAT64, gradients, relative_error
from helpers.modes import partly_slow, run, slow
from helpers.problems import Problem

import tfsymadj
from tfsymadj import methods

METHODS = ("stormer_verlet", "yoshida4")


def chain(forced=False):
    """Two coupled pendulums of unequal masses: H = |p|^2 / 2 m + V(q, t)."""
    masses = tf.Variable([1.0, 1.7], dtype=tf.float64)

    def dynamics(t, y, coupling):
        q, p = y
        spring = coupling * (q - tf.reverse(q, [-1])) ** 3
        force = tf.cos(2.0 * t) * tf.ones_like(q) if forced else 0.0
        return p / masses, -tf.sin(q) - spring + force

    y0 = (tf.constant([[1.0, 0.3]], tf.float64), tf.constant([[0.2, -0.5]], tf.float64))
    t = tf.constant([0.0, 0.7, 1.5], tf.float64)
    return Problem(dynamics, y0, t, (tf.constant(0.4, tf.float64),), (masses,))


def energy(problem, y):
    (q, p), (masses,), (coupling,) = y, problem.variables, problem.args
    springs = coupling / 4.0 * (q[..., 0] - q[..., 1]) ** 4
    return tf.reduce_sum(p**2 / (2.0 * masses) - tf.cos(q), -1) + springs


def end(problem, method, num_steps, y0=None, t=(0.0, 1.5), **options):
    y = tfsymadj.odeint(
        problem.dynamics, problem.y0 if y0 is None else y0, t, args=problem.args,
        method=method, num_steps=num_steps, **options,
    )  # fmt: skip
    return tf.concat([x[-1] for x in y], -1)


@pytest.mark.parametrize("method, steps", [("stormer_verlet", 20), ("yoshida4", 20)])
def test_order(method, steps):
    problem = chain(forced=True)  # time goes with both halves
    reference = end(problem, "dop853", 40)
    errors = [
        float(tf.reduce_max(tf.abs(end(problem, method, n) - reference)))
        for n in (steps, 2 * steps)
    ]
    assert abs(np.log2(errors[0] / errors[1]) - methods.get_method(method).order) < 0.2


@pytest.mark.parametrize("method", partly_slow(METHODS, "yoshida4"))
def test_symplectic(method):
    """The Jacobian M of all steps has M^T J M = J; that of a Runge-Kutta method has not."""
    problem = chain()
    y0 = tf.constant([1.0, 0.3, 0.2, -0.5], tf.float64)

    def defect(method):
        with tf.GradientTape() as tape:
            tape.watch(y0)
            y = end(problem, method, 7, tuple(tf.split(y0[tf.newaxis], 2, -1)))
        found = tape.jacobian(y, y0)[0]
        j = np.kron([[0.0, 1.0], [-1.0, 0.0]], np.eye(2))
        return np.abs(found.numpy().T @ j @ found.numpy() - j).max()

    assert defect(method) < 1e-13
    if method == "yoshida4":
        assert defect("rk4") > 1e-6


@pytest.mark.parametrize("method", METHODS)
def test_reversible(method):
    problem = chain()
    there = tuple(tf.split(end(problem, method, 50), 2, -1))
    back = end(problem, method, 50, there, t=(1.5, 0.0))
    np.testing.assert_allclose(back, tf.concat(problem.y0, -1), atol=1e-14)


@pytest.mark.slow
def test_energy_over_a_million_steps():
    problem, steps = chain(), 10**6

    @tf.function(jit_compile=True)
    def solve(method, per_output):
        t = np.linspace(0.0, 0.1 * steps, 101)
        options = dict(args=problem.args, num_steps=per_output, method=method)
        return tfsymadj.odeint(
            problem.dynamics, problem.y0, t, gradient=tfsymadj.NoGradient(), **options
        )

    start = float(energy(problem, problem.y0)[0])
    errors = np.abs(energy(problem, solve("stormer_verlet", steps // 100))[:, 0] - start)
    # As large in the first tenth as later on: bounded, not growing; a few times h^2 / 24.
    assert errors.max() < 5e-3
    assert errors[50:].max() < 2.0 * errors[1:50].max()
    of_rk4 = np.abs(energy(problem, solve("rk4", steps // 100))[:, 0] - start)
    assert of_rk4[-1] > 10.0 * of_rk4[5]  # it drifts


GRADIENTS = (
    "symplectic_adjoint",
    slow("aca"),
    slow("baseline"),
    slow(tfsymadj.SymplecticAdjoint("sqrt")),
    slow(tfsymadj.SymplecticAdjoint("steps")),
    tfsymadj.SymplecticAdjoint("stages"),
    slow(tfsymadj.SymplecticAdjoint(12)),
    slow(tfsymadj.SymplecticAdjoint(memory="64 KiB")),
)


@pytest.mark.parametrize("gradient", GRADIENTS, ids=str)
@pytest.mark.parametrize("mode", [slow("eager"), "graph", slow("xla")])
@pytest.mark.parametrize("method", ["stormer_verlet", slow("yoshida4")])
def test_gradients(method, gradient, mode):
    problem, options = chain(forced=True), dict(method=method, num_steps=6)
    found = gradients(problem, gradient, mode, **options)
    assert relative_error(found, gradients(problem, "backprop", "graph", **options)) < FLOAT64


@pytest.mark.slow
def test_lanes():
    t = tf.constant([[0.0, 1.0], [0.0, 2.0]], tf.float64)
    y0 = tf.constant([[1.0], [0.5]], tf.float64)
    options = dict(method="yoshida4", num_steps=20)

    def dynamics(t, y):
        return y[1], -tf.sin(y[0]) + tf.cos(t)[..., tf.newaxis]

    found = tfsymadj.odeint(dynamics, (y0, y0), t, batch_axis=0, **options)
    for i in range(2):
        alone = tfsymadj.odeint(dynamics, (y0[i], y0[i]), t[i], **options)
        for x, y in zip(found, alone):
            np.testing.assert_allclose(x[:, i], y, rtol=1e-14)


def test_one_gradient_of_the_potential_a_step():
    """What a move does not use is not computed."""
    calls = {"p": 0, "q": 0}

    def counted(name, x):
        def count(x):
            calls[name] += 1
            return x

        return tf.ensure_shape(tf.numpy_function(count, [x], x.dtype, stateful=False), x.shape)

    def dynamics(t, y):
        q, p = y
        return counted("p", p), -counted("q", q)

    y0 = (tf.ones([2]), tf.zeros([2]))
    options = dict(method="stormer_verlet", num_steps=10, gradient=tfsymadj.NoGradient())
    solution = tfsymadj.solve(dynamics, y0, [0.0, 1.0], **options)
    assert calls == {"q": 10, "p": 20}
    assert solution.stats.num_evaluations == 30


def test_halves_that_nothing_depends_on():
    """A constant force: the position does not count, nor does it lose its place."""
    y0 = (tf.zeros([1], tf.float64), tf.ones([1], tf.float64))
    with tf.GradientTape() as tape:
        tape.watch(y0)
        q, p = tfsymadj.odeint(
            lambda t, y: (y[1], -9.81 * tf.ones_like(y[0])), y0, [0.0, 2.0],
            method="stormer_verlet", num_steps=3,
        )  # fmt: skip
        last = q[-1]
    np.testing.assert_allclose(last, [2.0 - 9.81 * 2.0], rtol=1e-14)
    np.testing.assert_allclose(tape.gradient(last, y0), [[1.0], [2.0]], rtol=1e-14)


@pytest.mark.parametrize("mode", ["graph", slow("xla")])
def test_layers(mode):
    spring = tfsymadj.layers.SecondOrderDynamics(lambda y: -y[:, :1])
    potential = tfsymadj.layers.HamiltonianDynamics(lambda y: 0.5 * y**2)
    y0 = (tf.ones([3, 1]), tf.zeros([3, 1]))
    for dynamics in (spring, potential):
        layer = tfsymadj.ODELayer(dynamics, t=(0.0, np.pi), method="yoshida4", num_steps=50)
        q, _ = run(lambda layer=layer: layer(y0), mode)
        np.testing.assert_allclose(q, -np.ones([3, 1]), atol=1e-5)


@pytest.mark.slow
def test_a_saved_layer(tmp_path):
    network = keras.layers.Dense(1, use_bias=False)
    network.build((None, 2))
    inputs = keras.Input((1,)), keras.Input((1,))
    dynamics = tfsymadj.layers.SecondOrderDynamics(network)
    layer = tfsymadj.ODELayer(dynamics, method="stormer_verlet", num_steps=5)
    model = keras.Model(inputs, layer(inputs))
    model.save(tmp_path / "model.keras")
    y0 = tf.ones([2, 1]), tf.zeros([2, 1])
    for x, y in zip(keras.models.load_model(tmp_path / "model.keras")(y0), model(y0)):
        np.testing.assert_array_equal(x, y)


def test_compose():
    verlet = methods.get_method("stormer_verlet")
    a = 1.0 / (4.0 - 4.0 ** (1.0 / 3.0))
    suzuki = methods.compose(verlet, (a, a, 1.0 - 4.0 * a, a, a), order=4, name="suzuki4")
    assert suzuki.stages == 11 and suzuki != methods.get_method("yoshida4")
    problem = chain()
    errors = [tf.abs(end(problem, m, 20) - end(problem, "dop853", 40)) for m in (suzuki, verlet)]
    assert float(tf.reduce_max(errors[0])) < 1e-2 * float(tf.reduce_max(errors[1]))
    with pytest.raises(ValueError, match="`parts` must be numbers that sum to one"):
        methods.compose(verlet, (0.5, 0.6), order=2, name="no")
    with pytest.raises(TypeError, match="`method` must be made of drifts and kicks"):
        methods.compose(methods.get_method("rk4"), (1.0,), order=2, name="no")


@pytest.mark.parametrize(
    "y0, options, message",
    [
        ([1.0, 0.0], {}, "`y0` must be a pair"),
        ({"p": [1.0], "q": [0.0]}, {}, "`y0` must be a pair"),
        (([1.0], ([0.0], [1.0])), {}, "`y0` must be a pair"),
        (([1.0], [0.0]), {"num_steps": None}, "needs `num_steps` or"),
        (([1.0], [0.0]), {"num_steps": None, "rtol": 1e-3}, "needs `num_steps` or"),
        (([1.0], [0.0]), {"outputs": "interpolate", "dense": True}, "no continuous extension"),
    ],
)
def test_refusals(y0, options, message):
    options = {"method": "stormer_verlet", "num_steps": 3, **options}
    with pytest.raises(ValueError, match=message):
        tfsymadj.odeint(lambda t, y: (y[1], -y[0]), y0, [0.0, 1.0], **options)


def test_what_takes_runge_kutta_methods_only():
    y0, options = (tf.ones([1]), tf.zeros([1])), dict(method="yoshida4", num_steps=3)
    with pytest.raises(ValueError, match="`method` must be a Runge-Kutta method"):
        tfsymadj.jvp(lambda t, y: (y[1], -y[0]), y0, [0.0, 1.0], tangents={"y0": y0}, **options)
    with tf.GradientTape() as tape, pytest.raises(ValueError, match="needs `method`"):
        tape.watch(y0)
        gradient = "continuous_adjoint"
        tfsymadj.odeint(lambda t, y: (y[1], -y[0]), y0, [0.0, 1.0], gradient=gradient, **options)
