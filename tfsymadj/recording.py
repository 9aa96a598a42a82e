"""What the forward loop keeps for a backward pass, and how the backward pass gets it back."""

import dataclasses
from typing import Any

import tensorflow as tf


@dataclasses.dataclass(frozen=True)
class Recording:
    """Every `stride`-th state, or every stage value.

    The accepted steps are divided into segments of `stride` steps, the last one may be shorter.

    Attributes:
        stride: the number of steps of a segment; int or int32 scalar.
        rows: how many states are kept at most; likewise.
        stages: whether every stage value is kept instead.
    """

    stride: Any
    rows: Any
    stages: bool = False

    #: Whether a row may be written more than once.
    overwrites = False

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
