"""The environment and the fixtures of all tests, and which combinations are fast."""

import collections
import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
# Without it TensorFlow does not count tensors below 256 KiB on a CPU.
os.environ.setdefault("TF_CPU_ALLOCATOR_USE_BFC", "1")

import pytest

pytest.register_assert_rewrite("helpers")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    """Of all combinations of several parameters the fast suite has so many that each value is in
    one of them; the others are slow.
    """
    families = collections.defaultdict(list)
    for item in items:
        if hasattr(item, "callspec") and item.get_closest_marker("slow") is None:
            families[item.parent, item.originalname].append(item)
    for family in families.values():
        values = {item: set(_values(item)) for item in family}
        missing = set().union(*values.values())
        while missing:
            best = max(family, key=lambda item: len(values[item] & missing))
            missing -= values.pop(best)
            family.remove(best)
        for item in family:
            item.add_marker("slow")


def _values(item):
    """What identifies the value that a test has of each `parametrize` and of other parameters."""
    params = dict(item.callspec.params)
    for mark in item.iter_markers("parametrize"):
        names = mark.args[0]
        names = names.replace(",", " ").split() if isinstance(names, str) else names
        yield tuple((name, id(params.pop(name))) for name in names)
    for name, value in params.items():  # of fixtures
        yield ((name, id(value)),)


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
