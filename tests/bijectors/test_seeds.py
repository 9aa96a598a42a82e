"""Seeds and the random numbers made of them."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from helpers.flows import conditioned, points
from helpers.gradients import relative_error
from helpers.modes import MODES, run

from tfsymadj.bijectors import CNF, dequantize, seeds

FIXED = dict(method="euler", num_steps=2)


@pytest.mark.parametrize("shape", [(3,), (5, 7), (0, 2)], ids=str)
@pytest.mark.parametrize("dtype", [tf.float32, tf.float64], ids=lambda dtype: dtype.name)
def test_random_numbers_are_those_of_tensorflow(dtype, shape):
    seed = tf.constant([3, 4], tf.int64)
    for draw, plain in (
        (seeds.uniform, tf.random.stateless_uniform),
        (seeds.normal, tf.random.stateless_normal),
    ):
        expected = plain(shape, seed, dtype=dtype, alg="philox")
        for jit in (None, True):
            found = tf.function(lambda s, f=draw: f(shape, s, dtype), jit_compile=jit)(seed)
            assert found.shape == shape and relative_error(found, expected) < 1e-6


@pytest.mark.parametrize("dtype", ["uint8", "int16", "uint32", "int64"])
@pytest.mark.parametrize(
    "make",
    [
        lambda value, dtype: np.array(value, dtype),
        lambda value, dtype: tf.constant(value, dtype),
        lambda value, dtype: tf.Variable(value, dtype=dtype),
        lambda value, dtype: keras.Variable(value, dtype=dtype, trainable=False),
    ],
    ids=["array", "tensor", "variable", "Keras variable"],
)
def test_seeds_of_any_integer_type(make, dtype):
    flow, x = CNF(conditioned, trace="hutchinson", **FIXED), points(4, 3)
    for value in (200, [3, 100]):
        given = make(value, dtype)
        expected = flow.forward_log_det_jacobian(x, seed=value)
        assert relative_error(flow.forward_log_det_jacobian(x, seed=given), expected) == 0.0
        levels = tf.constant([[0, 1], [2, 3]])
        assert relative_error(dequantize(levels, 4, given), dequantize(levels, 4, value)) == 0.0


@pytest.mark.parametrize("mode", MODES)
def test_dequantize_with_a_seed_that_is_assigned(mode):
    seed, x = tf.Variable(1), tf.constant([[0, 1], [2, 3]])

    def compute():
        first = dequantize(x, 4, seed)
        seed.assign_add(1)
        return first, dequantize(x, 4, seed)

    first, second = run(compute, mode)
    assert relative_error(first, dequantize(x, 4, 1)) == 0.0
    assert relative_error(second, dequantize(x, 4, 2)) == 0.0
