"""What the forward loop keeps for a backward pass, and how the backward pass gets it back."""

import dataclasses
from typing import Any

import tensorflow as tf

from tfsymadj.arithmetic import entry
from tfsymadj.checkpoints import buffers


@dataclasses.dataclass(frozen=True)
class Recording:
    """Every `stride`-th state, and what the adjoint of the last steps needs.

    The accepted steps are divided into segments of `stride` steps, the last one may be shorter.
    The adjoint of a step needs its stage values; if it is taken by one tape through the whole step,
    the state before it.

    Attributes:
        stride: the number of steps of a segment; int or int32 scalar.
        rows: how many states are kept at most; likewise. None are if all stage values are.
        ring: of how many steps, the last ones, these values are kept: 0, or `stride`: the backward
            pass puts those of the other segments into the same place.
        tapes_steps: whether there is one tape for a step, not one for each stage.
        halves: `Halves` of the dynamics: what is kept of the stages are their activations, from
            which their derivatives are taken without another evaluation; None: their values.
        dtype: in which states and values are kept; None: in their own.
    """

    stride: Any
    rows: Any
    ring: Any = 0
    tapes_steps: bool = False
    halves: Any = None
    dtype: Any = None

    @property
    def keeps_states(self):
        """Whether there are rows."""
        return not (isinstance(self.rows, int) and self.rows == 0)

    @property
    def keeps_steps(self):
        """Whether there is a ring."""
        return not (isinstance(self.ring, int) and self.ring == 0)

    @property
    def restores_rows(self):
        """Whether `restore` only reads a row, how often it is called for it."""
        return type(self) is Recording

    def num_values(self, num_stages):
        """How many values the adjoint of a step needs, of a method with so many stages."""
        return 1 if self.tapes_steps else num_stages

    def num_states(self, num_stages):
        """How many states are held at most at any time, those of steps and of stages together; the
        activations of a stage count as one.
        """
        return self.rows + self.stride * self.num_values(num_stages)

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
        return [buffers.as_before(entry(c, segment), y) for c, y in zip(checkpoints, like)], held

    def num_advanced(self, num_accepted):
        """How many steps `restore` will advance in all, int32."""
        return 0

    def num_not_kept(self, num_accepted, num_written):
        """How many steps there are whose values are not in the ring.

        Args:
            num_accepted: the number of steps.
            num_written: how many there would be if the last attempt were one.
        """
        if all(isinstance(n, int) for n in (num_accepted, num_written, self.ring)):
            return min(max(num_written - self.ring, 0), num_accepted)
        return tf.minimum(tf.maximum(num_written - self.ring, 0), num_accepted)

    def num_recomputed(self, num_accepted, num_written):
        """How many steps have to be computed once more for their values; likewise."""
        count = self.num_not_kept(num_accepted, num_written)
        # The last step of a segment has no value but the state before it.
        return count - -(-count // self.stride) if self.tapes_steps else count
