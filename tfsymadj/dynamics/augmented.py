"""Systems that are made of the dynamics and their derivatives."""

from typing import NamedTuple

import tensorflow as tf


class AdjointState(NamedTuple):
    """State, adjoint, and the gradients summed up so far: lists of tensors."""

    ys: list
    adjoints: list
    gradients: list


class AdjointSystem:
    """The continuous adjoint equation beside the dynamics, as dynamics of a flat list.

        dy/dt = f,   d lambda/dt = -(df/dy)^T lambda,   d g/dt = -(df/d theta)^T lambda

    Args:
        dynamics: `ClosedDynamics`.
        size: the number of tensors of the state.
    """

    def __init__(self, dynamics, size):
        self._dynamics, self._size = dynamics, size

    def split(self, zs):
        """`AdjointState` of a flat list."""
        n = self._size
        return AdjointState(zs[:n], zs[n : 2 * n], zs[2 * n :])

    def on(self, side):
        """See `ClosedDynamics.on`."""
        return AdjointSystem(self._dynamics.on(side), self._size)

    def __call__(self, t, zs):
        state = self.split(zs)
        found, values = self._dynamics.vjp(t, state.ys, state.adjoints, with_values=True)
        slopes = [
            tf.zeros_like(z) if g is None else -tf.cast(g, z.dtype)
            for g, z in zip([*found.captured, *found.variables], state.gradients)
        ]
        return [*values, *(-d for d in found.ys), *slopes]
