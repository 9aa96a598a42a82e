"""The symplectic adjoint method with checkpoints.

Matsubara, Miyatake, Yaguchi: Symplectic Adjoint Method for Exact Gradient of Neural ODE with
Minimal Memory, NeurIPS 2021, arXiv:2102.09750; IEEE TNNLS 35(8), 2024.
"""

import dataclasses
import math
from typing import Any, NamedTuple

import tensorflow as tf

from tfsymadj import buffers
from tfsymadj.gradients.gradient import Gradient, Solved
from tfsymadj.integrate import Recording, integrate, poison
from tfsymadj.runge_kutta import rk_step, rk_step_adjoint

_CHECKPOINTS = ("auto", "steps", "stages")

#: Largest buffer that an adaptive solve with `"steps"` or `"stages"` may ask for.
_LARGEST_BUFFER = 4 * 2**30


class SymplecticAdjoint(Gradient):
    """The exact gradient of the steps taken, at the memory of checkpoints and one network use.

    The adjoint equation is integrated backward with the symplectic partner of the method, each
    stage recomputed under a tape of its own. The backward pass goes segment by segment: from a
    checkpoint it recomputes the stage values of a segment's steps, then runs the adjoint over
    them. Rejected steps cost nothing, nor do stages of weight zero.

    Args:
        checkpoints: which states are kept.

            * `"auto"`: every c-th step, with c so that about 2 sqrt(N s) states are held at any
              time, for N steps of s stages (`max_steps` in place of N where N is not known before
              the solve). No more evaluations than `"steps"`.
            * `"steps"`: every step, N + s states, as in the paper.
            * `"stages"`: every stage value, N s states. Most memory, least time: nothing is
              recomputed but the taped evaluations.

            In an adaptive solve `"steps"` and `"stages"` need the memory of `max_steps` steps.

    Raises:
        ValueError: if `checkpoints` is none of these.

    Example:

    >>> import tfsymadj
    >>> gradient = tfsymadj.SymplecticAdjoint(checkpoints="steps")
    >>> y = tfsymadj.odeint(lambda t, y: -y, [1.0], [0.0, 1.0], gradient=gradient)
    """

    def __init__(self, checkpoints="auto"):
        if checkpoints not in _CHECKPOINTS:
            raise ValueError(
                f"`checkpoints` must be one of {list(_CHECKPOINTS)}. Received: {checkpoints!r}"
            )
        self.checkpoints = checkpoints

    def get_config(self):
        return {"checkpoints": self.checkpoints}

    def _recording(self, problem):
        """How many states the forward loop keeps, and how far apart."""
        n, s = problem.max_steps, problem.tableau.stages
        if self.checkpoints != "auto" and not problem.known_length:
            _check_size(problem, n * s if self.checkpoints == "stages" else n, self.checkpoints)
        if self.checkpoints == "stages":
            return Recording(stride=n, rows=0, stages=True)
        if self.checkpoints == "steps":
            return Recording(stride=1, rows=n)
        # n / c checkpoints and c s stage values at a time: least for c = sqrt(n / s).
        if isinstance(n, int):
            stride = max(1, round(math.sqrt(n / s)))
            return Recording(stride=stride, rows=math.ceil(n / stride))
        stride = tf.cast(tf.round(tf.sqrt(tf.cast(n, tf.float64) / s)), tf.int32)
        stride = tf.maximum(stride, 1)
        return Recording(stride=stride, rows=-(-n // stride))

    def solve(self, problem):
        recording = self._recording(problem)
        size = len(problem.ys)
        captured = problem.dynamics.captured
        counts = []

        @tf.custom_gradient
        def run(*inputs):
            # `captured` is listed so that its gradients are asked for; the dynamics hold the
            # tensors themselves.
            ys, ts = list(inputs[:size]), inputs[size]
            here = dataclasses.replace(problem, ys=ys, ts=ts)
            result = integrate(here, recording)
            counts[:] = result[1:6]

            def backward(*cotangents, variables=()):
                gradients = _Backward(here, recording, result, variables or ()).run(cotangents)
                inputs = [*gradients.ys, gradients.ts, *gradients.captured]
                return (inputs, gradients.variables) if variables else inputs

            return tuple(result.ys), backward

        ys = run(*problem.ys, problem.ts, *captured)
        status, time, num_steps, num_accepted, num_evaluations = counts
        tableau = problem.tableau.without_error()
        per_step = sum(tableau.active_stages)
        if self.checkpoints != "stages":
            per_step += tableau.stages
        return Solved(
            list(ys), status, time, num_steps, num_accepted, num_evaluations,
            num_accepted * per_step,
        )  # fmt: skip


class _Gradients(NamedTuple):
    ys: list
    ts: Any
    captured: list
    variables: list


class _Adjoint(NamedTuple):
    """What the backward loops carry."""

    adjoints: list
    captured: list
    variables: list
    ts: list  # of one tensor, or empty


class _Backward:
    """The backward pass of one solve."""

    def __init__(self, problem, recording, result, variables):
        self._problem = problem
        self._dynamics = problem.dynamics
        # The FSAL row and the error estimate are of no use to the derivative.
        self._tableau = problem.tableau.without_error()
        self._recording = recording
        self._result = result
        self._grid = result.grid
        self._variables = list(variables)
        self._only_end = problem.ts.shape[0] == 2

    def run(self, cotangents):
        """The gradients, for cotangents of the stacked outputs."""
        problem, result = self._problem, self._result
        self._cotangents = cotangents
        last = [g[-1] if self._only_end else tf.zeros_like(g[0]) for g in cotangents]
        state = _Adjoint(
            adjoints=last,
            captured=[_accumulator(x) for x in self._dynamics.captured],
            variables=[_accumulator(v) for v in self._variables],
            ts=[tf.zeros([problem.num_times], tf.float64)] if problem.with_time else [],
        )
        accepted = result.num_accepted
        if self._recording.stages:
            state = self._adjoint_steps(0, accepted, self._kept_stage, state)
        else:
            state = self._segments(accepted, state)
        adjoints = [a + g[0] for a, g in zip(state.adjoints, cotangents)]
        captured = [tf.cast(g, x.dtype) for g, x in zip(state.captured, self._dynamics.captured)]
        variables = [tf.cast(g, v.dtype) for g, v in zip(state.variables, self._variables)]
        ts = state.ts[0] if problem.with_time else None
        return _Gradients(
            poison(adjoints, result.status),
            poison([ts], result.status)[0],
            poison(captured, result.status),
            poison(variables, result.status),
        )

    def _segments(self, accepted, state):
        """From the last checkpoint to the first: recompute a segment's stages, then its adjoint."""
        stride, s, like = self._recording.stride, self._tableau.stages, self._problem.ys
        single = isinstance(stride, int) and stride == 1  # segments of one step
        # One set of rows for all segments: what an earlier segment left is overwritten.
        rows = [] if single else [buffers.reserve_rows((stride - 1) * s, y) for y in like]

        def body(q, rows, state):
            begin = q * stride
            last = tf.minimum(begin + stride, accepted) - 1
            ys = [checkpoints[q] for checkpoints in self._result.checkpoints]
            ys = [tf.ensure_shape(y, y0.shape) for y, y0 in zip(ys, like)]
            if not single:
                ys, rows = self._recompute(begin, last, ys, rows)
            # The last step's stages are used at once, and the state after it is not needed, so
            # that its last evaluation is not made.
            stages = self._step(last, ys).stages
            state = self._adjoint_step(last, stages.__getitem__, state)
            if not single:

                def stage(n, i):
                    return [buffers.get_row(r, (n - begin) * s + i, y) for r, y in zip(rows, like)]

                state = self._adjoint_steps(begin, last, stage, state)
            return q - 1, rows, state

        count = -(-accepted // stride)
        _, _, state = tf.while_loop(
            lambda q, rows, state: q >= 0,
            body,
            (count - 1, rows, state),
            parallel_iterations=1,
            maximum_iterations=_static(self._recording.rows),
            name="segments",
        )
        return state

    def _step(self, n, ys):
        return rk_step(self._dynamics, self._tableau, self._grid.t[n], self._grid.h[n], ys)

    def _recompute(self, begin, end, ys, rows):
        """The state before the step `end`; `rows` get the stage values of the steps before it."""
        s = self._tableau.stages
        needed = [i for i in range(s) if self._tableau.active_stages[i]]

        def body(n, ys, rows):
            step = self._step(n, ys)
            for i in needed:
                row = (n - begin) * s + i
                rows = [buffers.set_row(r, row, y) for r, y in zip(rows, step.stages[i])]
            return n + 1, step.ys, rows

        _, ys, rows = tf.while_loop(
            lambda n, ys, rows: n < end,
            body,
            (begin, ys, rows),
            parallel_iterations=1,
            maximum_iterations=_static(self._recording.stride),
            name="recompute",
        )
        return ys, rows

    def _adjoint_steps(self, begin, end, stage, state):
        """The adjoint over the steps from `begin` to before `end`, last first."""

        def body(n, state):
            return n - 1, self._adjoint_step(n, lambda i: stage(n, i), state)

        _, state = tf.while_loop(
            lambda n, state: n >= begin,
            body,
            (end - 1, state),
            parallel_iterations=1,
            maximum_iterations=_static(self._recording.stride),
            name="adjoint",
        )
        return state

    def _adjoint_step(self, n, stage, state):
        grid, problem = self._grid, self._problem
        m = tf.cast(grid.interval[n], tf.int32)
        adjoints = state.adjoints
        if not self._only_end:
            # The solution that this step ends at is an output.
            ends = tf.not_equal(grid.hits_end[n], 0)
            adjoints = [
                a + tf.where(ends, g[m + 1], tf.zeros([], g.dtype))
                for a, g in zip(adjoints, self._cotangents)
            ]
        step = rk_step_adjoint(
            self._dynamics, self._tableau, grid.t[n], grid.h[n], stage, adjoints,
            state.captured, state.variables, self._variables, problem.with_time,
        )  # fmt: skip
        ts = state.ts
        if problem.with_time:
            # t_n and h as functions of the interval's ends: see `controllers.Proposal`.
            a, b = grid.time_fraction[n], grid.step_fraction[n]
            to_start = (1.0 - a) * step.start - b * step.step
            to_end = a * step.start + b * step.step
            count = problem.num_times
            ts = [
                ts[0]
                + to_start * tf.one_hot(m, count, dtype=tf.float64)
                + to_end * tf.one_hot(m + 1, count, dtype=tf.float64)
            ]
        return _Adjoint(step.adjoints, step.captured, step.variables, ts)

    def _kept_stage(self, n, i):
        row = n * self._tableau.stages + i
        like = self._problem.ys
        return [tf.ensure_shape(c[row], y.shape) for c, y in zip(self._result.checkpoints, like)]


def _accumulator(x):
    """Zeros in which gradients of `x` are summed: never in half precision."""
    dtype = tf.float32 if x.dtype in (tf.float16, tf.bfloat16) else x.dtype
    return tf.zeros(x.shape if x.shape.is_fully_defined() else tf.shape(x), dtype)


def _static(n):
    return n if isinstance(n, int) else None


def _check_size(problem, states, checkpoints):
    """Refuses buffers that no one meant to ask for."""
    sizes = [y.shape.num_elements() for y in problem.ys]
    if None in sizes or not isinstance(states, int):
        return
    size = states * sum(n * y.dtype.size for n, y in zip(sizes, problem.ys))
    if size > _LARGEST_BUFFER:
        raise ValueError(
            f"An adaptive solve with `checkpoints={checkpoints!r}` holds `max_steps` steps, here "
            f"{size / 2**30:.1f} GiB, more than the {_LARGEST_BUFFER / 2**30:.0f} GiB allowed. "
            "Use `checkpoints='auto'` or a smaller `max_steps`. "
            f"Received: max_steps={problem.max_steps}"
        )
