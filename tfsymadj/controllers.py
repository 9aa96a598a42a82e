"""How long the next step is, and whether the last one is accepted.

A controller never sees the dynamics and keeps its state in a tuple of tensors that the loop
carries. Step sizes are constants for the derivative: gradients are those of the steps that were
taken.
"""

import copy
import math
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from tfsymadj.config import Configured, is_int, is_real


class Proposal(NamedTuple):
    """The next step inside of an output interval from `start` to `end`.

    Attributes:
        step: h, float64 scalar with the sign of the direction.
        end: the time after the step, exactly the interval's end if `hits_end`.
        hits_end: whether the step ends at the interval's end.
        time_fraction: derivative of the time before the step for the interval's end; for its
            start the derivative is one minus this.
        step_fraction: derivative of h for the interval's end, and minus that for its start.
    """

    step: tf.Tensor
    end: tf.Tensor
    hits_end: tf.Tensor
    time_fraction: tf.Tensor
    step_fraction: tf.Tensor


class Controller(Configured):
    """What the loop asks of a controller; derive your own from this class.

    `initial_state`, `propose` and `adapt` are needed, for an adaptive one `error_norm` too, and
    `get_config` if the constructor takes arguments.

    Attributes:
        adaptive: whether the controller needs an error estimate.
    """

    adaptive = False

    def for_method(self, tableau):
        """The controller for a method; called once before the solve."""
        return self

    def num_steps(self, ts):
        """The number of steps for the times `ts`, int or int32 scalar; None if it is not known."""
        return None

    def table(self, times):
        """All steps for times that are numbers, `(ends, steps, hits_end)`: NumPy arrays of the
        times after the steps, the signed steps, and whether they end at an entry of `times`.

        None if they are not known beforehand.
        """
        return None

    def initial_state(self, first_step):
        """The loop's first state, a nest of tensors.

        Args:
            first_step: float64 scalar, positive; None unless `adaptive`.
        """
        raise NotImplementedError

    def propose(self, state, t, start, end):
        """The next `Proposal` from time `t` in the interval from `start` to `end`."""
        raise NotImplementedError

    def adapt(self, state, proposal, error):
        """After a step was tried.

        Args:
            state: the controller's state.
            proposal: the `Proposal` that was tried.
            error: norm of the error estimate, float64 scalar, 1 at the tolerance; infinite after
                a step that was not finite. None unless `adaptive`.

        Returns:
            `(accepted, state)`.
        """
        raise NotImplementedError

    def error_norm(self, errors, ys, ends):
        """Norm of an error estimate relative to the tolerances, float64 scalar.

        Args:
            errors: the estimate, list of tensors like the state.
            ys: the state before the step.
            ends: the state after it.
        """
        raise NotImplementedError

    def scaled_norm(self, xs, magnitudes):
        """`error_norm` of tensors like the state, at states of these magnitudes: how the automatic
        first step measures the state and its slope.
        """
        states = [tf.cast(m, x.dtype) for x, m in zip(xs, magnitudes)]
        return self.error_norm(xs, states, states)


class ConstantSteps(Controller):
    """Equal steps between two consecutive output times.

    Args:
        num_steps: number of steps between two entries of `t`.
        step_size: upper bound of the steps' size; each interval is divided into
            ceil(length / step_size) equal steps. Exactly one of the two is given.

    Raises:
        ValueError: if none or both are given, or one is not positive.

    Example:

    >>> import tfsymadj
    >>> steps = tfsymadj.ConstantSteps(num_steps=10)
    >>> y = tfsymadj.odeint(lambda t, y: -y, [1.0], [0.0, 1.0], method="rk4", controller=steps)
    """

    INPUTS = ("_step_size",)

    def __init__(self, num_steps=None, step_size=None):
        if (num_steps is None) == (step_size is None):
            raise ValueError(
                "Exactly one of `num_steps` and `step_size` must be given. "
                f"Received: num_steps={num_steps!r}, step_size={step_size!r}"
            )
        if num_steps is not None and not (is_int(num_steps, 1) and num_steps < 2**31 - 1):
            raise ValueError(f"`num_steps` must be a positive int32. Received: {num_steps!r}")
        if step_size is not None and not (is_real(step_size) and 0 < step_size < math.inf):
            raise ValueError(
                f"`step_size` must be a positive, finite number. Received: {step_size!r}"
            )
        self._num_steps = None if num_steps is None else int(num_steps)
        self._step_size = None if step_size is None else float(step_size)

    def get_config(self):
        return {"num_steps": self._num_steps, "step_size": self._step_size}

    def _count(self, length):
        """Steps of intervals of the given signed lengths, int32."""
        if self._num_steps is not None:
            return tf.fill(tf.shape(length), self._num_steps)
        # 10 steps of 0.1 make 1.0: a quotient that is whole but for rounding is whole.
        quotient = tf.abs(length) / self._step_size
        count = tf.math.ceil(quotient * (1.0 - 4.0 * np.finfo(np.float64).eps))
        return tf.cast(tf.clip_by_value(count, 1.0, 2.0**30), tf.int32)

    def num_steps(self, ts):
        if self._num_steps is not None and ts.shape[0] is not None:
            return (ts.shape[0] - 1) * self._num_steps
        total = tf.reduce_sum(self._count(ts[1:] - ts[:-1]))
        static = tf.get_static_value(ts)
        if static is not None:
            with tf.init_scope():
                return int(tf.reduce_sum(self._count(tf.constant(np.diff(static)))))
        return total

    def table(self, times):
        cls = type(self)
        if (cls.propose, cls.adapt) != (ConstantSteps.propose, ConstantSteps.adapt):
            return None  # the steps of a subclass are its own
        with tf.init_scope():
            counts = self._count(tf.constant(np.diff(times))).numpy()
        ends = [np.linspace(a, b, n + 1)[1:] for a, b, n in zip(times, times[1:], counts)]
        steps = [np.full(n, (b - a) / n) for a, b, n in zip(times, times[1:], counts)]
        hits_end = [np.arange(n) == n - 1 for n in counts]
        return np.concatenate(ends), np.concatenate(steps), np.concatenate(hits_end)

    def initial_state(self, first_step):
        return tf.zeros([], tf.int32)

    def propose(self, state, t, start, end):
        count = self._count(end - start)
        hits_end = state + 1 >= count
        n, j = tf.cast(count, tf.float64), tf.cast(state, tf.float64)
        step = (end - start) / n
        after = tf.where(hits_end, end, start + (j + 1.0) * step)
        return Proposal(step, after, hits_end, j / n, 1.0 / n)

    def adapt(self, state, proposal, error):
        return tf.constant(True), tf.where(proposal.hits_end, 0, state + 1)


class TabulatedSteps(Controller):
    """Steps that are known beforehand, as constants of the graph; times have no gradient.

    Args:
        ends: the times after the steps.
        steps: the signed steps.
        hits_end: whether a step ends at an output time.
    """

    def __init__(self, ends, steps, hits_end):
        self._ends, self._steps, self._hits_end = ends, steps, hits_end

    def get_config(self):
        return {"ends": self._ends, "steps": self._steps, "hits_end": self._hits_end}

    def num_steps(self, ts):
        return len(self._steps)

    def initial_state(self, first_step):
        return tf.zeros([], tf.int32)

    def propose(self, state, t, start, end):
        step, after = (tf.gather(tf.constant(x, t.dtype), state) for x in (self._steps, self._ends))
        zero = tf.zeros([], t.dtype)
        return Proposal(step, after, tf.gather(tf.constant(self._hits_end), state), zero, zero)

    def adapt(self, state, proposal, error):
        return tf.constant(True), state + 1


#: What is divided by is not less: a number of float32 whose inverse is one, too.
_TINY = 1e-37


class _PIState(NamedTuple):
    step: tf.Tensor
    error: tf.Tensor  # of the last accepted step
    previous_error: tf.Tensor  # and of the one before
    rejected: tf.Tensor


class PIController(Controller):
    """Adaptive steps from the error estimate by a digital filter (I, PI or PID).

    With k the order of the error estimate plus one and e_n the norm of the error of step n, the
    next step is

        h_{n+1} = h_n safety e_n^(-(P + I + D) / k) e_{n-1}^((P + 2 D) / k) e_{n-2}^(-D / k),

    limited by `min_factor` and `max_factor`, and not longer than h_n after a rejection. The
    defaults are those of DOPRI5 (Hairer, Norsett, Wanner, Solving Ordinary Differential
    Equations I, section II.4 and IV.2): P = 0.2, I = 0.65. `proportional=0, integral=1` is the
    elementary controller; for PID see Soederlind, ACM TOMS 29 (2003).

    Args:
        rtol: relative tolerance: a scalar, or an array or nest that broadcasts against the state.
            One below the state's precision counts as that precision.
        atol: absolute tolerance, likewise. A step is accepted if the root mean square over all
            entries of error / (atol + rtol max(|y_n|, |y_{n+1}|)) is at most one.
        proportional: P.
        integral: I.
        derivative: D.
        safety: safety factor.
        min_factor: largest reduction of a step.
        max_factor: largest growth of a step.

    Raises:
        ValueError: if a coefficient is out of its range.

    Example:

    >>> import tfsymadj
    >>> controller = tfsymadj.PIController(rtol=1e-6, atol=1e-9, proportional=0.0, integral=1.0)
    >>> y = tfsymadj.odeint(lambda t, y: -y, [1.0], [0.0, 1.0], controller=controller)
    """

    adaptive = True
    #: Attributes that may be tensors in a compiled solve, so that other numbers are no other trace.
    INPUTS = ("rtol", "atol")

    def __init__(
        self,
        rtol=1e-3,
        atol=1e-6,
        *,
        proportional=0.2,
        integral=0.65,
        derivative=0.0,
        safety=0.9,
        min_factor=0.2,
        max_factor=10.0,
    ):
        for name, value in (("rtol", rtol), ("atol", atol)):
            for leaf in tf.nest.flatten(value):
                try:
                    array = np.asarray(leaf)
                except NotImplementedError:  # a tensor of a graph
                    array = np.array(None)
                if array.dtype.kind not in "fiu" or not np.all((array >= 0) & (array < np.inf)):
                    raise ValueError(
                        f"`{name}` must be finite numbers, not negative. Received: {leaf!r}"
                    )
        for name, value in (("proportional", proportional), ("derivative", derivative)):
            if not (is_real(value) and math.isfinite(value)):
                raise ValueError(f"`{name}` must be a finite number. Received: {value!r}")
        for name, value, low, high in (
            ("safety", safety, 0.0, 1.0),
            ("min_factor", min_factor, 0.0, 1.0),
            ("max_factor", max_factor, 1.0, math.inf),
        ):
            if not (is_real(value) and low < value <= high):
                raise ValueError(f"`{name}` must be in ({low}, {high}]. Received: {value!r}")
        if not (is_real(integral) and 0 < integral < math.inf):
            raise ValueError(f"`integral` must be positive and finite. Received: {integral!r}")
        if not min_factor < 1:
            raise ValueError(f"`min_factor` must be less than one. Received: {min_factor!r}")
        self.rtol, self.atol = rtol, atol
        self._gains = {
            "proportional": proportional, "integral": integral, "derivative": derivative,
        }  # fmt: skip
        self._exponents = (
            proportional + integral + derivative,
            -(proportional + 2.0 * derivative),
            derivative,
        )
        self._safety, self._min_factor, self._max_factor = safety, min_factor, max_factor
        self._may_lack_scale = _holds_zero(atol)
        self.error_order = None

    def get_config(self):
        return {
            "rtol": self.rtol,
            "atol": self.atol,
            **self._gains,
            "safety": self._safety,
            "min_factor": self._min_factor,
            "max_factor": self._max_factor,
        }

    def for_method(self, tableau):
        """The controller for the order of a method's error estimate."""
        bound = copy.copy(self)
        bound.error_order = min(tableau.order, tableau.embedded_order) + 1
        return bound

    def with_tolerances(self, rtol, atol):
        """The same controller, of a subclass too, with other tolerances."""
        changed = copy.copy(self)
        changed.rtol, changed.atol = rtol, atol
        if not tf.is_tensor(atol):  # else one that is as much zero as before
            changed._may_lack_scale = _holds_zero(atol)
        return changed

    def initial_state(self, first_step):
        one = tf.ones([], tf.float64)
        return _PIState(first_step, one, one, tf.constant(False))

    def propose(self, state, t, start, end):
        remaining = tf.abs(end - t)
        # A remainder of rounding errors is not worth a step of its own.
        hits_end = state.step * (1.0 + 1e-10) >= remaining
        direction = tf.sign(end - start)
        step = tf.where(hits_end, end - t, tf.stop_gradient(direction * state.step))
        one, zero = tf.ones([], tf.float64), tf.zeros([], tf.float64)
        return Proposal(
            step, tf.where(hits_end, end, t + step), hits_end, zero, tf.where(hits_end, one, zero)
        )

    def adapt(self, state, proposal, error):
        accepted = error <= 1.0
        tried = tf.stop_gradient(tf.abs(proposal.step))
        bounded = tf.clip_by_value(error, 1e-10, 1e10)
        i, p, d = (x / self.error_order for x in self._exponents)
        factor = self._safety * bounded**-i * state.error**-p * state.previous_error**-d
        most = tf.where(state.rejected, tf.ones([], tf.float64), self._max_factor)
        growing = tf.clip_by_value(factor, self._min_factor, most)
        shrinking = tf.clip_by_value(self._safety * bounded**-i, self._min_factor, self._safety)
        # A step that was cut to hit an output time says little about the steps after it.
        cut = tried < state.step
        grown = tried * growing
        after = _PIState(
            tf.where(cut, tf.maximum(state.step, grown), grown),
            tf.where(cut, state.error, bounded),
            tf.where(cut, state.previous_error, state.error),
            tf.constant(False),
        )
        again = _PIState(tried * shrinking, state.error, state.previous_error, tf.constant(True))
        return accepted, tf.nest.map_structure(lambda a, b: tf.where(accepted, a, b), after, again)

    def error_norm(self, errors, ys, ends):
        magnitudes = [tf.maximum(tf.abs(a), tf.abs(b)) for a, b in zip(ys, ends)]
        if self._may_lack_scale:  # an error counts in any case
            magnitudes = [
                tf.where(tf.not_equal(e, 0.0), tf.maximum(m, _TINY), m)
                for e, m in zip(errors, magnitudes)
            ]
        return self.scaled_norm(errors, magnitudes)

    def scaled_norm(self, xs, magnitudes):
        """Root mean square of x / (atol + rtol magnitude) over all tensors, float64 scalar.

        Entries that are zero, without an absolute tolerance, have no scale and don't count.
        """
        total, count = tf.zeros([], tf.float64), tf.zeros([], tf.float64)
        for i, (x, magnitude) in enumerate(zip(xs, magnitudes)):
            rtol, atol = (tolerance_of(v, i, len(xs)) for v in (self.rtol, self.atol))
            rtol = tf.cast(attainable(rtol, magnitude.dtype), magnitude.dtype)
            if not tf.is_tensor(atol):  # by itself TensorFlow would round it to float32
                atol = np.asarray(atol, np.float64)
            atol = tf.cast(atol, magnitude.dtype)
            scale = atol + rtol * magnitude
            ratio = tf.abs(x) / tf.maximum(scale, tf.cast(_TINY, scale.dtype))
            if self._may_lack_scale:
                counts = tf.logical_or(magnitude > 0.0, atol > 0.0)
                ratio = tf.where(counts, ratio, tf.zeros_like(ratio))
            total = total + tf.cast(tf.reduce_sum(ratio * ratio), tf.float64)
            count = count + tf.cast(tf.size(x), tf.float64)
        return tf.sqrt(total / tf.maximum(count, 1.0))


def _holds_zero(atol):
    return any(np.any(np.equal(leaf, 0)) for leaf in tf.nest.flatten(atol))


def attainable(rtol, dtype):
    """A relative tolerance that rounding errors don't exceed; zero stays zero."""
    epsilon = float(np.spacing(np.ones([], dtype.as_numpy_dtype)))  # `finfo` knows no bfloat16
    if tf.is_tensor(rtol):
        below = tf.logical_and(rtol > 0.0, rtol < epsilon)
        return tf.where(below, tf.cast(epsilon, rtol.dtype), rtol)
    return np.where((np.asarray(rtol) > 0) & (np.asarray(rtol) < epsilon), epsilon, rtol)


def tolerance_of(tolerance, i, n):
    """The part of a tolerance that belongs to the i-th of n tensors."""
    if not tf.nest.is_nested(tolerance):
        return tolerance
    leaves = tf.nest.flatten(tolerance)
    if len(leaves) == n:
        return leaves[i]
    if n == 1:
        return np.asarray(tolerance)
    raise ValueError(
        "`rtol` and `atol` must be scalars, arrays, or nests with one entry for each tensor of "
        f"`y0`, {n} here. Received: {tolerance!r}"
    )
