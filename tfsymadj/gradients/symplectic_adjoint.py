"""The symplectic adjoint method with checkpoints.

Matsubara, Miyatake, Yaguchi: Symplectic Adjoint Method for Exact Gradient of Neural ODE with
Minimal Memory, NeurIPS 2021, arXiv:2102.09750; IEEE TNNLS 35(8), 2024.
"""

import dataclasses

import tensorflow as tf

from tfsymadj.checkpoints.budget import budget_recording
from tfsymadj.checkpoints.memory import (
    as_bytes,
    automatic_recording,
    memory_recording,
    root_recording,
)
from tfsymadj.checkpoints.recording import Recording
from tfsymadj.config import is_int
from tfsymadj.gradients.backprop import Backprop
from tfsymadj.gradients.recomputing import Recomputing, once
from tfsymadj.gradients.sweep import Sweep, planned_evaluations

_CHECKPOINTS = ("auto", "sqrt", "steps", "stages")
_HALF = ("float16", "bfloat16")


class SymplecticAdjoint(Recomputing):
    """The exact gradient of the steps taken, at the memory of checkpoints and one network use.

    The adjoint equation is integrated backward with the symplectic partner of the method, each
    stage recomputed under a tape of its own. The backward pass goes segment by segment: from a
    checkpoint it recomputes the stage values of a segment's steps, then runs the adjoint over
    them. Rejected steps cost nothing, nor do stages of weight zero.

    Where the activations of all stages are few, one tape for a whole step computes the same sums
    faster, and a step needs one value, the state before it, instead of s stage values.

    Args:
        checkpoints: which states are kept.

            * `"auto"`: `"sqrt"`, and more where that costs nothing. With a number of steps that is
              known before the solve, the activations of all steps are kept if 64 MiB hold them;
              with adaptive steps those of the last 8 to 16, if a step has 64 KiB or more of them,
              since the place for them is filled with zeros whatever is taken. Else a step gets one
              tape if its activations take 64 MiB at most, and the values of all steps are kept, or
              of as many as 64 MiB hold (64 KiB with adaptive steps), and the others recomputed.
              What is unknown of a shape when the solve is traced, such as a batch size, counts as
              256, and no activations are kept then.
            * `"sqrt"`: every c-th step, with c so that about 2 sqrt(N s) states are held at any
              time, for N steps of s stages (`max_steps` in place of N where N is not known before
              the solve; then the stage values of the last c steps are kept as well, and short
              solves recompute nothing). No more evaluations than `"steps"`.
            * `"steps"`: every step, N + s states, as in the paper.
            * `"stages"`: every stage value, N s states. Nothing is recomputed but the taped
              evaluations.
            * an int, at least s + 4: a budget of states, those of steps and of stages together,
              that may be held at any time. Below the amount of `"sqrt"` parts of the solve are
              computed again from the states at hand, as rarely as the budget allows (binomial
              checkpointing; `Solution.stats` tells the evaluations, and the states held).

            Called eagerly, TensorFlow's tape keeps a second time what the backward pass overwrites:
            a budget's states, and the values that an adaptive solve keeps. Of several adaptive
            solves in a row each holds its own.

            In an adaptive solve `"steps"` and `"stages"` need the memory of `max_steps` steps.
        memory: in place of `checkpoints` a budget of bytes, an int or a string such as
            `"256 MiB"`: the plan that computes least within it. From the most memory to the least:
            `Backprop` of a known number of steps, if it fits twice; activations of all steps, of
            the last ones (32 adaptive steps at most), or of segments, counted twice; one tape for a
            step, counted with the states, or one for a stage, whose activations come on top, with
            the values of all steps, of as many as fit, or of segments; binomial checkpointing.
            Where the sizes of the state are not known when the solve is traced, no fewer states are
            held than with `"sqrt"`.
        checkpoint_dtype: `"float16"` or `"bfloat16"`: what the forward pass keeps of a float32
            state takes half the bytes, and the gradient is no longer exact, but off by the order of
            that dtype's precision: the backward pass begins each segment with a rounded state
            (mixed precision as in Celledoni, Owren, Ruthotto and Yang, arXiv:2510.23498). States of
            half precision are solved in float32, too. A state beyond 65504 makes the gradient NaN
            with `"float16"`. `memory` counts full precision. Second derivatives raise.

    Raises:
        ValueError: if `checkpoints`, `memory` or `checkpoint_dtype` is none of these, or the first
            two are both given.

    Example:

    >>> import tfsymadj
    >>> gradient = tfsymadj.SymplecticAdjoint(checkpoints="steps")
    >>> y = tfsymadj.odeint(lambda t, y: -y, [1.0], [0.0, 1.0], gradient=gradient)
    """

    def __init__(
        self,
        checkpoints: str | int = "auto",
        *,
        memory: int | str | None = None,
        checkpoint_dtype: str | None = None,
    ):
        if is_int(checkpoints):
            checkpoints = int(checkpoints)
        # The least budget depends on the method: see `budget_recording`.
        fine = checkpoints > 0 if type(checkpoints) is int else checkpoints in _CHECKPOINTS
        if not fine:
            raise ValueError(
                f"`checkpoints` must be one of {list(_CHECKPOINTS)}, or an int, at least s + 4 "
                f"for a method of s stages. Received: {checkpoints!r}"
            )
        if memory is not None and checkpoints != "auto":
            raise ValueError(
                "`checkpoints` and `memory` can't both be given. "
                f"Received: checkpoints={checkpoints!r}, memory={memory!r}"
            )
        if checkpoint_dtype is not None and checkpoint_dtype not in _HALF:
            raise ValueError(
                f"`checkpoint_dtype` must be one of {list(_HALF)}, or None. "
                f"Received: {checkpoint_dtype!r}"
            )
        self.checkpoints = checkpoints
        self.memory = memory
        self.checkpoint_dtype = checkpoint_dtype
        self._bytes = None if memory is None else as_bytes(memory)

    def get_config(self):
        name = "checkpoints" if self.memory is None else "memory"
        config = {name: getattr(self, name)}
        if self.checkpoint_dtype is not None:
            config["checkpoint_dtype"] = self.checkpoint_dtype
        return config

    @property
    def plans_by_length(self):
        return self.memory is not None

    def solve(self, problem):
        recording = self.recording(problem)
        return Backprop().solve(problem) if recording is None else self._keeping(recording, problem)

    def recording(self, problem):
        recording, dtype = self._recording(problem), self.checkpoint_dtype
        if dtype is None or recording is None:
            return recording
        for i in problem.dynamics.live:
            if problem.ys[i].dtype != tf.float32:
                raise ValueError(
                    "`checkpoint_dtype` is for states of float32 and of half precision. Leave it "
                    f"out. Received: a state of {problem.ys[i].dtype.name} and {self!r}"
                )
        return dataclasses.replace(recording, dtype=dtype)

    def _recording(self, problem):
        n, checkpoints = problem.max_steps, self.checkpoints
        exact = self.checkpoint_dtype is None
        if self._bytes is not None:
            return memory_recording(problem, self._bytes, with_activations=exact)
        if checkpoints == "auto":
            return automatic_recording(problem, with_activations=exact)
        if checkpoints == "sqrt":
            return root_recording(problem)
        if isinstance(checkpoints, int):
            recording = budget_recording(problem, checkpoints, not problem.known_length)
        elif checkpoints == "stages":
            recording = Recording(stride=n, rows=0, ring=n)
        else:
            recording = Recording(stride=1, rows=n)
        if not problem.known_length:
            problem.refuse_size(
                recording.ring * problem.method.stages + recording.rows,
                f"An adaptive solve with `checkpoints={checkpoints!r}`",
                "Use `checkpoints='auto'` or a smaller `max_steps`.",
            )
        return recording

    def backward(self, problem, recording, outcome, cotangents):
        found = Sweep(problem, recording, outcome, cotangents).run()
        if recording.dtype is None:
            return found
        flat = once(
            tf.nest.flatten(found),
            "`SymplecticAdjoint(checkpoint_dtype=...)` has no second derivatives; leave that out.",
        )
        return tf.nest.pack_sequence_as(found, flat)

    def backward_evaluations(self, problem, recording, outcome):
        return planned_evaluations(problem, recording, outcome)
