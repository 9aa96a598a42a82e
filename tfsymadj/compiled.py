"""Eager calls, compiled and cached: what a cache may hold, and for how long.

Called op by op a custom gradient saves no memory, so an eager solve is compiled. The compiled trace
holds what Python computed when it was made; `dynamics.identity` says when it may be used again. It
holds no dynamics, weights or data: those of a call are handed to it, the ones that the dynamics
close over included.
"""

import collections
import functools
import gc
import threading
import types
import warnings
import weakref

import keras
import numpy as np
import tensorflow as tf

from tfsymadj import _platform
from tfsymadj.dynamics.closing import Caller
from tfsymadj.dynamics.code import is_library
from tfsymadj.dynamics.identity import Contents, written

#: How many solves are kept, for how many Python values of one piece of code and set of options,
#: and for how many sizes where the dynamics look at them.
_MAX_ENTRIES = 64
_MAX_VALUES = 4
_MAX_SIZES = 32

#: A collection of garbage takes less than a tenth of the time of a trace.
_COLLECT_AFTER = 4


class _Current(threading.local):
    """The call in progress: TensorFlow traces gradients in the middle of it."""

    dynamics = None
    functions = ()
    contents = None
    caller = None


_current = _Current()


class _EagerCaller(Caller):
    """A trace that other calls may share, if they have all that it reads."""

    def __init__(self):
        self.is_shared = True
        self.looked_at = {}  # position of an eager tensor -> its value
        self.trained = []
        self.written = frozenset()
        self._paths = None

    def dynamics(self):
        """The dynamics of the call in progress."""
        if _current.caller is not self:  # the call is over
            raise RuntimeError(
                "`jit_compile=True` has no gradient in eager code under more than one recording "
                "`tf.GradientTape`: call the solver and its gradient inside of a `tf.function`, or "
                "leave `jit_compile` out."
            )
        return _current.dynamics

    def function(self, i):
        """The i-th of the further functions of the call in progress."""
        return _current.functions[i]

    def position(self, x):
        return _current.contents.positions.get(_platform.storage(x))

    def traced(self):
        before, self._paths = self._paths, Contents(_everything(), with_paths=True)
        if before is not None:
            self.written |= written(before, self._paths)
        _current.contents = Contents(_everything(), self.written)

    def found(self, read, trained):
        self._paths = None
        self.is_shared &= all(self.position(x) is not None for x in read)
        self.trained += [self.position(v) for v in trained]

    def looks_at(self, tensor, value):
        position = self.position(tensor)
        if position is None:
            self.is_shared = False
        else:
            self.looked_at[position] = _bytes(value)


class _Trace:
    """One compiled solve for inputs of certain shapes.

    Args:
        function: see `solve`.
        inputs: nest of tensors, for its structure.
        specs: list of `tf.TensorSpec`s.
    """

    def __init__(self, function, inputs, specs):
        self.caller = _current.caller = _EagerCaller()
        self.specs = specs

        def run(*flat):
            return function(self.caller, tf.nest.pack_sequence_as(inputs, flat))

        self._function = tf.function(run, autograph=False).get_concrete_function(*specs)
        # The first trace builds layers and fills caches.
        positions = {id(_tensor(x)): i for i, x in enumerate(_current.contents.leaves)}
        self._captured = [positions.get(id(x)) for x in self._function.captured_inputs]
        if None in self._captured:
            self.caller.is_shared = False
        if self.is_shared:
            _platform.forget_variables(self._function)

    @property
    def is_shared(self):
        """Whether other calls may use it: all that it holds is among what the walk found."""
        return self.caller.is_shared

    def fits(self, contents):
        """Whether the values that Python looked at are those of the trace."""
        looked_at = self.caller.looked_at
        leaves = contents.leaves
        return all(_bytes(leaves[i].numpy()) == x for i, x in looked_at.items())

    def takes(self, flat):
        """Whether the shapes of the inputs are those of the trace."""
        return all(s.shape.is_compatible_with(x.shape) for s, x in zip(self.specs, flat))

    def __call__(self, flat, contents):
        if not self.is_shared:
            return self._function(*flat)
        leaves = contents.leaves
        if _platform.tapes_record():
            for i in self.caller.trained:
                _platform.accessed(leaves[i])
        return _platform.call(self._function, flat, [_tensor(leaves[i]) for i in self._captured])


def _tensor(x):
    return x.handle if _platform.is_variable(x) else x


def _bytes(value):
    array = np.asarray(value)
    return str(value) if array.dtype.kind in "OSU" else array.tobytes()


class _Entry:
    """The traces of callables that are alike, for all shapes."""

    def __init__(self):
        self._exact = collections.OrderedDict()  # shapes -> traces
        self._relaxed = []
        self._looks = False  # whether the dynamics look at sizes
        self._owners = []
        self.family = None

    def lives_with(self, owners, forget):
        """Calls `forget` when one of the owners is gone; keeps those for which nobody can tell."""
        for x in owners:
            try:
                self._owners.append(weakref.ref(x, forget))
            except TypeError:
                self._owners.append(x)

    def find(self, flat, contents):
        """A trace that can be used, or None."""
        shapes = _shapes(flat)
        for trace in self._exact.get(shapes, ()):
            if trace.fits(contents):
                self._exact.move_to_end(shapes)
                return trace
        for trace in self._relaxed:
            if trace.fits(contents) and trace.takes(flat):
                return trace
        return None

    def make(self, function, inputs, flat):
        """A new trace."""
        specs = [tf.TensorSpec(x.shape, x.dtype) for x in flat]
        shapes = _shapes(flat)
        if not self._looks and shapes not in self._exact:
            relaxed = self._make_relaxed(function, inputs, specs)
            if relaxed is not None:
                self._relaxed = [*self._relaxed[-3:], relaxed]
                return relaxed
        trace = _Trace(function, inputs, specs)
        self._exact.setdefault(shapes, []).append(trace)
        self._exact[shapes] = self._exact[shapes][-4:]
        while len(self._exact) > _MAX_SIZES:
            self._exact.popitem(last=False)
        return trace

    def _make_relaxed(self, function, inputs, specs):
        """A trace for all sizes that were seen, or None if the dynamics ask what they are."""
        earlier = [traces[-1] for traces in self._exact.values()][-1:] + self._relaxed[-1:]
        relaxed = specs
        for trace in earlier:
            relaxed = [_relaxed(a, b) for a, b in zip(relaxed, trace.specs)]
        if not earlier or all(x.shape.is_fully_defined() for x in relaxed):
            return None  # shapes are not what differs
        looked = []

        def look(file):
            if not is_library(file):
                looked.append(file)

        try:
            with _platform.watched_shapes(look):
                trace = _Trace(function, inputs, relaxed)
        except Exception:  # noqa: BLE001 - the exact shapes will tell whether it is the user's
            looked.append(None)
        self._looks = bool(looked)
        if looked:
            self._relaxed = []
            return None
        return trace


def _shapes(flat):
    return tuple([tuple(x.shape) for x in flat])


def _relaxed(a, b):
    return tf.TensorSpec(a.shape.most_specific_compatible_shape(b.shape), a.dtype)


_entries: collections.OrderedDict = collections.OrderedDict()
# What a callable is known by -> paths that tracing changes.
_written: weakref.WeakKeyDictionary = weakref.WeakKeyDictionary()
_lock = threading.RLock()
_warned: set = set()
_new = 0  # traces since the garbage collector came


def _everything():
    """What the walk has to see."""
    functions = _current.functions
    return (_current.dynamics, *functions) if functions else _current.dynamics


def solve(function, dynamics, functions, inputs, options):
    """Calls a compiled function of the dynamics and of inputs.

    Args:
        function: callable `(caller, inputs) -> outputs`, which traces the solve. It gets the
            dynamics from `caller.dynamics()`.
        dynamics: the user's callable.
        functions: further callables of the user's, a list.
        inputs: nest of tensors.
        options: hashable, all else that the function depends on.
    """
    flat = tf.nest.flatten(inputs)
    before = _current.dynamics, _current.functions, _current.contents, _current.caller
    try:
        _current.dynamics, _current.functions = dynamics, functions
        contents = _current.contents = Contents(_everything(), _skipped(dynamics))
        surroundings = (options, _structure(inputs), *(x.dtype for x in flat), _surroundings())
        key = surroundings, contents.key
        entry = None
        if contents.opaque is None:
            entry = _entries.get(key)
        trace = None if entry is None else entry.find(flat, contents)
        if trace is None:
            with _lock:
                trace = _traced(function, dynamics, inputs, flat, surroundings, entry or _Entry())
        else:
            _entries.move_to_end(key)
        _current.caller = trace.caller
        return trace(flat, _current.contents)
    finally:
        _current.dynamics, _current.functions, _current.contents, _current.caller = before


def _traced(function, dynamics, inputs, flat, surroundings, entry):
    """A new trace, entered into the cache if other calls may use it."""
    global _new
    _new += 1
    if _new >= _COLLECT_AFTER:
        # Traces and layers are full of cycles, and the collector does not know how large they are.
        _new = 0
        gc.collect()
    trace = entry.make(function, inputs, flat)
    contents = _current.contents
    if contents.opaque is not None or not trace.is_shared:
        what = "use variables or tensors that are not among their attributes and closures"
        if contents.opaque is not None:
            what = f"hold {contents.opaque!r}, which can't be looked into"
        _warn(
            f"`dynamics` {what}, so that each eager call traces them anew. Call the solver inside "
            f"of a `tf.function`. Received: {dynamics!r}"
        )
        return trace
    if trace.caller.written:
        _written[_known_by(dynamics)] = _skipped(dynamics) | trace.caller.written
    key = surroundings, contents.key
    if _entries.get(key) is not entry:
        entry.family = surroundings, id(_known_by(dynamics))
        entry.lives_with(contents.owners, lambda _: _entries.pop(key, None))
        _entries[key] = entry
        _turn_over(entry.family)
    return trace


def _turn_over(family):
    """Forgets what was used least recently, if there is too much."""
    alike = [key for key, entry in list(_entries.items()) if entry.family == family]
    if len(alike) > _MAX_VALUES:
        _entries.pop(alike[0], None)
        _warn(
            f"The same `dynamics` were compiled for more than {_MAX_VALUES} Python values that "
            "they close over or hold; those used least recently are forgotten. Make these values "
            "tensors, pass them through `args`, or call the solver inside of a `tf.function`."
        )
    elif len(_entries) > _MAX_ENTRIES:
        _entries.popitem(last=False)
        _warn(
            f"More than {_MAX_ENTRIES} different eager solves were compiled; the one that was used "
            "least recently is forgotten, and would be traced again. Call the solver inside of a "
            "`tf.function`."
        )


def _warn(message):
    if message[:40] not in _warned:
        _warned.add(message[:40])
        warnings.warn(message, stacklevel=2)


def _skipped(dynamics):
    return _written.get(_known_by(dynamics), frozenset()) if _written else frozenset()


def _known_by(x):
    """An object that lives as long as callables that are written to in the same way."""
    if isinstance(x, functools.partial):
        return _known_by(x.func)
    if isinstance(x, types.MethodType):
        return _known_by(x.__self__)
    if isinstance(x, types.FunctionType):
        return x.__code__
    return type(x) if type(x).__hash__ is None or not hasattr(x, "__weakref__") else x


def _structure(x):
    """The structure of a nest, hashable."""
    if isinstance(x, dict):
        return (type(x), *x, *[_structure(y) for y in x.values()])
    if isinstance(x, (list, tuple)):
        return (type(x), *[_structure(y) for y in x])
    return None


def _surroundings():
    """What Keras and TensorFlow keep for a thread and the dynamics may see."""
    arguments = _platform.call_arguments()
    return (
        Contents(arguments).key if arguments else (),
        keras.config.floatx(),
        tf.distribute.has_strategy() and id(tf.distribute.get_strategy()),
    )
