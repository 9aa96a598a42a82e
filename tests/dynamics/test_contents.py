"""What dynamics hold."""

import keras

from tfsymadj.dynamics import contents


def closing_over(x):
    return lambda t, y: x


def test_frozen_storages():
    layer = keras.layers.Dense(3)
    layer.build((None, 3))
    assert contents.frozen_storages(closing_over(layer)) == set()
    layer.trainable = False
    assert len(contents.frozen_storages(closing_over(layer))) == 2
