"""The environment and the fixtures of all tests."""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
# Without it TensorFlow does not count tensors below 256 KiB on a CPU.
os.environ.setdefault("TF_CPU_ALLOCATOR_USE_BFC", "1")

import pytest

pytest.register_assert_rewrite("helpers")


@pytest.fixture(scope="session", autouse=True)
def large_block():
    """Gives the allocator a block to cut from, before any test; nothing is written to it.

    Without it large tensors get blocks of up to twice their size, and that is what it counts.
    """
    import tensorflow as tf  # not by the process that only hands out the tests

    rest_of_first = tf.raw_ops.Empty(shape=[2**20], dtype=tf.uint8, init=False)
    tf.raw_ops.Empty(shape=[4, 2**30], dtype=tf.uint8, init=False)
    yield
    del rest_of_first


@pytest.fixture(autouse=True)
def seed():
    """The same random numbers in every run, those of initializers included."""
    import keras

    keras.utils.set_random_seed(0)
