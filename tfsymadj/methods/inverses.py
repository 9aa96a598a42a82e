"""Inverses of I - h (a_ij J_j), of the equations of a block of stages, or what is about them.

Newton's iteration and the transposed equations are corrected by them, and so need not have them
exactly: a matrix made of older Jacobians, or as many products with the Jacobian as it takes.
"""

import tensorflow as tf

from tfsymadj.arithmetic import epsilon
from tfsymadj.methods.krylov import gmres
from tfsymadj.methods.preconditioning import Preconditioner


class Inverse:
    """How the equations of a block of stages are solved, given what it `keeps` of them.

    Args:
        system: `System`.

    Attributes:
        renews: whether what is kept may be made anew at better points.
        direct: whether the solution is exact.
        start_cost: evaluations of the dynamics that `start` takes.
    """

    renews, direct, start_cost = False, False, 0

    def __init__(self, system):
        self._system = system

    def start(self, t, x):
        """What is kept of a step's start, a nest of tensors."""
        return []

    def of_block(self, block, h, start):
        """What is kept of a block, a nest of tensors, from that of the step's start."""
        return []

    def renewed(self, block, h, xs, by_row=False):
        """What is kept of a block at the stage values; see `Block.matrix`."""
        raise NotImplementedError

    def times(self, kept, v, block, h, xs, transposed=False):
        """The solution for a right hand side, vectors of all stages.

        Args:
            kept: see `of_block`.
            v: the right hand side.
            block: `Block`.
            h: as of `step_of`.
            xs: list of the stage values, vectors.
            transposed: whether the equations are the transposed ones, of (a_ij J_i).
        """
        raise NotImplementedError


class DenseInverse(Inverse):
    """By the matrix that is the inverse, one for each system."""

    renews = True

    @property
    def start_cost(self):
        return self._system.size

    def start(self, t, x):
        return self._system.jacobian(t, x)

    def of_block(self, block, h, start):
        return block.matrix(self._system, h, [start])

    def renewed(self, block, h, xs, by_row=False):
        jacobians = [self._system.jacobian(t, x) for t, x in zip(block.ts, xs)]
        return block.matrix(self._system, h, jacobians, by_row)

    def times(self, kept, v, block, h, xs, transposed=False):
        return tf.linalg.matvec(kept, v, transpose_a=transposed)


class KrylovInverse(Inverse):
    """By GMRES: products with the Jacobian at the stage values, or with its transpose.

    Args:
        system: `System`.
        preconditioner: see `Newton`.
    """

    def __init__(self, system, preconditioner=None):
        super().__init__(system)
        self._preconditioner = preconditioner

    def times(self, kept, v, block, h, xs, transposed=False):
        system, count = self._system, len(xs)
        product = system.vjp if transposed else system.jvp

        def applied(u):
            products = [
                product(t, x, part) for t, x, part in zip(block.ts, xs, tf.split(u, count, 1))
            ]
            left = block.weighed(system, h, u, transposed)
            return left - tf.concat(block.combined(h, products, transposed), 1)

        # Three rounds lead to rounding.
        tolerance = epsilon(v.dtype) ** (1 / 3)
        if self._preconditioner is None:
            return gmres(applied, v, tolerance)
        # On the right: what GMRES sees is the residual itself.
        about = Preconditioner(system, self._preconditioner, block, h, xs, transposed)
        return about(gmres(lambda u: applied(about(u)), v, tolerance))


class OperatorInverse(Inverse):
    """By the algebra of the `tf.linalg.LinearOperator` that the dynamics are."""

    direct = True

    def of_block(self, block, h, start):
        return self._system.dynamics.operator.kept(self._system.like, self._sizes(block, h))

    def times(self, kept, v, block, h, xs, transposed=False):
        system = self._system
        zeros = [tf.zeros_like(y) for y in system.like]
        ys = system.joined(system.unpack(v), zeros)
        solved = system.dynamics.operator.solve(kept, ys, self._sizes(block, h), transposed)
        return system.pack(system.live_of(solved))

    def _sizes(self, block, h):
        (size,) = block.combined(h, [tf.ones_like(h)])
        return tf.reshape(size, [-1] if self._system.lanes else [])


def inverse_for(system, newton):
    """The `Inverse` for a system."""
    if getattr(system.dynamics, "operator", None) is not None:
        return OperatorInverse(system)
    if newton.jacobian == "krylov":
        return KrylovInverse(system, newton.preconditioner)
    return DenseInverse(system)
