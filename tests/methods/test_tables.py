"""The methods of the package: orders, derived properties, partners."""

import numpy as np
import pytest
from scipy.integrate import DOP853
from scipy.integrate._ivp import radau

from tfsymadj.methods import METHODS, order_conditions, tables

ALL = [pytest.param(tableau, id=name) for name, tableau in METHODS.items()]
# What is written here for explicit methods is in `test_implicit.py` for the others.
EXPLICIT = [param for param in ALL if param.values[0].explicit]
ADAPTIVE = [param for param in EXPLICIT if param.values[0].adaptive]


# name: (order, embedded order, rows, stages, FSAL)
EXPECTED = {
    "euler": (1, None, 1, 1, False),
    "midpoint": (2, None, 2, 2, False),
    "heun": (2, None, 2, 2, False),
    "ralston": (2, None, 2, 2, False),
    "rk4": (4, None, 4, 4, False),
    "rk38": (4, None, 4, 4, False),
    "fehlberg2": (2, 1, 3, 3, False),
    "adaptive_heun": (2, 1, 2, 2, False),
    "bosh3": (3, 2, 4, 3, True),
    "fehlberg45": (5, 4, 6, 6, False),
    "tsit5": (5, 4, 7, 6, True),
    "dopri5": (5, 4, 7, 6, True),
    "dopri8": (8, 7, 13, 13, False),
    "dop853": (8, 5, 13, 12, True),
    "trbdf2": (2, 2, 3, 3, False),
    "kvaerno3": (3, 2, 4, 4, False),
    "kvaerno5": (5, 4, 7, 7, False),
    "kencarp4": (4, 3, 6, 6, False),
    "radau5": (5, 3, 4, 4, False),
    "implicit_midpoint": (2, None, 1, 1, False),
    "gauss4": (4, None, 2, 2, False),
}


def largest_residual(tableau, weights, order):
    return max(abs(r) for _, r, _ in order_conditions.residuals(tableau.a_matrix, weights, order))


def test_all_methods_are_listed():
    assert dict(METHODS) == {name: METHODS[name] for name in EXPECTED}
    assert all(tableau.name == name for name, tableau in METHODS.items())
    with pytest.raises(TypeError):
        METHODS["mine"] = tables.EULER


@pytest.mark.parametrize("name", EXPECTED)
def test_properties(name):
    tableau = METHODS[name]
    assert EXPECTED[name] == (
        tableau.order,
        tableau.embedded_order,
        tableau.num_rows,
        tableau.stages,
        tableau.fsal,
    )
    assert tableau.adaptive == (tableau.embedded_order is not None)
    # The first row of one is for its estimate alone.
    assert tableau.active_stages == (name != "radau5",) + (True,) * (tableau.stages - 1)


@pytest.mark.parametrize("tableau", ALL)
def test_order_is_exactly_nominal(tableau):
    for order in range(1, tableau.order + 1):
        assert largest_residual(tableau, tableau.b_vector, order) < 5e-14
    assert largest_residual(tableau, tableau.b_vector, tableau.order + 1) > 1e-7


@pytest.mark.parametrize("tableau", ADAPTIVE)
def test_embedded_order_is_exactly_nominal(tableau):
    embedded = tableau.b_vector - tableau.error_vector
    for order in range(1, tableau.embedded_order + 1):
        assert largest_residual(tableau, embedded, order) < 5e-14
    assert largest_residual(tableau, embedded, tableau.embedded_order + 1) > 1e-7


def test_coarse_order_is_exactly_nominal():
    tableau = tables.DOP853
    assert (tableau.coarse_order, tableau.error_order) == (3, 7)
    coarse = tableau.b_vector - np.pad(tableau.b_coarse, [0, tableau.extension])
    for order in range(1, 4):
        assert largest_residual(tableau, coarse, order) < 5e-14
    assert largest_residual(tableau, coarse, 4) > 1e-7


def test_dop853_is_that_of_scipy():
    tableau, s = tables.DOP853, 12
    np.testing.assert_allclose(tableau.a_matrix[:s, :s], DOP853.A, rtol=1e-15)
    np.testing.assert_allclose(tableau.a_matrix[s + 1 :], DOP853.A_EXTRA, rtol=1e-15)
    np.testing.assert_allclose(tableau.c[:s], DOP853.C, rtol=1e-15)
    np.testing.assert_allclose(tableau.c[s + 1 :], DOP853.C_EXTRA, rtol=1e-15)
    np.testing.assert_allclose(tableau.b[:s], DOP853.B, rtol=1e-15)
    np.testing.assert_allclose(tableau.b_error, DOP853.E5, rtol=1e-15)
    np.testing.assert_allclose(tableau.b_coarse, DOP853.E3, rtol=1e-14)


def test_radau5_is_that_of_scipy():
    tableau, inner = tables.RADAU5, slice(1, 4)
    a = tableau.a_matrix[inner, inner]
    np.testing.assert_allclose(tableau.c[inner], radau.C, rtol=1e-15)
    # Theirs is about z = h a k, with one over the eigenvalue.
    np.testing.assert_allclose(tableau.filter, 1 / radau.MU_REAL, rtol=1e-14)
    weights = np.linalg.solve(a.T, np.array(tableau.b_error[1:])) * radau.MU_REAL
    np.testing.assert_allclose(tableau.b_error[0], -1 / radau.MU_REAL, rtol=1e-14)
    np.testing.assert_allclose(weights, -radau.E, rtol=1e-12)
    np.testing.assert_allclose(
        np.linalg.inv(a) @ radau.T[:, 0], radau.MU_REAL * radau.T[:, 0], rtol=1e-12
    )


@pytest.mark.parametrize("tableau", ALL)
def test_symplectic_partner(tableau):
    """b_i A_ij + B_j a_ji = b_i B_j for the partner (A, B = b), in the rows where b_i is not 0."""
    a, b = tableau.a_matrix, tableau.b_vector
    partner = np.full_like(a, np.nan)
    defined = b != 0
    partner[defined] = b - b * a.T[defined] / b[defined, None]
    defect = b[:, None] * partner + b * a.T - np.outer(b, b)
    scale = np.abs(b[:, None] * partner) + np.abs(b * a.T)
    assert np.all(np.abs(defect[defined]) <= 4 * np.finfo(float).eps * scale[defined])


@pytest.mark.parametrize("tableau", EXPLICIT)
def test_adjoint_weights_keep_the_bilinear_form(tableau):
    """The recursion in w_i = b_i Lambda_i is exact where b_i = 0 as well."""
    reduced = tableau.without_error()
    a, b, active = reduced.a_matrix, reduced.b_vector, reduced.active_stages
    rng = np.random.default_rng(0)
    jacobians = rng.normal(size=[reduced.stages, 3, 3])
    h, delta, adjoint = 0.1, rng.normal(size=3), rng.normal(size=3)
    slopes = np.zeros([reduced.stages, 3])
    for i in range(reduced.stages):
        slopes[i] = jacobians[i] @ (delta + h * a[i] @ slopes)
    products = np.zeros([reduced.stages, 3])
    for i in reversed(range(reduced.stages)):
        weight = b[i] * adjoint + h * a[:, i] @ products
        assert active[i] or not weight.any()
        products[i] = jacobians[i].T @ weight
    after = (delta + h * b @ slopes) @ adjoint
    before = delta @ (adjoint + h * products.sum(axis=0))
    np.testing.assert_allclose(before, after, rtol=1e-13)


# Numbers of steps for each order: small steps, but with errors well above those of rounding.
STEPS = {
    1: (400, 800, 1600),
    2: (100, 200, 400),
    3: (50, 100, 200),
    4: (20, 40, 80),
    5: (20, 40, 80),
    7: (8, 10, 12, 16),
    8: (8, 10, 12, 16),
}


def observed_order(tableau, weights, order):
    """Slope of the errors of equal steps against the step, for a problem of known solution."""

    def dynamics(y):
        return np.array([y[1] ** 2, -y[0] * y[1]])

    def solution(t):
        return np.array([np.tanh(t), 1 / np.cosh(t)])

    errors = []
    for num_steps in STEPS[order]:
        h, y = 2.0 / num_steps, solution(-0.5)
        for _ in range(num_steps):
            slopes = np.zeros([len(tableau.a), 2])
            for i in range(tableau.num_rows):
                slopes[i] = dynamics(y + h * tableau.a_matrix[i] @ slopes)
            y = y + h * weights @ slopes
        errors.append(np.max(np.abs(y - solution(1.5))))
    return -np.polyfit(np.log(STEPS[order]), np.log(errors), 1)[0]


@pytest.mark.parametrize("tableau", EXPLICIT)
def test_observed_order(tableau):
    observed = observed_order(tableau, tableau.b_vector, tableau.order)
    assert abs(observed - tableau.order) < 0.2


@pytest.mark.parametrize("tableau", ADAPTIVE)
def test_observed_embedded_order(tableau):
    embedded = tableau.b_vector - tableau.error_vector
    observed = observed_order(tableau, embedded, tableau.embedded_order)
    assert abs(observed - tableau.embedded_order) < 0.2
