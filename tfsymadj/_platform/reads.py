"""Variable reads and captures of eager tensors, redirected while the dynamics are traced.

A backward pass needs it: a gradient function that reads variables or captures eager tensors itself
breaks inside `keras.layers.RNN`, `tf.map_fn`, `tf.while_loop` and `tf.cond`, and variables that it
gets through `variables=` are read in the same place. So what the dynamics use is brought into the
graph once, outside of the solver, and the solver's loops see tensors of their graph (closure
conversion).

To the dynamics a redirected read is a read: tapes of their own, `tf.gradients`, `tf.recompute_grad`
and custom gradients find the variable behind its value. For that the read is recorded as an
operation that has the variable's handle among its inputs. Not the handle itself, which the tapes
of the caller may watch beside the value (they would count the gradient twice), but another tensor
of the same resource, which `variable.handle` is while the dynamics are traced.
"""

import concurrent.futures
import contextlib
import functools
import inspect
import math
import threading

import numpy as np
import tensorflow as tf
from tensorflow.python.autograph.core import ag_ctx
from tensorflow.python.eager import record
from tensorflow.python.eager.polymorphic_function import (
    autograph_util,
    concrete_function,
    polymorphic_function,
)
from tensorflow.python.framework import func_graph, ops
from tensorflow.python.ops import (
    cond_v2,
    custom_gradient,
    embedding_ops,
    gradients_util,
    resource_variable_ops,
)

from tfsymadj._platform.gradients import keep_newest
from tfsymadj._platform.graphs import is_control_flow_inside

_Variable = resource_variable_ops.BaseResourceVariable


class _Active(threading.local):
    def __init__(self):
        self.stack = []


_active = _Active()
_originals: dict = {}
_lock = threading.Lock()


class Substitution:
    """Values that stand for variables and eager tensors while the dynamics are traced.

    Args:
        find: callable from a `tf.Variable` or an eager tensor to a tensor of an outer graph or of
            the current one, or to None for what TensorFlow does by itself.
        looked_at: callable that is told of eager tensors whose value Python asked for, and of that.
    """

    def __init__(self, find, looked_at=lambda tensor, value: None):
        self._find = find
        self.looked_at = looked_at
        self._graph = tf.compat.v1.get_default_graph()
        self._values = {}  # storage -> (that tensor, its copy in `graph`)
        self._aliases = {}

    def covers(self, graph):
        """Whether operations of `graph` belong to the traced dynamics."""
        return is_control_flow_inside(graph, self._graph)

    def value(self, x, graph=None):
        """The value of `x` in the graph, recorded on all tapes, or None."""
        key = storage(x)
        found = self._values.get(key)
        if found is None:
            with self._graph.as_default():
                source = self._find(x)
            if source is None:
                return None
            # Of its own: other parts of the solver may use the source without being a read.
            inside = _originals["capture"](self._graph, source)
            with self._graph.as_default(), record.stop_recording():
                found = self._values[key] = source, tf.identity(inside)
        source, value = found
        if is_variable(x):
            resource_variable_ops.variable_accessed(x)
        graph = tf.compat.v1.get_default_graph() if graph is None else graph
        places = [value]
        if graph is not self._graph:  # a body: its own tapes, and those around it
            places.append(graph.capture(value))
        for place in places:
            record.record_operation(
                "ReadVariableOp", [place], [source, self.alias(x)], backward_function=_to_both
            )
        return places[-1]

    def alias(self, x):
        """What tapes know `x` by inside of the dynamics: an eager tensor."""
        if not is_variable(x):
            return x
        key = storage(x)
        found = self._aliases.get(key)
        if found is None:
            with tf.init_scope(), record.stop_recording():
                found = self._aliases[key] = tf.identity(x._handle)
            found._handle_data = x._handle._handle_data
        return found


def _to_both(gradient):
    return [gradient, gradient]


def _current(graph=None):
    """The innermost substitution that covers the graph, or None."""
    graph = tf.compat.v1.get_default_graph() if graph is None else graph
    for substitution in reversed(_active.stack):
        if substitution.covers(graph):
            return substitution
    return None


def _value_of(x, graph=None):
    """The value of the innermost substitution that has one, or None."""
    graph = tf.compat.v1.get_default_graph() if graph is None else graph
    for substitution in reversed(_active.stack):
        if substitution.covers(graph):
            value = substitution.value(x, graph)
            if value is not None:
                return value
    return None


def _handle(variable):
    if _active.stack and variable._handle is not None:
        substitution = _current()
        if substitution is not None:
            return substitution.alias(variable)
    return variable._handle


def _read(variable, *args, **kwargs):
    value = _value_of(variable) if _active.stack else None
    return _originals["read"](variable, *args, **kwargs) if value is None else value


def _sparse_read(variable, indices, name=None):
    value = _value_of(variable) if _active.stack else None
    if value is None:
        return _originals["sparse_read"](variable, indices, name)
    return tf.gather(value, indices, name=name)


def _gather_nd(variable, indices, name=None):
    value = _value_of(variable) if _active.stack else None
    if value is None:
        return _originals["gather_nd"](variable, indices, name)
    return tf.gather_nd(value, indices, name=name)


def _capture(graph, tensor, *args, **kwargs):
    if _active.stack and is_eager(tensor):
        value = _value_of(tensor, graph)
        tensor = tensor if value is None else value
    seen = tensor
    if _active.stack and isinstance(graph, cond_v2._CondGradFuncGraph):
        seen = _as_seen_by_branch(graph, tensor)
    captured = _originals["capture"](graph, seen, *args, **kwargs)
    if _active.stack and captured is not tensor and hasattr(graph, "_forward_graph"):
        # In the gradient of a loop or a branch, where TensorFlow does not tell tapes of its own.
        record.record_operation(
            "captured_value", [captured], [tensor], backward_function=lambda gradient: [gradient]
        )
    return captured


def _as_seen_by_branch(graph, tensor):
    """A tensor that the gradient of a branch captures, as TensorFlow expects to find it.

    It has to belong to the branch or to the graph around the gradient; and what the branch has
    captured must not be captured beside it, or one of both placeholders is never fed.
    """
    if not tf.is_symbolic_tensor(tensor) or tensor.graph in (graph, graph._forward_graph):
        return tensor
    known = _captured_by(graph._forward_graph, tensor)
    if known is not None:
        return known
    outer = graph.outer_graph
    return outer.capture(tensor) if isinstance(outer, func_graph.FuncGraph) else tensor


def _captured_by(graph, tensor):
    """What a graph knows a tensor of an outer graph by, or None."""
    return next((inner for x, inner in graph.captures if x is tensor), None)


def _colocated(x, graph):
    """What stands beside a variable stands beside its value: without a capture of its handle."""
    value = _value_of(x, graph) if _active.stack and is_variable(x) else None
    return _originals["colocate"](x if value is None else value, graph)


def _beside_embedding(x):
    """The same for `tf.nn.embedding_lookup`, which captures the handle by itself."""
    value = _value_of(x) if _active.stack and is_variable(x) else None
    return _originals["beside_embedding"](x) if value is None else ops.colocate_with(value)


def _call_function(function, *args, **kwargs):
    """`tf.function`s inside of the dynamics are part of them: their own traces hold variables."""
    # A function that was loaded has no code, it picks one of its traces.
    has_code = not hasattr(function, "concrete_functions")
    if not (has_code and _active.stack and _current() is not None):
        return _originals["function"](function, *args, **kwargs)
    python = function.python_function
    signature = function.input_signature
    if signature is not None:
        bound = inspect.signature(python).bind(*args, **kwargs)
        bound.apply_defaults()
        args, kwargs = bound.args, bound.kwargs
        specified = tf.nest.map_structure(_as_specified, signature, args[: len(signature)])
        args = (*specified, *args[len(signature) :])
    args, kwargs = tf.nest.map_structure(
        lambda x: tf.convert_to_tensor(x) if isinstance(x, np.ndarray) else x, (args, kwargs)
    )
    if not function._autograph:
        return python(*args, **kwargs)
    options = function._experimental_autograph_options
    with ag_ctx.ControlStatusCtx(status=ag_ctx.Status.ENABLED):
        return autograph_util.py_func_from_autograph(python, options)(*args, **kwargs)


def _as_specified(spec, x):
    return tf.convert_to_tensor(x, spec.dtype) if isinstance(spec, tf.TensorSpec) else x


def _call_flat(function, tensor_inputs, captured_inputs):
    """A trace's captured tensors are inputs like any others."""
    if _active.stack and _current() is not None:
        values = [_value_of(x) if is_eager(x) else None for x in captured_inputs]
        captured_inputs = [x if y is None else y for x, y in zip(captured_inputs, values)]
    return _originals["call_flat"](function, tensor_inputs, captured_inputs)


def _numpy(tensor):
    """The value of an eager tensor for Python, of which the dynamics may depend on it."""
    value = _originals["numpy"](tensor)
    if _active.stack and not tf.executing_eagerly():
        substitution = _current()
        if substitution is not None:
            substitution.looked_at(tensor, value)
    return value


def _gradients(ys, xs, *args, **kwargs):
    """`tf.gradients` for variables and eager tensors: for their values."""
    if _active.stack and _current() is not None:

        def inside(x):
            value = _value_of(x) if is_variable(x) or is_eager(x) else None
            return x if value is None else value

        xs = tf.nest.map_structure(inside, xs)
    return _originals["gradients"](ys, xs, *args, **kwargs)


def _custom_gradient(function, args, kwargs):
    """Custom gradients in graphs, which take no keywords by themselves, as eager ones do.

    Their gradient functions read what the dynamics read, whoever calls them later.
    """
    substitution = _current() if _active.stack else None
    if substitution is not None:
        function = _remembering(functools.partial(function, **kwargs), substitution)
        kwargs = {}
    results = _originals["custom_gradient"](function, args, kwargs)
    keep_newest(tf.compat.v1.get_default_graph())
    return results


def _remembering(function, substitution):
    """The function of a custom gradient, whose gradient function enters the substitution."""

    def remembered(*args):
        result, backward = function(*args)

        def without_variables(*cotangents):
            with _entered(substitution):
                return backward(*cotangents)

        def with_variables(*cotangents, variables=()):
            with _entered(substitution):
                return backward(*cotangents, **({"variables": variables} if variables else {}))

        # TensorFlow looks at the signature.
        parameters = inspect.signature(backward).parameters
        takes = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
        return result, with_variables if takes or "variables" in parameters else without_variables

    remembered.__name__ = getattr(function.func, "__name__", "function")
    return remembered


def _watched_variables(tape):
    """A variable once, though a tape around a solve was told of it by its aliases, too."""
    return tuple({storage(v): v for v in _originals["watched"](tape)}.values())


#: What is replaced: (owner, name of the attribute, what stands in its place).
_PATCHES = {
    "handle": (_Variable, "handle", property(_handle)),
    "read": (_Variable, "_read_variable_op", _read),
    "sparse_read": (_Variable, "sparse_read", _sparse_read),
    "gather_nd": (_Variable, "gather_nd", _gather_nd),
    "capture": (func_graph.FuncGraph, "capture", _capture),
    "colocate": (ops, "_op_to_colocate_with", _colocated),
    "beside_embedding": (embedding_ops, "_colocate_with", _beside_embedding),
    "function": (polymorphic_function.Function, "__call__", _call_function),
    "call_flat": (concrete_function.ConcreteFunction, "_call_flat", _call_flat),
    "numpy": (ops.EagerTensor.__mro__[1], "_numpy", _numpy),
    "gradients": (gradients_util, "_GradientsHelper", _gradients),
    "custom_gradient": (custom_gradient, "_graph_mode_decorator", _custom_gradient),
    "watched": (tf.GradientTape, "watched_variables", _watched_variables),
}


def _install():
    """Puts the replacements in place, once, and tries them."""
    with _lock:
        if _originals:
            return
        found = {}
        for key, (owner, name, _) in _PATCHES.items():
            original = inspect.getattr_static(owner, name, None)
            if original is None:
                raise _incompatible(f"{owner.__name__} has no attribute {name!r}")
            # Of an earlier import of this module, which was reloaded.
            found[key] = getattr(owner, "_tfsymadj_originals", {}).get(name, original)
        for key, (owner, name, replacement) in _PATCHES.items():
            kept = dict(owner.__dict__.get("_tfsymadj_originals", {}))
            owner._tfsymadj_originals = kept | {name: found[key]}
            setattr(owner, name, replacement)
        _originals.update(found)
    try:
        # In a thread of its own, where there is no graph, tape or strategy of the caller's.
        with concurrent.futures.ThreadPoolExecutor(1) as threads:
            problem = threads.submit(_self_test).result()
    except Exception as error:
        raise _incompatible(f"{type(error).__name__}: {error}") from error
    if problem:
        raise _incompatible(problem)


def _incompatible(problem):
    return ImportError(
        "tfsymadj redirects variable reads in a way that this version of TensorFlow does not "
        "support. Install a version of TensorFlow that is tested with it, see its documentation. "
        f"Received: TensorFlow {tf.__version__}: {problem}"
    )


def _self_test():
    """What is wrong, or None."""
    variable = resource_variable_ops.ResourceVariable(1.0)
    tensor = tf.constant(1.0)

    def compute(two, five):
        values = {storage(variable): two, storage(tensor): five}
        with tf.GradientTape() as outer:
            outer.watch([two, five])
            with substituted(lambda x: values.get(storage(x))):
                with tf.GradientTape() as inner:
                    y = variable * tensor * tensor
                inside = inner.gradient(y, variable)
        return y, inside, outer.gradient(y, [two, five])

    # A concrete one is a graph also where functions run eagerly.
    number = tf.TensorSpec([], tf.float32)
    function = tf.function(compute, autograph=False).get_concrete_function(number, number)
    results = tf.nest.flatten(function(tf.constant(2.0), tf.constant(5.0)))
    results = [float(x) for x in results]
    expected = [50.0, 25.0, 25.0, 20.0]
    return None if results == expected else f"a test gave {results} in place of {expected}"


@contextlib.contextmanager
def substituted(find, looked_at=lambda tensor, value: None):
    """Lets `find` answer variable reads and captures of eager tensors in the current graph.

    Args:
        find: see `Substitution`.
        looked_at: likewise.
    """
    _install()
    with _entered(Substitution(find, looked_at)):
        yield


@contextlib.contextmanager
def _entered(substitution):
    _active.stack.append(substitution)
    try:
        yield
    finally:
        _active.stack.pop()


def storage(x):
    """What identifies a tensor, or a variable: its resource handle, whatever object wraps it."""
    return id(x._handle) if is_variable(x) else id(x)


def handle(variable):
    """The handle of a variable, also where `variable.handle` is another one."""
    return variable._handle


def is_variable(x):
    """Whether `x` is a resource variable (one replica's, under `tf.distribute`)."""
    return isinstance(x, _Variable)


def is_eager(x):
    """Whether `x` is an eager tensor of numbers, not a handle."""
    return isinstance(x, ops.EagerTensor) and x.dtype not in (tf.resource, tf.variant)


def is_kept_by_value(x, size):
    """Whether an eager tensor may be a shape, an axis or the like: not a number with a gradient."""
    return is_eager(x) and not (x.dtype.is_floating or x.dtype.is_complex) and _size(x) <= size


def _size(x):
    return math.prod(x._shape_tuple())


def holds_numbers(handle):
    """Whether a resource is that of a variable with floating or complex numbers."""
    data = getattr(handle, "_handle_data", None)
    if data is None or not data.is_set:
        return False
    dtype = tf.as_dtype(data.shape_and_type[0].dtype)
    return dtype.is_floating or dtype.is_complex
