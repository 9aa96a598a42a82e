"""Arithmetic of states, which are lists of tensors, with numbers that steps have.

A step's time and size are float64 scalars, or vectors with a number for each entry of the first
axis of every tensor of the state ("lanes": steps of one's own for each example).

Sums are written as chains of subtractions of terms with negated coefficients: TensorFlow's graph
optimizer rewrites chains of additions of one shape into accumulations in shared temporary
variables, which clash inside nested loops.
"""

import numpy as np
import tensorflow as tf


def epsilon(dtype):
    """The distance from one to the next number of a real dtype."""
    return float(np.spacing(np.ones([], dtype.as_numpy_dtype)))  # `finfo` knows no bfloat16


#: Of times.
EPSILON = epsilon(tf.float64)


def beside(x, y):
    """A scalar, or a number for each lane, such that it broadcasts against `y`."""
    return x if x.shape.rank == 0 else tf.reshape(x, [-1, *[1] * (y.shape.rank - 1)])


def coefficients(h, row, ys):
    """h times a row of a table: `(index, per tensor of ys: number)`, zeros left out.

    The numbers are h a_1 for the first and -h a_j for the others, of the tensors' dtypes.
    """
    indices = [j for j, x in enumerate(row) if x != 0]
    if not indices:
        return []
    values = np.array([row[j] for j in indices], np.float64)
    values[1:] *= -1.0
    lanes, kinds = h.shape.rank, {}
    for y in ys:
        more = y.shape.rank - 1 if lanes else 0
        if (y.dtype, more) not in kinds:
            scaled = tf.reshape(h, [-1, *[1] * more]) if more else h
            scaled = scaled * values.reshape([-1, *[1] * (lanes + more)])
            kinds[y.dtype, more] = tf.unstack(tf.cast(scaled, y.dtype))
    found = [kinds[y.dtype, y.shape.rank - 1 if lanes else 0] for y in ys]
    return [(j, [numbers[k] for numbers in found]) for k, j in enumerate(indices)]


def combine(coefficients, terms, like):
    """`sum_j c_j terms[j]` for coefficients of `coefficients`; zeros if there are none."""
    if not coefficients:
        return [tf.zeros_like(y) for y in like]
    (j, numbers), *rest = coefficients
    total = [c * x for c, x in zip(numbers, terms[j])]
    for j, numbers in rest:
        total = [s - c * x for s, c, x in zip(total, numbers, terms[j])]
    return total


def weighted_sum(h, row, terms, like):
    """`h sum_j row[j] terms[j]`; zeros if there are none."""
    # Lanes have a size of the step each, which takes longer to be multiplied with; but what is not
    # scaled before may overflow in half precision.
    if h.shape.rank == 0 or any(y.dtype == tf.float16 for y in like):
        return combine(coefficients(h, row, like), terms, like)
    found = combine(coefficients(tf.ones([], h.dtype), row, like), terms, like)
    return [beside(tf.cast(h, x.dtype), x) * x for x in found]


def damped(fine, coarse):
    """`e |e| / sqrt(|e|^2 + 0.01 |e'|^2)` for the entries e of `fine` and e' of `coarse`."""
    found = []
    for x, y in zip(fine, coarse):
        size, other = tf.abs(x), 0.1 * tf.abs(y)
        scale = tf.maximum(size, other)  # or squares would underflow
        zero = tf.equal(scale, 0.0)
        scale = tf.where(zero, tf.ones_like(scale), scale)
        size, other = size / scale, tf.where(zero, tf.ones_like(scale), other / scale)
        found.append(x * tf.cast(size * tf.math.rsqrt(size * size + other * other), x.dtype))
    return found


def add(ys, increments):
    """`ys + increments`."""
    return [y + d for y, d in zip(ys, increments)]


def factors(h, table, ys):
    """h times a table, per tensor of `ys`: in its dtype, to be multiplied with it.

    Returns:
        Tensors of shape `[*table.shape, 1, ...]`, or with lanes `[*table.shape, lanes, 1, ...]`.
    """
    lanes = h.shape.rank
    scaled = h * table.reshape([*table.shape, *[1] * lanes])
    return [
        tf.reshape(
            tf.cast(scaled, y.dtype), [*table.shape, *[-1] * lanes, *[1] * (y.shape.rank - lanes)]
        )
        for y in ys
    ]


def add_terms(sums, terms):
    """`sums + terms`, nests, where None stands for zero, in the dtypes and shapes of `sums`."""
    added = [
        a if x is None else tf.ensure_shape(a + tf.cast(tf.convert_to_tensor(x), a.dtype), a.shape)
        for a, x in zip(tf.nest.flatten(sums), tf.nest.flatten(terms), strict=True)
    ]
    return tf.nest.pack_sequence_as(sums, added)


def compensated_sum(totals, lows):
    """Compensated summation (Kahan): adds up without losing the low parts of what is added.

    Args:
        totals: nest of tensors, what has been added up so far.
        lows: what is to be added, the low parts of earlier sums included; of the same dtypes or
            more precise ones.

    Returns:
        `(totals, lows)`: the sums, and what rounding has kept from them, to be included the next
        time; constants for the derivative.
    """
    sums, rests = [], []
    for total, low in zip(tf.nest.flatten(totals), tf.nest.flatten(lows)):
        new = tf.cast(tf.cast(total, low.dtype) + low, total.dtype)
        rest = low - (tf.cast(new, low.dtype) - tf.cast(total, low.dtype))
        sums.append(tf.ensure_shape(new, total.shape))
        rests.append(tf.stop_gradient(tf.ensure_shape(rest, total.shape)))
    return tf.nest.pack_sequence_as(totals, sums), tf.nest.pack_sequence_as(lows, rests)


def in_double(x):
    """A tensor in double precision."""
    return tf.cast(x, tf.complex128 if x.dtype.is_complex else tf.float64)


def inner(xs, ys, lanes=0):
    """Re sum conj(x) y over all tensors, float64.

    Args:
        lanes: 1 for a sum per lane, 2 for one per row and lane.
    """
    total = tf.zeros([], tf.float64)
    for x, y in zip(xs, ys):
        product = tf.math.conj(x) * y
        part = tf.reduce_sum(product, list(range(lanes, x.shape.rank)) if lanes else None)
        total = total + tf.cast(tf.math.real(part), tf.float64)
    return total


def balance(xs):
    """A power of two, float32, that makes the sum of all magnitudes in some tensors about 256.

    So no sum of theirs, in half precision and with derivatives up to 256, overflows; and as little
    as can be underflows beside the largest. As in the dynamic scaling of Celledoni, Owren, Ruthotto
    and Yang, arXiv:2510.23498. A constant for the derivative.
    """
    total = tf.zeros([], tf.float32)
    for x in xs:
        total += tf.reduce_sum(tf.cast(tf.abs(x), tf.float32))
    exponent = tf.bitcast(tf.stop_gradient(total), tf.int32) // 2**23  # plus 127
    return tf.bitcast(tf.clip_by_value(262 - exponent, 1, 250) * 2**23, tf.float32)


def scaled(xs, factor):
    """`xs`, a nest of tensors and None, times a float32 number; never in half precision."""
    found = []
    for x in tf.nest.flatten(xs):
        if x is not None:
            x = tf.convert_to_tensor(x)
            x = tf.cast(x, tf.float32) if x.dtype in (tf.float16, tf.bfloat16) else x
            x = x * tf.cast(factor, x.dtype)
        found.append(x)
    return tf.nest.pack_sequence_as(xs, found)


def accumulator(x):
    """Zeros in which gradients of `x` are summed: never in half precision."""
    dtype = tf.float32 if x.dtype in (tf.float16, tf.bfloat16) else x.dtype
    return tf.zeros(x.shape if x.shape.is_fully_defined() else tf.shape(x), dtype)


def select(condition, xs, ys):
    """`xs` where the condition holds, a scalar or a number for each lane, else `ys`."""
    choose = tf.where if condition.shape.rank == 0 else select_rows
    return [choose(condition, x, y) for x, y in zip(xs, ys)]


def select_rows(mask, xs, ys):
    """The rows of `xs` where a vector of booleans holds, else those of `ys`, of the same shape."""
    # Row by row; `tf.where` takes many times as long for a mask that it has to broadcast.
    return tf.raw_ops.Select(condition=mask, x=xs, y=ys)


def only_where(condition, xs):
    """`xs` where the condition holds, see `select`, else zeros."""
    return select(condition, xs, [tf.zeros_like(x) for x in xs])


def entry(table, index):
    """`table[index]`, or of each lane the entries of its own: of a table with a column for each.

    With lanes the last axis of `index` is theirs.

    XLA compiles `table[index]` anew for each value that the index depends on, outside of loops and
    at their start: it wants it as a constant.
    """
    index = tf.convert_to_tensor(index)
    if index.shape.rank == 0:
        return tf.gather(table, index)
    known = table.shape[1:].is_fully_defined()
    count, *rest = table.shape[1:] if known else tf.unstack(tf.shape(table)[1:])
    flat = tf.reshape(table, [-1, *rest])
    found = tf.gather(flat, index * count + tf.range(count))
    found.set_shape([*index.shape[:-1], *table.shape[1:]])
    return found


def quotient(x, h):
    """`x / h`; zero for lanes whose step is zero: they rest."""
    if h.shape.rank == 0:
        return x / h
    rests = tf.equal(h, 0.0)
    return tf.where(rests, tf.zeros_like(x), x / tf.where(rests, tf.ones_like(h), h))


def after(earlier, ys):
    """`ys`, in such a way that nothing computed from them can start before `earlier` is there.

    Graph mode obeys control dependencies. XLA drops them, so there the values themselves have to
    depend on `earlier`: a zero is added that the compiler can't know to be one, since it is NaN
    where `earlier` is not finite, as the gradient is then in any case.
    """
    zeros = [0.0 * tf.math.real(tf.reduce_sum(tf.reshape(e, [-1])[:1])) for e in earlier]
    zero = tf.zeros([], tf.float32)
    for x in zeros:
        zero = zero - tf.cast(x, tf.float32)
    with tf.control_dependencies(earlier):
        return [y + tf.cast(zero, y.dtype) for y in ys]
