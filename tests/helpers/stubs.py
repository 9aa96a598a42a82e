"""Stubs of what the package takes, to test what takes them alone."""

import contextlib

import numpy as np
import tensorflow as tf

from tfsymadj import Backprop, Controller, PIController
from tfsymadj.arithmetic import beside
from tfsymadj.checkpoints.recording import Recording
from tfsymadj.dynamics.closing import Sources
from tfsymadj.loop.integrate import integrate
from tfsymadj.loop.problem import Problem
from tfsymadj.methods import Method, get_method
from tfsymadj.methods.method import Step
from tfsymadj.steps import Proposal


class Scaled(Backprop):
    def __init__(self, scale, shift=0.0):
        self.scale, self.shift = scale, shift

    def get_config(self):
        return {"scale": self.scale, "shift": self.shift}

    def solve(self, problem):
        outcome = super().solve(problem)
        return outcome._replace(ys=[self.scale * y for y in outcome.ys])


class Most(PIController):
    """Steps of at most `most`."""

    def __init__(self, *args, most=0.1, **kwargs):
        super().__init__(*args, **kwargs)
        self.most = most

    def get_config(self):
        return {**super().get_config(), "most": self.most}

    def propose(self, state, t, start, end):
        p = super().propose(state, t, start, end)
        before = tf.abs(end - t) > self.most
        limit = tf.where(end > start, self.most, -self.most)
        limit = tf.cast(limit, tf.float64)
        step = tf.where(tf.abs(p.step) > self.most, limit, p.step)
        hits_end = tf.logical_and(p.hits_end, tf.logical_not(before))
        return p._replace(step=step, end=tf.where(hits_end, end, t + step), hits_end=hits_end)


# The loop alone, with controllers that do as they are told and dynamics made by hand


class ByHand:
    """Closed dynamics dy/dt = f(t) y + 1, without anything captured; counts evaluations."""

    captured, variables, live = (), (), [0]

    def __init__(self, rate=lambda t: 0.0 * t, nan_after=np.inf):
        self.rate, self.nan_after, self.times = rate, nan_after, []

    def __call__(self, t, ys):
        self.times.append(float(t))
        value = np.nan if float(t) > self.nan_after else 1.0
        return [tf.cast(self.rate(t), y.dtype) * y + tf.cast(value, y.dtype) for y in ys]


class Told(Controller):
    """Proposes these steps and accepts by these errors."""

    adaptive = True

    def __init__(self, steps, errors=()):
        self.steps = tf.constant(steps, tf.float64)
        self.errors = [*errors, *[0.5] * (100 - len(errors))]
        self.seen = []

    def get_config(self):
        return {"steps": self.steps, "errors": self.errors}

    def initial_state(self, first_step):
        return tf.zeros([], tf.int32)

    def propose(self, state, t, start, end):
        h = self.steps[tf.minimum(state, len(self.steps) - 1)]
        h = tf.where(end > start, h, -h)
        hits_end = tf.abs(h) * (1.0 + 1e-12) >= tf.abs(end - t)
        step = tf.where(hits_end, end - t, h)
        zero = tf.zeros([], tf.float64)
        return Proposal(step, tf.where(hits_end, end, t + step), hits_end, zero, zero)

    def error_norm(self, errors, ys, ends):
        return tf.ones([], tf.float64)

    def adapt(self, state, proposal, error):
        # Infinite after a step that was not finite, otherwise as told.
        told = tf.gather(tf.constant(self.errors, tf.float64), state)
        error = tf.where(tf.math.is_finite(error), told, error)
        self.seen.append(float(error))
        return error <= 1.0, state + 1


def loop(controller, ts=(0.0, 1.0), dynamics=None, recording=None, **changes):
    """The `Outcome` of a problem run operation by operation, so that Python sees each step."""
    options = dict(
        dynamics=dynamics or ByHand(),
        ys=[tf.zeros([2], tf.float64)],
        stops=tf.constant(ts, tf.float64),
        method=get_method("adaptive_heun" if controller.adaptive else "euler"),
        controller=controller,
        max_steps=50,
        known_length=False,
        first_step=0.1,
        min_step=0.0,
        with_time=False,
    )
    return integrate(Problem(**options | changes), recording)


KEEP = Recording(stride=1, rows=50)


def accepted_steps(outcome):
    n, grid = int(outcome.stats.num_accepted), outcome.record.grid
    return grid.h.numpy()[:n], grid.hits_end.numpy()[:n]


class Lanes:
    """Closed dynamics of a real and a complex tensor whose time may be one for each lane."""

    variables, live, narrow = (), [0, 1], False

    def __init__(self):
        random = np.random.default_rng(3)
        self.captured = [tf.constant(random.normal(size=(3, 3))), tf.constant(0.7, tf.float64)]

    def __call__(self, t, ys):
        y, z = ys
        weights, rate = self.captured
        size = 0.1 * tf.reduce_sum(tf.math.real(z * tf.math.conj(z)), [1, 2])
        dy = tf.tanh(y @ weights) * tf.cos(beside(rate * t, y)) + tf.sin(size)[:, tf.newaxis]
        turn = beside(t * tf.reduce_sum(y, 1), z)
        dz = tf.complex(-rate, turn) * z
        return [dy, dz]

    def substituted(self):
        return contextlib.nullcontext()

    def sources(self, ys, times=()):
        return Sources(list(ys), self.captured, [], list(times))

    def vjp(self, t, ys, cotangents, with_values=False):
        sources = self.sources(ys, [t] if with_values else [])
        with tf.GradientTape() as tape:
            tape.watch(sources)
            values = self(t, ys)
        found = tape.gradient(values, sources, output_gradients=cotangents)
        return found, values if with_values else None


class TwoEulers(Method):
    """Euler's method, from the time 1/2 on in two halves: steps count their evaluations."""

    name, order, stages, evaluations, adjoint_evaluations = "two_eulers", 1, 1, None, 2

    def step(self, dynamics, t, h, ys, first=None):
        late = t >= 0.5

        def euler(t, h, ys):
            return [y + tf.cast(h, y.dtype) * d for y, d in zip(ys, dynamics(t, ys))]

        def halves():
            return euler(t + 0.5 * h, 0.5 * h, euler(t, 0.5 * h, ys))

        ends = tf.cond(late, halves, lambda: euler(t, h, ys))
        increments = [end - y for end, y in zip(ends, ys)]
        return Step(
            ys=ends,
            increments=increments,
            errors=None,
            stages=[list(ys)],
            slopes=[],
            evaluations=tf.where(late, 2, 1),
        )


class Refusing(Told):
    """Steps of given sizes, of which it refuses some."""

    adaptive = False

    def __init__(self, steps, refused):
        super().__init__(steps)
        self.refused = tf.constant(refused, tf.int32)

    def get_config(self):
        return {"steps": self.steps, "refused": self.refused}

    def adapt(self, state, proposal, error):
        return tf.reduce_all(tf.not_equal(self.refused, state)), state + 1
