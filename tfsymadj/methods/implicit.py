"""Implicit Runge-Kutta steps and their symplectic partners."""

import dataclasses
import functools
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from tfsymadj.arithmetic import (
    add,
    add_terms,
    coefficients,
    damped,
    factors,
    inner,
    quotient,
    select,
    weighted_sum,
)
from tfsymadj.methods.method import Method, Step
from tfsymadj.methods.newton import (
    Block,
    Newton,
    Stages,
    System,
    join,
    once,
    solve_transposed,
    split,
    step_of,
)
from tfsymadj.methods.tableaus import ButcherTableau
from tfsymadj.methods.weighed import WeighedStages, correction
from tfsymadj.xla import repeated


@dataclasses.dataclass(frozen=True)
class ImplicitRungeKutta(Method):
    """The method of a table with implicit stages.

    The explicit part of a `Split` has a table of its own with an additive method; for dynamics
    that are no `Split` that is a method like the others.

    All stages, those that are evaluated at the step's ends for a continuous extension included,
    belong to their step: the first slope is taken from the step before where it is known, but its
    derivative is that of an evaluation.

    Args:
        tableau: `ButcherTableau`.
        newton: `Newton`.
        estimates: whether steps estimate their errors, if the table can.
        interpolates: whether there is a continuous extension.
        weighs: whether the dynamics have a mass matrix.
    """

    tableau: ButcherTableau
    newton: Newton = Newton()
    estimates: bool = True
    interpolates: bool = False
    weighs: bool = False

    name = property(lambda self: self.tableau.name)
    order = property(lambda self: self.tableau.order)
    embedded_order = property(lambda self: self.table.error_order)
    stages = property(lambda self: len(self.table.a))
    adjoint_evaluations = property(lambda self: sum(self.table.active_stages))
    dense_order = property(lambda self: self.table.dense_order)
    extends = property(lambda self: self.interpolates)
    evaluations = None
    iterates = True

    @property
    def table(self):
        """The table with all rows that a step has, and with what is used only."""
        return _table(self.tableau, self.estimates, self.interpolates)

    @property
    def fsal(self):
        # With an additive one, the next step needs the parts of the slope.
        starts = not self.table.a[0] and self.table.c[0] == 0 and self.table.a_explicit is None
        return starts and (self.table.stiffly_accurate or self.table.fsal)

    @property
    def dense(self):
        return None if self.table.dense is None else np.array(self.table.dense)

    def with_newton(self, newton):
        return dataclasses.replace(self, newton=newton)

    def with_mass(self):
        tableau = self.tableau
        if not tableau.stiffly_accurate or any(len(block) > 1 for block in tableau.blocks):
            return super().with_mass()
        if tableau.a[0]:
            tableau = tableau.with_first_row()
        if any(len(row) == i for i, row in enumerate(tableau.a) if i):
            return super().with_mass()
        return dataclasses.replace(self, tableau=tableau, weighs=True)

    def with_interpolant(self, own_rows=True):
        if self.weighs:
            raise ValueError(
                "`outputs`, `event` and `dense` must not ask for states inside of steps with a "
                f"`mass`. Received: method={self.name!r}"
            )
        return dataclasses.replace(self, interpolates=True)

    def without_interpolant(self):
        return dataclasses.replace(self, interpolates=False)

    def without_error(self):
        return dataclasses.replace(self, estimates=False)

    def suits(self, dynamics, t, ys):
        implicit, _ = self._parts(dynamics)
        return System(implicit, ys, 0, self.newton).separate(t, ys)

    def correction(self, dynamics, t, ys, slopes, parts):
        return correction(System(dynamics, ys, t.shape.rank, self.newton), t, ys, slopes, parts)

    def _parts(self, dynamics):
        """The implicit part, and the explicit one if that is treated as such, or None."""
        parts = getattr(dynamics, "parts", None)
        return parts if parts and self.table.a_explicit is not None else (dynamics, None)

    def step(self, dynamics, t, h, ys, first=None):
        tableau = self.table
        implicit, explicit = self._parts(dynamics)
        system = System(implicit, ys, h.shape.rank, self.newton)
        kind = Stages if system.mass is None else WeighedStages
        solver = kind(system, self.newton, t, h, ys)
        stages, slopes, others, evaluations = [], [], [], 0
        for block in tableau.blocks:
            with tf.name_scope(f"stage_{block[0] + 1}"):
                if block[0] == 0 and first is not None:
                    stages.append(ys)
                    slopes.append(first)
                    continue
                rows = [tableau.a[i] for i in block]
                earlier = [row[: block[0]] for row in rows]
                if explicit is not None:
                    earlier = [earlier[0] + tableau.a_explicit[block[0]]]
                known = [weighted_sum(h, row, slopes + others, ys) for row in earlier]
                ts = [t + tableau.c[i] * h for i in block]
                if len(rows[0]) == block[0]:
                    evaluations += 1
                    stages.append(add(ys, known[0]))
                    slopes.append(implicit(ts[0], stages[-1]))
                else:
                    a = tableau.a_matrix[np.ix_(block, block)]
                    before = stages[-1] if stages else ys
                    found, values = solver.solve(implicit, ts, a, known, before)
                    slopes += found
                    stages += values
                if explicit is not None:
                    others.append(explicit(ts[0], stages[-1]))
        slopes = [add(k, other) for k, other in zip(slopes, others)] if others else slopes
        increments = solver.increments(coefficients(h, tableau.b, ys), slopes)
        return Step(
            ys=add(ys, increments),
            increments=increments,
            errors=self._errors(solver, h, ys, stages, slopes) if tableau.adaptive else None,
            stages=stages,
            slopes=slopes,
            evaluations=solver.evaluations + evaluations,
            converged=_all(solver.converged, h),
        )

    def _errors(self, solver, h, ys, stages, slopes):
        """The estimate of the error; constants for the derivative.

        An embedded solution that is not stable for stiff components gives them an estimate that is
        much too large. Where it is not a stage of the method, the estimate is multiplied by
        (I - h a J)^-1 (Hosea, Shampine, Applied Numerical Mathematics 20 (1996), 21-37).

        With a mass matrix M the estimate from the slopes is one of M y. So it is that of a stage,
        or multiplied by (M - h a J)^-1, where the algebraic equations make of the error of all
        others that of what they determine (Hairer, Wanner, Solving Ordinary Differential Equations
        II, section IV.8).
        """
        tableau = self.table
        if self.weighs and tableau.embedded_stage is not None:
            embedded = stages[tableau.embedded_stage]
            return [tf.stop_gradient(x - y) for x, y in zip(stages[-1], embedded)]
        slopes = [[tf.stop_gradient(k) for k in slope] for slope in slopes]
        errors = weighted_sum(h, tableau.b_error, slopes, ys)
        if tableau.b_coarse is not None:
            errors = damped(errors, weighted_sum(h, tableau.b_coarse, slopes, ys))
        number = tableau.a[-1][-1] if self.weighs else tableau.filter
        return errors if number is None else solver.filtered(errors, number)

    def adjoint(self, dynamics, t, h, stage, adjoints, sums, with_time=False, slopes=None):
        """The symplectic partner of `step`, from lambda_{n+1} to lambda_n.

        As that of explicit methods (see `ExplicitRungeKutta.adjoint`), where each block of stages
        that depend on each other is a system of linear equations:

            w_i = h (b_i lambda_{n+1} + sum_j a_ji l_j),   l_i = (df/dy(t_i, Y_i))^T w_i,
            lambda_n = lambda_{n+1} + sum_i l_i.

        Each part of an additive method has weights w_i of its own, from the l_j of both and its own
        table, and l_i is the sum of both (Matsuda, Miyatake, BIT Numerical Mathematics 61 (2021),
        1419-1441, for partitioned methods).

        With a mass matrix M, and slopes that are values of f, the stages' equations have weights
        p_i, of which only M^T p_i is that plus a slope:

            M^T p_i = delta_is lambda_{n+1} + l_i,   w_i = h sum_j a_ji p_j,   l_i = J_i^T w_i,

        solved for w_i by (M^T - h a_ii J_i^T) w_i = h a_ii delta_is lambda_{n+1} + M^T g_i, with
        the part g_i of later stages. M itself gets - sum_i p_i (Y_i - y_n)^T.
        """
        partner = _Partner(self, dynamics, t, h, stage, adjoints, slopes)
        times = [tf.zeros_like(h)] * 2 if with_time else []
        if all(len(block) == 1 for block in self.table.blocks):
            sums, times = partner.stage_by_stage(sums, times)
        else:
            sums, times = partner.block_by_block(sums, times)
        found = sums._replace(times=times)
        return tf.nest.pack_sequence_as(found, once(tf.nest.flatten(found)))


class _Weights(NamedTuple):
    """The solution of a block's equations.

    Attributes:
        block: `Block`.
        ws: w of the stages, a list of states.
        states: vectors, the stage values.
        g: the right hand side, vectors.
        w: the solution, likewise.
        kept: of the `Inverse`.
    """

    block: Block
    ws: list
    states: list
    g: tf.Tensor
    w: tf.Tensor
    kept: Any


class _Partner:
    """One step of the symplectic partner."""

    def __init__(self, method, dynamics, t, h, stage, adjoints, slopes):
        self._tableau, self._newton = method.table, method.newton
        self._dynamics, self._explicit = method._parts(dynamics)
        self._stage, self._h = stage, h
        self._lanes = h.shape.rank
        tableau = self._tableau
        self._ts = t + h * tableau.c_vector.reshape([-1, *[1] * self._lanes])
        weights = factors(h, tableau.b_vector, adjoints)
        self._weights = [w * y for w, y in zip(weights, adjoints)]
        self._mass, self._adjoints, self._start = getattr(dynamics, "mass", None), adjoints, None
        if self._mass is not None:  # theirs come with the last stage's p
            self._weights = [tf.zeros_like(w) for w in self._weights]
        self._extends = slopes is not None
        if self._extends:
            self._weights = [w + x for w, x in zip(self._weights, slopes.own)]
        # From the first row that a stage may need to come to w: all others.
        self._coupling = factors(h, tableau.a_matrix, adjoints)
        self._explicit_coupling = []
        if self._explicit is not None:
            self._explicit_coupling = factors(h, tableau.explicit_matrix, adjoints)
        start = self._start = stage(tf.zeros([], tf.int32))
        self._system = System(self._dynamics, start, self._lanes, self._newton)
        self._size = step_of(h, self._system)
        if self._system.size:
            x = self._system.pack(self._system.live_of(start))
            self._kept_at_start = self._system.inverse.start(self._ts[0], x)

    def _of_block(self, block):
        return self._system.inverse.of_block(block, self._size, self._kept_at_start)

    def _solved(self, block, states, cotangents, kept, own=None):
        """w of a block of stages, from all of its equations but what they have of itself.

        Args:
            block: `Block`.
            states: list of the stage values.
            cotangents: for each stage the part of w that later ones give.
            kept: of the `Inverse`.
            own: with a mass matrix delta_is lambda_{n+1}.
        """
        system = self._system
        packed = [system.pack(system.live_of(ys)) for ys in states]
        g = join([system.pack(system.live_of(x)) for x in cotangents])
        others = cotangents if system.others else None
        right = g
        if own is not None:
            (right,) = block.combined(self._size, [system.pack(own)])
            right += block.weighed(system, self._size, g, transposed=True)
        found = solve_transposed(
            system, self._newton, block, self._size, packed, right, kept, others
        )
        ws = split(found.x, len(states))
        ws = [system.joined(system.unpack(w), x) for w, x in zip(ws, cotangents)]
        return _Weights(block, ws, packed, g, found.x, found.kept)

    def _refined(self, found, products):
        """The products l, without the error of w times the stiffness.

        It is h sum_j a_ji l_j = w_i - g_i, too. What the products are wrong by is corrected by the
        inverse, as in Newton's iteration: where it is small it counts, where it is large it does
        not.
        """
        system, block = self._system, found.block
        direct = [system.pack(system.live_of(x)) for x in products]
        v = found.w - found.g
        wrong = join(block.combined(self._size, direct, transposed=True)) - v
        v += system.inverse.times(
            found.kept, wrong, block, self._size, found.states, transposed=True
        )
        refined = block.divided(self._size, v, direct)
        return [system.joined(system.unpack(x), y) for x, y in zip(refined, products)]

    def _last(self, i):
        """delta_is lambda_{n+1}."""
        last = tf.equal(i, len(self._tableau.a) - 1)
        return [tf.cast(last, x.dtype) * x for x in self._adjoints]

    def _weighed(self, i, t, ys, found, slope, sums):
        """p of a stage, its part of lambda_n - lambda_{n+1}, and the sums with that of M.

        Args:
            i: the stage's number.
            t: its time.
            ys: its value.
            found: `_Weights`, w.
            slope: l.
            sums: `Sources`.
        """
        system, block, size = self._system, found.block, self._size
        last = self._last(i)
        (right,) = block.combined(size, [system.pack(add(last, slope))])
        v = found.w - found.g
        wrong = right - block.weighed(system, size, v, transposed=True)
        # As in `_refined`.
        v += system.inverse.times(found.kept, wrong, block, size, found.states, transposed=True)
        (p,) = block.divided(size, v, [tf.zeros_like(v)])
        weights = system.unpack(p)
        moved = [y - x for y, x in zip(ys, self._start)]
        of_mass, _ = self._mass.vjp(t, moved, [-p for p in weights])
        sums = add_terms(sums, of_mass._replace(ys=[None] * len(ys)))
        change = block.where(
            size, system.pack([-x - y for x, y in zip(of_mass.ys, last)]), system.pack(slope)
        )
        return weights, system.unpack(change), sums

    def _product(self, dynamics, t, node, ys, w, sums, times):
        """l of a stage, and the sums with its part but that."""
        found, values = dynamics.vjp(t, ys, w, with_values=bool(times))
        if times:
            (dt,), (start, step) = found.times, times
            dt = tf.zeros_like(self._h) if dt is None else dt
            # Not a chain of additions: see `arithmetic`.
            step = step - (-node * dt - quotient(inner(w, values, self._lanes), self._h))
            times = [start + dt, step]
        others = found._replace(ys=[None] * len(found.ys), times=[])
        return found.ys, add_terms(sums, others), times

    def block_by_block(self, sums, times):
        """The sums with the parts of all stages, written out."""
        tableau = self._tableau
        active = {i for i, x in enumerate(tableau.active_stages) if x}
        weights = [list(x) for x in zip(*map(tf.unstack, self._weights))]
        for indices in reversed(tableau.blocks):
            first = indices[0]
            if not (self._extends or active.intersection(indices)):
                continue
            ts = [self._ts[i] for i in indices]
            states = [self._stage(tf.constant(i)) for i in indices]
            ws, found = [weights[i] for i in indices], None
            if len(tableau.a[first]) > first and self._system.size:
                block = Block(ts, tableau.a_matrix[np.ix_(indices, indices)].tolist())
                found = self._solved(block, states, ws, self._of_block(block))
                ws = found.ws
            products = []
            for i, t, ys, w in zip(indices, ts, states, ws):
                product, sums, times = self._product(
                    self._dynamics, t, tableau.c[i], ys, w, sums, times
                )
                products.append(product)
            if found is not None:
                products = self._refined(found, products)
            for product in products:
                sums = sums._replace(ys=add_terms(sums.ys, product))
            for i in range(first):
                for j, product in zip(indices, products):
                    weights[i] = [
                        x + c[j, i] * y for x, c, y in zip(weights[i], self._coupling, product)
                    ]
        return sums, times

    def stage_by_stage(self, sums, times):
        """The same for stages that are solved one at a time: a loop, as with explicit methods."""
        tableau, count = self._tableau, len(self._tableau.a)
        nodes, diagonal = tf.constant(tableau.c_vector), tf.constant(np.diag(tableau.a_matrix))
        numbers = sorted({*np.diag(tableau.a_matrix).tolist()} - {0.0})
        implicit = bool(self._system.size)
        kept = self._of_block(self._block(0, numbers[0])) if implicit else []

        def body(k, variables):
            cotangents, weights, others, sums, times, kept = variables
            i = count - 1 - k
            ys = self._stage(i)
            t, node, found, of_explicit = tf.gather(self._ts, i), tf.gather(nodes, i), None, None
            if self._explicit is not None:
                w = [tf.gather(x, i) for x in others]
                of_explicit, sums, times = self._product(
                    self._explicit, t, node, ys, w, sums, times
                )
                own = [tf.gather(tf.gather(c, i), i) for c in self._coupling]
                cotangents = [x + c * y for x, c, y in zip(cotangents, own, of_explicit)]
            if implicit:
                found, kept = self._one(i, ys, cotangents, kept, diagonal, numbers)
                (cotangents,) = found.ws
            product, sums, times = self._product(
                self._dynamics, t, node, ys, cotangents, sums, times
            )
            change = product
            if self._mass is not None:
                product, change, sums = self._weighed(i, t, ys, found, product, sums)
            elif found is not None:
                (product,) = self._refined(found, [product])
                change = product
            if of_explicit is not None:
                product = change = add(product, of_explicit)
            sums = sums._replace(ys=add_terms(sums.ys, change))
            # c[i] has zeros where a stage does not need this one; its own entry counts no more.
            weights = [w + tf.gather(c, i) * x for w, c, x in zip(weights, self._coupling, product)]
            others = [
                w + tf.gather(c, i) * x for w, c, x in zip(others, self._explicit_coupling, product)
            ]
            later = tf.maximum(i - 1, 0)
            return [tf.gather(w, later) for w in weights], weights, others, sums, times, kept

        last = [w[count - 1] for w in self._weights]
        others = [] if self._explicit is None else self._weights
        _, _, _, sums, times, _ = repeated(
            count, body, (last, self._weights, others, sums, times, kept), "adjoint_of_stages"
        )
        return sums, times

    def _block(self, i, number):
        return Block([tf.gather(self._ts, i)], [[number]])

    def _one(self, i, ys, cotangents, kept, diagonal, numbers):
        """w of one stage, and what is kept for the next ones."""
        number = tf.gather(diagonal, i)
        block, system = self._block(i, number), self._system
        own = None if self._mass is None else self._last(i)
        if not system.inverse.renews:
            known = kept if len(numbers) == 1 else self._of_block(block)
            return self._solved(block, [ys], [cotangents], known, own), kept
        is_explicit = tf.equal(number, 0.0)
        known = kept if len(numbers) == 1 else self._of_block(block)
        identity = tf.eye(system.size, dtype=known.dtype) - tf.zeros_like(known)
        known = tf.where(is_explicit, identity, known)
        found = self._solved(block, [ys], [cotangents], known, own)
        if len(numbers) == 1:
            (kept,) = select(is_explicit, [kept], [found.kept])
        return found, kept


def _all(converged, h):
    """Whether all stages have converged: one boolean, or one for each lane."""
    fine = tf.ones_like(h, tf.bool)
    for x in converged:
        fine = tf.logical_and(fine, x if h.shape.rank else tf.reduce_all(x))
    return fine


@functools.lru_cache(maxsize=256)
def _table(tableau, estimates, interpolates):
    return tableau.as_used(estimates, interpolates)
