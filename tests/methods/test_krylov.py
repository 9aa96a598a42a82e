"""GMRES, and equations of stages that are solved by products with the Jacobian."""

import functools

import numpy as np
import pytest
import tensorflow as tf
from helpers.gradients import Counted, gradients, relative_error
from helpers.modes import MODES, run, slow
from helpers.problems import Problem, everything

import tfsymadj
from tfsymadj import Backprop, Newton, NoGradient, Status, SymplecticAdjoint
from tfsymadj.methods.krylov import gmres

#: The equations' condition, some hundreds here, times a few hundred roundings.
EXACT = 1e-10


@pytest.mark.parametrize("mode", ["graph", slow("eager"), slow("xla")])
def test_gmres(mode):
    """Also for more unknowns than there are directions, and a right hand side of zeros."""
    random = np.random.default_rng(0)
    for n in (1, 4, 90):
        matrices = tf.constant(np.eye(n) + 0.9 * random.normal(size=[3, n, n]) / np.sqrt(n))
        b = tf.constant(random.normal(size=[3, n]) * [[1.0], [1e8], [0.0]])
        product = functools.partial(tf.linalg.matvec, matrices)
        x = run(lambda product=product, b=b: gmres(product, b, 1e-9), mode)
        residual = np.linalg.norm(b - product(x), axis=1)
        assert np.all(residual <= 1e-9 * np.linalg.norm(b, axis=1))


def test_gmres_without_a_solution():
    singular = tf.constant([[[1.0, 1.0], [1.0, 1.0]]])
    x = run(
        lambda: gmres(
            functools.partial(tf.linalg.matvec, singular), tf.constant([[1.0, 0.0]]), 1e-4
        ),
        "graph",
    )
    assert np.all(np.isnan(x))


def reaction_diffusion(n=6):
    """Two fields that diffuse, one of them fast, and react with each other."""
    random = np.random.default_rng(3)
    rate, w = tf.Variable(30.0, dtype=tf.float64), tf.Variable(random.normal(size=[2, 2]))

    def laplacian(x):
        return sum(tf.roll(x, by, axis) - x for by in (1, -1) for axis in (0, 1))

    def dynamics(t, y):
        mixed = tf.einsum("ij,jab->iab", w, tf.stack(y))
        first = rate * laplacian(y[0]) + tf.tanh(mixed[0]) - y[0] ** 3
        return first, 0.1 * rate * laplacian(y[1]) + tf.tanh(mixed[1]) * (1.0 + t)

    y0 = tuple(tf.constant(random.normal(size=[n, n])) for _ in range(2))
    return Problem(dynamics, y0, tf.constant([0.0, 0.3, 1.0], tf.float64), variables=(rate, w))


def compare(problem, gradient, mode, **options):
    actual = gradients(problem, gradient, mode, newton=Newton("krylov"), **options)
    reference = gradients(problem, Backprop(), "graph", newton=Newton("whole"), **options)
    assert relative_error(actual, reference) < EXACT


@pytest.mark.slow
def test_equals_a_matrix():
    problem = reaction_diffusion(3)
    compare(problem, SymplecticAdjoint("stages"), "graph", method="trbdf2", num_steps=1)


@pytest.mark.slow
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("method", ["trbdf2", "kvaerno3", "kencarp4", "gauss4"])
def test_equals_a_matrix_everywhere(method, mode):
    compare(reaction_diffusion(), SymplecticAdjoint(), mode, method=method, num_steps=2)
    compare(everything(), SymplecticAdjoint(), mode, method=method, num_steps=2)


@pytest.mark.slow
def test_each_example_with_lanes():
    def dynamics(t, y):
        return -50.0 * y**3 + tf.roll(y, 1, 1) * t[:, tf.newaxis]

    y0 = tf.constant(np.random.default_rng(1).normal(size=[4, 3]))
    problem = Problem(dynamics, y0, tf.constant([0.0, 1.0], tf.float64))
    options = dict(method="kvaerno3", rtol=1e-4, atol=1e-4, max_steps=60, batch_axis=0)
    actual = gradients(problem, SymplecticAdjoint(), "graph", newton=Newton("krylov"), **options)
    expected = gradients(problem, SymplecticAdjoint(), "graph", **options)
    assert relative_error(actual, expected) < EXACT


@pytest.mark.slow
def test_a_large_field():
    """Of 16,384 entries, whose matrix would have 2 GiB: stable where explicit methods are not."""
    n, random = 128, np.random.default_rng(0)
    y0 = tf.constant(random.normal(size=[n, n]))

    def dynamics(t, y):
        parts = (tf.roll(y, by, axis) - y for by in (1, -1) for axis in (0, 1))
        return 400.0 * sum(parts)

    options = dict(method="trbdf2", newton=Newton("krylov"), jit_compile=True, num_steps=10)
    y = tfsymadj.odeint(dynamics, y0, [0.0, 0.05], gradient=NoGradient(), **options)[-1]
    frequencies = 2.0 - 2.0 * np.cos(2 * np.pi * np.fft.fftfreq(n))
    decay = np.exp(-400.0 * 0.05 * (frequencies[:, None] + frequencies))
    exact = np.fft.ifft2(np.fft.fft2(y0) * decay).real
    assert np.max(np.abs(y - exact)) < 0.01 * np.max(np.abs(exact))


@pytest.mark.parametrize("mode", ["graph", slow("xla")])
def test_failure(mode):
    """Equations without a solution, y = 1 + y^2."""

    def solve():
        y0 = tf.ones([2], tf.float64)
        with tf.GradientTape() as tape:
            tape.watch(y0)
            options = dict(newton=Newton("krylov"), num_steps=1, on_failure="status")
            solution = tfsymadj.solve(
                lambda t, y: 2.0 * (y * y + 1.0),
                y0,
                [0.0, 1.0],
                method="implicit_midpoint",
                **options,
            )
        return solution.status, tape.gradient(solution.y, y0)

    status, gradient = run(solve, mode)
    assert status == Status.NEWTON_FAILED and np.all(np.isnan(gradient))


# Preconditioners


N = 12
FREQUENCIES = 2.0 * np.pi * np.arange(N) / N
#: Of periodic diffusion and, so that the transpose is another one, advection.
SYMBOL = 40.0 * (2.0 * np.cos(FREQUENCIES) - 2.0) - 60.0j * np.sin(FREQUENCIES)


def operator_of(t, y, size):
    spectrum = 1.0 - tf.cast(size, tf.complex128)[..., tf.newaxis] * tf.constant(SYMBOL)
    operator = tf.linalg.LinearOperatorCirculant(spectrum, input_output_dtype=tf.float64)
    return operator.inverse()


def function_of(calls):
    def preconditioner(t, y, size):
        operator = operator_of(t, y, size)
        return lambda v: operator.matvec(v) * Counted._one(calls, v)

    return preconditioner


def identity_of(calls):
    return lambda t, y, size: lambda v: v * Counted._one(calls, v)


def moving():
    linear = tf.linalg.LinearOperatorCirculant(
        tf.constant(SYMBOL), input_output_dtype=tf.float64
    ).to_dense()
    y0 = tf.constant(np.random.default_rng(1).normal(size=[2, N]))

    def dynamics(t, y, a):
        return y @ tf.transpose(linear) - a * y**3

    times = tf.constant([0.0, 0.2, 1.0], tf.float64)
    return Problem(dynamics, y0, times, args=(tf.constant(0.7, tf.float64),))


@pytest.mark.slow
@pytest.mark.parametrize("method", ["trbdf2", "gauss4", "kencarp4"])
def test_preconditioner(method):
    """The same numbers and gradients, from a fraction of the products."""
    options = dict(method=method, num_steps=2)
    like = gradients(moving(), "symplectic_adjoint", "graph", **options)
    found = {}
    for name, of in (("identity", identity_of), ("inverse", function_of)):
        calls = []
        newton = Newton("krylov", preconditioner=of(calls))
        actual = gradients(moving(), "symplectic_adjoint", "graph", newton=newton, **options)
        assert relative_error(actual, like) < EXACT
        found[name] = len(calls)
    # Were it not transposed, the backward pass alone would take more; gauss4 couples two stages.
    assert 0 < found["inverse"] < (0.5 if method == "gauss4" else 0.3) * found["identity"]


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["eager", "xla"])
@pytest.mark.parametrize("options", [dict(num_steps=2), dict(batch_axis=0, num_steps=2)], ids=str)
def test_preconditioner_of_an_operator(mode, options):
    options = dict(method="trbdf2", **options)
    like = gradients(moving(), "symplectic_adjoint", "graph", **options)
    newton = Newton("krylov", preconditioner=operator_of)
    actual = gradients(moving(), "symplectic_adjoint", mode, newton=newton, **options)
    assert relative_error(actual, like) < EXACT


def test_wrong_preconditioners():
    for options in (dict(preconditioner=operator_of), dict(jacobian="krylov", preconditioner=1)):
        with pytest.raises(ValueError, match="`preconditioner` must be callable"):
            Newton(**options)
    options = dict(method="trbdf2", num_steps=1)
    for wrong, error in (
        (lambda t, y, size: y, TypeError),
        (lambda *_: lambda v: v[0], ValueError),
    ):
        newton = Newton("krylov", preconditioner=wrong)
        with pytest.raises(error, match="`preconditioner` must return"):
            tfsymadj.odeint(lambda t, y: -y, [[1.0]], [0.0, 1.0], newton=newton, **options)
