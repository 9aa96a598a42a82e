"""What Keras layers consist of: their parts, and the losses that these have added in a call."""


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
