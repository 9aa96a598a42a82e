"""Mass matrices: M dy/dt = f(t, y), with M regular or singular (index 1)."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from helpers.gradients import relative_error
from helpers.modes import run, slow
from helpers.problems import Problem

import tfsymadj
from tfsymadj import Backprop, ButcherTableau, Newton, NoGradient, Status

METHODS = ["trbdf2", "kvaerno3", "kvaerno5"]
#: Alexander's: no stage at the start.
_X = 1 - np.sqrt(0.5)
SDIRK2 = ButcherTableau(name="sdirk2", order=2, c=(_X, 1), a=((_X,), (1 - _X, _X)), b=(1 - _X, _X))

#: Equal sums in another order; the stages and their cotangents are solved to rounding.
EXACT = 1e-11

random = np.random.default_rng(5)
LEFT, RIGHT = (np.eye(3) + 0.3 * random.normal(size=[3, 3]) for _ in range(2))
REGULAR = LEFT @ np.diag([1.0, 2.0, 0.5]) @ RIGHT
SINGULAR = LEFT @ np.diag([1.0, 2.0, 0.0]) @ RIGHT


def solved_for(t, y, a, m):
    return tf.linalg.matvec(tf.linalg.inv(m), regular(t, y, a))


def regular(t, y, a):
    return tf.sin(y) @ a * (1.0 + tf.cast(t, y.dtype)) - 20.0 * y


def circle(t, y, *_):
    """The two equations u' = z and u^2 + z^2 = 4 of u = 2 sin t."""
    u, z = tf.unstack(y, axis=-1)
    return tf.stack([z, u * u + z * z - 4.0], -1)


CIRCLE = np.diag([1.0, 0.0])


def rotated(t, y, a):
    """u' = -a u v, v' = z - v t, 0 = z + z^3 / 10 - u v^2, in other coordinates."""
    u, v, z = tf.unstack(y @ RIGHT.T, axis=-1)
    t = tf.cast(t, y.dtype)
    rows = [-a[0] * u * v, 2.0 * (z - v * t) * a[1], z + 0.1 * z**3 - u * v**2 * a[2]]
    return tf.stack(rows, -1) @ LEFT.T


def consistent(us, vs):
    """States of `rotated` with a = (1, 1, 1)."""
    z = [np.roots([0.1, 0.0, 1.0, -u * v * v]) for u, v in zip(us, vs)]
    z = [x[np.argmin(abs(x.imag))].real for x in z]
    return np.stack([us, vs, z], -1) @ np.linalg.inv(RIGHT).T


def dae():
    y0 = tf.constant(consistent([1.0, 0.5], [0.7, 1.5]))
    ones = tf.constant([1.0, 1.0, 1.0], tf.float64)
    return Problem(rotated, y0, tf.constant([0.0, 0.4, 1.0], tf.float64), args=(ones,))


def with_mass(problem, gradient, mode, mass, **options):
    """`gradients`, and that of the mass matrix."""
    mass = tf.constant(mass)

    def compute():
        with tf.GradientTape() as tape:
            sources = [problem.y0, problem.t, *problem.args, mass]
            tape.watch(sources)
            options_ = {"outputs": "step", **options}
            y = tfsymadj.odeint(
                problem.dynamics, problem.y0, problem.t, args=problem.args, mass=mass,
                gradient=gradient, **options_,
            )  # fmt: skip
            value = tf.reduce_sum(tf.sin(3.0 * y))
        return y, tape.gradient(value, sources)

    y, found = run(compute, mode)
    return dict(zip(["y", "y0", "t", "a", "mass"], [y.numpy(), *(g.numpy() for g in found)]))


# A regular matrix


@pytest.mark.slow
@pytest.mark.parametrize(
    "method", ["trbdf2", slow("kvaerno3"), slow("kvaerno5"), slow(SDIRK2)], ids=str
)
def test_regular(method):
    """The solution, and all gradients, of dy/dt = M^-1 f."""
    y0 = tf.constant(random.normal(size=[2, 3]))
    a, m = tf.constant(random.normal(size=[3, 3])), tf.constant(REGULAR)
    ts = tf.constant([0.0, 0.3, 1.0], tf.float64)

    def solve(dynamics, args, mass):
        with tf.GradientTape() as tape:
            tape.watch([y0, a, m, ts])
            y = tfsymadj.odeint(dynamics, y0, ts, args=args, mass=mass, method=method, num_steps=4)
            value = tf.reduce_sum(tf.sin(3.0 * y))
        return [y, *tape.gradient(value, [y0, a, m, ts])]

    for x, like in zip(solve(regular, (a,), m), solve(solved_for, (a, m), None)):
        assert relative_error(x, like) < EXACT


@pytest.mark.slow
@pytest.mark.parametrize("method", ["trbdf2", slow("kvaerno3"), slow("kvaerno5")])
def test_same_steps(method):
    y0, a = tf.constant(random.normal(size=[2, 3])), tf.constant(random.normal(size=[3, 3]))
    options = dict(method=method, rtol=1e-5, atol=1e-7, gradient=NoGradient())
    options |= dict(outputs="step")
    found = tfsymadj.solve(regular, y0, [0.0, 1.0], args=(a,), mass=REGULAR, **options)
    like = tfsymadj.solve(solved_for, y0, [0.0, 1.0], args=(a, REGULAR), **options)
    assert int(found.stats.num_steps) == int(like.stats.num_steps) > 5
    assert relative_error(found.y, like.y) < 1e-8


# A singular one


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_order(method):
    """That of the method, in both components."""
    errors, order = [], tfsymadj.METHODS[method].order
    y0, options = tf.constant([0.0, 2.0], tf.float64), dict(method=method, gradient=NoGradient())
    for steps in (6, 12):
        y = tfsymadj.odeint(circle, y0, [0.0, 1.2], mass=CIRCLE, num_steps=steps, **options)
        errors.append(np.abs(y[-1] - 2 * np.array([np.sin(1.2), np.cos(1.2)])))
        assert abs(circle(0.0, y[-1])[1]) < 1e-13
    rates = np.log2(errors[0] / errors[1])
    assert np.all(abs(rates - order) < 0.5), rates


@pytest.mark.slow
@pytest.mark.parametrize("method", ["kvaerno5", "trbdf2", "kvaerno3"])
def test_robertson(method):
    """As an ODE, and with the sum of all for the third equation."""

    def rates(t, y):
        a, b, c = tf.unstack(y)
        first, second = 0.04 * a - 1e4 * b * c, 3e7 * b * b
        return tf.stack([-first, first - second, second])

    def with_sum(t, y):
        return tf.concat([rates(t, y)[:2], [tf.reduce_sum(y) - 1.0]], 0)

    y0, times = tf.constant([1.0, 0.0, 0.0], tf.float64), [0.0, 0.4, 40.0, 4e4]
    options = dict(method=method, rtol=1e-6, atol=1e-10, outputs="step", gradient=NoGradient())
    like = tfsymadj.odeint(rates, y0, times, **{**options, "method": "kvaerno5", "rtol": 1e-9})
    tolerance = 1e-6 * np.abs(like) + 1e-10
    mass = np.diag([1.0, 1.0, 0.0])
    found = tfsymadj.solve(with_sum, y0, times, mass=mass, **options)
    # The equations are those of the ODE, with its errors.
    of_ode = tfsymadj.odeint(rates, y0, times, **options)
    assert np.max(np.abs(found.y - of_ode) / tolerance) < 0.1
    # The tolerance is that of one step, and those of 461 steps of order 2 add up.
    assert np.max(np.abs(found.y - like) / tolerance) < (461 if method == "trbdf2" else 10)
    assert np.max(np.abs(tf.reduce_sum(found.y, -1) - 1.0)) < 1e-14
    assert int(found.stats.num_steps) < 300 or method != "kvaerno5"


@pytest.mark.parametrize(
    "method, mode",
    [
        ("trbdf2", "graph"), slow("trbdf2", "eager"), slow("trbdf2", "xla"),
        slow("kvaerno3", "xla"), slow("kvaerno3", "graph"), slow("kvaerno5", "graph"),
        slow(SDIRK2, "graph"),
    ],
    ids=str,
)  # fmt: skip
def test_equals_backprop(method, mode):
    options = dict(mass=SINGULAR, method=method, num_steps=3)
    expected = with_mass(dae(), Backprop(), "graph", **options)
    assert relative_error(with_mass(dae(), "symplectic_adjoint", mode, **options), expected) < EXACT


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["eager", "graph", "xla"])
@pytest.mark.parametrize(
    "gradient",
    ["baseline", "aca", *map(tfsymadj.SymplecticAdjoint, ["sqrt", "steps", "stages", 12])],
    ids=str,
)
def test_equals_backprop_with_adaptive_steps(gradient, mode):
    options = dict(mass=SINGULAR, method="kvaerno3", rtol=1e-4, atol=1e-4, max_steps=50)
    expected = with_mass(dae(), Backprop(), "graph", **options)
    assert relative_error(with_mass(dae(), gradient, mode, **options), expected) < EXACT


@pytest.mark.slow
def test_differences():
    """Central ones, also for entries of M that make it regular."""
    problem, options = dae(), dict(method="trbdf2", num_steps=3)
    found = with_mass(problem, "symplectic_adjoint", "graph", SINGULAR, **options)
    solve = tf.function(
        lambda y0, t, a, m: tf.reduce_sum(
            tf.sin(3.0 * tfsymadj.odeint(rotated, y0, t, args=(a,), mass=m, **options))
        )
    )
    inputs = [problem.y0, problem.t, *problem.args, tf.constant(SINGULAR)]

    def along(u, v):
        return consistent(np.array([1.0, 0.5]) + u, np.array([0.7, 1.5]) + v)

    e = 1e-5
    for i, name in enumerate(["y0", "t", "a", "mass"]):
        direction = random.normal(size=inputs[i].shape)
        if name == "y0":
            moves = [along(*(sign * e * direction[:2, :2])) for sign in (1, -1)]
        else:
            if name == "a":
                direction[2] = 0.0  # of the algebraic equation: y0 would not be consistent
            moves = [inputs[i] + sign * e * direction for sign in (1, -1)]
        values = [solve(*(inputs[:i] + [tf.constant(x)] + inputs[i + 1 :])) for x in moves]
        difference = (values[0] - values[1]) / (2 * e)
        expected = np.sum(found[name] * (np.asarray(moves[0]) - np.asarray(moves[1]))) / (2 * e)
        assert abs(difference - expected) < 1e-7 * (1 + abs(difference))


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["eager", "graph", "xla"])
def test_batch_axis(mode):
    """Each example with steps of its own, as if it were alone; one that rests does no harm."""

    def dynamics(t, y, a):
        return rotated(t, y, a)

    y0 = tf.constant(consistent([1.0, 0.5], [0.7, 1.5]))
    ts = tf.constant([[0.0, 1.0], [0.0, 0.1]], tf.float64)
    ones = tf.ones([3], tf.float64)
    options = dict(mass=SINGULAR, method="kvaerno3", rtol=1e-5, atol=1e-5, outputs="step")
    problem = Problem(dynamics, y0, ts, args=(ones,))
    found = with_mass(problem, "symplectic_adjoint", mode, batch_axis=0, **options)
    total = 0.0
    for i in range(2):
        one = Problem(rotated, y0[i : i + 1], ts[i], args=(ones,))
        alone = with_mass(one, "symplectic_adjoint", "graph", **options)
        assert relative_error(found["y"][:, i], alone["y"][:, 0]) < 1e-11
        assert relative_error(found["y0"][i], alone["y0"][0]) < 1e-9
        total = total + alone["mass"]
    assert relative_error(found["mass"], total) < 1e-9


@pytest.mark.slow
def test_krylov():
    options = dict(mass=SINGULAR, method="trbdf2", num_steps=3)
    like = with_mass(dae(), "symplectic_adjoint", "graph", **options)
    options["newton"] = Newton(jacobian="krylov")
    assert relative_error(with_mass(dae(), "symplectic_adjoint", "graph", **options), like) < EXACT


@pytest.mark.slow
def test_nest():
    """A matrix for one tensor, the identity for another, which is not read."""

    def dynamics(t, y):
        x, cost = y
        return circle(t, x), tf.reduce_sum(x * x, -1)

    y0 = (tf.constant([[0.0, 2.0], [1.0, 3.0**0.5]], tf.float64), tf.zeros([2], tf.float64))
    values = []
    for gradient in ("symplectic_adjoint", "backprop"):
        with tf.GradientTape() as tape:
            tape.watch(y0)
            options = dict(mass=(CIRCLE, None), method="kvaerno3", gradient=gradient)
            x, cost = tfsymadj.odeint(dynamics, y0, [0.0, 0.3], num_steps=3, **options)
            value = tf.reduce_sum(x**3) + tf.reduce_sum(cost[-1])
        values.append([x, cost, *tape.gradient(value, y0)])
        np.testing.assert_allclose(cost[-1], [1.2, 1.2], rtol=1e-12)
    for x, like in zip(*values):
        assert relative_error(x, like) < EXACT


# Failures


@pytest.mark.parametrize(
    "options", [dict(num_steps=5), slow(dict(rtol=1e-3)), slow(dict(batch_axis=0, num_steps=5))]
)
def test_inconsistent(options):
    y0 = tf.constant([[0.0, 1.9]], tf.float64)
    options = dict(mass=CIRCLE, method="trbdf2", **options)
    with pytest.raises(tf.errors.InvalidArgumentError, match="steady_state.*INCONSISTENT_STATE"):
        tfsymadj.solve(circle, y0, [0.0, 1.0], **options)
    near = tf.constant([[0.0, 2.0 + 1e-12]], tf.float64)
    assert tfsymadj.solve(circle, near, [0.0, 0.5], **options).success.numpy().all()


@pytest.mark.slow
def test_index_two():
    def dynamics(t, y):
        return tf.stack([y[1], y[0] - 1.0])

    y0, options = tf.constant([1.0, 0.0]), dict(method="trbdf2", num_steps=5, on_failure="status")
    solution = tfsymadj.solve(dynamics, y0, [0.0, 1.0], mass=CIRCLE, **options)
    assert int(solution.status) == Status.INCONSISTENT_STATE and np.all(np.isnan(solution.y[1:]))


@pytest.mark.parametrize(
    "options, message",
    [
        (dict(method="dopri5"), "`mass` needs a method .*'kvaerno5'.*dopri5"),
        (dict(method="gauss4", num_steps=2), "`mass` needs a method"),
        (dict(method="kencarp4"), "`mass` needs a method"),
        (dict(method="stormer_verlet", num_steps=2), "`mass` needs a method"),
        (dict(dense=True), "`mass` .*`dense`"),
        (dict(jumps=[0.5]), "`mass` .*`jumps`"),
        (dict(event=tfsymadj.Event(lambda t, y: y[0])), "`mass` .*`event`"),
        (dict(outputs="interpolate"), "`mass` needs outputs"),
        (dict(gradient="continuous_adjoint"), "`mass` needs an exact gradient"),
        (dict(mass=np.eye(3)), "`mass` must be a real matrix.*2"),
        (dict(mass=1j * np.eye(2)), "`mass` must be a real matrix"),
        (dict(mass=(np.eye(2), None)), "`mass` must be"),
        (dict(mass=lambda t: np.eye(2)), "`mass` must be a constant"),
    ],
)
def test_refused(options, message):
    options = {"method": "trbdf2", "mass": CIRCLE, **options}
    with pytest.raises((ValueError, TypeError), match=message):
        tfsymadj.solve(circle, [0.0, 2.0], [0.0, 1.0], **options)


def test_refused_elsewhere():
    options = dict(mass=CIRCLE, method="trbdf2")
    with pytest.raises(ValueError, match="`mass` can't be given to `jvp`"):
        tfsymadj.jvp(circle, [0.0, 2.0], [0.0, 1.0], tangents={"y0": [0.0, 1.0]}, **options)
    with pytest.raises(ValueError, match="`mass` is no option of `steady_state`"):
        tfsymadj.steady_state(circle, [0.0, 2.0], **options)
    bijectors = pytest.importorskip("tfsymadj.bijectors")
    with pytest.raises(ValueError, match="`mass` is no option of `CNF`"):
        bijectors.CNF(circle, **options)


# Layers


@keras.saving.register_keras_serializable("test_mass")
class Circle(keras.layers.Layer):
    def call(self, t, y):
        return circle(t, y)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["keras", "saved_model"])
def test_saved(kind, tmp_path):
    """The same numbers from a file."""
    options = dict(mass=CIRCLE.tolist(), method="trbdf2", num_steps=4)
    model = keras.Sequential([keras.Input([2]), tfsymadj.ODELayer(Circle(), t=(0, 0.5), **options)])
    y0 = np.array([[0.0, 2.0]], np.float32)
    if kind == "keras":
        model.save(tmp_path / "model.keras")
        again = keras.models.load_model(tmp_path / "model.keras")
    else:
        model.export(tmp_path / "model", verbose=False)
        loaded = tf.saved_model.load(tmp_path / "model")
        again = loaded.serve
    np.testing.assert_array_equal(again(tf.constant(y0)), model(y0))
