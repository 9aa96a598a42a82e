"""How the user's dynamics are called: from any callable to a function of lists of tensors."""

import dis
import functools
import inspect
import math
import types
import weakref

import keras
import tensorflow as tf

from tfsymadj import _platform
from tfsymadj.arithmetic import add
from tfsymadj.dynamics import functional
from tfsymadj.dynamics.operators import Linear
from tfsymadj.dynamics.split import Split


def as_function(dynamics, like, args, autonomous):
    """`(t, ys) -> dys` over lists of tensors, for dynamics of any kind.

    Args:
        dynamics: callable that returns the user's callable.
        like: the nest of the state.
        args: tuple of further arguments.
        autonomous: see `is_autonomous`; resolved to a bool.

    Returns:
        A function that raises ValueError or TypeError, naming `dynamics`, where the result does
        not have the structure, shapes and dtypes of the state; `Sum` of those of a `Split`. It
        takes other arguments, too. That of `Linear` dynamics has an attribute `operator`, which
        returns these.
    """
    if isinstance(dynamics(), Split):

        def part(i):
            alone = is_autonomous(dynamics().parts[i], args, autonomous, like)
            return as_function(lambda: dynamics().parts[i], like, args, alone)

        return Sum([part(0), part(1)])
    likes = tf.nest.flatten(like)
    time_dtype = likes[0].dtype.real_dtype
    state = _platform.CallState()

    def function(t, ys, args=args):
        # The solver may hold the state in a more precise dtype.
        given = [tf.cast(y, x.dtype) for y, x in zip(ys, likes)]
        y = tf.nest.pack_sequence_as(like, given)
        with state.entered():  # a backward pass has left the layers that this one was called in
            result = call(dynamics(), tf.cast(t, time_dtype), y, args, autonomous)
        return [tf.cast(k, y.dtype) for k, y in zip(_checked(result, like, given), ys)]

    if isinstance(dynamics(), Linear):
        function.operator = dynamics
    return function


class Sum:
    """The sum of two functions `(t, ys) -> dys` over lists of tensors.

    Args:
        parts: the functions, those of `Split.parts`.
    """

    def __init__(self, parts):
        self.parts = parts

    def __call__(self, t, ys, *args):
        implicit, explicit = (part(t, ys, *args) for part in self.parts)
        return add(implicit, explicit)


def reference(dynamics):
    """Callable that returns the dynamics; they are kept alive, but for a layer that is their own.

    A graph may outlive the model that it was traced for (that of `fit` does), and its gradient
    functions with it.
    """
    if isinstance(dynamics, functools.partial):
        function = reference(dynamics.func)
        arguments, keywords = dynamics.args, dynamics.keywords
        return lambda: functools.partial(function(), *arguments, **keywords)
    if isinstance(dynamics, Split):
        implicit, explicit = (reference(part) for part in dynamics.parts)
        return lambda: Split(explicit(), implicit())
    owner = getattr(dynamics, "__self__", None)
    if not isinstance(owner, keras.Layer):
        return lambda: dynamics
    method = weakref.WeakMethod(dynamics)

    def find():
        found = method()
        if found is None:
            raise ValueError(
                "The gradient of a layer was asked for after the layer was deleted; keep a "
                "reference to it. Received: a reference to an object that is gone"
            )
        return found

    return find


def call(dynamics, t, y, args, autonomous, **keywords):
    """One evaluation of the user's dynamics.

    Args:
        dynamics: the user's callable.
        t: scalar.
        y: nest of tensors.
        args: tuple of further arguments.
        autonomous: whether they are called without `t`; None, of a `Split`: as its parts tell.
        **keywords: such as `training`.
    """
    if isinstance(dynamics, Split):
        found = []
        for part in dynamics.parts:
            alone = is_autonomous(part, args, autonomous, y)
            found.append(call(part, t, y, args, alone, **keywords))
        return tf.nest.map_structure(tf.add, *found)
    if functional.is_functional(dynamics):
        return functional.call(dynamics, None if autonomous else t, y, args, **keywords)
    inputs = (y, *args) if autonomous else (t, y, *args)
    return _converted(dynamics)(*inputs, **keywords)


def build(dynamics, y, args, autonomous, lanes=0):
    """Creates the weights of a Keras layer outside of any loop, at no evaluation.

    Args:
        dynamics: the user's callable; anything but an unbuilt Keras layer is left alone.
        y: nest of objects with `shape` and `dtype`.
        args: tuple of nests of the same.
        autonomous: whether the dynamics are called without the time.
        lanes: 1 if there is a time for each example.
    """
    if isinstance(dynamics, Split):
        for part in dynamics.parts:
            build(part, y, args, is_autonomous(part, args, autonomous, y), lanes)
        return
    if functional.is_functional(dynamics):
        functional.match(dynamics, None if autonomous else "t", y, args)
    if not isinstance(dynamics, keras.Layer):
        return

    def symbolic(x):
        return keras.KerasTensor(x.shape, keras.backend.standardize_dtype(x.dtype))

    y, *args = tf.nest.map_structure(symbolic, (y, *args))
    inputs = [y, *args]
    if not autonomous:
        first = tf.nest.flatten(y)[0]
        dtype = tf.as_dtype(first.dtype).real_dtype.name
        inputs.insert(0, keras.KerasTensor(first.shape[:lanes], dtype))
    build_layer(dynamics, *inputs)


def build_layer(layer, *inputs):
    """Calls a layer symbolically, as Keras does in a functional model, if it has no weights yet.

    Unlike `layer.build(shape)` it also builds layers that leave all to their `call`; those say that
    they are built when they come from a file, but their parts are not.

    Args:
        layer: anything but an unbuilt Keras layer is left alone.
        *inputs: `keras.KerasTensor`s.
    """
    if isinstance(layer, keras.Layer) and not _platform.is_built(layer):
        with tf.init_scope():
            layer(*inputs)


def variables(dynamics, y, args, autonomous, lanes=0):
    """The `tf.Variable`s that the dynamics read, from one trace; lazy ones are created.

    The arguments are those of `build`.
    """

    def spec(x):
        return tf.TensorSpec(x.shape, x.dtype)

    y, args = tf.nest.map_structure(spec, (y, tuple(args)))
    first = tf.nest.flatten(y)[0]
    t = tf.TensorSpec(first.shape[:lanes], first.dtype.real_dtype)

    @functools.partial(tf.function, autograph=False)
    def evaluate(t, y, args):
        return call(dynamics, t, y, args, autonomous)

    with tf.init_scope():
        return evaluate.get_concrete_function(t, y, args).graph.variables


def parts(dynamics):
    """The callables that dynamics are the sum of: `Split.parts`, or themselves."""
    return dynamics.parts if isinstance(dynamics, Split) else (dynamics,)


def takes(dynamics, name):
    """Whether the dynamics are a Keras layer whose `call` has an argument of this name."""
    return isinstance(dynamics, keras.Layer) and (
        name in inspect.signature(dynamics.call).parameters
    )


def is_autonomous(dynamics, args, autonomous, y=None):
    """Whether the dynamics are called without the time.

    Args:
        dynamics: the user's callable.
        args: tuple of further arguments.
        autonomous: True, False, or None to find out for Keras layers: autonomous if `call` takes
            one positional tensor argument (besides `args`), or a functional model no input besides
            the state and `args`. Where optional arguments leave both possible, a first one called
            `t`, `time` or `s` is the time.
        y: the nest of the state; None: one tensor.

    Returns:
        A bool, or None for a `Split` whose parts have to tell.
    """
    if autonomous is not None:
        if not isinstance(autonomous, bool):
            raise ValueError(f"`autonomous` must be True, False or None. Received: {autonomous!r}")
        return autonomous
    if isinstance(dynamics, Split):
        return None
    if not isinstance(dynamics, keras.Layer):
        return False
    if functional.is_functional(dynamics):
        return len(dynamics.inputs) <= len(tf.nest.flatten((y, args)))
    parameters = [
        p
        for p in inspect.signature(dynamics.call).parameters.values()
        if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD, p.VAR_POSITIONAL)
        and p.name not in ("training", "mask")
    ]
    required = [p for p in parameters if p.default is p.empty and p.kind is not p.VAR_POSITIONAL]
    if len(required) < 2:
        return True
    most = math.inf if parameters[-1].kind is parameters[-1].VAR_POSITIONAL else len(parameters)
    fits_without, fits_with = (len(required) <= n + len(args) <= most for n in (1, 2))
    if fits_without and fits_with:  # (t, y, a=None) or (y, a, b=None): only the name can tell
        return parameters[0].name not in ("t", "time", "s")
    return fits_without


def ignores_time(dynamics):
    """Whether the code of a function or method shows that its first argument is not used."""
    if isinstance(dynamics, Split):
        return all(ignores_time(part) for part in dynamics.parts)
    bound = isinstance(dynamics, types.MethodType)
    function = dynamics.__func__ if bound else dynamics
    if not inspect.isfunction(function) or function.__code__.co_argcount <= bound:
        return False
    time = function.__code__.co_varnames[bound]
    used = (i.argval for i in dis.get_instructions(function))
    return not any(time in x if isinstance(x, tuple) else time == x for x in used)


#: Libraries whose code is made for graphs as it is.
_LIBRARIES = ("keras", "numpy", "tensorflow", "tensorflow_probability", "tf_keras", "tfsymadj")

#: Code that AutoGraph can't read, or need not.
_as_it_is: weakref.WeakSet = weakref.WeakSet()


def _converted(dynamics):
    """Python control flow on tensors works in functions, as in any `tf.function`: in lambdas,
    methods, callable objects and `functools.partial` too.
    """
    if isinstance(dynamics, functools.partial):
        function = _converted(dynamics.func)
        return functools.partial(function, *dynamics.args, **dynamics.keywords)
    if isinstance(dynamics, types.MethodType):
        return types.MethodType(_converted(dynamics.__func__), dynamics.__self__)
    if inspect.isfunction(dynamics):
        return _autograph(dynamics)
    method = inspect.getattr_static(type(dynamics), "__call__", None)
    if not inspect.isfunction(method) or isinstance(dynamics, type):
        return dynamics
    function = _autograph(method)
    return dynamics if function is method else types.MethodType(function, dynamics)


def _autograph(function):
    done = hasattr(function, "autograph_info__") or hasattr(function, "ag_dnc_wrapper__")
    library = (function.__module__ or "").partition(".")[0] in _LIBRARIES
    if done or library or function.__code__ in _as_it_is:
        return function
    try:
        converted = tf.autograph.to_graph(function)
    except Exception:  # noqa: BLE001 - whatever AutoGraph can't read is called as it is
        _as_it_is.add(function.__code__)
        return function
    return functools.wraps(function)(converted)


def _checked(result, like, ys):
    """The result of the dynamics as a list, if it fits the state."""
    try:
        tf.nest.assert_same_structure(like, result)
    except (TypeError, ValueError) as error:
        raise TypeError(
            "`dynamics` must return dy/dt in the structure of `y0`. "
            f"Received: {_describe(result)} for y0 {_describe(like)}"
        ) from error
    checked = []
    for value, y in zip(tf.nest.flatten(result), ys):
        if value is None:
            raise TypeError(f"`dynamics` must return a tensor for each of `y0`. Received: {value}")
        try:
            if not tf.is_tensor(value) or isinstance(value, tf.IndexedSlices):
                value = tf.convert_to_tensor(value, dtype_hint=y.dtype)
            value = tf.convert_to_tensor(value)
        except (TypeError, ValueError) as error:
            raise TypeError(
                "`dynamics` must return dense tensors, nothing ragged or sparse. "
                f"Received: {value!r}"
            ) from error
        if value.dtype != y.dtype:
            raise TypeError(
                f"`dynamics` must return the dtype of `y0`, {y.dtype.name}; cast its result. "
                f"Received: {value.dtype.name}"
            )
        if not value.shape.is_compatible_with(y.shape):
            raise ValueError(
                f"`dynamics` must return the shape of `y0`, {y.shape}. Received: {value.shape}"
            )
        checked.append(_in_shape_of(y, tf.ensure_shape(value, y.shape)))
    return checked


def _in_shape_of(y, value):
    """`value`, if it has the shape of `y` at run time too, and need not be broadcast to it."""
    if y.shape.is_fully_defined():
        return value
    # Under XLA assertions are dropped; a reshape to a negative size fails there as well. One to the
    # shape alone would be optimized away in graph mode.
    shape = tf.shape(y)
    shape = tf.where(tf.equal(tf.shape(value), shape), shape, -2)
    value = tf.reshape(value, shape, name="dynamics_must_return_the_shape_of_y0")
    value.set_shape(y.shape)  # TFLite has no kernel of `tf.ensure_shape`
    return value


def _describe(nest):
    def leaf(x):
        if hasattr(x, "dtype") and hasattr(x, "shape"):
            return f"<{tf.as_dtype(x.dtype).name} {tuple(x.shape)}>"
        return repr(x)

    return str(tf.nest.map_structure(leaf, nest))
