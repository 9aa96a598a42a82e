"""The equations of implicit stages: Newton's iteration, and their transposes for the adjoint.

The stages of a block are k_i = f(t_i, Y_i) with Y_i = base_i + h sum_j a_ij k_j. The unknowns are
z_i = h sum_j a_ij k_j, whose rounding errors don't grow with the stiffness:

    z <- z + M (h A f(base + z) - z),    M = (I - h A x J)^-1  with  J = df/dy nearby.

The limit does not depend on J, nor does its derivative: so that is exact where the iteration has
converged to rounding, by the solution of the transposed equations

    w_i - h sum_j a_ji J_j^T w_j = g_i,

which the same M preconditions, in any of the forms of `inverses` (Hairer, Wanner, Solving Ordinary
Differential Equations II, section IV.8, for the iteration).
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from tfsymadj import _platform
from tfsymadj.arithmetic import add, combine, epsilon, weighted_sum
from tfsymadj.config import Configured, is_int, is_real
from tfsymadj.methods.inverses import inverse_for
from tfsymadj.methods.linear import inverse_of
from tfsymadj.xla import repeated

_JACOBIANS = ("dense", "whole", "krylov")

#: An update that is so much of the one before says that the matrix is a bad one.
_SLOW = 0.2

#: And so much, with the best matrix, that there is nothing left but rounding.
_STAGNANT = 0.5

#: So many times the rounding of the largest entry may be rounding.
_NEAR = 128.0


class Newton(Configured):
    """How the equations of an implicit method's stages are solved.

    The first axis of the state counts as examples that don't depend on each other, if all of its
    tensors on which the dynamics depend have the same first axis and at least one of them has
    another one, too: each example has equations, and a Jacobian, of its own. Else, as with a state
    of shape `(d,)`, all entries together are one system. Complex numbers are two real ones.

    The iteration goes on until the update is rounding error: that makes gradients exact.

    Args:
        jacobian: how the Jacobian df/dy is found.

            * `"dense"`: a matrix for each example, by d vector-Jacobian products of the batch, for
              d entries; once a step, and again where convergence is slow. It is inverted in d^3
              operations. At the solve's start a random product checks that no example depends on
              others, or the status is `Status.NEWTON_FAILED`.
            * `"whole"`: one matrix for the whole state, also if its first axis is shared by all.
            * `"krylov"`: not at all; for large states. The equations of the whole state, or with
              `batch_axis` of each example, are solved by GMRES: products with the Jacobian forward,
              and with its transpose backward, up to 40 directions at a time. How many it takes is a
              matter of the spread of h times the Jacobian's eigenvalues. The dynamics need second
              derivatives, in TensorFlow's sense.
        tolerance: largest update, relative to the state, after which the iteration ends; None: it
            goes on to rounding. The error of gradients is of the order of the tolerance, too.
        max_iterations: after so many the stages count as not solved: an adaptive solve takes a
            smaller step, else the status is `Status.NEWTON_FAILED`.
        preconditioner: with `"krylov"`, callable `(t, y, size)` that returns about the inverse of
            I - size df/dy: a function, linear, from what is like `y` to the same, or a
            `tf.linalg.LinearOperator` for the last axes of y, such as `operator.inverse()`. GMRES
            takes fewer products the better that is; the numbers stay the same. `y` is the state at
            a stage, or a list of its tensors if there are several, and `size` a scalar, or with
            `batch_axis` one number for each example, as `t`. The gradient takes the transpose, of
            a function by a tape. None: there is none.

    Raises:
        ValueError: if an argument is none of these.

    Example:

    >>> import tfsymadj
    >>> y = tfsymadj.odeint(
    ...     lambda t, y: -1e6 * (y - 1.0), [0.0], [0.0, 1.0], method="kvaerno3",
    ...     newton=tfsymadj.Newton(max_iterations=20),
    ... )
    >>> abs(float(y[-1, 0]) - 1.0) < 1e-5
    True
    """

    def __init__(
        self,
        jacobian: str = "dense",
        tolerance: float | None = None,
        max_iterations: int = 50,
        preconditioner: Callable | None = None,
    ):
        if jacobian not in _JACOBIANS:
            raise ValueError(f"`jacobian` must be one of {_JACOBIANS}. Received: {jacobian!r}")
        if tolerance is not None and not (is_real(tolerance) and 0 < tolerance < 1):
            raise ValueError(
                f"`tolerance` must be a number between 0 and 1, or None. Received: {tolerance!r}"
            )
        if not is_int(max_iterations, 2):
            raise ValueError(
                f"`max_iterations` must be an integer, at least 2. Received: {max_iterations!r}"
            )
        if preconditioner is not None and not (callable(preconditioner) and jacobian == "krylov"):
            raise ValueError(
                "`preconditioner` must be callable, and needs `jacobian='krylov'`. "
                f"Received: {preconditioner!r}, jacobian={jacobian!r}"
            )
        self.jacobian = jacobian
        self.preconditioner = preconditioner
        self.tolerance = None if tolerance is None else float(tolerance)
        self.max_iterations = int(max_iterations)

    def get_config(self):
        return {
            "jacobian": self.jacobian,
            "tolerance": self.tolerance,
            "max_iterations": self.max_iterations,
            "preconditioner": self.preconditioner,
        }


class System:
    """The dynamics over vectors of real numbers: one for each system that is solved by itself.

    Parts of the state that the dynamics don't depend on are no part of the vectors.

    Args:
        dynamics: `(t, ys) -> dys` over lists of tensors.
        ys: the state, for its shapes.
        lanes: 1 if steps have a time and a size for each entry of the first axis.
        newton: `Newton`.
    """

    def __init__(self, dynamics, ys, lanes, newton):
        self.dynamics, self.like, self.lanes = dynamics, ys, lanes
        live = getattr(dynamics, "live", None)
        self.live = list(range(len(ys))) if live is None else list(live)
        self.others = [i for i in range(len(ys)) if i not in self.live]
        self._parts = [ys[i] for i in self.live]
        real = {y.dtype.real_dtype for y in self._parts}
        self.dtype = tf.float64 if tf.float64 in real else tf.float32
        self.apart = bool(lanes) or (newton.jacobian == "dense" and self._has_batch())
        shapes = [y.shape[1:] if self.apart else y.shape for y in self._parts]
        sizes = [shape.num_elements() for shape in shapes]
        if None in sizes:
            raise ValueError(
                "`y0` must have a shape that is known, but for the examples of the first axis, with"
                f" an implicit method. Received: shapes {[y.shape for y in self._parts]}"
            )
        self._sizes = [n for n, y in zip(sizes, self._parts) for _ in range(1 + y.dtype.is_complex)]
        #: Of a vector.
        self.size = sum(self._sizes)
        mass = getattr(dynamics, "mass", None)
        #: The product with the mass matrix as a system; None: it is the identity.
        self.mass = mass and System(mass, ys, lanes, newton)
        self.inverse = inverse_for(self, newton)

    def _has_batch(self):
        ranks = [y.shape.rank for y in self._parts]
        if not ranks or min(ranks) == 0 or max(ranks) < 2:
            return False
        return len({y.shape[0] for y in self._parts}) == 1

    def pack(self, ys):
        """The vectors `[systems, size]` of the live parts of a state."""
        columns = []
        for y, like in zip(ys, self._parts):
            numbers = [tf.math.real(y), tf.math.imag(y)] if like.dtype.is_complex else [y]
            for x in numbers:
                size = self._sizes[len(columns)]
                shape = tf.stack([tf.shape(like)[0], size]) if self.apart else [1, size]
                columns.append(tf.cast(tf.reshape(x, shape), self.dtype))
        return columns[0] if len(columns) == 1 else tf.concat(columns, 1)

    def unpack(self, x):
        """The live parts of the state of vectors."""
        columns, found = iter(tf.split(x, self._sizes, 1)), []
        for y in self._parts:
            numbers = [
                tf.reshape(tf.cast(next(columns), y.dtype.real_dtype), tf.shape(y))
                for _ in range(1 + y.dtype.is_complex)
            ]
            part = tf.complex(*numbers) if y.dtype.is_complex else numbers[0]
            found.append(tf.ensure_shape(part, y.shape))
        return found

    def live_of(self, ys):
        """The live parts of a state."""
        return [ys[i] for i in self.live]

    def joined(self, live, others):
        """The state of its live parts and a state that has the others."""
        found = list(others)
        for i, y in zip(self.live, live):
            found[i] = y
        return found

    def slopes(self, t, x):
        """The dynamics at vectors."""
        return self.pack(self.live_of(self._values(t, x)))

    def _values(self, t, x):
        zeros = [tf.zeros_like(y) for y in self.like]
        return self.dynamics(t, self.joined(self.unpack(x), zeros))

    def vjp(self, t, x, cotangents, others=None):
        """The product of cotangents and the Jacobian at `x`.

        Args:
            t: see `Method.step`.
            x: vectors.
            cotangents: likewise.
            others: a state with cotangents of the parts that are not live, or None.
        """
        with self._substituted():
            with tf.GradientTape(watch_accessed_variables=False) as tape:
                tape.watch(x)
                values = self._values(t, x)
                targets = [self.pack(self.live_of(values))]
                weights = [cotangents]
                if others is not None:
                    targets += [values[i] for i in self.others]
                    weights += [others[i] for i in self.others]
            found = tape.gradient(targets, x, output_gradients=weights)
        return tf.zeros_like(x) if found is None else tf.ensure_shape(found, x.shape)

    def jvp(self, t, x, tangents):
        """The product of the Jacobian at `x` and tangents.

        It is the derivative of the product of cotangents and the Jacobian for the cotangents.
        """
        cotangents = tf.zeros_like(x)
        with self._substituted():
            with tf.GradientTape(watch_accessed_variables=False) as tape:
                tape.watch(cotangents)
                product = self.vjp(t, x, cotangents)
            found = tape.gradient(product, cotangents, output_gradients=tangents)
        return tf.zeros_like(x) if found is None else tf.ensure_shape(found, x.shape)

    def _substituted(self):
        return self.dynamics.substituted() if hasattr(self.dynamics, "substituted") else _nothing

    def jacobian(self, t, x):
        """The matrices df/dy `[systems, size, size]`, row by row."""
        n = self.size

        def row(i, matrix):
            here = tf.one_hot(i, n, dtype=self.dtype)
            found = self.vjp(t, x, here * tf.ones_like(x))
            at = tf.reshape(tf.equal(tf.range(n), i), [1, n, 1])
            return tf.where(at, found[:, tf.newaxis, :], matrix)

        empty = tf.zeros([1, n, 1], self.dtype) * x[:, tf.newaxis, :]
        empty = tf.zeros_like(tf.ensure_shape(empty, [x.shape[0], n, n]))
        return repeated(n, row, empty, "jacobian")

    def mass_matrix(self):
        """The mass matrix over vectors, `[1, size, size]`."""
        return self.packed(self.mass.dynamics.matrices, 1.0)

    def packed(self, matrices, otherwise):
        """Matrices that act on the last axis of each tensor, as one over vectors.

        Args:
            matrices: one for each tensor of the state, all live, or None.
            otherwise: the multiple of the identity that None stands for.
        """
        blocks, sizes = [], iter(self._sizes)
        for matrix, y in zip(matrices, self._parts):
            for _ in range(1 + y.dtype.is_complex):
                n = next(sizes)
                if matrix is None:
                    number = tf.constant(otherwise, self.dtype)
                    blocks.append(tf.linalg.LinearOperatorScaledIdentity(n, number))
                    continue
                operator = tf.linalg.LinearOperatorFullMatrix(tf.cast(matrix, self.dtype))
                rows = n // matrix.shape[-1]
                identity = tf.linalg.LinearOperatorIdentity(rows, dtype=self.dtype)
                blocks.append(tf.linalg.LinearOperatorKronecker([identity, operator]))
        return tf.linalg.LinearOperatorBlockDiag(blocks).to_dense()[tf.newaxis]

    def separate(self, t, ys):
        """Whether no system depends on another one, a boolean scalar: by one product."""
        if not (self.apart and self.size and self.inverse.renews):
            return tf.constant(True)
        x = self.pack(self.live_of(ys))
        jacobian = self.jacobian(t, x)
        numbers = tf.range(tf.size(x), dtype=self.dtype)
        weights = tf.reshape(tf.cos(1.7 * numbers + 0.3), tf.shape(x))
        product = self.vjp(t, x, weights)
        found = tf.linalg.matvec(jacobian, weights, transpose_a=True)
        scale = tf.reduce_max(tf.abs(jacobian), [1, 2]) * self.size
        error = tf.reduce_max(tf.abs(product - found), 1)
        # What is not finite is another matter.
        return tf.logical_not(tf.reduce_any(error > epsilon(self.dtype) ** 0.5 * scale))


class _Nothing:
    def __enter__(self):
        return None

    def __exit__(self, *_):
        return None


_nothing = _Nothing()


class Solved(NamedTuple):
    """What an iteration has led to.

    Attributes:
        x: vectors.
        kept: of the `Inverse` that it ended with.
        converged: for each system.
        evaluations: of the dynamics, int32 scalar.
    """

    x: tf.Tensor
    kept: Any
    converged: tf.Tensor
    evaluations: tf.Tensor


class _Iteration(NamedTuple):
    count: tf.Tensor
    x: tf.Tensor
    size: tf.Tensor  # of the last update
    rate: tf.Tensor
    settled: tf.Tensor
    failed: tf.Tensor
    fresh: tf.Tensor  # whether the inverse was made for this iterate
    last: tf.Tensor  # update
    last_fresh: tf.Tensor  # whether it was that of an inverse made for its iterate
    kept: Any
    renewed: tf.Tensor  # how often


def converge(residual, x, kept, times, renew, magnitude, newton, costs, linear=False):
    """x <- x + M residual(x), until that changes nothing but the rounding.

    Args:
        residual: callable, from vectors to vectors.
        x: vectors to start from.
        kept: nest of tensors, what M is made of.
        times: callable, from `kept`, the vectors x and a residual to M residual, with M about the
            inverse of minus the residual's Jacobian.
        renew: callable, from vectors to `kept` of a better M; None: M is always that of x.
        magnitude: callable, from vectors to the magnitudes that an update is compared with.
        newton: `Newton`.
        costs: the evaluations of a residual, and of a new M.
        linear: whether the equations are linear: then it is enough if the last update was rounding,
            though the iteration, which rounding drives up and down, has not found it to be.

    Returns:
        `Solved`.
    """
    eps = epsilon(x.dtype)
    tiny = float(np.finfo(x.dtype.as_numpy_dtype).tiny) ** 0.5
    enough = 2.0 * eps if newton.tolerance is None else max(newton.tolerance, 2.0 * eps)

    def body(c):
        update = times(c.kept, c.x, residual(c.x))
        fine = tf.reduce_all(tf.math.is_finite(update), 1)
        update = tf.where(fine[:, tf.newaxis], update, tf.zeros_like(update))
        size, overall = _relative(update, magnitude(c.x), eps, tiny)
        later = c.count > 0
        rate = tf.where(later, size / (c.size + tiny), tf.ones_like(size))
        slow = tf.logical_and(later, tf.logical_and(rate > _SLOW, c.rate > _SLOW))
        ended = tf.logical_and(later, _is_rounding(size, overall, rate, c.fresh, eps))
        settled = tf.logical_and(tf.logical_or(size <= enough, ended), fine)
        settled = tf.logical_or(c.settled, settled)
        failed = tf.logical_or(c.failed, tf.logical_not(fine))
        # The last update led too far: it is halved if it was Newton's own, else taken back.
        grows = tf.logical_and(tf.logical_and(later, rate >= 1.0), tf.logical_not(c.fresh))
        grows = tf.logical_and(grows, tf.logical_not(tf.logical_or(settled, failed)))
        halves = tf.logical_and(grows, c.last_fresh)
        back = tf.where(halves[:, tf.newaxis], 0.5 * c.last, c.last)
        moved = tf.where(grows[:, tf.newaxis], -back, update)
        x = tf.where(c.settled[:, tf.newaxis], c.x, c.x + moved)
        slow = tf.logical_or(
            tf.logical_and(slow, tf.logical_not(grows)), tf.not_equal(grows, halves)
        )
        slow = tf.logical_and(slow, tf.logical_not(tf.logical_or(settled, failed)))
        kept, wanted = _renewed(renew, slow, x, c.kept)
        following = _Iteration(
            count=c.count + 1,
            x=x,
            size=tf.where(grows, c.size, size),
            rate=rate,
            settled=settled,
            failed=failed,
            fresh=c.fresh if renew is None else slow,
            last=tf.where(grows[:, tf.newaxis], back, update),
            last_fresh=tf.where(grows, halves, c.fresh),
            kept=kept,
            renewed=c.renewed + tf.cast(wanted, tf.int32),
        )
        return (following,)

    none = tf.zeros_like(x[:, 0])
    no = tf.zeros_like(none, tf.bool)
    fresh = tf.ones_like(no) if renew is None else no
    zero = tf.zeros([], tf.int32)
    start = _Iteration(zero, x, none, none, no, no, fresh, tf.zeros_like(x), no, kept, zero)
    (c,) = tf.while_loop(
        lambda c: tf.reduce_any(tf.logical_not(tf.logical_or(c.settled, c.failed))),
        body,
        (start,),
        parallel_iterations=1,
        maximum_iterations=newton.max_iterations,
        name="newton",
    )
    settled = c.settled
    if linear:
        size, overall = _relative(c.last, magnitude(c.x), eps, tiny)
        settled |= (size <= eps**0.5) & (overall <= _NEAR * eps) & ~c.failed
    return Solved(c.x, c.kept, settled, c.count * costs[0] + c.renewed * costs[1])


def _relative(update, scale, eps, tiny):
    """The size of an update, relative to each of the magnitudes `scale` and to the largest one."""
    change, largest = tf.abs(update), tf.reduce_max(scale, 1) + tiny
    size = tf.reduce_max(change / (scale + (eps * eps) * largest[:, tf.newaxis]), 1)
    return size, tf.reduce_max(change, 1) / largest


def _renewed(renew, slow, x, kept):
    """What is kept, anew for those systems that are slow, and whether there is one."""
    if renew is None:
        return kept, tf.constant(False)
    wanted = tf.reduce_any(slow)
    renewed = tf.cond(
        wanted,
        lambda: tf.where(slow[:, tf.newaxis, tf.newaxis], renew(x), kept),
        lambda: kept,
    )
    return renewed, wanted


def _is_rounding(size, overall, rate, fresh, eps):
    """Whether updates that get no smaller are rounding.

    Args:
        size: of the update, relative to the entries.
        overall: likewise, to the largest one: an entry that is small by cancellation never gets
            more exact than others.
        rate: the ratio of this and the last `size`.
        fresh: whether the inverse is that of this very point.
        eps: of the dtype.
    """
    near = tf.logical_or(size <= eps**0.5, overall <= _NEAR * eps)
    stagnant = tf.logical_and(tf.logical_and(fresh, rate >= _STAGNANT), near)
    return tf.logical_or(stagnant, tf.logical_and(rate > _SLOW, size <= 32.0 * eps))


class Block(NamedTuple):
    """Stages that depend on each other.

    Attributes:
        ts: their times, a list.
        a: their coefficients, nested lists of numbers or scalars.
    """

    ts: list
    a: Any

    def matrix(self, system, h, jacobians, by_row=False):
        """The inverse of I - h (a_ij J_j), or of I - h (a_ij J_i).

        Args:
            system: `System`.
            h: as of `step_of`.
            jacobians: list of one for each stage, or of one for all.
            by_row: which of the two.
        """
        count = len(self.ts)
        jacobians = jacobians if len(jacobians) == count else jacobians * count
        rows = []
        for i in range(count):
            blocks = [
                (h * self.number(i, j, h))[..., tf.newaxis] * jacobians[i if by_row else j]
                for j in range(count)
            ]
            rows.append(blocks[0] if count == 1 else tf.concat(blocks, 2))
        product = rows[0] if count == 1 else tf.concat(rows, 1)
        left = tf.eye(count * system.size, dtype=product.dtype)
        if system.mass is not None:
            left = self.where(h[..., tf.newaxis], system.mass_matrix(), left)
        return inverse_of(left - product)

    def where(self, h, x, y):
        """`x` where a single stage has an equation, `y` where h or a is zero."""
        return tf.where(tf.not_equal(h * self.number(0, 0, h), 0.0), x, y)

    def weighed(self, system, h, x, transposed=False):
        """M x for a mass matrix M, or M^T x; x without one, and where h or a is zero."""
        if system.mass is None:
            return x
        t = self.ts[0]
        product = system.mass.vjp(t, x, x) if transposed else system.mass.slopes(t, x)
        return self.where(h, product, x)

    def number(self, i, j, h):
        """a_ij in the dtype of h."""
        number = self.a[i][j]
        # A Python number would be rounded to float32 first.
        return tf.cast(number, h.dtype) if tf.is_tensor(number) else tf.constant(number, h.dtype)

    def combined(self, h, xs, transposed=False):
        """h sum_j a_ij x_j for each i, or with a_ji."""
        count, found = len(self.ts), []
        for i in range(count):
            total = None
            for j in range(count):
                number = h * self.number(*((j, i) if transposed else (i, j)), h)
                total = number * xs[j] if total is None else total - (-number) * xs[j]
            found.append(total)
        return found

    def divided(self, h, x, others):
        """y with h sum_j a_ji y_j = x_i, a list; where h or a single a is zero, `others`."""
        count = len(self.ts)
        if count == 1:
            size, inverse = h * self.number(0, 0, h), [[1.0]]
        else:
            size, inverse = h, np.linalg.inv(np.transpose(self.a)).tolist()
        proper = tf.not_equal(size, 0.0)
        size = tf.where(proper, size, tf.ones_like(size))
        found = Block(self.ts, inverse).combined(1.0 / size, split(x, count))
        return [tf.where(proper, y, other) for y, other in zip(found, others)]


def step_of(h, system):
    """The step's size in the dtype of vectors, `[1, 1]` or `[systems, 1]`."""
    return tf.reshape(tf.cast(h, system.dtype), [-1, 1])


def split(x, count):
    """A vector of all stages as a list of those of each."""
    return [x] if count == 1 else tf.split(x, count, 1)


def join(xs):
    """The inverse of `split`."""
    return xs[0] if len(xs) == 1 else tf.concat(xs, 1)


def solve_transposed(system, newton, block, h, states, cotangents, kept, others=None):
    """w with w_i - h sum_j a_ji J_j^T w_j = g_i; NaN where there is none to be found.

    Args:
        system: `System`.
        newton: `Newton`.
        block: `Block`.
        h: as of `step_of`.
        states: list of vectors, the stage values.
        cotangents: g, vectors of all stages.
        kept: see `Inverse.of_block`.
        others: for each stage the cotangents of the parts that are not live, or None.

    Returns:
        `Solved`.
    """
    count, inverse = len(block.ts), system.inverse

    def times(kept, _, v):
        return inverse.times(kept, v, block, h, states, transposed=True)

    start = times(kept, None, cotangents)
    if inverse.direct:
        fine = tf.ones_like(start[:, 0], tf.bool)
        return Solved(start, kept, fine, tf.zeros([], tf.int32))
    others = [None] * count if others is None else others

    def residual(w):
        ws = split(w, count)
        products = [
            system.vjp(t, y, x, other) for t, y, x, other in zip(block.ts, states, ws, others)
        ]
        left = block.weighed(system, h, w, transposed=True)
        return cotangents - left - (-join(block.combined(h, products, transposed=True)))

    def renew(_):
        return inverse.renewed(block, h, states, by_row=True)

    renew = renew if inverse.renews else None
    costs = (count, count * system.size)
    found = converge(residual, start, kept, times, renew, tf.abs, newton, costs, linear=True)
    # Not as a constant: see `failures.nan_where`.
    lost = tf.sqrt(tf.cast(tf.where(found.converged, 0.0, -1.0), start.dtype))
    return found._replace(x=found.x + lost[:, tf.newaxis])


class Stages:
    """The implicit stages of one step.

    Args:
        system: `System`.
        newton: `Newton`.
        t: see `Method.step`.
        h: likewise.
        ys: likewise.
    """

    def __init__(self, system, newton, t, h, ys):
        self._system, self._newton = system, newton
        self._t, self._h, self._ys = t, h, ys
        self._size = tf.stop_gradient(step_of(h, system))
        self._kept = {}
        self.converged = []
        self.evaluations = tf.zeros([], tf.int32)
        if system.size:
            self._start = tf.stop_gradient(system.pack(system.live_of(ys)))
            kept = system.inverse.start(tf.stop_gradient(t), self._start)
            self._kept_at_start = constants(kept)
            self.evaluations += system.inverse.start_cost

    def _kept_of(self, a, block):
        key = tuple(a.ravel())
        if key not in self._kept:
            kept = self._system.inverse.of_block(block, self._size, self._kept_at_start)
            self._kept[key] = constants(kept)
        return self._kept[key]

    def filtered(self, errors, a):
        """Errors times the inverse of a stage with this coefficient."""
        system = self._system
        if not system.size:
            return errors
        block = Block([tf.stop_gradient(self._t)], [[a]])
        found = system.inverse.times(
            self._kept_of(np.array([[a]]), block),
            system.pack(system.live_of(errors)),
            block,
            self._size,
            [self._start],
        )
        return system.joined(system.unpack(tf.stop_gradient(found)), errors)

    def increments(self, weights, slopes):
        """The step's, by weights times its size."""
        return combine(weights, slopes, self._ys)

    def solve(self, dynamics, ts, a, known, before):
        """The slopes and the values of a block of stages, differentiable.

        Args:
            dynamics: `(t, ys) -> dys`.
            ts: list of the stages' times.
            a: array of their coefficients.
            known: for each what the earlier stages add.
            before: the state that the iteration starts at.
        """
        bases = [add(self._ys, x) for x in known]
        system, count = self._system, len(ts)
        if not system.size:
            slopes = [dynamics(t, base) for t, base in zip(ts, bases)]
            return slopes, self._values(a, bases, slopes)
        constant = [tf.stop_gradient(t) for t in ts]
        block = Block(constant, a.tolist())
        packed = [tf.stop_gradient(system.pack(system.live_of(base))) for base in bases]
        found = self._converged(block, a, packed, before)
        z = tf.stop_gradient(found.x)
        kept = self._kept[tuple(a.ravel())] = constants(found.kept)
        # One more update, by the evaluation that the derivative needs.
        live = [system.unpack(k) for k in self._slopes_of(a, z, None)]
        nearly = [system.joined(k, [tf.zeros_like(y) for y in self._ys]) for k in live]
        values = self._values(a, bases, nearly)
        slopes = [dynamics(t, value) for t, value in zip(ts, values)]
        self.evaluations += count
        there = [tf.stop_gradient(system.pack(system.live_of(k))) for k in slopes]
        states = [x + dz for x, dz in zip(packed, split(z, count))]
        update = join(block.combined(self._size, there)) - z
        update = system.inverse.times(kept, update, block, self._size, states)
        z = self._updated(z, update, join(there))
        states = [x + dz for x, dz in zip(packed, split(z, count))]
        solved = [system.unpack(k) for k in self._slopes_of(a, z, there)]
        solved = self._differentiable(block, kept, states, slopes, solved)
        if system.others:
            nearly = [system.joined(k, others) for k, others in zip(solved, slopes)]
            values = self._values(a, bases, nearly)
            slopes = [dynamics(t, value) for t, value in zip(ts, values)]
            self.evaluations += count
        slopes = [system.joined(k, others) for k, others in zip(solved, slopes)]
        return slopes, self._values(a, bases, slopes)

    def _updated(self, z, update, slopes):
        fine = tf.reduce_all(tf.math.is_finite(update), 1, keepdims=True)
        # What is not finite by itself stays so.
        bad = tf.reduce_sum(0.0 * slopes, 1, keepdims=True)
        return z + (tf.where(fine, update, tf.zeros_like(update)) + bad)

    def _converged(self, block, a, packed, before):
        system, count, size = self._system, len(block.ts), self._size
        inverse, kept = system.inverse, self._kept_of(a, block)

        def states_of(z):
            return [x + dz for x, dz in zip(packed, split(z, count))]

        def times(kept, z, v):
            return inverse.times(kept, v, block, size, states_of(z))

        def residual(z):
            slopes = [system.slopes(t, x) for t, x in zip(block.ts, states_of(z))]
            return join(block.combined(size, slopes)) - z

        def renew(z):
            return inverse.renewed(block, size, states_of(z))

        if inverse.direct:
            self.evaluations += count
            nothing = tf.zeros_like(join(packed))
            z = times(kept, nothing, residual(nothing))
            self.converged.append(tf.reduce_all(tf.math.is_finite(z), 1))
            return Solved(z, kept, self.converged[-1], count)
        base, known = join(packed), tf.abs(join([self._start] * count))

        def magnitude(z):
            return tf.maximum(tf.abs(base + z), known)

        before = tf.stop_gradient(system.pack(system.live_of(before)))
        found = converge(
            residual,
            join([before] * count) - base,
            kept,
            times,
            renew if inverse.renews else None,
            magnitude,
            self._newton,
            (count, count * system.size),
        )
        self.converged.append(found.converged)
        self.evaluations += found.evaluations
        return found

    def _slopes_of(self, a, z, slopes):
        """k with h A k = z, a list; where h is zero, these slopes."""
        proper = tf.not_equal(self._size, 0.0)
        size = tf.where(proper, self._size, tf.ones_like(self._size))
        inverse = np.linalg.inv(a)
        zs, found = split(z, len(a)), []
        for i in range(len(a)):
            total = None
            for j, x in enumerate(zs):
                term = inverse[i, j] * x
                total = term if total is None else total - (-term)
            none = tf.zeros_like(total) if slopes is None else slopes[i]
            found.append(tf.where(proper, total / size, none))
        return found

    def _values(self, a, bases, slopes):
        """base_i + h sum_j a_ij k_j."""
        return [
            add(base, weighted_sum(self._h, row, slopes, self._ys)) for base, row in zip(bases, a)
        ]

    def _differentiable(self, block, kept, states, slopes, solved):
        """The slopes `solved`, with the derivative that the equations give them."""
        system, newton, size, count = self._system, self._newton, self._size, len(states)
        outputs = [tf.stop_gradient(k) for live in solved for k in live]
        inputs = [k for full in slopes for k in system.live_of(full)]
        parts = len(system.live)

        def backward(cotangents):
            per_stage = [cotangents[i * parts : (i + 1) * parts] for i in range(count)]
            g = join([system.pack(x) for x in per_stage])
            found = solve_transposed(system, newton, block, size, states, g, kept)
            ws = [w for x in split(found.x, count) for w in system.unpack(x)]
            return once(ws)

        found = _platform.with_gradient(outputs, inputs, backward)
        found = [tf.ensure_shape(k, like.shape) for k, like in zip(found, outputs)]
        return [found[i * parts : (i + 1) * parts] for i in range(count)]


def constants(kept):
    """What is kept of an `Inverse`, for the derivative."""
    return tf.nest.map_structure(tf.stop_gradient, kept)


def once(xs):
    """Gradients that can't be differentiated again."""

    def refuse(_):
        raise RuntimeError(
            "Implicit methods have no second derivatives; use an explicit `method`, such as "
            "'dopri5'."
        )

    return _platform.with_gradient([tf.identity(x) for x in xs], xs, refuse)
