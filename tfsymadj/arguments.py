"""The arguments of a solve as tensors, refused where they make no sense, by name."""

import contextlib

import keras
import numpy as np
import tensorflow as tf

from tfsymadj import _platform
from tfsymadj.controls import Control
from tfsymadj.dynamics import calling
from tfsymadj.warning import warn

#: Days of work, and gigabytes for their times alone: more equal steps are a mistake.
_MOST_STEPS = 10**8

#: From this size on an argument has no gradient, in eager code, unless a tape watches it: that of a
#: long table would be summed up in each stage of each step.
_LARGE = 2**16


def as_state(y0):
    def convert(y):
        y = _as_tensor("y0", y)
        if not (y.dtype.is_floating or y.dtype.is_complex):
            raise TypeError(f"`y0` must be floating or complex. Received: dtype {y.dtype.name}")
        if y.shape.rank is None:
            raise ValueError(
                "`y0` must have a known rank; give it one by `tf.ensure_shape`, in which sizes may "
                f"be None. Received: {y!r}"
            )
        return y

    # A list of numbers is an array, as everywhere in TensorFlow.
    if isinstance(y0, list) and not any(tf.is_tensor(y) for y in y0):
        y0 = _as_tensor("y0", y0)
    state = tf.nest.map_structure(convert, y0)
    if not tf.nest.flatten(state):
        raise ValueError(f"`y0` must hold at least one tensor. Received: {y0!r}")
    return state


def as_args(args, dtype):
    """A tuple of nests of tensors; numbers of Python get the dtype of the state."""

    def convert(x):
        if type(x) in (int, float):
            return tf.constant(x, dtype.real_dtype)
        if type(x) is complex:
            return tf.constant(x, tf.complex128 if dtype.real_dtype == tf.float64 else tf.complex64)
        return _as_tensor("args", x)

    return tf.nest.map_structure(convert, positional(args))


def positional(args):
    """The arguments as a tuple; anything but a tuple or list is one, and so is a `Control`."""
    several = isinstance(args, (tuple, list)) and not isinstance(args, Control)
    return tuple(args) if several else (args,)


def unwatched(args):
    """The positions of those large arguments of an eager call that no tape watches."""
    return tuple(
        i
        for i, x in enumerate(tf.nest.flatten(args))
        if x.shape.num_elements() >= _LARGE and not _platform.recording_tapes(x)
    )


def stopped(args, positions):
    """The arguments with `tf.stop_gradient` of those at some positions."""
    flat = tf.nest.flatten(args)
    for i in positions:
        flat[i] = tf.stop_gradient(flat[i])
    return tf.nest.pack_sequence_as(args, flat)


def as_mass(mass, state):
    """The mass matrices, a dict by the numbers of the tensors of the state that they are for."""
    several = tf.nest.is_nested(state)
    if several:
        try:
            tf.nest.assert_same_structure(mass, state)
        except (TypeError, ValueError) as error:
            raise ValueError(
                "`mass` must have the structure of `y0`, with a matrix or None for each of its "
                f"tensors. Received: {mass!r}"
            ) from error
    found, matrices = {}, tf.nest.flatten(mass) if several else [mass]
    for i, (m, y) in enumerate(zip(matrices, tf.nest.flatten(state))):
        if m is None:
            continue
        if callable(m) and not isinstance(m, (tf.Variable, keras.Variable)):
            raise TypeError(f"`mass` must be a constant matrix, no function. Received: {m!r}")
        given = m
        if isinstance(m, (list, tuple)) and not any(map(tf.is_tensor, tf.nest.flatten(m))):
            with contextlib.suppress(ValueError):  # which `_as_tensor` tells by name
                m = np.asarray(m)  # numbers of Python: not rounded to float32
        m = _as_tensor("mass", m)
        size = y.shape[-1] if y.shape.rank else None
        if size is None or m.shape != (size, size) or m.dtype.is_complex:
            raise ValueError(
                "`mass` must be a real matrix of as many rows and columns as the last axis of `y0` "
                f"has entries, {size}. Received: {given!r} for y0 of shape {y.shape}"
            )
        found[i] = m if m.dtype.is_floating else tf.cast(m, y.dtype.real_dtype)
    return found


def _as_tensor(name, x):
    """`x` as a dense tensor of numbers."""
    try:
        if isinstance(x, (tf.RaggedTensor, tf.SparseTensor, type(None))):
            raise TypeError(f"{type(x).__name__} is no tensor")
        x = tf.convert_to_tensor(x)
        if x.dtype in (tf.string, tf.resource, tf.variant):
            raise TypeError(f"{x.dtype.name} is no number")
    except (TypeError, ValueError) as error:
        raise type(error)(
            f"`{name}` must be a dense tensor of numbers, or a nest of such (a tuple or dict; a "
            "list of numbers is an array): use `to_tensor()` of a ragged and `tf.sparse.to_dense` "
            "of a sparse one, a tuple for arrays of unequal shapes, `ODELayer` for symbolic ones "
            "of Keras, and leave out what is None or bind it by `functools.partial`. "
            f"Received: {x!r}"
        ) from error
    return x


def as_times(t, batch_axis=None):
    """The times as a float64 vector, and whether they may need a gradient.

    With a batch axis they may be a matrix, with a row for each example.
    """
    differentiable = tf.is_tensor(t) or isinstance(t, (tf.Variable, keras.Variable))
    if not differentiable:
        if any(tf.is_tensor(x) for x in tf.nest.flatten(t)):
            differentiable = True
            t = tf.stack([tf.cast(x, tf.float64) for x in t])
        else:
            t = tf.constant(np.asarray(t, np.float64))
    times = tf.cast(tf.convert_to_tensor(t), tf.float64)
    of_each = batch_axis is not None and times.shape.rank == 2
    if not (times.shape.rank == 1 or of_each) or (times.shape[-1] or 2) < 2:
        raise ValueError(
            "`t` must be 1-D with at least two entries; with `batch_axis` there may be a row of "
            f"them for each example. Received: {t!r}"
        )
    values = tf.get_static_value(times)
    if values is not None and not _are_monotonic(values):
        raise ValueError(
            "`t` must be finite and strictly increasing or strictly decreasing"
            + (", each row of it, up to its last time, which may be repeated" if of_each else "")
            + f". Received: {values}"
        )
    return times, differentiable


def _are_monotonic(values):
    """Whether times are finite and strictly monotonic, rows up to their last one."""
    steps = np.diff(values)
    ended = (values[..., :-1] == values[..., -1:]) & (steps == 0) & (values.ndim == 2)
    up, down = (np.all((x > 0) | ended, axis=-1) for x in (steps, -steps))
    return bool(np.all(np.isfinite(values)) and np.all(up | down))


def as_jumps(jumps, with_time, batch_axis=None):
    """The jumps as a float64 vector or None, and whether times may need a gradient.

    With a batch axis they may be a matrix, with a row for each example.
    """
    if jumps is None:
        return None, with_time
    differentiable = any(
        tf.is_tensor(x) or isinstance(x, (tf.Variable, keras.Variable))
        for x in (jumps, *(jumps if isinstance(jumps, (tuple, list)) else ()))
    )
    if isinstance(jumps, (tuple, list)) and differentiable:
        jumps = tf.stack([tf.cast(x, tf.float64) for x in jumps])
    if not differentiable:
        jumps = np.asarray(jumps, np.float64)
    vector = tf.cast(tf.convert_to_tensor(jumps), tf.float64)
    values = tf.get_static_value(vector)
    ranks = (1,) if batch_axis is None else (1, 2)
    if vector.shape.rank not in ranks or (values is not None and not np.all(np.isfinite(values))):
        raise ValueError(
            "`jumps` must be 1-D, of finite times; with `batch_axis` there may be a row of them "
            f"for each example. Received: {jumps!r}"
        )
    if vector.shape[-1] == 0:
        return None, with_time
    return vector, with_time or differentiable


def may_depend(times):
    """Whether times, or a list of them, may depend on what a derivative is wanted for: tensors do,
    but for constants of a graph and what `tf.stop_gradient` returns there.
    """

    def free(x):
        symbolic = tf.is_tensor(x) and not hasattr(x, "numpy")
        return symbolic and x.op.type in ("Const", "StopGradient")

    leaves = tf.nest.flatten(times)
    held = [x for x in leaves if tf.is_tensor(x) or isinstance(x, (tf.Variable, keras.Variable))]
    return not all(free(x) for x in held)


def time_dtype(state):
    """The dtype in which the dynamics get the time."""
    return tf.nest.flatten(state)[0].dtype.real_dtype


def warn_of_times(dynamics, state, times, solver, num_accepted=None):
    """Warns of times that the dynamics can't tell apart, where the values of `t` are known.

    Args:
        num_accepted: the number of steps, where the solve is over.
    """
    values = tf.get_static_value(times)
    if values is None or solver.lanes:
        return
    dtype = time_dtype(state)
    latest = np.max(np.abs(values))
    spacing = float(np.spacing(latest.astype(dtype.as_numpy_dtype)))
    lengths = np.abs(np.diff(values))
    step, length = np.min(lengths), np.sum(lengths)
    # To read the number of steps is to wait for them: done only where they may be too small.
    if length < spacing * (solver.max_steps if solver.controller.adaptive else 2**20):
        count = solver.controller.num_steps(times) if num_accepted is None else num_accepted
        count = tf.get_static_value(count) if tf.is_tensor(count) else count
        step = min(step, length / max(int(count or 0), 1))
    if step < spacing and not calling.ignores_time(dynamics):
        warn(
            f"The dynamics can't tell the times of `t` apart: they get them in {dtype.name}, the "
            "real dtype of the state. Shift the origin of time: solve over `t - t[0]` and add "
            "`t[0]` in the dynamics, in float64; or take a more precise state. Received: steps of "
            f"{step:.3g} at t = {latest:.10g}, where numbers of {dtype.name} are {spacing:.3g} "
            "apart"
        )


def as_count(steps):
    """The number of equal steps, if it is known and one that anybody may have meant."""
    if isinstance(steps, int) and steps > _MOST_STEPS:
        raise ValueError(
            f"`num_steps` must not make more than {_MOST_STEPS:,} steps, nor `step_size`; an "
            f"adaptive method may do with fewer. Received: {steps:,} steps or more"
        )
    return steps


def in_lanes(times, ys):
    """Times with a column for each example, and where the last time of each comes first.

    Args:
        times: float64 vector, or matrix with a row for each example.
        ys: the state, a list of tensors.

    Returns:
        `(times, ys, last)`: float64 `[len(t), batch]`, the state with as much of its shapes as is
        known of any, and an int32 vector, or None where all of the times count.
    """
    sizes = [x.shape[0] for x in (*ys, *([times] if times.shape.rank == 2 else []))]
    batch = next((n for n in sizes if n is not None), None)
    ys = [tf.ensure_shape(y, [batch, *y.shape[1:]]) for y in ys]
    count = tf.shape(ys[0])[0] if batch is None else batch
    if times.shape.rank == 1:
        return tf.broadcast_to(times[:, tf.newaxis], [tf.size(times), count]), ys, None
    # Also at run time: a reshape to a negative size fails under XLA, too.
    length, (rows, columns) = times.shape[1], tf.unstack(tf.shape(times))
    times = tf.reshape(times, [tf.where(tf.equal(rows, count), rows, -2), columns], "rows_of_t")
    times = tf.transpose(tf.ensure_shape(times, [batch, length]))
    ended = tf.equal(times, times[-1])
    return times, ys, tf.argmax(tf.cast(ended, tf.int32), 0, output_type=tf.int32)


def check_batch(state, times):
    """Refuses tensors that don't have the batch axis in common.

    Args:
        state: nest of tensors.
        times: float64 vector, or matrix.
    """
    leaves = tf.nest.flatten(state)
    sizes = [y.shape[0] if y.shape.rank else -1 for y in leaves]
    known = {n for n in sizes if n is not None}
    if len(known) > 1 or -1 in known:
        raise ValueError(
            "`y0` must have the same first axis in all its tensors, that of the examples, with "
            f"`batch_axis=0`. Received: shapes {[tuple(y.shape) for y in leaves]}"
        )
    if times.shape.rank == 2 and known and times.shape[0] not in (None, *known):
        raise ValueError(
            f"`t` must have a row for each of the {known.pop()} examples of `y0`. "
            f"Received: shape {times.shape}"
        )


def check_halves(state, method):
    """Refuses states that are no pair, for a method that moves one half at a time.

    Args:
        state: nest of tensors.
        method: `Method`.
    """
    pair = isinstance(state, (tuple, list)) and len(state) == 2
    sizes = [len(tf.nest.flatten(half)) for half in state] if pair else []
    if not pair or sizes[0] != sizes[1]:
        raise ValueError(
            f"`y0` must be a pair (q, p), of as many tensors each, for method={method.name!r}, "
            "which moves q and p in turns; `tf.split(y, 2, -1)` makes one. "
            f"Received: {tf.nest.map_structure(lambda y: tuple(y.shape), state)}"
        )
