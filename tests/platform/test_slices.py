import numpy as np
import tensorflow as tf

import tfsymadj  # noqa: F401 - registers the gradients


def test_third_derivative_of_a_slice_under_xla():
    @tf.function(jit_compile=True)
    def third(x):
        with tf.GradientTape() as outer:
            outer.watch(x)
            with tf.GradientTape() as middle:
                middle.watch(x)
                with tf.GradientTape() as inner:
                    inner.watch(x)
                    y = tf.reduce_sum(tf.concat([x[1:], x], 0) ** 4)
                first = inner.gradient(y, x)
            second = middle.gradient(first, x)
        return outer.gradient(second, x)

    np.testing.assert_allclose(third(tf.constant([1.0, 2.0])), [24.0, 96.0])
