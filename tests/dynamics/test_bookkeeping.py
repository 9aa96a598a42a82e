"""What a walk over a Keras layer need not enter."""

import keras
import pytest

from tfsymadj.dynamics.bookkeeping import plain_part_of


def dense():
    layer = keras.layers.Dense(2, name="dense")
    layer.build((None, 3))
    return layer


def test_parts_of_a_layer():
    part = plain_part_of(dense())
    assert {"units", "use_bias", "name", "activation"} <= set(part.names)
    assert {"_kernel", "bias"} <= set(part.others)
    for bookkeeping in ("built", "_inbound_nodes", "kernel_initializer", "_tracker"):
        assert bookkeeping not in [*part.names, *part.others]


def test_a_part_is_made_once():
    layer = dense()
    assert plain_part_of(layer) is plain_part_of(layer)
    assert plain_part_of(layer).tokens == plain_part_of(dense()).tokens


def grow(layer):
    layer.extra = 1.0


def swap(layer):
    del layer.units
    layer.others = 2


def hold_a_layer(layer):
    layer._layers.append(keras.layers.Dense(1))


@pytest.mark.parametrize(
    "change",
    [lambda x: setattr(x, "units", 3), grow, swap, hold_a_layer],
    ids=["set", "grow", "swap", "layer"],
)
def test_changes_are_seen(change):
    layer = dense()
    before = plain_part_of(layer)
    change(layer)
    assert not before.holds(layer.__dict__)
    assert plain_part_of(layer).holds(layer.__dict__)
