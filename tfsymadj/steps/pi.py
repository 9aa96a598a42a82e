"""Adaptive steps from the error estimate."""

import copy
import math
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from tfsymadj.config import is_real
from tfsymadj.steps.controller import REMAINDER, Controller, Proposal, moved
from tfsymadj.steps.tolerance import TINY, holds_zero, scaled_norm

#: A step shorter than this part of what the controller asked for was cut.
_CUT = 0.999


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
        rtol: Any = 1e-3,
        atol: Any = 1e-6,
        *,
        proportional: float = 0.2,
        integral: float = 0.65,
        derivative: float = 0.0,
        safety: float = 0.9,
        min_factor: float = 0.2,
        max_factor: float = 10.0,
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
        self._may_lack_scale = holds_zero(atol)
        self.error_order = None
        self._lanes = 0

    def get_config(self):
        return {
            "rtol": self.rtol,
            "atol": self.atol,
            **self._gains,
            "safety": self._safety,
            "min_factor": self._min_factor,
            "max_factor": self._max_factor,
        }

    def for_method(self, method):
        """The controller for the order of a method's error estimate."""
        bound = copy.copy(self)
        bound.error_order = min(method.order, method.embedded_order) + 1
        return bound

    def per_example(self):
        own = copy.copy(self)
        own._lanes = 1
        return own

    def with_tolerances(self, rtol: Any, atol: Any) -> "PIController":
        """The same controller, of a subclass too, with other tolerances."""
        changed = copy.copy(self)
        changed.rtol, changed.atol = rtol, atol
        if not tf.is_tensor(atol):  # else one that is as much zero as before
            changed._may_lack_scale = holds_zero(atol)
        return changed

    def initial_state(self, first_step):
        one = tf.ones_like(first_step)
        return _PIState(first_step, one, one, tf.zeros_like(first_step, tf.bool))

    def propose(self, state, t, start, end):
        remaining = tf.abs(end - t)
        own = tf.stop_gradient(tf.sign(end - start) * state.step)
        hits_end = state.step * REMAINDER >= remaining
        hits_end = tf.logical_or(hits_end, tf.equal(t + own, end))  # by rounding
        after = tf.where(hits_end, end, t + own)
        one, zero = tf.ones([], tf.float64), tf.zeros([], tf.float64)
        return Proposal(moved(t, after, own), after, hits_end, zero, tf.where(hits_end, one, zero))

    def adapt(self, state, proposal, error):
        accepted = error <= 1.0
        tried = tf.stop_gradient(tf.abs(proposal.step))
        # Else steps that the rounded time makes longer would not shrink after a rejection.
        tried = tf.where(proposal.hits_end, tried, tf.minimum(tried, state.step))
        bounded = tf.clip_by_value(error, 1e-10, 1e10)
        i, p, d = (x / self.error_order for x in self._exponents)
        factor = self._safety * bounded**-i * state.error**-p * state.previous_error**-d
        most = tf.where(state.rejected, tf.ones([], tf.float64), self._max_factor)
        growing = tf.clip_by_value(factor, self._min_factor, most)
        shrinking = tf.clip_by_value(self._safety * bounded**-i, self._min_factor, self._safety)
        # A step that was cut to hit an output time says little about the steps after it. Others
        # are as long as the rounded time tells.
        cut = tried < _CUT * state.step
        grown = tried * growing
        after = _PIState(
            tf.where(cut, tf.maximum(state.step, grown), grown),
            tf.where(cut, state.error, bounded),
            tf.where(cut, state.previous_error, state.error),
            tf.constant(False),
        )
        again = _PIState(tried * shrinking, state.error, state.previous_error, tf.constant(True))
        return accepted, tf.nest.map_structure(lambda a, b: tf.where(accepted, a, b), after, again)

    def restarted(self, state):
        return self.initial_state(state.step)

    def error_norm(self, errors, ys, ends):
        magnitudes = [tf.maximum(tf.abs(a), tf.abs(b)) for a, b in zip(ys, ends)]
        if self._may_lack_scale:  # an error counts in any case
            magnitudes = [
                tf.where(tf.not_equal(e, 0.0), tf.maximum(m, TINY), m)
                for e, m in zip(errors, magnitudes)
            ]
        return self.scaled_norm(errors, magnitudes)

    def scaled_norm(self, xs, magnitudes):
        """Root mean square of x / (atol + rtol magnitude); see `tolerance.scaled_norm`."""
        return scaled_norm(xs, magnitudes, self.rtol, self.atol, self._may_lack_scale, self._lanes)
