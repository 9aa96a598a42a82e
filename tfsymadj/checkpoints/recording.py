"""What the forward loop keeps for a backward pass, and how the backward pass gets it back."""

import dataclasses
from typing import Any

import tensorflow as tf


@dataclasses.dataclass(frozen=True)
class Recording:
    """Every `stride`-th state, and the stage values of the last steps.

    The accepted steps are divided into segments of `stride` steps, the last one may be shorter.

    Attributes:
        stride: the number of steps of a segment; int or int32 scalar.
        rows: how many states are kept at most; likewise. None are if all stage values are.
        ring: of how many steps, the last ones, the stage values are kept: 0, or `stride`: the
            backward pass puts the stage values of the other segments into the same place.
    """

    stride: Any
    rows: Any
    ring: Any = 0

    @property
    def keeps_states(self):
        """Whether there are rows."""
        return not (isinstance(self.rows, int) and self.rows == 0)

    @property
    def keeps_stages(self):
        """Whether there is a ring."""
        return not (isinstance(self.ring, int) and self.ring == 0)

    def row(self, segment):
        """The row of the state before a segment, `rows` if it is not kept."""
        return segment

    def held(self, checkpoints, num_segments):
        """What the backward pass carries from segment to segment, a nest of tensors."""
        return ()

    def restore(self, segment, held, checkpoints, like, advance):
        """The state before a segment; called for the last segment first.

        Args:
            segment: int32 scalar.
            held: what the call before this one returned, `held(...)` at first.
            checkpoints: the rows, list of tensors.
            like: the state, for its shapes.
            advance: `(begin, end, ys) -> ys`, from segment to segment.

        Returns:
            `(ys, held)`.
        """
        return [tf.ensure_shape(c[segment], y.shape) for c, y in zip(checkpoints, like)], held

    def num_advanced(self, num_accepted):
        """How many steps `restore` will advance in all, int32."""
        return 0

    def num_recomputed(self, num_accepted, num_written):
        """How many steps have to be recomputed once because their stage values are not kept.

        Args:
            num_accepted: the number of steps.
            num_written: how many there would be if the last attempt were one.
        """
        if all(isinstance(n, int) for n in (num_accepted, num_written, self.ring)):
            return min(max(num_written - self.ring, 0), num_accepted)
        return tf.minimum(tf.maximum(num_written - self.ring, 0), num_accepted)
