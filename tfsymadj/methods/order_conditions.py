"""Order conditions of Runge-Kutta methods, by rooted trees.

A rooted tree is the tuple of its root's subtrees, so a single vertex is (). A method is of order p
if b @ weights(tree) = 1 / density(tree) for each tree of p vertices or less (Butcher, J. Austral.
Math. Soc. 3 (1963)); see Hairer, Norsett, Wanner, Solving Ordinary Differential Equations I,
theorem II.2.13. An additive method, of two matrices with the same weights, has to meet them for
each choice of one of the matrices at each edge (section II.15; Kennedy, Carpenter, Applied
Numerical Mathematics 44 (2003), 139-181).
"""

import functools
import itertools
import math
from fractions import Fraction

import numpy as np

#: The coefficients are rounded to float64. The tolerance leaves room for that and for the rounding
#: of the checks themselves, and is far below any coefficient with a wrong digit.
TOLERANCE = 1e-13


@functools.cache
def rooted_trees(order):
    """All rooted trees of `order` vertices, a tuple.

    Each is listed once: subtrees stand in the order in which the smaller trees are listed.

    Args:
        order: number of vertices, at least 1.

    Example:

    >>> from tfsymadj.methods import order_conditions
    >>> order_conditions.rooted_trees(3)
    (((), ()), (((),),))
    """
    smaller = [(n, tree) for n in range(1, order) for tree in rooted_trees(n)]

    def forests(vertices, start):
        if vertices == 0:
            yield ()
        for i in range(start, len(smaller)):
            size, tree = smaller[i]
            if size > vertices:
                break
            for others in forests(vertices - size, i):
                yield (tree, *others)

    return tuple(forests(order - 1, 0))


@functools.cache
def num_vertices(tree):
    """Number of vertices of a rooted tree."""
    return 1 + sum(num_vertices(subtree) for subtree in tree)


@functools.cache
def density(tree):
    """Density (gamma) of a rooted tree: the product of the sizes of all its subtrees."""
    return num_vertices(tree) * math.prod(density(subtree) for subtree in tree)


def residuals(a_matrix, b_vector, order):
    """How far the weights are from the order conditions of one order.

    Args:
        a_matrix: square array of the coefficients a_ij, or one of them for each part of an additive
            method `(parts, rows, rows)`.
        b_vector: array of the weights.
        order: the order whose conditions are evaluated.

    Returns:
        A list with `(tree, residual, scale)` for each tree of `order` vertices, and each choice of
        the parts: the elementary weight minus one over the density, and the sum of the absolute
        values of the terms that make up the weight, as a scale for rounding errors.
    """
    weights = _StageWeights(a_matrix)
    found = []
    for tree in rooted_trees(order):
        for vector in weights(tree):
            # Absolute values inside of the weights too would bound the rounding error for certain,
            # but by 1e-4 and more for a method of order 8, which would be no check.
            terms = b_vector * vector
            residual = float(terms.sum()) - 1.0 / density(tree)
            found.append((tree, residual, float(np.abs(terms).sum())))
    return found


def first_violation(a_matrix, b_vector, order):
    """The first order condition that doesn't hold, in words, or None.

    Args:
        a_matrix: see `residuals`.
        b_vector: array of the weights.
        order: the highest order whose conditions are checked.
    """
    for n in range(1, order + 1):
        for tree, residual, scale in residuals(a_matrix, b_vector, n):
            if not abs(residual) <= TOLERANCE * max(1.0, scale):
                return (
                    f"the condition {_formula(tree)} = {Fraction(1, density(tree))} of order {n} "
                    f"is violated by {residual:.3g}"
                )
    return None


def first_dense_violation(a_matrix, dense, order):
    """The first order condition of a continuous extension that doesn't hold, in words, or None.

    The weights b(theta) have to meet b(theta) @ weights(tree) = theta^n / density(tree) for each
    tree of n vertices: as polynomials, so each power of theta for itself (Hairer, Norsett, Wanner,
    section II.6).

    Args:
        a_matrix: see `residuals`.
        dense: array `(rows, powers)` of the coefficients of theta, theta^2, ...
        order: the highest order whose conditions are checked.
    """
    weights = _StageWeights(a_matrix)
    for n in range(1, order + 1):
        for tree, vector in ((x, v) for x in rooted_trees(n) for v in weights(x)):
            terms = dense * vector[:, np.newaxis]
            expected = np.zeros(max(dense.shape[1], n))
            expected[n - 1] = 1.0 / density(tree)
            sums = np.zeros_like(expected)
            sums[: dense.shape[1]] = terms.sum(0)
            worst = np.argmax(np.abs(sums - expected))
            scale = np.abs(terms).sum(0).max()
            if not abs(sums[worst] - expected[worst]) <= TOLERANCE * max(1.0, scale):
                return (
                    f"the condition {_formula(tree)} = theta^{n} / {density(tree)} is violated by "
                    f"{sums[worst] - expected[worst]:.3g} theta^{worst + 1}"
                )
    return None


class _StageWeights:
    """The vectors of a tree's elementary weights over the stages; those of subtrees are kept.

    There is one for each choice of the matrices.
    """

    def __init__(self, matrices):
        rows = matrices.shape[-1]
        self._matrices = matrices.reshape([-1, rows, rows])
        self._known = {}

    def __call__(self, tree):
        if tree not in self._known:
            below = [[a @ v for a in self._matrices for v in self(x)] for x in tree]
            ones = np.ones(self._matrices.shape[-1])
            self._known[tree] = [math.prod(xs, start=ones) for xs in itertools.product(*below)]
        return self._known[tree]


def _formula(tree):
    """The elementary weight as an expression in A, b and c, like `b @ (c * (A @ c))`."""

    def product(tree):
        factors = [f"(A @ {product(subtree)})" if subtree else "c" for subtree in tree]
        return factors[0] if len(factors) == 1 else f"({' * '.join(factors)})"

    return f"b @ {product(tree)}" if tree else "sum(b)"
