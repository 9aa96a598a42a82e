"""What Keras layers consist of, the losses that they have added in a call, and their masks."""

import tensorflow as tf


def parts(layer):
    """A layer and all the layers in it."""
    return list(layer._flatten_layers())


def collected_losses(layer):
    """Pairs `(layer, loss)` of what a layer and the layers in it have added so far."""
    return [(part, loss) for part in parts(layer) for loss in part._losses]


def drop_loss(layer, loss):
    """Takes back what `layer.add_loss(loss)` did."""
    kept = [x for x in layer._losses if x is not loss]
    layer._losses.clear()
    layer._losses.extend(kept)


def is_built(layer):
    """Whether a layer and all the layers in it have their weights."""
    return all(part.built for part in parts(layer))


def mask_of(tensor):
    """The mask that Keras has attached to a tensor, or None."""
    return getattr(tensor, "_keras_mask", None)


def with_mask(tensor, mask):
    """The same tensor, with a mask attached to it that the next layer will find."""
    tensor = tf.identity(tensor)
    tensor._keras_mask = mask
    return tensor
