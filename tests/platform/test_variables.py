"""Variables adopted by Keras."""

import keras
import numpy as np
import tensorflow as tf

from tfsymadj import _platform


def test_adopted_variables_share_their_storage():
    variable = tf.Variable([1.0, 2.0], name="block/kernel", trainable=False)
    adopted = _platform.adopted(variable)
    assert isinstance(adopted, keras.Variable)
    assert adopted is _platform.adopted(variable)
    assert adopted.value is variable
    assert (adopted.name, adopted.trainable) == ("block_kernel", False)
    adopted.assign([3.0, 4.0])
    np.testing.assert_array_equal(variable, [3.0, 4.0])
