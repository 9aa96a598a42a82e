"""Series as functions of the time: data that drive dynamics, with missing values and times of
their own.

All are piecewise polynomials, so that an evaluation is one look-up and one Horner scheme. Kidger,
Morrill, Foster, Lyons, Neural Controlled Differential Equations, arXiv:2005.08926; Morrill, Kidger,
Yang, Lyons, Neural Controlled Differential Equations for Online Prediction Tasks, arXiv:2106.11028.
"""

import math
from typing import Any, NamedTuple

import keras
import numpy as np
import tensorflow as tf

from tfsymadj.arithmetic import EPSILON

__all__ = ["Control", "hermite", "linear", "rectilinear", "steps"]

#: Grids above this are searched in two goes: XLA compares a time with all that it is searched in.
_LONG = 1024


class Control(NamedTuple):
    """A series as a function of the time; made by `linear`, `hermite`, `rectilinear` or `steps`.

    It is a nest of two tensors, hence an argument of dynamics, of a `tf.function` or of a Keras
    model. Before the first and after the last of its times it stays what it is there.

    Attributes:
        knots: float64 `(n,)`, or `(batch, n)` where each example has its own: the times at which
            the value jumps (`steps`), or the derivative (`linear`, `rectilinear`), or that of it
            (`hermite`). With `jumps=control.knots` no step of a solver crosses one.
        coefficients: `(pieces, degree + 1, channels)`, or `(batch, pieces, degree + 1, channels)`:
            those of powers of the time since the knot before. At least float32.

    Call arguments:
        t: the time, which broadcasts against the batch: a scalar, or one for each example; of one
            series without a batch axis times of any shape.

    Returns:
        Tensor `(..., channels)`, where `...` is the shape that `t` and the batch broadcast to. The
        dtype is that of `t`, if that is a tensor, as the dynamics get it.

    Example:

    >>> import tensorflow as tf, tfsymadj
    >>> control = tfsymadj.controls.linear([0.0, 1.0, 3.0], [[0.0], [2.0], [float("nan")]])
    >>> float(control(0.5)[0]), float(control.derivative(0.5)[0]), float(control(2.0)[0])
    (1.0, 2.0, 2.0)
    >>> solution = tfsymadj.solve(
    ...     lambda t, y, u: u(t) - y, [0.0], [0.0, 3.0], args=(control,), jumps=control.knots
    ... )
    """

    knots: Any
    coefficients: Any

    @tf.autograph.experimental.do_not_convert
    def __call__(self, t: Any) -> tf.Tensor:
        powers, since, _, dtype = self._at(t)
        return tf.cast(_polynomial(powers, since), dtype)

    @tf.autograph.experimental.do_not_convert
    def derivative(self, t: Any) -> tf.Tensor:
        """The derivative for the time, at a knot that of the piece after it; zero outside.

        Args:
            t: see the call.

        Returns:
            Tensor like that of the call.
        """
        powers, since, inside, dtype = self._at(t)
        if len(powers) == 1:
            return tf.cast(tf.zeros_like(powers[0]), dtype)
        slopes = [float(i) * c for i, c in enumerate(powers)][1:]
        slope = tf.where(inside[..., tf.newaxis], _polynomial(slopes, since), 0.0)
        return tf.cast(slope, dtype)

    def _at(self, t):
        """The coefficients at a time, the time since the knot before, whether it is between the
        first and the last one, and the dtype of the result.
        """
        table = tf.convert_to_tensor(self.coefficients)
        if table.dtype.size < 4:
            raise TypeError(
                "`t` can't be looked up in half precision, to which Keras has cast the control, as "
                "all arguments of a layer: make the layer with `autocast=False`. "
                f"Received: coefficients of dtype {table.dtype.name}"
            )
        knots = tf.cast(self.knots, tf.float64)
        given = tf.is_tensor(t) or isinstance(t, (tf.Variable, keras.Variable))
        t = tf.convert_to_tensor(t) if given else tf.constant(t, tf.float64)
        dtype = t.dtype if given else table.dtype
        first, last = knots[..., 0], knots[..., -1]
        # To whom gets a time in float32 the last one is its float32, which may be later.
        ends = [tf.cast(tf.cast(x, t.dtype), tf.float64) for x in (first, last)]
        time = tf.cast(t, tf.float64)
        inside = tf.logical_and(time >= ends[0], time <= ends[1])
        time = tf.where(inside, time, tf.where(time < ends[0], first, last))
        batched = table.shape.rank == 4
        if batched and (knots.shape.rank == 2 or time.shape.rank > 0):
            batch = tf.shape(table)[0]
            shape = tf.broadcast_dynamic_shape(tf.shape(time), batch[tf.newaxis])
            time, inside = (tf.broadcast_to(x, shape) for x in (time, inside))
        piece = _piece(knots, time, last, holds=table.shape[-2] == 1)
        start, row = _of_piece(knots, table, piece)
        work = tf.float64 if tf.float64 in (t.dtype, row.dtype) else tf.float32
        since = tf.cast(time - start, work)[..., tf.newaxis]
        return tf.unstack(tf.cast(row, work), axis=-2), since, inside, dtype


def to_config(args):
    """Arguments with dicts in place of controls: Keras' files forget the names of named tuples."""
    return tuple(x._asdict() if isinstance(x, Control) else x for x in args)


def from_config(args):
    """The arguments of `to_config`."""
    fields = set(Control._fields)
    return tuple(Control(**x) if isinstance(x, dict) and set(x) == fields else x for x in args)


def restored(args, like):
    """Arguments with controls where `like` has them, also if Keras has made lists of these."""
    if len(args) != len(like):
        return args
    return tuple(
        Control(*x) if isinstance(y, Control) and isinstance(x, (list, tuple)) else x
        for x, y in zip(args, like)
    )


def are_shared(args):
    """For each tensor of a nest whether it belongs to a control and has no axis of examples."""

    def mark(x):
        if isinstance(x, Control):
            return Control(x.knots.shape.rank == 1, x.coefficients.shape.rank == 3)

    return [x is True for x in tf.nest.flatten(keras.tree.traverse(mark, args))]


def _polynomial(powers, x):
    *others, value = powers
    for c in reversed(others):
        value = value * x + c
    return value


def _piece(knots, time, last, holds):
    """The index of the piece that a time is in, int32.

    Args:
        knots: float64 `(n,)` or `(batch, n)`.
        time: float64, in the second case `(..., batch)`.
        last: the last knots.
        holds: whether there is a piece from the last knot on.
    """
    if not holds:  # of rows that are filled up: the last piece that has a length
        gap = tf.maximum(EPSILON * tf.abs(last), np.finfo(np.float64).tiny)
        time = tf.minimum(time, tf.stop_gradient(last - gap))
    time, knots = tf.stop_gradient(time), tf.stop_gradient(knots)
    if knots.shape.rank == 2:
        rows = tf.reshape(time, [-1, tf.shape(knots)[0]])
        found = tf.transpose(tf.searchsorted(knots, tf.transpose(rows), side="right"))
    else:
        found = _search(knots, tf.reshape(time, [-1]))
    return tf.maximum(tf.reshape(found, tf.shape(time)) - 1, 0)


def _search(knots, times):
    """`tf.searchsorted(knots, times, side="right")` of two vectors."""
    count = knots.shape[0]
    if count is None or count <= _LONG:
        return tf.searchsorted(knots, times, side="right")
    width = math.isqrt(count)
    block = tf.searchsorted(knots[::width], times, side="right")
    begin = tf.maximum(block - 1, 0) * width
    indices = begin[:, tf.newaxis] + tf.range(width)
    among = tf.gather(knots, tf.minimum(indices, count - 1))
    earlier = tf.logical_and(among <= times[:, tf.newaxis], indices < count)
    return begin + tf.reduce_sum(tf.cast(earlier, tf.int32), -1)


def _of_piece(knots, table, piece):
    """The knots at which pieces begin, and their coefficients."""
    if piece.shape.rank == 0:
        return tf.gather(knots, piece), tf.gather(table, piece, axis=table.shape.rank - 3)
    if table.shape.rank == 3:
        return tf.gather(knots, piece), tf.gather(table, piece)
    examples = tf.range(tf.shape(table)[0])

    def of_each(x):
        flat = tf.reshape(x, tf.concat([[-1], tf.shape(x)[2:]], 0))
        flat = tf.ensure_shape(flat, [None, *x.shape[2:]])
        return tf.gather(flat, examples * tf.shape(x)[1] + piece)

    start = of_each(knots) if knots.shape.rank == 2 else tf.gather(knots, piece)
    return start, of_each(table)


def linear(ts: Any, xs: Any) -> Control:
    """Linear between the observations.

    Its derivative jumps at the knots. Best with equal steps that end there, or `jumps`.

    Args:
        ts: the times, strictly increasing: `(n,)`, or `(batch, n)` for times of each example, whose
            rows may be filled up by repeating their last time; what `xs` has there doesn't count.
            They are kept in float64.
        xs: the series `(n, channels)` or `(batch, n, channels)`, real. NaN: this channel was not
            observed at this time. A channel is what it would be on its own observed times alone:
            constant before the first and after the last of them, zero if it has none.

    Returns:
        `Control`, differentiable for `ts` and `xs`. Where traced times are not increasing it is
        NaN.

    Raises:
        ValueError, TypeError: for arguments of other shapes and dtypes, times that are not
            increasing, fewer than two of them.

    Example:

    >>> import tfsymadj
    >>> control = tfsymadj.controls.linear([0.0, 1.0, 2.0], [[0.0], [float("nan")], [4.0]])
    >>> control([0.5, 1.0, 7.0])[:, 0].numpy().tolist()
    [1.0, 2.0, 4.0]
    """
    ts, xs = _series(ts, xs)
    p = _pieces(ts, xs)
    return _control(ts, xs, [p.value + p.since * p.slope, p.slope])


def hermite(ts: Any, xs: Any) -> Control:
    """Cubic, with the slope of the piece before at each observation: backward differences.

    It is smooth enough for adaptive steps without `jumps`, and an observation changes nothing of
    what was before the one before it (Morrill et al., arXiv:2106.11028).

    Args:
        ts: see `linear`.
        xs: see `linear`.

    Returns:
        See `linear`.

    Raises:
        ValueError, TypeError: see `linear`.

    Example:

    >>> import tfsymadj
    >>> control = tfsymadj.controls.hermite([0.0, 1.0, 2.0], [[0.0], [1.0], [0.0]])
    >>> control([0.5, 1.0, 1.5])[:, 0].numpy().tolist()
    [0.5, 1.0, 0.75]
    >>> control.derivative([1.0, 2.0])[:, 0].numpy().tolist()
    [1.0, -1.0]
    """
    ts, xs = _series(ts, xs)
    p = _pieces(ts, xs)
    # x'(0) = b, x(H) = x(0) + H m and x'(H) = m.
    bend = (p.slope - p.before) / p.length
    c, d = 2.0 * bend, -bend / p.length
    s = p.since
    value = p.value + s * (p.before + s * (c + s * d))
    slope = p.before + s * (2.0 * c + 3.0 * s * d)
    return _control(ts, xs, [value, slope, c + 3.0 * s * d, d])


def steps(ts: Any, xs: Any) -> Control:
    """Each value holds until the next observation (zero-order hold).

    It jumps at the knots: pass them as `jumps`, or steps across them are inexact, and the
    derivatives for `ts` missing.

    Args:
        ts: see `linear`.
        xs: see `linear`; but a channel is zero before its first observation, so that nothing is
            made of what comes later.

    Returns:
        See `linear`.

    Raises:
        ValueError, TypeError: see `linear`.

    Example:

    >>> import tfsymadj
    >>> control = tfsymadj.controls.steps([0.0, 1.0, 2.0], [[3.0], [5.0], [4.0]])
    >>> control([0.9, 1.0, 9.0])[:, 0].numpy().tolist()
    [3.0, 5.0, 4.0]
    """
    ts, xs = _series(ts, xs)
    return _control(ts, xs, [_held(ts, xs)])


def rectilinear(ts: Any, xs: Any) -> Control:
    """A path of time and values of which first one moves, then the other: for online predictions.

    From one observation to the next the time goes on in the first half, at constant values; in the
    second half they change, at constant time. At each of `ts` the path has seen what was observed
    so far, and nothing of what comes (Morrill et al., arXiv:2106.11028).

    Args:
        ts: see `linear`.
        xs: see `steps`.

    Returns:
        See `linear`; the first channel is the time, and there are `2 n - 1` knots.

    Raises:
        ValueError, TypeError: see `linear`.

    Example:

    >>> import tfsymadj
    >>> control = tfsymadj.controls.rectilinear([0.0, 2.0], [[3.0], [5.0]])
    >>> control([0.0, 1.0, 1.5, 2.0]).numpy().tolist()
    [[0.0, 3.0], [2.0, 3.0], [2.0, 4.0], [2.0, 5.0]]
    """
    ts, xs = _series(ts, xs)
    times = tf.cast(ts[..., tf.newaxis], xs.dtype)
    times = tf.broadcast_to(times, tf.shape(xs[..., :1]))
    return rectilinear_path(ts, tf.concat([times, xs], -1), 1)


def rectilinear_path(ts: Any, xs: Any, moves_first: int) -> Control:
    """`rectilinear` of a series that has its time among its channels.

    Args:
        ts: see `linear`.
        xs: see `steps`.
        moves_first: how many channels, the first ones, move before the others.
    """
    ts, xs = _series(ts, xs)
    xs = tf.repeat(tf.linalg.matrix_transpose(_held(ts, xs)), 2, axis=-2)
    ts = tf.repeat(ts, 2, axis=-1)
    ts = 0.5 * (ts[..., :-1] + ts[..., 1:])
    xs = tf.concat([xs[..., 1:, :moves_first], xs[..., :-1, moves_first:]], -1)
    p = _pieces(ts, xs)
    return _control(ts, xs, [p.value + p.since * p.slope, p.slope])


def filled(ts: tf.Tensor, xs: tf.Tensor) -> tf.Tensor:
    """A series with its missing values as `linear` has them.

    Args:
        ts: float64 `(n,)` or `(batch, n)`, not decreasing; a last time that the rows of the second
            kind repeat fills them up, see `linear`.
        xs: `(n, channels)` or `(batch, n, channels)`.
    """
    p = _pieces(ts, xs)
    last, before = xs[..., -1:, :], p.value[..., tf.newaxis, :, -1]
    last = tf.where(tf.math.is_nan(last), before, last)
    return tf.concat([tf.linalg.matrix_transpose(p.value + p.since * p.slope), last], -2)


def _series(ts, xs):
    """The times in float64, and the series in float32 at least, with the time axis last but one."""
    if any(isinstance(x, keras.KerasTensor) for x in (ts, xs)):
        raise TypeError(
            "`ts` and `xs` must be arrays or tensors, not symbolic ones of Keras: make the control "
            "in the `call` of a layer, such as one derived from `ODELayer`. "
            f"Received: ts={ts!r}, xs={xs!r}"
        )
    ts = tf.cast(tf.convert_to_tensor(ts) if tf.is_tensor(ts) else np.asarray(ts), tf.float64)
    xs = tf.convert_to_tensor(xs)
    if not xs.dtype.is_floating:
        raise TypeError(f"`xs` must be real and floating. Received: dtype {xs.dtype.name}")
    if xs.dtype in (tf.float16, tf.bfloat16):
        xs = tf.cast(xs, tf.float32)
    if xs.shape.rank not in (2, 3) or ts.shape.rank not in range(1, xs.shape.rank):
        raise ValueError(
            "`xs` must be of shape (n, channels) or (batch, n, channels), with `ts` of shape (n,), "
            "or (batch, n) for times of each example. "
            f"Received: ts of shape {ts.shape}, xs of shape {xs.shape}"
        )
    axes = [(-1, -2)] + ([(0, 0)] if ts.shape.rank == 2 else [])
    pairs = [(ts.shape[i], xs.shape[j]) for i, j in axes]
    if any(None not in pair and pair[0] != pair[1] for pair in pairs):
        raise ValueError(
            "`ts` must have a time for each row of `xs`. "
            f"Received: ts of shape {ts.shape}, xs of shape {xs.shape}"
        )
    if 1 in pairs[0] or 0 in pairs[0]:
        raise ValueError(
            "`ts` must have at least two times; repeat a single observation at a later one. "
            f"Received: ts of shape {ts.shape}, xs of shape {xs.shape}"
        )
    values = tf.get_static_value(ts)
    if values is not None and not np.all(_increases(values, np)):
        raise ValueError(
            "`ts` must be finite and strictly increasing; rows of each example up to their last "
            f"time, which may be repeated. Received: {values}"
        )
    return ts, xs


def _increases(ts, np_or_tf):
    """Whether times increase, for each row, in NumPy or TensorFlow."""
    is_finite = np.isfinite if np_or_tf is np else tf.math.is_finite
    fine = ts[..., 1:] > ts[..., :-1]
    if len(ts.shape) == 2:
        fine = fine | ((ts[..., 1:] == ts[..., :-1]) & (ts[..., 1:] == ts[..., -1:]))
    fine = fine & is_finite(ts[..., 1:]) & is_finite(ts[..., :-1])
    return np.all(fine, -1) if np_or_tf is np else tf.reduce_all(fine, -1)


def _control(ts, xs, powers):
    """The `Control` of coefficients `(..., channels, pieces)`, a list by powers."""
    table = tf.stack(powers, -1)
    rank = table.shape.rank
    table = tf.transpose(table, [*range(rank - 3), rank - 2, rank - 1, rank - 3])
    if tf.get_static_value(ts) is None:
        wrong = tf.where(_increases(ts, tf), 0.0, float("nan"))
        table += tf.cast(wrong, table.dtype)[..., tf.newaxis, tf.newaxis, tf.newaxis]
    pieces = None if xs.shape[-2] is None else xs.shape[-2] - (len(powers) > 1)
    table.set_shape([*xs.shape[:-2], pieces, len(powers), xs.shape[-1]])
    return Control(ts, table)


class _Pieces(NamedTuple):
    """The pieces between observations, each channel's own, `(..., channels, n - 1)`.

    Attributes:
        value: the last observation at the start of a piece or before it.
        since: the time from there to the start of the piece.
        slope: to the next observation, zero where there is none, or none before.
        before: the slope of the piece that ends where this one begins, or its own.
        length: the time from one observation to the next one; one where the slope is zero.
    """

    value: tf.Tensor
    since: tf.Tensor
    slope: tf.Tensor
    before: tf.Tensor
    length: tf.Tensor


def _pieces(ts, xs):
    xs, ts = tf.linalg.matrix_transpose(xs), ts[..., tf.newaxis, :]
    missing = _missing(ts, xs)
    if missing is None:
        length = tf.cast(ts[..., 1:] - ts[..., :-1], xs.dtype)
        slope = tf.math.divide_no_nan(xs[..., 1:] - xs[..., :-1], length)
        before = tf.concat([slope[..., :1], slope[..., :-1]], -1)
        return _Pieces(xs[..., :-1], tf.zeros_like(length), slope, before, length)
    earlier, later = _neighbours(missing)
    first, last = earlier[..., :-1], later[..., 1:]
    begun, ends = first >= 0, last < tf.shape(xs)[-1]
    within = tf.logical_and(begun, ends)
    first = tf.where(begun, first, last)  # constant before the first one, and after the last
    last = tf.where(ends, last, first)
    xs = tf.where(missing, tf.zeros_like(xs), xs)
    ts = tf.broadcast_to(ts, tf.shape(xs))
    value, start = _take(xs, first), _take(ts, first)
    length = tf.where(within, _take(ts, last) - start, tf.ones_like(start))
    since = tf.where(within, ts[..., :-1] - start, tf.zeros_like(start))
    length, since = tf.cast(length, xs.dtype), tf.cast(since, xs.dtype)
    slope = tf.math.divide_no_nan(_take(xs, last) - value, length)
    # One row before the piece's first observation is the piece that ends there.
    other = tf.logical_and(first > 0, _take(within, first - 1))
    before = tf.where(other, _take(slope, first - 1), slope)
    before = tf.where(within, before, tf.zeros_like(before))
    return _Pieces(value, since, slope, before, length)


def _held(ts, xs):
    """The last observations `(..., channels, n)` at each time, zero before the first one."""
    xs, ts = tf.linalg.matrix_transpose(xs), ts[..., tf.newaxis, :]
    missing = _missing(ts, xs)
    if missing is None:
        return xs
    earlier, _ = _neighbours(missing)
    xs = tf.where(missing, tf.zeros_like(xs), xs)
    return tf.where(earlier >= 0, _take(xs, earlier), tf.zeros_like(xs))


def _missing(ts, xs):
    """Which of `xs` `(..., channels, n)` don't count; None where it is known that all do."""
    values = tf.get_static_value(xs)
    if ts.shape.rank == 2 and values is not None and not np.any(np.isnan(values)):
        return None
    missing = tf.math.is_nan(xs)
    if ts.shape.rank == 3:  # rows may be filled up
        repeated = tf.equal(ts[..., :-1], ts[..., -1:])
        missing |= tf.concat([tf.zeros_like(repeated[..., :1]), repeated], -1)
    return missing


def _neighbours(missing):
    """The indices of the last observation up to each one, -1: none; and of the first one from each
    one on, n: none. Int32, `(..., n)`.
    """
    count = tf.shape(missing)[-1]
    index = tf.range(count) + tf.zeros_like(missing, tf.int32)
    earlier = _running_maximum(tf.where(missing, -1, index), count)
    mirrored = tf.where(missing, -1, count - 1 - index)
    later = _running_maximum(tf.reverse(mirrored, [-1]), count)
    return earlier, count - 1 - tf.reverse(later, [-1])


def _running_maximum(x, count):
    """The largest entry so far, along the last axis: in log2 n passes."""

    def doubled(shift, x):
        at = tf.maximum(tf.range(count) - shift, 0)
        return 2 * shift, tf.maximum(x, tf.ensure_shape(tf.gather(x, at, axis=-1), x.shape))

    start = tf.constant(1), x
    return tf.while_loop(lambda shift, _: shift < count, doubled, start, name="running_maximum")[1]


def _take(x, indices):
    """The entries along the last axis."""
    indices = tf.clip_by_value(indices, 0, tf.shape(x)[-1] - 1)
    return tf.gather(x, indices, axis=-1, batch_dims=x.shape.rank - 1)
