"""Budgets of bytes: the plan that takes the fewest evaluations within them."""

import re

import tensorflow as tf

from tfsymadj.checkpoints.budget import budget_recording
from tfsymadj.checkpoints.recording import Recording
from tfsymadj.config import is_int

_UNITS = {
    "B": 1,
    **{f"{x}B": 1000**i for i, x in enumerate("kMGT", 1)},
    **{f"{x}iB": 1024**i for i, x in enumerate("KMGT", 1)},
}

#: More states than this need not be told apart.
_MOST = 2**30


def as_bytes(memory: int | str) -> int:
    """A number of bytes, given as an int or as a string such as "256 MiB".

    Raises:
        ValueError: if it is none, or not positive.
    """
    if is_int(memory, 1):
        return int(memory)
    found = isinstance(memory, str) and re.fullmatch(r"\s*(\d+\.?\d*)\s*([A-Za-z]+)\s*", memory)
    if found and found[2] in _UNITS and float(found[1]) > 0.0:
        return int(float(found[1]) * _UNITS[found[2]])
    raise ValueError(
        "`memory` must be a positive number of bytes, an int or a string such as '256 MiB' (units: "
        f"{', '.join(_UNITS)}). Received: {memory!r}"
    )


def memory_recording(problem, memory):
    """The `Recording` that holds at most so many bytes of states at any time.

    Where the sizes of the state are not known when the solve is traced, it is the one of
    `SymplecticAdjoint("auto")` with segments as long as the memory allows.

    Args:
        problem: `Problem`.
        memory: int.

    Raises:
        ValueError: if not even the smallest budget of states fits.
    """
    n, s = problem.max_steps, problem.method.stages
    parts = [problem.ys[i] for i in problem.dynamics.live]
    if all(y.shape.is_fully_defined() for y in parts) and isinstance(n, int):
        size = sum(y.shape.num_elements() * y.dtype.size for y in parts)
        states = min(memory // max(size, 1), _MOST)
        if states < s + 4:
            raise ValueError(
                f"`memory` must be at least {(s + 4) * size} bytes, s + 4 states of {size} bytes, "
                f"for the method {problem.method.name!r} of s = {s} stages. Received: {memory}"
            )
        return budget_recording(problem, states, keeps_last=True)
    sizes = [tf.size(y, tf.int64) * y.dtype.size for y in parts]
    size = tf.maximum(tf.add_n(sizes), 1) if sizes else tf.ones([], tf.int64)
    states = tf.cast(tf.minimum(memory // size, _MOST), tf.float64)
    count = tf.cast(n, tf.float64)
    # The largest c with c s stage values and n / c checkpoints, or the one with the fewest states.
    square = states * states - 4.0 * s * count
    longest = tf.floor((states + tf.sqrt(tf.maximum(square, 0.0))) / (2.0 * s))
    stride = tf.where(square < 0.0, tf.round(tf.sqrt(count / s)), longest)
    stride = tf.cast(tf.clip_by_value(stride, 1.0, count), tf.int32)
    return Recording(stride=stride, rows=-(-n // stride), ring=stride)
