"""Losses, parts and masks of layers."""

import keras
import numpy as np
import tensorflow as tf

from tfsymadj import _platform


def test_losses_of_layers():
    outer = keras.Sequential([keras.layers.ActivityRegularization(l1=1.0)])
    inner = outer.layers[0]
    outer(np.ones([1, 2]))
    inner.add_loss(tf.constant(3.0))
    pairs = _platform.collected_losses(outer)
    assert [(layer, float(loss)) for layer, loss in pairs] == [(inner, 2.0), (inner, 3.0)]
    _platform.drop_loss(*pairs[0])
    assert [float(x) for x in outer.losses] == [3.0]


def test_layers_are_built_with_all_their_parts():
    outer = keras.Sequential([keras.layers.Dense(1)])
    assert not _platform.is_built(outer)
    outer.built = True
    assert not _platform.is_built(outer)
    outer.build([None, 2])
    assert _platform.is_built(outer)


def test_parts_of_layers():
    inner = keras.Sequential([keras.layers.Dense(1)])
    outer = keras.Sequential([inner])
    assert [id(x) for x in _platform.parts(outer)] == [id(x) for x in (outer, inner, *inner.layers)]


def test_masks_of_tensors():
    x = tf.constant([[1.0], [0.0]])[None]
    mask = _platform.mask_of(keras.layers.Masking()(x))
    np.testing.assert_array_equal(mask, [[True, False]])
    assert _platform.mask_of(x) is None
    outputs = keras.layers.Dense(1)(_platform.with_mask(x, mask))
    np.testing.assert_array_equal(_platform.mask_of(outputs), mask)
