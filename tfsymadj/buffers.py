"""Rows of tensors written inside loops, in graph mode and under XLA alike.

Two containers, because neither serves everywhere:

* a dense buffer (`dense_rows`, `write_row`) may be captured by a gradient function that is
  exported in a SavedModel, and never exists twice;
* a tensor list (`reserve_rows` and friends; what `tf.TensorArray` is made of, but with an element
  shape that may be known at run time only) takes values that were just computed at no copy.
"""

import tensorflow as tf


def dense_rows(rows, like):
    """Zeros of shape `[rows, *like.shape]`, of `like`'s dtype."""
    # Not `tf.zeros`: folded into a constant, it would live on beside the buffer that is written.
    shape = tf.concat([[rows], tf.shape(like)], 0)
    buffer = tf.raw_ops.Empty(shape=shape, dtype=like.dtype, init=True)
    static_rows = rows if isinstance(rows, int) else None
    return tf.ensure_shape(buffer, [static_rows, *like.shape])


def write_row(buffer, row, value, overwrite=False):
    """Puts `value` into the row `row` of a dense buffer, not written before unless `overwrite`.

    No single operation updates in place in both worlds: `TensorScatterUpdate` copies the buffer in
    graph mode, and the operations that don't copy there have no XLA kernel. `DeviceIndex` is what
    TensorFlow has for this: XLA sees the constant 2 and compiles that branch only.

    Under XLA `value` should be a loop variable, see `write_new_row`.
    """
    shape = buffer.shape
    size = value.shape.num_elements()
    if size == 0:
        return buffer
    indices, updates = [[row]], value[tf.newaxis]

    def in_place():
        if overwrite:
            # Exact: x - x = 0 and 0 + value = value. The row is read only when `value` is there,
            # so that no other reader holds the buffer any more.
            with tf.control_dependencies([value]):
                old = tf.gather(buffer, [row])
            empty = tf.raw_ops.ScatterNdNonAliasingAdd(input=buffer, indices=indices, updates=-old)
            return tf.raw_ops.ScatterNdNonAliasingAdd(input=empty, indices=indices, updates=updates)
        return tf.raw_ops.ScatterNdNonAliasingAdd(input=buffer, indices=indices, updates=updates)

    def compiled():
        return tf.tensor_scatter_nd_update(buffer, indices, updates)

    def untouched():
        return tf.identity(buffer)

    branch = tf.raw_ops.DeviceIndex(device_names=["CPU", "GPU"])
    if size is None:  # the kernels refuse to write nothing
        branch = tf.where(tf.equal(tf.size(value), 0), 3, branch)
    buffer = tf.switch_case(branch, [in_place, in_place, compiled, untouched])
    return tf.ensure_shape(buffer, shape)


def write_new_row(buffer, row, value, overwrite=False):
    """`write_row` for a value that was just computed.

    TensorFlow's compiler evaluates symbolically what the inputs of a branch depend on, which takes
    minutes for the output of a network; at the variables of a loop, here one of one pass, it stops.
    """
    _, buffer, _ = tf.while_loop(
        lambda pending, *_: pending,
        lambda _, b, x: (tf.constant(False), write_row(b, row, x, overwrite), x),
        (tf.constant(True), buffer, value),
        maximum_iterations=1,
        name="write",
    )
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
