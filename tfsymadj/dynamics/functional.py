"""Functional Keras models as dynamics: which of their inputs gets what, and by which name."""

import collections
from collections.abc import Mapping

import keras
import tensorflow as tf

from tfsymadj import _platform

#: Names by which an input for the time is known, wherever it stands.
_TIME = ("t", "time")

_Leaf = collections.namedtuple("_Leaf", ["path", "names", "value"])


def is_functional(dynamics):
    """Whether the dynamics are a Keras model called with one nest of inputs."""
    return isinstance(dynamics, keras.Model) and hasattr(dynamics, "inputs")


def call(model, t, y, args, mask=None, **keywords):
    """One evaluation of a functional model.

    Args:
        model: the model.
        t: scalar, or times of each example; None if the model is autonomous.
        y: nest of tensors `(batch, ...)`.
        args: tuple of nests of tensors.
        mask: of `y`, a tensor then; None: no mask.
        **keywords: such as `training`.

    Returns:
        What the model returns, in the structure of `y` if it has the same names or positions.

    Raises:
        ValueError: see `match`.
    """
    if t is not None:
        batch = tf.shape(tf.nest.flatten(y)[0])[0]
        t = tf.reshape(t, [-1, 1]) * tf.ones([batch, 1], t.dtype)
    if mask is not None:  # by itself it would be that of the first input
        y = _platform.with_mask(y, mask)
    return _in_structure_of(y, model(match(model, t, y, args), **keywords))


def match(model, t, y, args):
    """The inputs of a functional model, in its own structure.

    Parts of dicts and of named tuples go to the inputs of their names. What has no name goes where
    the model's structure of inputs has it, or to the inputs that are left, in order; the time to
    one called "t" or "time", or to the first.

    Args:
        model: the model.
        t: the time, or None.
        y: the nest of the state.
        args: tuple of nests of further arguments.

    Raises:
        ValueError: if that is not possible, or leaves a choice.
    """
    parts = [*([] if t is None else [t]), y, *args]
    values = [
        _Leaf(path, _TIME if t is not None and path[0] == 0 else _last(path), value)
        for path, value in _leaves(parts)
    ]
    structure = model.inputs if isinstance(model, keras.Sequential) else model.input
    slots = [_Leaf(path, _last(path) or (x.name,), x) for path, x in _leaves(structure)]

    by_name = collections.Counter(name for value in values for name in value.names)
    found = {}
    for value in values:
        fitting = [slot for slot in slots if set(slot.names) & set(value.names)]
        if len(fitting) == 1 and by_name[fitting[0].names[0]] == 1:
            found[fitting[0].path] = value
    slots_left = [slot for slot in slots if slot.path not in found]
    values_left = [value for value in values if value not in found.values()]

    # A state alone is the whole input.
    depth = 1 if len(parts) == 1 else 0
    by_path = {value.path[depth:]: value for value in values}
    if by_path.keys() == {slot.path for slot in slots} and all(
        by_path[slot.path] in values_left for slot in slots_left
    ):
        found |= {slot.path: by_path[slot.path] for slot in slots_left}
    elif slots_left and _in_order(slots_left, values_left, slots):
        found |= {slot.path: value for slot, value in zip(slots_left, values_left)}
    elif slots_left or any(_part(value, t) != "y0" or not value.names for value in values_left):
        named = [value for value in values_left if value.names not in ((), _TIME)]
        argument = next((_part(value, t) for value in named + values_left), "y0")
        raise ValueError(
            f"`{argument}` must match the inputs of the functional model {model.name!r}: parts of "
            "dicts and named tuples by the names of its inputs, others in the order of its inputs, "
            "after the time if `autonomous` is False. Use a dict with the names of the inputs, or "
            "call the input for the time 't'. "
            f"Received: inputs {[slot.names[0] for slot in slots]} for "
            f"{[_describe(value, t) for value in values]}"
        )
    inputs = {id(slot.value): found[slot.path].value for slot in slots}
    inputs = keras.tree.map_structure(lambda slot: inputs[id(slot)], structure)
    return inputs[0] if isinstance(inputs, list) and len(inputs) == 1 else inputs


def _leaves(nest, path=()):
    """Pairs `(path, leaf)`, in the order of `tf.nest`."""
    if isinstance(nest, Mapping):
        items = sorted(nest.items())
    elif isinstance(nest, tuple) and hasattr(nest, "_fields"):
        items = zip(nest._fields, nest)
    elif isinstance(nest, (list, tuple)):
        items = enumerate(nest)
    else:
        yield path, nest
        return
    for key, part in items:
        yield from _leaves(part, (*path, key))


def _last(path):
    """The name at the end of a path, in a tuple; an empty one for a mere position."""
    return (path[-1],) if path and isinstance(path[-1], str) else ()


def _in_order(slots_left, values_left, slots):
    """Whether what is left over can only be meant one way."""
    if len(slots_left) != len(values_left):
        return False
    positions_only = not any(_last(slot.path) for slot in slots_left)
    for slot, value in zip(slots_left, values_left):
        if value.names == _TIME:
            if not positions_only or slot is not slots[0]:
                return False
        elif value.names:
            return False
    return positions_only or len(slots_left) == 1


def _part(value, t):
    """The argument of `solve` that a value came with."""
    position = value.path[0] - (t is not None)
    return "t" if position < 0 else "args" if position else "y0"


def _describe(value, t):
    names = value.names if _part(value, t) != "t" else ()
    return _part(value, t) + "".join(f"[{name!r}]" for name in names)


def _in_structure_of(y, result):
    """`result` in the structure of `y`, if their names and positions are the same."""
    found = dict(_leaves(result))
    paths = [path for path, _ in _leaves(y)]
    if len(paths) == len(found) == 1 and not _last(paths[0]):  # Keras unpacks a list of one
        found = dict.fromkeys(paths, *found.values())
    if found.keys() != set(paths):
        return result
    return tf.nest.pack_sequence_as(y, [found[path] for path in paths])
