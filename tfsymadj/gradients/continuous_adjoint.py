"""The continuous adjoint method: the adjoint equation as an ODE of its own."""

import dataclasses

import numpy as np
import tensorflow as tf

from tfsymadj.arithmetic import accumulator, inner
from tfsymadj.config import is_real
from tfsymadj.dynamics.augmented import AdjointSystem
from tfsymadj.dynamics.closing import Sources
from tfsymadj.gradients.recomputing import Recomputing, once
from tfsymadj.loop.failures import is_success, poison
from tfsymadj.loop.integrate import integrate
from tfsymadj.methods import ButcherTableau, get_method
from tfsymadj.solution import Status
from tfsymadj.steps.pi import PIController
from tfsymadj.steps.tolerance import tolerance_of


class ContinuousAdjoint(Recomputing):
    """Integrates state, adjoint and the parameters' gradients backward in time.

    From each output time to the one before it the augmented system

        dy/dt = f,   d lambda/dt = -(df/dy)^T lambda,   d g/dt = -(df/d theta)^T lambda

    is solved with the forward solver and its own error control; the state is set to the forward
    pass's output and the cotangent added at every output time. Nothing but the outputs is kept.
    The gradient is that of the continuous problem: it differs from the gradient of the computed
    solution by errors of the order of the tolerances, and the steps backward are often more
    numerous (Chen, Rubanova, Bettencourt, Duvenaud: Neural Ordinary Differential Equations,
    NeurIPS 2018, arXiv:1806.07366, appendix B).

    The error is measured over the entries of all three parts. Second derivatives raise. If the
    backward solve fails, the gradients are NaN.

    Args:
        rtol: relative tolerance of the backward solve, a scalar; default: as forward.
        atol: absolute tolerance, likewise. If either is given, the backward steps are adaptive.
        method: method of the backward solve, a name or a `ButcherTableau`; default: as forward.

    Raises:
        ValueError: if a tolerance is negative, or the method unknown or without an error estimate
            where one is needed.

    Example:

    >>> import tfsymadj
    >>> gradient = tfsymadj.ContinuousAdjoint(rtol=1e-6, atol=1e-8)
    >>> y = tfsymadj.odeint(lambda t, y: -y, [1.0], [0.0, 1.0], gradient=gradient)
    """

    def __init__(
        self,
        rtol: float | None = None,
        atol: float | None = None,
        method: str | ButcherTableau | None = None,
    ):
        for name, value in (("rtol", rtol), ("atol", atol)):
            if value is not None and not (is_real(value) and 0 <= value < np.inf):
                raise ValueError(
                    f"`{name}` must be a finite scalar, not negative, or None. Received: {value!r}"
                )
        if method is not None:
            get_method(method)
        self.rtol = None if rtol is None else float(rtol)
        self.atol = None if atol is None else float(atol)
        self.method = method

    def get_config(self):
        return {"rtol": self.rtol, "atol": self.atol, "method": self.method}

    def _solver(self, problem, others=0):
        """`(method, controller)` of the backward solve."""
        method = problem.method if self.method is None else get_method(self.method)
        method = method.without_interpolant()
        if method.splits:
            raise ValueError(
                "`ContinuousAdjoint` needs `method`, a Runge-Kutta method, where the solve's own "
                f"moves halves of a state. Received: the method {method.name!r} and {self!r}"
            )
        if method.iterates:
            raise ValueError(
                "`ContinuousAdjoint` needs `method`, an explicit one, where the solve's own is "
                f"implicit. Received: the method {method.name!r} and {self!r}"
            )
        controller = problem.controller
        given = self.rtol is not None or self.atol is not None
        if given and not isinstance(controller, PIController):
            controller = PIController()
        if isinstance(controller, PIController):
            own, forward = (self.rtol, self.atol), (controller.rtol, controller.atol)
            controller = controller.with_tolerances(
                *(
                    _augmented(b, len(problem.ys), others) if a is None else a
                    for a, b in zip(own, forward)
                )
            )
        if controller.adaptive and not method.adaptive:
            raise ValueError(
                f"The method {method.name!r} has no error estimate: `ContinuousAdjoint` needs "
                "`method`, one with an error estimate, if `rtol` or `atol` is given or the forward "
                f"steps are adaptive. Received: {self!r}"
            )
        method = method if controller.adaptive else method.without_error()
        return method, controller.for_method(method)

    def recording(self, problem):
        if problem.every_step:
            raise ValueError(
                "`outputs='steps'` has no continuous adjoint: the steps are no part of the problem "
                f"that it differentiates. Use another `gradient`. Received: {self!r}"
            )
        if problem.dense:
            raise ValueError(
                "`dense` has no continuous adjoint: the steps are no part of the problem that it "
                f"differentiates. Use another `gradient`. Received: {self!r}"
            )
        if problem.watch is not None:
            raise ValueError(
                "`event` has no continuous adjoint here. Use another `gradient`. "
                f"Received: {self!r}"
            )
        if problem.switches is not None:
            raise ValueError(
                "`jumps` have no continuous adjoint here. Use another `gradient`. "
                f"Received: {self!r}"
            )
        if problem.lanes:
            raise ValueError(
                "`gradient` can't be the continuous adjoint with `batch_axis`. Use another one. "
                f"Received: {self!r}"
            )
        return None

    def backward(self, problem, recording, outcome, cotangents):
        dynamics, ts = problem.dynamics, problem.output_times
        count = tf.size(ts) if ts.shape[0] is None else ts.shape[0]
        inputs = Sources(problem.ys, dynamics.captured, dynamics.variables, [])
        targets = [*inputs.captured, *inputs.variables]
        method, controller = self._solver(problem, len(targets))
        system = AdjointSystem(dynamics, len(problem.ys))

        def at(m, xs):
            return [tf.ensure_shape(x[m], y.shape) for x, y in zip(xs, problem.ys)]

        def interval(m, adjoints, gradients, d_ts, status):
            ys, arriving = at(m, outcome.ys), at(m, cotangents)
            if problem.with_time:
                d_ts += inner(arriving, dynamics(ts[m], ys)) * one_hot(m)
            adjoints = [a + g for a, g in zip(adjoints, arriving)]
            times = tf.stack([ts[m], ts[m - 1]])
            steps = controller.num_steps(times)
            known = steps is not None
            part = integrate(
                dataclasses.replace(
                    problem,
                    dynamics=system,
                    ys=[*ys, *adjoints, *gradients],
                    stops=times,
                    between=None,
                    method=method,
                    controller=controller,
                    max_steps=steps if known else problem.max_steps,
                    known_length=known,
                    first_step=None,
                    measured=None,
                )
            )
            end = system.split([x[1] for x in part.ys])
            status = tf.where(is_success(status), part.status, status)
            return m - 1, end.adjoints, end.gradients, d_ts, status

        def one_hot(m):
            return tf.one_hot(m, count, dtype=tf.float64)

        _, adjoints, gradients, d_ts, status = tf.while_loop(
            lambda m, *_: m > 0,
            interval,
            (
                tf.convert_to_tensor(count - 1),
                [tf.zeros_like(y) for y in problem.ys],
                [tf.ensure_shape(accumulator(x), x.shape) for x in targets],
                tf.zeros([count], tf.float64),
                tf.constant(int(Status.SUCCESS)),
            ),
            parallel_iterations=1,
            name="intervals",
        )
        if problem.with_time:
            d_ts -= inner(adjoints, dynamics(ts[0], problem.ys)) * one_hot(0)
        adjoints = [a + g for a, g in zip(adjoints, at(0, cotangents))]
        gradients = [tf.cast(g, x.dtype) for g, x in zip(gradients, targets)]
        found = tf.nest.pack_sequence_as(inputs, [*adjoints, *gradients])
        times = [*(tf.zeros_like(x) for x in problem.all_times[:-1]), d_ts]
        found = poison(found._replace(times=times if problem.with_time else []), status)
        message = "`ContinuousAdjoint` has no second derivatives; use `SymplecticAdjoint`."
        return tf.nest.pack_sequence_as(found, once(tf.nest.flatten(found), message))

    def backward_evaluations(self, problem, recording, outcome):
        method, controller = self._solver(problem)
        if controller.adaptive:  # as many as the error control will ask for
            return tf.constant(-1)
        return outcome.stats.num_accepted * tf.constant(method.evaluations)


def _augmented(tolerance, size, others):
    """A tolerance of the state as one of the augmented state."""
    if tf.is_tensor(tolerance) or not (tf.nest.is_nested(tolerance) or np.ndim(tolerance)):
        return tolerance
    leaves = [tolerance_of(tolerance, i, size) for i in range(size)]
    smallest = min(float(np.min(leaf)) for leaf in leaves)
    return [*leaves, *leaves, *[smallest] * others]
