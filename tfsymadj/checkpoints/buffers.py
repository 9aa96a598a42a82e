"""Rows of tensors written inside loops, in graph mode and under XLA alike.

Two containers, because neither serves everywhere:

* a dense buffer (`dense_rows`, `write_row`, `replace_row`) may be captured by a gradient function
  that is exported in a SavedModel, and never exists twice;
* a tensor list (`reserve_rows` and friends; what `tf.TensorArray` is made of, but with an element
  shape that may be known at run time only) takes values that were just computed at no copy.
"""

import contextlib

import tensorflow as tf

from tfsymadj.xla import repeated

#: What holds bfloat16: XLA makes float32 of whole buffers of these numbers on a CPU.
_BITS = tf.int16


def dense_rows(rows, like, zeros=True):
    """Zeros of shape `[rows, *like.shape]`, of `like`'s dtype.

    Args:
        zeros: False: whatever is there, where nobody looks before it is written.
    """
    return _empty(rows, like.shape, tf.shape(like), like.dtype, zeros)


def _empty(rows, static, shape, dtype, zeros):
    # Not `tf.zeros`: folded into a constant, it would live on beside the buffer that is written.
    shape = tf.concat([[rows], shape], 0)
    buffer = tf.raw_ops.Empty(shape=shape, dtype=dtype, init=zeros)
    static_rows = rows if isinstance(rows, int) else None
    return tf.ensure_shape(buffer, [static_rows, *static])


def lane_rows(rows, like, zeros=True):
    """`dense_rows` for lanes, the first axis of `like`: `[rows * lanes, *like.shape[1:]]`, so that
    each lane can write to a row of its own: see `lane_row`.
    """
    lanes = like.shape[0]
    count = rows * (tf.shape(like)[0] if lanes is None else lanes)
    return _empty(count, like.shape[1:], tf.shape(like)[1:], like.dtype, zeros)


def lane_row(row, like):
    """Where each lane finds its row among `lane_rows`, for a row, or for one of each lane."""
    lanes = tf.shape(like)[0] if like.shape[0] is None else like.shape[0]
    return row * lanes + tf.range(lanes)


def write_row(buffer, row, value):
    """Puts `value` into a row of a dense buffer that nobody else holds: one that a loop carries.

    With a vector of different rows it puts the rows of `value` there.

    It is written in place and never copied, so that another holder would see it change. Under XLA
    `value` should be a loop variable, see `for_branches`.
    """
    value = _for(buffer, value)
    rows, values = _as_rows(row, value)

    def in_place():
        return tf.raw_ops.InplaceUpdate(x=buffer, i=rows, v=values)

    # On a GPU that operation knows no complex numbers.
    known = not (buffer.dtype.is_complex or buffer.dtype == _BITS)
    return _by_device(buffer, row, value, in_place, in_place if known else None)


def replace_row(buffer, row, value):
    """`write_row` for a dense buffer that others may hold: it is copied first while they do.

    Under XLA `value` should be a loop variable, see `for_branches`.
    """
    value = _for(buffer, value)

    def replaced():
        return _replaced(buffer, row, value)

    return _by_device(buffer, row, value, replaced, replaced)


def in_dtype(like, dtype):
    """A tensor whose rows hold those of `like` rounded to a dtype."""
    found = tf.cast(like, dtype)
    return tf.bitcast(found, _BITS) if found.dtype == tf.bfloat16 else found


def _for(buffer, value):
    if buffer.dtype == value.dtype:
        return value
    return in_dtype(value, tf.bfloat16 if buffer.dtype == _BITS else buffer.dtype)


def as_before(x, like):
    """A row that was read, in the dtype that it had before it was written.

    What was too large for a buffer of half precision is NaN.
    """
    if x.dtype != like.dtype:
        x = tf.cast(tf.bitcast(x, tf.bfloat16) if x.dtype == _BITS else x, like.dtype)
        x = tf.where(tf.math.is_finite(x), x, x - x)
    return tf.ensure_shape(x, like.shape)


def _by_device(buffer, row, value, on_cpu, on_gpu):
    """The buffer with a row replaced by `on_cpu` or `on_gpu`; None: in a copy.

    No single operation updates in place in both worlds: `TensorScatterUpdate` copies the buffer in
    graph mode, and the operations that don't copy there have no XLA kernel. `DeviceIndex` is what
    TensorFlow has for this: XLA sees the constant 2 and compiles that branch only.
    """
    size = value.shape.num_elements()
    if size == 0:
        return buffer

    def copied():  # but not by XLA
        rows, values = _as_rows(row, value)
        return tf.tensor_scatter_nd_update(buffer, rows[:, tf.newaxis], values)

    def untouched():
        return tf.identity(buffer)

    branch = tf.raw_ops.DeviceIndex(device_names=["CPU", "GPU"])
    if size is None:  # the kernels refuse to write nothing
        branch = tf.where(tf.equal(tf.size(value), 0), 3, branch)
    new = tf.switch_case(branch, [on_cpu, on_gpu or copied, copied, untouched])
    return tf.ensure_shape(new, buffer.shape)


def _replaced(buffer, row, value):
    """The buffer with a row replaced, by operations that copy it if somebody else holds it."""
    # Exact: x - x = 0 and 0 + value = value. The row is read only when `value` is there, so that
    # no other reader holds the buffer any more.
    rows, values = _as_rows(row, value)
    with tf.control_dependencies([value]):
        old = tf.gather(buffer, rows)
    indices = rows[:, tf.newaxis]
    empty = tf.raw_ops.ScatterNdNonAliasingAdd(input=buffer, indices=indices, updates=-old)
    return tf.raw_ops.ScatterNdNonAliasingAdd(input=empty, indices=indices, updates=values)


def _as_rows(row, value):
    """Rows as a vector, and what is for them."""
    row = tf.convert_to_tensor(row)
    return (row, value) if row.shape.rank else (row[tf.newaxis], value[tf.newaxis])


def _in_place_gradient(op, g):
    """Of `InplaceUpdate`: second derivatives go through the loop that writes."""
    indices = op.inputs[1]
    rows = tf.gather(g, indices)
    # XLA does not know the branch of a derivative, and has a kernel for this operation.
    rest = tf.tensor_scatter_nd_update(g, indices[:, tf.newaxis], tf.zeros_like(rows))
    return rest, None, rows


with contextlib.suppress(KeyError):  # TensorFlow has none; a reloaded module finds its own
    tf.RegisterGradient("InplaceUpdate")(_in_place_gradient)


def for_branches(write, buffer, row, value):
    """`write(buffer, row, value)` for a value that was just computed.

    TensorFlow's compiler evaluates symbolically what the inputs of a branch depend on, which takes
    minutes for the output of a network; at the variables of a loop, here one of one pass, it stops.
    """
    buffer, _ = repeated(1, lambda _, x: (write(x[0], row, x[1]), x[1]), (buffer, value), "write")
    return buffer


def reserve_rows(rows, like):
    """A tensor list of `rows` unset elements of `like`'s shape and dtype."""
    return tf.raw_ops.TensorListReserve(
        element_shape=tf.shape(like), num_elements=rows, element_dtype=like.dtype
    )


def set_row(rows, row, value):
    """The tensor list with the element `row` replaced, in place where nobody else holds it."""
    return tf.raw_ops.TensorListSetItem(input_handle=rows, index=row, item=value)


def get_row(rows, row, like):
    """The element `row` of a tensor list, which has `like`'s shape and dtype."""
    value = tf.raw_ops.TensorListGetItem(
        input_handle=rows, index=row, element_shape=tf.shape(like), element_dtype=like.dtype
    )
    return tf.ensure_shape(value, like.shape)


def stack_rows(rows, like, num_rows=None):
    """All elements of a tensor list as one tensor."""
    value = tf.raw_ops.TensorListStack(
        input_handle=rows, element_shape=tf.shape(like), element_dtype=like.dtype
    )
    return tf.ensure_shape(value, [num_rows, *like.shape])
