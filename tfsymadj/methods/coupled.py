"""Steps that can be taken back: an explicit method over two copies of the state.

McCallum, Foster: Efficient, Accurate and Stable Gradients for Neural ODEs, arXiv:2410.11648.
"""

import dataclasses

import tensorflow as tf

from tfsymadj.arithmetic import add
from tfsymadj.methods.method import Method, Step


@dataclasses.dataclass(frozen=True)
class Coupled(Method):
    """The reversible scheme around an explicit method, over a state of two halves (y, z).

    With the increments psi_h of the method and the coupling c, a step and its inverse are

        y' = c y + (1 - c) z + psi_h(t, z),        z = z' + psi_{-h}(t + h, y'),
        z' = z - psi_{-h}(t + h, y'),              y = (y' - (1 - c) z - psi_h(t, z)) / c,

    both explicit. Both halves are solutions, of the order of the method (arXiv:2410.11648,
    definition 1 and theorem 2.1).

    Args:
        base: the method, without equations to solve and without rows for a continuous extension.
        coupling: c, greater than zero, one at most.
    """

    base: Method
    coupling: float

    name = property(lambda self: f"reversible {self.base.name}")
    order = property(lambda self: self.base.order)
    embedded_order = property(lambda self: self.base.embedded_order)
    stages = property(lambda self: 2 * self.base.stages)
    adjoint_evaluations = property(lambda self: 2 * self.base.adjoint_evaluations)

    @property
    def evaluations(self):
        # No first slope is known: it is at the other half.
        return self.base.evaluations + self.base.fsal + self.base.without_error().evaluations

    def without_error(self):
        return dataclasses.replace(self, base=self.base.without_error())

    def step(self, dynamics, t, h, ys, first=None):
        y, z = _halves(ys)
        forth = self.base.step(dynamics, t, h, z)
        of_y = [(1.0 - self.coupling) * (b - a) + k for a, b, k in zip(y, z, forth.increments)]
        y = add(y, of_y)
        back = self.base.without_error().step(dynamics, t + h, -h, y)
        of_z = [-k for k in back.increments]
        return Step(
            ys=[*y, *add(z, of_z)],
            increments=[*of_y, *of_z],
            errors=forth.errors,
            stages=[*forth.stages, *back.stages],
            slopes=[*forth.slopes, *back.slopes],
            evaluations=forth.evaluations + back.evaluations,
        )

    def reversed(self, dynamics, t, h, ends, adjoints, sums, with_time=False, tapes_steps=False):
        """The way back over a step and its derivative, from the state after it.

        Args:
            dynamics: the closed dynamics.
            t: the time before the step, float64 scalar.
            h: the step.
            ends: the state after it, list of tensors.
            adjoints: of it, likewise.
            sums: see `Method.adjoint`.
            with_time: likewise.
            tapes_steps: whether there is one tape for all stages of a step of the method, whose
                evaluations then do for both; else each is evaluated once more under its own.

        Returns:
            `(increments, sums)`: the state before the step minus `ends`, and what `Method.adjoint`
            returns.
        """
        (y, z), (to_y, to_z) = _halves(ends), _halves(adjoints)
        lows = _halves(sums.ys)
        none = [tf.zeros_like(x) for x in lows[0]]

        def step(start, h, ys, adjoints, sums):
            sums = sums._replace(ys=none, times=[])
            of_step = dynamics, start, h, ys, adjoints, sums, with_time
            return (self._taped if tapes_steps else self._staged)(*of_step)

        of_z, sums = step(t + h, -h, y, [-g for g in to_z], sums)
        from_z, times = sums.ys, sums.times
        to_y = add(to_y, from_z)
        forth, sums = step(t, h, add(z, of_z), to_y, sums)
        rest, c = 1.0 - self.coupling, self.coupling
        of_y = [(rest * (a - b - x) - k) / c for a, b, x, k in zip(y, z, of_z, forth)]
        mixed = [rest * g for g in to_y]
        ys = [
            *(low + (x - g) for low, x, g in zip(lows[0], from_z, mixed)),
            *(low + (x + g) for low, x, g in zip(lows[1], sums.ys, mixed)),
        ]
        if with_time:
            (end, size), (start, step_size) = times, sums.times
            times = [start + end, step_size + (end - size)]
        return [*of_y, *of_z], sums._replace(ys=ys, times=times)

    def _taped(self, *step):
        taken, sums = self.base.step_and_vjp(*step)
        return taken.increments, sums

    def _staged(self, dynamics, t, h, ys, adjoints, sums, with_time):
        step = self.base.step(dynamics, t, h, ys)
        stages = [tf.stack(x) for x in zip(*step.stages)]
        sums = self.base.adjoint(
            dynamics, t, h, lambda i: [tf.gather(x, i) for x in stages], adjoints, sums, with_time
        )
        return step.increments, sums


def _halves(xs):
    return xs[: len(xs) // 2], xs[len(xs) // 2 :]
