"""Attributes that a walk over objects need not enter.

They are what Python, TensorFlow and Keras note on classes, modules and layers, which no user's code
looks at; and of a Keras layer those that hold nothing.
"""

import functools
import operator
import types
import weakref

import keras

from tfsymadj.dynamics.code import is_library, is_library_class

#: Types whose objects never change and are compared by value.
ATOMS = frozenset({bool, int, str, bytes, type(None), type(Ellipsis), range})

#: What Python notes on classes.
OF_CLASSES = frozenset(
    {
        "__module__", "__doc__", "__dict__", "__weakref__", "__qualname__", "__annotations__",
        "__firstlineno__", "__static_attributes__", "__annotate_func__", "__abstractmethods__",
        "_abc_impl", "__parameters__", "__orig_bases__", "__dataclass_params__", "__slots__",
        "__dataclass_fields__", "__match_args__", "_tf_module_ignored_properties",
    }
)  # fmt: skip

#: What TensorFlow notes on modules and on objects that it tracks.
OF_MODULES = frozenset(
    {
        "_self_setattr_tracking", "_self_unconditional_checkpoint_dependencies",
        "_self_unconditional_dependency_names", "_self_unconditional_deferred_dependencies",
        "_self_update_uid", "_self_name_based_restores", "_self_saveable_object_factories",
        "_tfsymadj_adopted",
    }
)  # fmt: skip


@functools.cache
def _of_keras():
    """What every layer and model of Keras has, and no `call` of a user looks at."""
    looked_at = {"_trainable", "_dtype_policy", "activity_regularizer", "_layers", "_remat_mode"}
    looked_at |= {"name", "supports_masking"}
    graph = {
        "_inputs_struct", "_outputs_struct", "_inputs", "_outputs", "_nodes", "_nodes_by_depth",
        "_operations_by_depth", "optimizer", "_compile_config",
    }  # fmt: skip
    return (set(vars(keras.Model(name="bookkeeping"))) | graph | OF_MODULES) - looked_at


class PlainPart:
    """The attributes of a layer that hold nothing, by which a walk is shortened.

    Args:
        kind: the layer's class.
        state: its attributes.
    """

    def __init__(self, kind, state):
        skipped = _of_layers(kind)
        self.names, self.others, self._values, self.tokens = [], [], [], []
        for name, value in state.items():
            if name in skipped or (name == "_layers" and not value):
                continue
            if _is_plain(value):
                self.names.append(name)
                self._values.append(value)
                token = value.hex() if type(value) is float else value
                self.tokens += (name, type(value), token)
            else:
                self.others.append(name)
        self._size = len(state)
        self._lists = [value for name, value in state.items() if name == "_layers" and not value]
        self._get = operator.itemgetter(*self.names, self.names[0]) if self.names else None

    def holds(self, state):
        """Whether the attributes are still these."""
        if len(state) != self._size or any(self._lists):
            return False
        try:
            return self._get is None or all(map(operator.is_, self._get(state), self._values))
        except KeyError:  # one is gone, and another one there
            return False


def _is_plain(x):
    """Whether an object never changes, and can be compared."""
    if type(x) in ATOMS or type(x) is float:
        return True
    return (
        type(x) is types.FunctionType and not x.__closure__ and is_library(x.__code__.co_filename)
    )


_plain_parts: weakref.WeakKeyDictionary = weakref.WeakKeyDictionary()


def plain_part_of(layer):
    """The `PlainPart` of a Keras layer."""
    state = layer.__dict__
    known = _plain_parts.get(layer)
    if known is None or not known.holds(state):
        known = _plain_parts[layer] = PlainPart(type(layer), state)
    return known


_of_kinds: weakref.WeakKeyDictionary = weakref.WeakKeyDictionary()


def _of_layers(kind):
    """What is left out of a layer of this class."""
    known = _of_kinds.get(kind)
    if known is None:
        known = _of_keras()
        if is_library_class(kind):  # for building only
            for role in ("initializer", "regularizer", "constraint"):
                known = known | {f"{part}_{role}" for part in ("kernel", "bias", "recurrent")}
        known = _of_kinds[kind] = frozenset(known)
    return known
