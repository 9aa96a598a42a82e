"""Steady states: where the dynamics come to rest, and the derivatives of that."""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import tensorflow as tf
from typing_extensions import Unpack

from tfsymadj import _platform
from tfsymadj.arguments import positional
from tfsymadj.arithmetic import epsilon
from tfsymadj.config import is_real
from tfsymadj.dynamics import calling
from tfsymadj.dynamics.closing import Sources
from tfsymadj.events import Event
from tfsymadj.gradients import Gradient, NoGradient
from tfsymadj.loop.failures import finite, nan_where
from tfsymadj.loop.integrate import integrate
from tfsymadj.loop.problem import Outcome
from tfsymadj.loop.watch import Watch
from tfsymadj.methods import get_method
from tfsymadj.options import Options, SolverOptions, documented, with_options
from tfsymadj.solution import Stats, Status
from tfsymadj.solve import solve_with
from tfsymadj.steps import PIController

#: The dynamics are to be as small as this part of the tolerance, for rounding errors' sake.
_ROOT = 0.5

#: Part of the time that a solve takes which begins at rest.
_AT_ONCE = 1e-9

#: Of a step, relative to what it moves.
_LARGEST_ERROR = 0.1


class SteadyState(NamedTuple):
    """Where a solve came to rest.

    Attributes:
        y: the state, the nest of `y0`; NaN if there was no rest.
        t: the time at which it was found, float64 scalar.
        success: whether the dynamics are at rest there, a boolean scalar.
        stats: `Stats` of the solve.
    """

    y: Any
    t: tf.Tensor
    success: tf.Tensor
    stats: Stats


@documented
@with_options
@tf.autograph.experimental.do_not_convert
def steady_state(
    dynamics: Callable,
    y0: Any,
    *,
    args: Any = (),
    max_time: float = 1000.0,
    tolerance: float = 1e-6,
    **options: Unpack[SolverOptions],
) -> SteadyState:
    """Solves dy/dt = dynamics(t, y, *args) until it is at rest.

    At rest the root mean square of f / (1 + |y|) over all entries is at most `tolerance`. The
    gradient is that of the equation f(y) = 0, by the implicit function theorem: for the cotangent g
    of the state it is (df/dp)^T v with (df/dy)^T v = -g, which is found by solving dv/ds =
    (df/dy)^T v + g until that is at rest: at no more memory than one use of the dynamics, and it
    comes to rest wherever the solve itself does. It does not depend on `y0`. Second derivatives
    raise.

    Args:
        dynamics: see `solve`; they should not depend on the time.
        y0: likewise.
        args: likewise.
        max_time: the solve begins at t = 0 and does not go on beyond this.
        tolerance: see above; unless they are given also the solver's `rtol` and `atol`.
        **options: those of `Options`.

    Returns:
        `SteadyState`.

    Raises:
        ValueError: for options that don't fit: `event`, `dense`, `outputs`, `gradient`, `jumps`,
            `batch_axis`, `mass`.
        tf.errors.InvalidArgumentError: see `on_failure`.

    Example:

    >>> import tfsymadj
    >>> found = tfsymadj.steady_state(lambda t, y, a: a - y * y, [0.5], args=(2.0,))
    >>> abs(float(found.y[0]) - 2.0**0.5) < 1e-5
    True
    """
    for name, value in (("max_time", max_time), ("tolerance", tolerance)):
        if not (is_real(value) and 0 < value < float("inf")):
            raise ValueError(f"`{name}` must be positive and finite. Received: {value!r}")
    forward = _forward({**options}, tolerance)
    args = positional(args)
    autonomous = calling.is_autonomous(dynamics, args, forward.autonomous, y0)

    implicit = Options(
        method="euler",
        num_steps=1,
        gradient=_Implicit(tolerance, max_time),
        on_failure="status",
        jit_compile=forward.jit_compile,
    )

    def solved(y0, t, options):
        return solve_with(dynamics, y0, t, args, options, autonomous)

    def excess(t, y, *args):
        slopes = calling.call(dynamics, t, y, args, autonomous)
        return _size(tf.nest.flatten(slopes), tf.nest.flatten(y)) / (_ROOT * tolerance) - 1.0

    forward = dataclasses.replace(forward, event=_Rest(excess, direction=-1, args=args))
    y, t, stats = _end(solved, y0, max_time, forward, implicit)
    at_rest = solved(y, [0.0, 1.0], implicit)
    if forward.on_failure == "raise":
        message = (
            "The dynamics did not come to rest within `max_time`: look at the solution by `solve`, "
            "loosen `tolerance`, or increase `max_time`. They should not depend on the time. "
            f"Received: max_time={max_time!r}, tolerance={tolerance!r}{_too_coarse(y, tolerance)}"
        )
        with tf.control_dependencies([tf.debugging.Assert(at_rest.success, [message])]):
            at_rest = tf.nest.map_structure(tf.identity, at_rest)
    return SteadyState(
        y=tf.nest.map_structure(lambda y: y[-1], at_rest.y),
        t=t,
        success=at_rest.success,
        stats=stats,
    )


def _too_coarse(y, tolerance):
    """A remark on states that are rounded more coarsely than the tolerance, or nothing."""
    dtypes = {x.dtype.real_dtype for x in tf.nest.flatten(y)}
    names = sorted(dtype.name for dtype in dtypes if epsilon(dtype) > tolerance)
    return f", and a state of {' and '.join(names)}, coarser than `tolerance`" if names else ""


def _end(solved, y0, max_time, forward, implicit):
    """The state where the solve ended, the time and the `Stats`; constants."""
    # A start at rest has no event after it: next to nothing is left of the solve.
    resting = solved(y0, [0.0, 1.0], implicit).success
    whole = tf.constant(max_time, tf.float64)
    end = tf.where(resting, _AT_ONCE * whole, whole)
    found = solved(y0, tf.stack([tf.zeros_like(end), end]), forward)
    happened = tf.logical_and(found.event.index >= 0, tf.logical_not(resting))

    def ended(at_event, rows):
        last = tf.where(resting, rows[0], rows[-1])
        return tf.stop_gradient(tf.where(happened, at_event, last))

    y, t = tf.nest.map_structure(
        ended,
        (found.event.y, found.event.t),
        (found.y, found.t),
    )
    return y, t, found.stats


def _forward(given: dict[str, Any], tolerance):
    """The `Options` of the solve."""
    for name in ("event", "dense", "outputs", "gradient", "jumps", "batch_axis", "mass"):
        if name in given:
            raise ValueError(f"`{name}` is no option of `steady_state`. Received: {given[name]!r}")
    options = Options.of("steady_state", {**given, "gradient": NoGradient()})
    if options.controller is None and options.num_steps is None and options.step_size is None:
        controller = _Settling(given.get("rtol", tolerance), given.get("atol", tolerance))
        options = dataclasses.replace(options, controller=controller)
    return options


class _Settling(PIController):
    """Bounds errors by what a step moves, too.

    At the limit of stability fast components have errors as large as the tolerances, and slopes
    larger by their rates: the dynamics would never be at rest.
    """

    INPUTS = PIController.INPUTS

    def error_norm(self, errors, ys, ends):
        zeros = [tf.zeros_like(y) for y in ys]
        moved = _size([b - a for a, b in zip(ys, ends)], zeros)
        eps = max(epsilon(y.dtype.real_dtype) for y in ys)
        # Less than the rounding errors is nothing.
        scale = _LARGEST_ERROR * moved + 16.0 * eps * _size(ends, zeros)
        error = _size(errors, zeros)
        usual = super().error_norm(errors, ys, ends)
        return tf.maximum(usual, error / tf.where(scale > 0.0, scale, tf.ones_like(scale)))


class _Rest(Event):
    """Looked for at the ends of steps only: each look is an evaluation."""

    samples = 1


def _size(slopes, ys):
    """Root mean square of f / (1 + |y|), float64."""
    total, count = tf.zeros([], tf.float64), tf.zeros([], tf.float64)
    for k, y in zip(slopes, ys):
        scaled = tf.cast(tf.abs(k), tf.float64) / (1.0 + tf.cast(tf.abs(y), tf.float64))
        total += tf.reduce_sum(scaled * scaled)
        count += tf.cast(tf.size(y), tf.float64)
    return tf.sqrt(total / tf.maximum(count, 1.0))


class _Implicit(Gradient):
    """No step at all: the state, with the derivative that it has as a root of the dynamics."""

    def __init__(self, tolerance, max_time):
        self.tolerance, self.max_time = tolerance, max_time

    def get_config(self):
        return {"tolerance": self.tolerance, "max_time": self.max_time}

    def solve(self, problem):
        ys, dynamics, t = problem.ys, problem.dynamics, problem.stops[0]
        size = _size(dynamics.apart(t, ys), ys)
        fine = tf.logical_and(finite(ys), size <= self.tolerance)
        inputs = Sources(ys, dynamics.captured, dynamics.variables, problem.all_times)

        def backward(cotangents):
            found = self._backward(problem, [g[0] + g[1] for g in cotangents])
            # The rest does not depend on where it was looked for.
            start, times = [tf.zeros_like(y) for y in ys], [None] * len(problem.all_times)
            return [*start, *_once([*found.captured, *found.variables]), *times]

        twice = [tf.stack([y, y]) + nan_where(tf.logical_not(fine), y.dtype, 0) for y in ys]
        zero = tf.zeros([], tf.int32)
        return Outcome(
            ys=_platform.with_gradient(twice, tf.nest.flatten(inputs), backward),
            status=tf.where(fine, int(Status.SUCCESS), int(Status.MAX_STEPS_REACHED)),
            time=t,
            stats=Stats(*[zero] * len(Stats._fields)),
        )

    def _backward(self, problem, cotangents):
        """The gradients for what the dynamics read."""
        dynamics, t, ys = problem.dynamics, problem.stops[0], problem.ys
        # The equation is linear: its tolerances are those of a cotangent of size one.
        size = _size(cotangents, [tf.zeros_like(g) for g in cotangents])
        nothing = tf.equal(size, 0.0)
        size = tf.where(size > 0.0, size, tf.ones_like(size))
        cotangents = [g / tf.cast(size, g.dtype) for g in cotangents]

        def adjoint(_, vs):
            found, _ = dynamics.vjp(t, ys, vs)
            return [d + g for d, g in zip(found.ys, cotangents)]

        def excess(s, vs):
            return [_size(adjoint(s, vs), [tf.zeros_like(v) for v in vs]) / self.tolerance - 1.0]

        method = get_method("dopri5").with_interpolant()
        controller = _Settling(self.tolerance, self.tolerance).for_method(method)
        outcome = integrate(
            dataclasses.replace(
                problem,
                dynamics=adjoint,
                ys=[tf.zeros_like(y) for y in ys],
                stops=tf.constant([0.0, self.max_time], tf.float64),
                method=method,
                controller=controller,
                max_steps=4096,
                known_length=False,
                with_time=False,
                watch=Watch([excess], [-1], [True], samples=1),
            )
        )
        found, _ = dynamics.vjp(t, ys, [tf.cast(v, y.dtype) for v, y in zip(outcome.mark.ys, ys)])
        # Without a cotangent v is zero from the start, and there is no event.
        lost = tf.logical_not(tf.logical_or(outcome.mark.stopped, nothing))
        scale = size + nan_where(lost, tf.float64, 0)
        return Sources(
            [],
            [_scaled(g, scale, x) for g, x in zip(found.captured, dynamics.captured)],
            [_scaled(g, scale, x) for g, x in zip(found.variables, dynamics.variables)],
            [],
        )


def _scaled(gradient, scale, x):
    x = tf.convert_to_tensor(x)
    if gradient is None:
        return tf.zeros_like(x)
    return tf.cast(gradient, x.dtype) * tf.cast(scale, x.dtype)


def _once(xs):
    def refuse(_):
        raise RuntimeError("`steady_state` has no second derivatives.")

    return _platform.with_gradient([tf.identity(x) for x in xs], xs, refuse) if xs else []
