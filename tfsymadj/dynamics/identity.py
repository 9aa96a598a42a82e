"""What a callable is made of, and which callables may share a trace.

A compiled trace holds what Python computed when it was made. So its key is all that Python may see
on the way: code, closures, defaults, globals, attributes, items; numbers by value, and variables
and eager tensors by dtype and shape, since their values are inputs of the trace. Two callables with
the same key, such as the lambda of one line in two passes of a loop, are traced once.
"""

import collections
import collections.abc
import enum
import functools
import hashlib
import io
import logging
import sys
import types
import weakref

import keras
import numpy as np
import tensorflow as tf

from tfsymadj import _platform
from tfsymadj.config import Configured
from tfsymadj.dynamics.bookkeeping import ATOMS, OF_CLASSES, OF_MODULES, plain_part_of
from tfsymadj.dynamics.code import is_library, is_library_class, names_in, slots_of

#: More objects than any model has: whoever holds so many holds his data, too.
_MAX_OBJECTS = 20_000

#: Tensors of integers up to this size may be shapes and axes, and are kept by value.
MAX_VALUES = 64

#: Arrays above this size are compared by a digest.
_MAX_BYTES = 4096

_END = object()


class Contents:
    """All that a callable reaches.

    Args:
        x: the callable, or any other object.
        skip: paths (tuples of labels) that are left out.
        with_paths: whether `paths` is wanted.

    Attributes:
        tokens: list of hashable objects, the same for callables that may share a trace.
        leaves: the variables and eager tensors in the order in which they were met.
        positions: storage of a leaf -> its position.
        layers: Keras layers, and layers of `tf_keras` that are not built.
        variables: `tf.Variable`s and Keras variables, as they were met.
        owners: objects that are known by their identity: a key is valid while they live.
        opaque: what can't be looked into, or None.
        paths: path -> its own tokens, without those of what it holds.
    """

    def __init__(self, x, skip=frozenset(), with_paths=False):
        self.tokens, self.leaves, self.positions = [], [], {}
        self.layers, self.variables, self.owners = [], [], []
        self.opaque = None
        self.paths = {} if with_paths else None
        self._skip = skip
        self._seen, self._kept = {}, []
        self._path = ()
        self._scope = _platform.stateless_scope()
        self._child = self._visit_child
        if with_paths:
            self._child = self._record_child
        elif skip:
            self._child = self._visit_labelled_child
        try:
            self._visit(x)
        except RecursionError:
            self.opaque = x
        if with_paths:
            self.paths[()] = [tuple(self.tokens)]

    @property
    def key(self):
        """The tokens as a tuple."""
        return tuple(self.tokens)

    def _visit_child(self, _, x):
        self._visit(x)

    def _visit_labelled_child(self, label, x):
        before, self._path = self._path, (*self._path, label)
        if self._path not in self._skip:
            self._visit(x)
        self._path = before

    def _record_child(self, label, x):
        tokens, self.tokens = self.tokens, []
        path = (*self._path, label)
        self._visit_labelled_child(label, x)
        if path not in self._skip:
            self.paths.setdefault(path, []).append(tuple(self.tokens))
        self.tokens = tokens

    def _visit(self, x):
        kind = type(x)
        tokens = self.tokens
        if kind in ATOMS:
            tokens.append(kind)
            tokens.append(x)
            return
        if kind is float:
            tokens.append(x.hex())  # tells -0.0 from 0.0, and equals nan to nan
            return
        number = self._seen.get(id(x))
        if number is not None:
            tokens.append("seen")
            tokens.append(number)
            return
        self._seen[id(x)] = len(self._seen) if self.paths is None else self._path
        self._kept.append(x)  # an object that was made on the way must keep its id
        if len(self._kept) > _MAX_OBJECTS:
            self.opaque = self._kept[0]
            return
        _handler(kind)(self, x)

    def _identity(self, x):
        """A token that is equal for the same object only."""
        self.tokens.append(id(x))
        self.owners.append(x)

    def _unknown(self, x):
        if self.opaque is None:
            self.opaque = x
        self._identity(x)

    # Numbers

    def _by_repr(self, x):
        self.tokens += (type(x), repr(x))
        self._beyond(x)

    def _slice(self, x):
        self._child("slice", (x.start, x.stop, x.step))

    def _array(self, x):
        self.tokens += ("array", x.shape, x.dtype.str)
        if x.dtype.hasobject:
            self._items(x.tolist())
        elif x.nbytes <= _MAX_BYTES:
            self.tokens.append(x.tobytes())
        else:
            self.tokens.append(_digest(np.ascontiguousarray(x)))
        self._beyond(x)

    def _scalar(self, x):
        self.tokens += (type(x), x.tobytes())

    def _leaf(self, x, storage, *tokens):
        position = self.positions.get(storage)
        if position is not None:  # the same storage in another object
            self.tokens += ("leaf", position)
            return
        self.positions[storage] = len(self.leaves)
        self.leaves.append(x)
        self.tokens += tokens

    def _tensor(self, x):
        if not _platform.is_eager(x):
            if tf.is_tensor(x) and not tf.is_symbolic_tensor(x):  # a handle, of a table say
                self._leaf(x, id(x), "handle")
            return self._identity(x)
        self._leaf(x, id(x), "tensor", x.dtype.as_datatype_enum, x._shape_tuple())
        if _platform.is_kept_by_value(x, MAX_VALUES):
            self.tokens.append(x.numpy().tobytes() if x.dtype != tf.string else str(x.numpy()))

    def _variable(self, x):
        self.variables.append(x)
        if not _platform.is_variable(x):  # one for each replica
            return self._identity(x)
        trainable = x.trainable or self._watched(x)
        self._leaf(x, id(x._handle), trainable, x.dtype.name, tuple(x.shape))

    def _keras_variable(self, x):
        self.variables.append(x)
        value = None if self._scope is None else self._scope.get_current_value(x)
        if value is not None:
            return self._tensor(value)
        value = x._value
        if not _platform.is_variable(value):
            return self._identity(x)
        trainable = x._trainable or self._watched(value)
        self._leaf(value, id(value._handle), trainable, x._dtype, x._shape)

    @staticmethod
    def _watched(x):
        return "watched" if _platform.tapes_record() and _platform.is_watched(x) else False

    # Containers

    def _items(self, x):
        self.tokens += (type(x), len(x))
        for i, item in enumerate(x):
            self._child(i, item)
        self._beyond(x)

    def _beyond(self, x):
        """What a value of a class of the user's has besides being a number or a container."""
        if type(x) not in _COMMON and not is_library_class(type(x)):
            self._child("class", type(x))
            state = getattr(x, "__dict__", None)
            if state:
                self._child("attributes", state)

    def _mapping(self, x):
        self.tokens.append(type(x))
        for key, value in list(x.items()):
            self._visit(key)
            self._child(key if type(key) in ATOMS else id(key), value)
        if isinstance(x, collections.defaultdict):
            self._child("default_factory", x.default_factory)
        self._beyond(x)
        self.tokens.append(_END)

    def _set(self, x):
        if all(type(item) in ATOMS for item in x):
            self.tokens += (type(x), frozenset((type(item), item) for item in x))
        else:
            self._items(list(x))
        self._beyond(x)

    # Code

    def _function(self, f):
        code = f.__code__
        self.tokens.append(code)
        self._child("defaults", f.__defaults__)
        if f.__kwdefaults__:
            self._child("kwdefaults", f.__kwdefaults__)
        names, attributes, imports = names_in(code)
        for name, cell in zip(code.co_freevars, f.__closure__ or ()):
            try:
                value = cell.cell_contents
            except ValueError:  # a name that is not bound yet
                self.tokens.append("unbound")
                continue
            self._named(name, value, attributes)
        if is_library(code.co_filename):
            return
        if f.__dict__:
            self._child("attributes", f.__dict__)
        namespace = f.__globals__
        for name in imports:
            module = sys.modules.get(name) or sys.modules.get(
                f"{namespace.get('__package__')}.{name}"
            )
            if module is None:
                self.tokens += ("to be imported", name)
            else:
                self._named(name, module, attributes)
        for name in names:
            if name in namespace:
                self._named(name, namespace[name], attributes)

    def _named(self, name, value, attributes):
        """A value of a function's names, which may be a module whose attributes it uses."""
        if isinstance(value, types.ModuleType):
            before, self._path = self._path, (*self._path, name)
            self._module(value, attributes)
            self._path = before
        else:
            self._child(name, value)

    def _module(self, module, attributes=None):
        self.tokens.append(module.__name__)
        self.owners.append(module)
        visit = (id(module), attributes)
        if visit in self._seen:
            return
        self._seen[visit] = None
        file = getattr(module, "__file__", None)
        if module.__name__ in sys.builtin_module_names or (file and is_library(file)):
            return
        space = vars(module)
        for name in sorted(space) if attributes is None else attributes:
            value = space.get(name)
            if name in space and not (attributes is None and name.startswith("__")):
                self._named(name, value, attributes)

    def _method(self, x):
        self.tokens.append("method")
        self._child("function", x.__func__)
        self._child("self", x.__self__)

    def _builtin(self, x):
        self.tokens.append(x.__name__)
        if x.__self__ is None or isinstance(x.__self__, types.ModuleType):
            self._identity(x)
        else:
            self._child("self", x.__self__)

    def _partial(self, x):
        self.tokens.append(type(x))
        self._child("function", x.func)
        self._child("arguments", x.args)
        self._child("keywords", x.keywords)

    def _wrapper(self, x):  # static and class methods
        self.tokens.append(type(x))
        self._child("function", x.__func__)

    def _property(self, x):
        self.tokens.append(type(x))
        for name in ("fget", "fset", "fdel"):
            self._child(name, getattr(x, name))

    def _class(self, x):
        self._identity(x)
        for base in x.__mro__:
            if is_library_class(base):
                continue
            for name, value in list(vars(base).items()):
                if name not in OF_CLASSES:
                    self._child((base.__name__, name), value)

    def _traced_function(self, x):  # `tf.function`
        if hasattr(x, "concrete_functions"):  # loaded
            self._identity(x)
            self._items(list(x.concrete_functions))
        else:
            self.tokens.append("tf.function")
            self._child("function", x.python_function)

    def _concrete_function(self, x):
        self._identity(x)
        for variable in x.graph.variables:
            self._child("variables", variable)
        for tensor in x.captured_inputs:
            if _platform.is_eager(tensor):
                self._child("captured", tensor)

    def _reference(self, x):
        self.tokens.append("weak")
        self._child("referent", x())

    # Objects

    def _layer(self, x):
        self.layers.append(x)
        self._identity(x)
        self._class_of(x)
        state, known = x.__dict__, plain_part_of(x)
        if self._child == self._visit_child:
            self.tokens += known.tokens
            names = known.others
        else:  # which want to know the paths of all parts
            names = [*known.names, *known.others]
        for name in names:
            self.tokens.append(name)
            value = state[name]
            if type(value) is keras.Variable:
                self._keras_variable(value)
            else:
                self._child((type(x), name), value)

    def _foreign_layer(self, x):  # of `tf_keras`
        if not x.built:
            self.layers.append(x)
        self._identity(x)
        self._class_of(x)
        for name, value in list(x.__dict__.items()):
            if not name.startswith("_") or name in ("_trainable", "_self_tracked_trackables"):
                self.tokens.append(name)
                self._child((type(x), name), value)
        for variable in x.variables:
            self._child("variables", variable)

    def _configured(self, x):
        """One of the package's own, which compares by its config."""
        if is_library_class(type(x)):
            self.tokens.append(x)
        else:
            self._object(x)

    def _policy(self, x):
        self.tokens.append(x.name)

    def _object(self, x):
        self.tokens.append(type(x))
        self._class_of(x)
        state = getattr(x, "__dict__", None)
        slots = slots_of(type(x))
        if state is None and not slots:
            return self._reduced(x)
        for name, value in list((state or {}).items()):
            if name not in OF_MODULES:
                self.tokens.append(name)
                self._child((type(x), name), value)
        for name in slots:
            if hasattr(x, name):
                self.tokens.append(name)
                self._child((type(x), name), getattr(x, name))
        self.tokens.append(_END)

    def _class_of(self, x):
        if not is_library_class(type(x)):
            self._child("class", type(x))

    def _reduced(self, x):
        """An object of a compiled type, by what `pickle` would save of it."""
        try:
            reduced = x.__reduce_ex__(2)
        except Exception:  # noqa: BLE001 - whatever a foreign type may raise
            return self._unknown(x)
        if isinstance(reduced, str):
            return self._identity(x)
        _, arguments, *state = reduced
        self._child("arguments", arguments)
        for part in state:
            iterates = hasattr(part, "__next__")
            self._child("state", list(part) if iterates else part)


def _digest(x):
    return hashlib.blake2b(x.view(np.uint8).data if x.ndim else x.tobytes()).digest()


_handlers: weakref.WeakKeyDictionary = weakref.WeakKeyDictionary()


def _handler(kind):
    known = _COMMON.get(kind) or _handlers.get(kind)
    if known is None:
        known = next(handler for bases, handler in _HANDLERS if issubclass(kind, bases))
        if any(
            x.__name__ == "Layer" and x.__module__.startswith("tf_keras.") for x in kind.__mro__
        ):
            known = Contents._foreign_layer
        _handlers[kind] = known
    return known


#: By the first that fits.
_HANDLERS = [
    ((bool, int, float, str, bytes, complex, enum.Enum, type(NotImplemented)), Contents._by_repr),
    ((tf.DType, tf.TensorShape, tf.TypeSpec, np.dtype), Contents._by_repr),
    (slice, Contents._slice),
    (np.generic, Contents._scalar),
    (np.ndarray, Contents._array),
    (tf.Tensor, Contents._tensor),
    (tf.Variable, Contents._variable),
    (keras.Variable, Contents._keras_variable),
    (keras.Layer, Contents._layer),
    (keras.DTypePolicy, Contents._policy),
    (Configured, Contents._configured),
    (keras.KerasTensor, Contents._identity),
    (types.FunctionType, Contents._function),
    (types.MethodType, Contents._method),
    (functools.partial, Contents._partial),
    ((types.BuiltinFunctionType, types.MethodWrapperType), Contents._builtin),
    ((staticmethod, classmethod), Contents._wrapper),
    (property, Contents._property),
    (type, Contents._class),
    (types.ModuleType, Contents._module),
    (_platform.TracedFunction, Contents._traced_function),
    (_platform.ConcreteFunction, Contents._concrete_function),
    ((list, tuple, collections.deque), Contents._items),
    ((dict, collections.abc.Mapping), Contents._mapping),
    ((set, frozenset), Contents._set),
    (weakref.ReferenceType, Contents._reference),
    (
        (
            types.WrapperDescriptorType, types.MethodDescriptorType, types.GetSetDescriptorType,
            types.MemberDescriptorType, types.CodeType, np.ufunc, logging.Logger, io.IOBase,
            *_platform.CLOSED,
        ),
        Contents._identity,
    ),
    (
        (types.GeneratorType, types.CoroutineType, collections.abc.Iterator),
        Contents._unknown,
    ),
    (object, Contents._object),
]  # fmt: skip


#: Without a search.
_COMMON = {
    types.FunctionType: Contents._function,
    types.MethodType: Contents._method,
    functools.partial: Contents._partial,
    keras.Variable: Contents._keras_variable,
    tuple: Contents._items,
    list: Contents._items,
    dict: Contents._mapping,
}


class Fingerprint:
    """The state of an object: equal to another one while nothing of it is changed or rebound.

    Variables and tensors are known by their identity here, and kept alive by nothing.

    Args:
        x: any object.
    """

    def __init__(self, x):
        contents = Contents(x)
        self._key = None if contents.opaque is not None else contents.key
        self._objects = [_weakly(x) for x in (*contents.leaves, *contents.owners)]

    def __eq__(self, other):
        if not isinstance(other, Fingerprint):
            return NotImplemented
        if self._key is None or self._key != other._key:
            return False
        pairs = [(a(), b()) for a, b in zip(self._objects, other._objects)]
        return all(a is not None and a is b for a, b in pairs)

    __hash__ = None  # type: ignore[assignment]


def _weakly(x):
    try:
        return weakref.ref(x)
    except TypeError:  # an object that lives as long as this
        return lambda: x


def written(before, after):
    """The paths of two `Contents` of one object that differ; parts of such a part are left out."""
    changed = {
        path
        for path in before.paths.keys() | after.paths.keys()
        if before.paths.get(path) != after.paths.get(path)
    }
    return frozenset(
        path for path in changed if not any(path[:n] in changed for n in range(len(path)))
    )
