"""Methods that move one half of a state at a time: for separable Hamiltonians, and q'' = a(q)."""

import dataclasses
import math
from collections.abc import Sequence

import tensorflow as tf

from tfsymadj.arithmetic import add, add_terms, beside, inner, quotient
from tfsymadj.config import is_real
from tfsymadj.methods.method import Method, Step

_DRIFT, _KICK = 0, 1


@dataclasses.dataclass(frozen=True)
class Splitting(Method):
    """Drifts and kicks, one after the other, over a state of two halves (q, p).

    A drift moves q by dq/dt, a kick moves p by dp/dt; each takes the state as it is then. Where
    dq/dt depends on p alone and dp/dt on q alone, as for H = T(p) + V(q), both are the flows of a
    Hamiltonian, and the step is symplectic. Time goes with both: a kick is at the time to which the
    drifts have come, a drift at that of the kicks.

    Args:
        name: the method's name.
        order: order of convergence, for such dynamics.
        moves: pairs `(half, part)`: 0 for a drift, 1 for a kick, and its part of the step.
    """

    name: str
    order: int
    moves: tuple

    stages = property(lambda self: len(self.moves))
    evaluations = property(lambda self: len(self.moves))
    adjoint_evaluations = property(lambda self: len(self.moves))
    splits = True

    @property
    def nodes(self):
        """Where in the step each move is evaluated."""
        reached, found = [0.0, 0.0], []
        for half, part in self.moves:
            found.append(reached[1 - half])
            reached[half] += part
        return found

    def step(self, dynamics, t, h, ys, first=None):
        size = len(ys) // 2
        start, stages, slopes = list(ys), [], []
        moved = [tf.zeros_like(y) for y in ys]
        for (half, part), node in zip(self.moves, self.nodes):
            stages.append(add(start, moved))
            # Of a slope no more is computed than what is used.
            slopes.append(dynamics(t + node * h, stages[-1]))
            for i in range(half * size, (half + 1) * size):
                k = slopes[-1][i]
                moved[i] = moved[i] - beside(tf.cast(-part * h, k.dtype), k) * k
        return Step(
            ys=add(start, moved),
            increments=moved,
            errors=None,
            stages=stages,
            slopes=slopes,
            evaluations=self.stages,
        )

    def adjoint(self, dynamics, t, h, stage, adjoints, sums, with_time=False, slopes=None):
        """The moves transposed, last one first.

        A drift by the part a of the step has w = (a h lambda_q, 0), a kick w = (0, a h lambda_p),
        and lambda grows by (df/dy)^T w.
        """
        size, lanes = len(adjoints) // 2, h.shape.rank
        times = [tf.zeros_like(h)] * 2 if with_time else []
        for i in reversed(range(self.stages)):
            (half, part), node = self.moves[i], self.nodes[i]
            w = [
                beside(tf.cast(part * h, x.dtype), x) * x if j // size == half else tf.zeros_like(x)
                for j, x in enumerate(adjoints)
            ]
            found, values = dynamics.vjp(
                t + node * h, stage(tf.constant(i)), w, with_values=with_time
            )
            adjoints = add(adjoints, found.ys)
            sums = add_terms(sums, found._replace(times=[]))
            if with_time:
                (dt,), (begin, length) = found.times, times
                dt = tf.zeros_like(h) if dt is None else dt
                length = length - (-node * dt - quotient(inner(w, values, lanes), h))
                times = [begin + dt, length]
        return sums._replace(times=times)


def compose(method: Splitting, parts: Sequence[float], order: int, name: str) -> Splitting:
    """Steps of a method one after the other, as a step of a new one.

    With s parts of a symmetric method of order 2 that are symmetric themselves and sum to one, in
    such a way that the sum of their cubes is zero, the new method is of order 4 (Yoshida,
    Construction of higher order symplectic integrators, Physics Letters A 150, 262-268, 1990;
    Hairer, Lubich, Wanner, Geometric Numerical Integration, section II.4). What follows a drift by
    a drift is joined. The order is not checked.

    Args:
        method: such as `get_method("stormer_verlet")`.
        parts: of the step, numbers that sum to one; some may be negative.
        order: that the new method has.
        name: of the new method.

    Returns:
        A method for `solve(method=...)`.

    Raises:
        TypeError: if the method is no `Splitting`.
        ValueError: if the parts don't sum to one.

    Example:

    >>> from tfsymadj import methods
    >>> verlet = methods.get_method("stormer_verlet")
    >>> a = 1 / (4 - 4 ** (1 / 3))
    >>> suzuki4 = methods.compose(verlet, (a, a, 1 - 4 * a, a, a), order=4, name="suzuki4")
    >>> suzuki4.stages
    11
    """
    if not isinstance(method, Splitting):
        raise TypeError(f"`method` must be made of drifts and kicks. Received: {method!r}")
    parts = tuple(parts)
    fine = bool(parts) and all(is_real(x) and math.isfinite(x) for x in parts)
    if not fine or abs(sum(parts) - 1.0) > 1e-12 * sum(map(abs, parts)):
        raise ValueError(f"`parts` must be numbers that sum to one. Received: {parts!r}")
    moves: list = []
    for outer in parts:
        for half, part in method.moves:
            if moves and moves[-1][0] == half:
                moves[-1] = (half, moves[-1][1] + outer * part)
            else:
                moves.append((half, outer * part))
    return Splitting(name, order, tuple(moves))


_VERLET = Splitting("stormer_verlet", 2, ((_DRIFT, 0.5), (_KICK, 1.0), (_DRIFT, 0.5)))
_ROOT = 2.0 ** (1.0 / 3.0)
_OUTER = 1.0 / (2.0 - _ROOT)

#: By name. Verlet, Physical Review 159 (1967), 98-103; Yoshida (1990), see `compose`.
SPLITTINGS = {
    method.name: method
    for method in (
        _VERLET,
        compose(_VERLET, (_OUTER, -_ROOT * _OUTER, _OUTER), order=4, name="yoshida4"),
    )
}
