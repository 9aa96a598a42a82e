"""Rows of buffers: written in place, also under XLA."""

import numpy as np
import pytest
import tensorflow as tf

from tfsymadj.checkpoints import buffers

JIT = pytest.mark.parametrize("jit", [None, True], ids=["graph", "xla"])


@JIT
def test_device_index_tells_xla(jit):
    @tf.function(jit_compile=jit)
    def compute():
        device = tf.raw_ops.DeviceIndex(device_names=["CPU", "GPU"])
        return tf.switch_case(device, [lambda i=i: tf.constant(i) for i in range(3)])

    on_gpu = bool(tf.config.list_physical_devices("GPU"))
    assert int(compute()) == (2 if jit else int(on_gpu))


@JIT
@pytest.mark.parametrize("write", [buffers.write_row, buffers.replace_row])
@pytest.mark.parametrize("dtype", [tf.float32, tf.float64, tf.complex64, tf.bfloat16])
def test_write_row(jit, dtype, write):
    @tf.function(jit_compile=jit)
    def compute(value, row):
        buffer = write(buffers.dense_rows(4, value), row, 3.0 * value)
        return write(buffer, row, value)

    value = tf.cast([[1.0, 2.0]], dtype)
    for row in (0, 3):
        expected = np.zeros([4, 1, 2])
        expected[row] = [[1.0, 2.0]]
        np.testing.assert_array_equal(tf.cast(compute(value, tf.constant(row)), tf.complex128),
                                      expected)  # fmt: skip


@JIT
@pytest.mark.parametrize("write", [buffers.write_row, buffers.replace_row])
def test_gradient_through_rows(jit, write):
    """What was overwritten gets none."""

    @tf.function(jit_compile=jit)
    def compute(x):
        with tf.GradientTape() as tape:
            tape.watch(x)
            buffer = buffers.dense_rows(3, x)
            for row, factor in [(0, 2.0), (1, 3.0), (0, 5.0)]:
                buffer = write(buffer, row, factor * x)
            value = tf.reduce_sum(tf.constant([[1.0], [10.0], [100.0]]) * buffer)
        return tape.gradient(value, x)

    np.testing.assert_array_equal(compute(tf.ones([2])), [35.0, 35.0])


@JIT
def test_write_row_in_a_loop(jit):
    @tf.function(jit_compile=jit)
    def compute(n, rows):
        def body(i, x, buffer):
            return i + 1, 2.0 * x, buffers.write_row(buffer, i, x)

        x = tf.ones([3])
        buffer = buffers.dense_rows(5, x)
        return tf.while_loop(
            lambda i, x, buffer: i < n, body, (0, x, buffer), maximum_iterations=5
        )[2]

    expected = np.zeros([5, 3])
    expected[:4] = 2.0 ** np.arange(4)[:, None]
    np.testing.assert_array_equal(compute(tf.constant(4), 5), expected)


def test_replace_row_copies_what_is_still_needed():
    """A buffer that the caller still needs is not written into."""

    @tf.function
    def compute(value):
        before = buffers.dense_rows(2, value)
        return before + 0.0, buffers.replace_row(before, 1, value)

    before, after = compute(tf.ones([2]))
    np.testing.assert_array_equal(before, np.zeros([2, 2]))
    np.testing.assert_array_equal(after, [[0, 0], [1, 1]])


@JIT
def test_tensor_list_rows(jit):
    @tf.function(jit_compile=jit, input_signature=[tf.TensorSpec([None, 2])])
    def compute(like):
        rows = buffers.reserve_rows(3, like)
        for i in range(3):
            rows = buffers.set_row(rows, i, like + float(i))
        rows = buffers.set_row(rows, 1, 10.0 * like)
        return buffers.get_row(rows, 1, like), buffers.stack_rows(rows, like, 3)

    like = tf.ones([2, 2])
    row, stacked = compute(like)
    np.testing.assert_array_equal(row, 10.0 * like)
    np.testing.assert_array_equal(stacked[:, 0, 0], [1.0, 10.0, 3.0])
    assert stacked.shape == (3, 2, 2)


def test_rows_of_unknown_number():
    @tf.function
    def compute(n, like):
        buffer = buffers.dense_rows(n, like)
        assert buffer.shape.as_list() == [None, 2]
        return buffers.write_row(buffer, n - 1, like)

    np.testing.assert_array_equal(compute(tf.constant(2), tf.ones([2])), [[0, 0], [1, 1]])
