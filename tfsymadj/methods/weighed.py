"""The stages of M dy/dt = f(t, y), with a mass matrix M that may be singular."""

import tensorflow as tf

from tfsymadj import _platform
from tfsymadj.arithmetic import add, coefficients, combine, epsilon
from tfsymadj.dynamics.mass import product
from tfsymadj.methods.krylov import gmres
from tfsymadj.methods.linear import inverse_of
from tfsymadj.methods.newton import Block, Stages, constants, converge, once, solve_transposed


class WeighedStages(Stages):
    """The implicit stages of one step of M dy/dt = f(t, y).

    The slopes are values of f, and the unknowns z_i = Y_i - y_n solve

        M z_i = h sum_j a_ij f(t_j, Y_j),

    in which nothing is divided by M. Rows of M that are zero ask for sum_j a_ij f_j = 0 there, so,
    as f is zero there at the start, for f = 0 at all stages: the method is that of the ODE that is
    left when the algebraic equations are solved for (Hairer, Wanner, Solving Ordinary Differential
    Equations II, section VI.1). The last stage is the solution.
    """

    def __init__(self, *args):
        super().__init__(*args)
        self._moved = None

    def solve(self, dynamics, ts, a, known, before):
        system, size, (t,), (known,) = self._system, self._size, ts, known
        block = Block([tf.stop_gradient(t)], a.tolist())
        packed = tf.stop_gradient(system.pack(known))
        found = self._found(block, a, packed, before)
        z, kept = tf.stop_gradient(found.x), constants(found.kept)
        self._kept[tuple(a.ravel())] = kept
        # One more update, by the evaluation that the derivative needs.
        slope = dynamics(t, add(self._ys, system.unpack(z)))
        self.evaluations += 1
        there = tf.stop_gradient(system.pack(slope))
        residual = self._residual(block, packed, there, z)
        update = system.inverse.times(kept, residual, block, size, [self._start + z])
        z = tf.stop_gradient(self._updated(z, update, there))
        own = coefficients(self._h, [a[0, 0]], self._ys)
        right = add(known, combine(own, [slope], self._ys))
        self._moved = self._differentiable_move(block, kept, z, right)
        return [self._slope(own, known, slope)], [add(self._ys, self._moved)]

    def increments(self, weights, slopes):
        return self._moved

    def _residual(self, block, known, slope, z):
        (own,) = block.combined(self._size, [slope])
        return known + own - block.weighed(self._system, self._size, z)

    def _found(self, block, a, known, before):
        system, size, start = self._system, self._size, self._start

        def residual(z):
            return self._residual(block, known, system.slopes(block.ts[0], start + z), z)

        def renew(z):
            return system.inverse.renewed(block, size, [start + z])

        found = converge(
            residual,
            tf.stop_gradient(system.pack(before)) - start,
            self._kept_of(a, block),
            lambda kept, z, v: system.inverse.times(kept, v, block, size, [start + z]),
            renew if system.inverse.renews else None,
            lambda z: tf.maximum(tf.abs(start + z), tf.abs(start)),
            self._newton,
            (1, system.size),
        )
        self.converged.append(found.converged)
        self.evaluations += found.evaluations
        return found

    def _differentiable_move(self, block, kept, z, right):
        """z, with the derivative that M z = `right` gives it."""
        system, newton, size = self._system, self._newton, self._size
        outputs = system.unpack(z)
        residual = [x - y for x, y in zip(right, system.mass.dynamics(self._t, outputs))]
        states = [self._start + z]

        def backward(cotangents):
            g = system.pack(cotangents)
            return once(
                system.unpack(solve_transposed(system, newton, block, size, states, g, kept).x)
            )

        found = _platform.with_gradient(outputs, residual, backward)
        return [tf.ensure_shape(x, like.shape) for x, like in zip(found, outputs)]

    def _slope(self, own, known, slope):
        """f of the stage from its equation: rounding errors don't grow with the stiffness."""
        ((_, sizes),) = own
        moved, found = self._system.mass.dynamics(self._t, self._moved), []
        for size, m, x, k in zip(sizes, moved, known, slope):
            proper = tf.not_equal(size, tf.zeros_like(size))
            solved = (m - x) / tf.where(proper, size, tf.ones_like(size))
            found.append(tf.where(proper, solved, k))
        return found


def correction(system, t, ys, slopes, parts):
    """See `Method.correction`.

    It is Newton's update delta of these equations alone: P D (f + J delta) = 0 and M delta = 0, see
    `SplitMatrix`. It is not finite where they don't determine their part of the state: then the
    index is greater than one.
    """
    leveled = [None if p is None else p.leveled for p in parts]
    algebraic = [None if p is None else p.algebraic for p in parts]

    def projected(xs):
        pairs = zip(algebraic, xs)
        return [tf.zeros_like(x) if m is None else product(m, x) for m, x in pairs]

    right, x = system.pack(projected(slopes)), system.pack(ys)
    if system.inverse.renews:
        matrix = system.packed(leveled, 1.0)
        matrix -= tf.matmul(system.packed(algebraic, 0.0), system.jacobian(t, x))
        return system.unpack(tf.linalg.matvec(inverse_of(matrix), right))

    def applied(u):
        v = [y if m is None else product(m, y) for m, y in zip(leveled, system.unpack(u))]
        return system.pack(v) - system.pack(projected(system.unpack(system.jvp(t, x, u))))

    return system.unpack(gmres(applied, right, epsilon(right.dtype) ** 0.5))
