"""Explicit Runge-Kutta steps and their symplectic partners."""

import dataclasses
import functools

import numpy as np
import tensorflow as tf

from tfsymadj.arithmetic import (
    add,
    add_terms,
    damped,
    factors,
    inner,
    quotient,
    weighted_sum,
)
from tfsymadj.methods.method import Method, Step
from tfsymadj.methods.tableaus import ButcherTableau
from tfsymadj.xla import repeated


@dataclasses.dataclass(frozen=True)
class ExplicitRungeKutta(Method):
    """The method of a table.

    Args:
        tableau: `ButcherTableau`.
    """

    tableau: ButcherTableau

    name = property(lambda self: self.tableau.name)
    order = property(lambda self: self.tableau.order)
    embedded_order = property(lambda self: self.tableau.error_order)
    stages = property(lambda self: self.tableau.stages)
    evaluations = property(lambda self: self.tableau.stages)
    adjoint_evaluations = property(lambda self: sum(self.tableau.active_stages))
    dense_order = property(lambda self: self.tableau.dense_order)
    fsal = property(lambda self: self.tableau.fsal)
    replays = True

    @property
    def tells_stiffness(self):
        return self.fsal and self.tableau.c[self.tableau.num_rows - 2] == 1

    @property
    def dense(self):
        return None if self.tableau.dense is None else np.array(self.tableau.dense)

    def with_interpolant(self, own_rows=True):
        tableau = self.tableau.with_interpolant(own_rows)
        return (ExtendedRungeKutta if tableau.extension else ExplicitRungeKutta)(tableau)

    def without_error(self):
        return _without_error(self)

    def step(self, dynamics, t, h, ys, first=None):
        tableau = self.tableau
        stages, slopes = [], []
        for i in range(tableau.num_rows):
            with tf.name_scope(f"stage_{i + 1}"):
                if i == 0:
                    stage = ys
                else:
                    stage = add(ys, weighted_sum(h, tableau.a[i], slopes, ys))
                stages.append(stage)
                if i == 0 and first is not None:
                    slopes.append(first)
                else:
                    slopes.append(dynamics(t + tableau.c[i] * h, stage))
        increments = weighted_sum(h, tableau.b, slopes, ys)
        errors = None
        if tableau.adaptive:
            errors = weighted_sum(h, tableau.b_error, slopes, ys)
            if tableau.b_coarse is not None:
                errors = damped(errors, weighted_sum(h, tableau.b_coarse, slopes, ys))
        return Step(
            ys=stages[-1] if tableau.fsal else add(ys, increments),
            increments=increments,
            errors=errors,
            stages=stages[: tableau.stages],
            slopes=slopes,
            evaluations=tableau.num_rows - (first is not None),
        )

    def is_stiff(self, h, step, measured=None):
        """The test of DOPRI5 and DOP853 (Hairer, Norsett, Wanner, Solving Ordinary Differential
        Equations I, appendix; II, section IV.2): the last two stages are both at the step's end, so
        the difference of their slopes over that of their values is about the largest eigenvalue.
        """
        # The error estimate holds steps a little within what is stable, the more the tighter the
        # tolerance is.
        values = _differences(step.ys[:measured], step.stages[-1])
        slopes = _differences(step.slopes[-1][:measured], step.slopes[-2])
        bound, lanes = (0.8 * self.tableau.stability_limit / h) ** 2, h.shape.rank
        return inner(slopes, slopes, lanes) > bound * inner(values, values, lanes)

    def adjoint(self, dynamics, t, h, stage, adjoints, sums, with_time=False, slopes=None):
        """The symplectic partner of `step`, from lambda_{n+1} to lambda_n.

        In the variables w_i = b_i Lambda_i of Matsubara, Miyatake and Yaguchi (arXiv:2102.09750)
        no case b_i = 0 has to be told apart:

            w_i = h (b_i lambda_{n+1} + sum_{j>i} a_ji l_j),   l_i = (df/dy(t_i, Y_i))^T w_i,
            lambda_n = lambda_{n+1} + sum_i l_i.

        The stages are a loop, so that no more than one stage's activations and gradients are
        alive, also under XLA, which would overlap what is written out. An output at theta inside of
        the step adds h b_i(theta) times its cotangent to w_i: no further evaluation, but for rows
        that are for it alone.
        """
        tableau, lanes = self.tableau, h.shape.rank
        active = tableau.active_stages if slopes is None else [True] * self.stages
        order = [i for i in reversed(range(len(active))) if active[i]]
        count = len(order)
        stages = tf.constant(order, tf.int32)
        nodes = tableau.c_vector[order]
        ts = t + h * nodes.reshape([-1, *[1] * lanes])
        coupling = factors(h, tableau.a_matrix[np.ix_(order, order)], adjoints)
        weights = factors(h, tableau.b_vector[order], adjoints)
        weights = [w * y for w, y in zip(weights, adjoints)]
        begin, joined = 0, None
        if slopes is not None:
            weights = [w + tf.gather(x, stages) for w, x in zip(weights, slopes.own)]
            joined = slopes.first
            if slopes.wanted is not None:
                begin = tf.where(slopes.wanted, 0, count - tableau.stages)
        times = [tf.zeros_like(h)] * (2 if joined is None else 3) if with_time else []

        def body(i, variables):
            cotangents, weights, sums, times = variables
            first, k = None, begin + i
            if joined is not None:  # the first stage is the last one here
                first = [tf.cast(tf.equal(k, count - 1), x.dtype) * x for x in joined]
            found, values = dynamics.vjp(
                tf.gather(ts, k),
                stage(tf.gather(stages, k)),
                cotangents if first is None else add(cotangents, first),
                with_values=with_time,
            )
            weights = [w + tf.gather(c, k) * x for w, c, x in zip(weights, coupling, found.ys)]
            if with_time:
                (dt,), (start, step, *others) = found.times, times
                dt = tf.zeros_like(h) if dt is None else dt
                # Not a chain of additions: see `arithmetic`.
                node = tf.gather(nodes, k)
                step = step - (-node * dt - quotient(inner(cotangents, values, lanes), h))
                times = [start + dt, step, *(x + inner(first, values, lanes) for x in others)]
            # Taken from the rows after, not before they are changed: so XLA changes them in place.
            later = tf.minimum(k + 1, count - 1)
            sums = add_terms(sums, found._replace(times=[]))
            return [tf.gather(w, later) for w in weights], weights, sums, times

        _, _, sums, times = repeated(
            count - begin,
            body,
            ([tf.gather(w, begin) for w in weights], weights, sums, times),
            "adjoint_of_stages",
            bound=count,
        )
        return sums._replace(times=times)

    def replayed(self, vjp, h, adjoints, sums, with_time=False, slopes=None):
        """The formulas of `adjoint` for -w_i and -l_i, so that they are differences.

        Sums of several terms TensorFlow adds up in the order in which they happen to be ready.
        """
        a, b, stages = self.tableau.a_matrix, self.tableau.b_vector, self.tableau.stages
        terms, flat = [adjoints], tf.nest.flatten(sums)
        first = None if slopes is None else slopes.first
        times = [tf.zeros_like(h)] * (2 if first is None else 3) if with_time else []
        active = self.tableau.active_stages if slopes is None else [True] * stages
        for i in reversed(range(stages)):
            row = [b[i], *(a[j, i] for j in reversed(range(i + 1, stages)))]
            minus = [-w for w in weighted_sum(h, row, terms, adjoints)]
            if not active[i]:
                terms.append([tf.zeros_like(y) for y in adjoints])
                continue
            if slopes is not None:
                minus = [w - x[i] for w, x in zip(minus, slopes.own)]
            joined = i == 0 and first is not None
            cotangents = [w - x for w, x in zip(minus, first)] if joined else minus
            found, values = vjp(i, cotangents)
            terms.append([-x for x in found.ys])
            flat = [
                s if x is None else tf.ensure_shape(s - tf.cast(x, s.dtype), s.shape)
                for s, x in zip(flat, tf.nest.flatten(found._replace(times=[])), strict=True)
            ]
            if with_time:
                (dt,), (start, step, *others) = found.times, times
                dt = tf.zeros_like(h) if dt is None else dt
                size = self.tableau.c[i] * dt + quotient(inner(minus, values, 0), h)
                times = [start - dt, step - size, *others]
                if joined:
                    times = [*times[:2], inner(first, values, 0)]
        return tf.nest.pack_sequence_as(sums, flat)._replace(times=times)


@dataclasses.dataclass(frozen=True)
class ExtendedRungeKutta(ExplicitRungeKutta):
    """The method of a table whose continuous extension has rows of its own.

    The last slope is the next step's first, but in the adjoint it is a stage of its own step: the
    further rows depend on it, whose turn comes when the next step has had its own.

    Args:
        tableau: `ButcherTableau`.
        estimates: whether steps estimate their errors.
    """

    estimates: bool = True

    embedded_order = property(lambda self: self.tableau.error_order if self.estimates else None)
    stages = property(lambda self: len(self.tableau.a))
    evaluations = None
    fsal = property(lambda self: self.estimates)
    extends = True
    replays = False

    def with_interpolant(self, own_rows=True):
        return self if own_rows else super().with_interpolant(own_rows)

    def without_interpolant(self):
        plain = ExplicitRungeKutta(self.tableau)
        return plain if self.estimates else plain.without_error()

    def without_error(self):
        return dataclasses.replace(self, estimates=False)

    def step(self, dynamics, t, h, ys, first=None):
        return self.without_interpolant().step(dynamics, t, h, ys, first)

    def extended(self, dynamics, t, h, ys, step, wanted, last=True):
        tableau, known = self.tableau, len(step.slopes)
        rows = range(tableau.num_rows, len(tableau.a))
        count = len(tableau.a) - known - (not last)

        def evaluate(_, *__):
            stages, slopes = [], list(step.slopes)
            if known < tableau.num_rows:
                slopes.append(dynamics(t + h, step.ys))
            for i in rows:
                stages.append(add(ys, weighted_sum(h, tableau.a[i], slopes, ys)))
                if last or i < rows[-1]:
                    slopes.append(dynamics(t + tableau.c[i] * h, stages[-1]))
            return tf.constant(False), stages, slopes[known:]

        zeros = [tf.zeros_like(y) for y in ys]
        _, stages, slopes = tf.while_loop(
            lambda pending, *_: pending,
            evaluate,
            (wanted, [zeros] * len(rows), [zeros] * count),
            maximum_iterations=1,
            name="extension",
        )
        return step._replace(
            stages=[*step.stages, step.ys, *stages],
            slopes=[*step.slopes, *slopes],
            evaluations=step.evaluations + tf.where(wanted, count, 0),
        )


@functools.lru_cache(maxsize=256)
def _without_error(method):
    return ExplicitRungeKutta(method.tableau.without_error())


def _differences(xs, ys):
    """Constants, in a precision in which their squares don't overflow."""
    found = [tf.stop_gradient(x - y) for x, y in zip(xs, ys)]
    return [tf.cast(x, tf.float32) if x.dtype == tf.float16 else x for x in found]
