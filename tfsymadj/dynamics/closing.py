"""The dynamics as the solver sees them: everything they use is an explicit tensor.

`close` traces the dynamics once and finds out what they capture. Variables are read once, outside
of the solver (`_platform.substituted`); together with the tensors that the dynamics close
over they are the `captured` inputs, for which the gradient methods return gradients. Without this
step `tf.custom_gradient` would silently return no gradient for them.
"""

import copy
import weakref
from typing import NamedTuple

import tensorflow as tf

from tfsymadj import _platform
from tfsymadj.arithmetic import balance, scaled
from tfsymadj.dynamics import contents
from tfsymadj.dynamics.identity import MAX_VALUES
from tfsymadj.dynamics.reproducible import (
    check_compilable,
    check_reproducible,
    graph_content,
    reads_variables,
)


class Sources(NamedTuple):
    """What a solve is differentiated for, or the gradients for it: lists of tensors.

    Attributes:
        ys: the state.
        captured: `ClosedDynamics.captured`.
        variables: `ClosedDynamics.variables`.
        times: those that the derivative is wanted for, if any.
    """

    ys: list
    captured: list
    variables: list
    times: list


class ClosedDynamics:
    """Dynamics `(t, ys) -> dys` over lists of tensors, with their captured inputs.

    Attributes:
        captured: the floating and complex tensors, other than `t` and `ys`, that the dynamics
            depend on: values of trainable variables, and whatever they close over; but for those
            whose gradient `tf.stop_gradient` stops, in the dynamics or before the solve.
        variables: trainable variables whose read could not be replaced by a value (inside of a
            SavedModel or a concrete function).
        unseen: all variables read so, those that are not trained included.
        live: indices of the parts of the state that the dynamics depend on. The others are mere
            integrals along the solution: a backward pass needs no values of them.
        time: `tf.TensorSpec` of the time that they are called with.
        narrow: whether they get states of float16, to which cotangents are scaled then.
    """

    narrow = False

    def __init__(self, function, captured, variables, unseen, inputs, caller, live, time):
        self._function = function
        self._inputs = inputs
        self._caller = caller
        self.captured = captured
        self.variables = variables
        self.unseen = unseen
        self.live = live
        self.time = time
        self._side = None

    def __call__(self, t, ys):
        with self.substituted():
            return self._evaluate(t, ys)

    def _evaluate(self, t, ys):
        return self._function(t if self._side is None else self._side.clamp(t), list(ys))

    def on(self, side):
        """The same dynamics, evaluated on one side of their jumps.

        Args:
            side: an object whose `clamp` keeps a time on it.
        """
        dynamics = copy.copy(self)
        dynamics._side = side
        return dynamics

    @property
    def parts(self):
        """The implicit and the explicit part of a `Split`, a tuple of dynamics; else None."""
        functions = getattr(self._function, "parts", None)
        return functions and tuple(self.replaced(function) for function in functions)

    @property
    def operator(self):
        """`BoundOperator` of dynamics that are `Linear`; else None."""
        found = getattr(self._function, "operator", None)
        return found and BoundOperator(self, found)

    @property
    def mass(self):
        """The product with the mass matrix, dynamics of `Mass`; else None."""
        function = getattr(self._function, "mass", None)
        return function and self.replaced(function)

    @property
    def matrices(self):
        """`Mass.matrices` of a product with a mass matrix."""
        return self._function.matrices

    def split_mass(self):
        """`Mass.split` of it."""
        return self._function.split()

    def replaced(self, function):
        """The same dynamics with another function, which reads the same."""
        dynamics = copy.copy(self)
        dynamics._function = function
        return dynamics

    def given(self, function, before, values):
        """The same dynamics with other values of some of what they capture.

        Args:
            function: the same that was closed, of these values.
            before: list of tensors, those that it was closed with.
            values: list of tensors in place of them.
        """
        other = {id(x): value for x, value in zip(before, values)}
        dynamics = copy.copy(self)
        dynamics._function = function
        dynamics.captured = [other.get(id(x), x) for x in self.captured]
        return dynamics

    def substituted(self):
        """The context in which reads are redirected: custom gradients of the dynamics read
        variables when the gradient is computed.
        """
        return _platform.substituted(self._inputs.value, self._caller.looks_at)

    def sources(self, ys, times=()):
        """The `Sources` of an evaluation at `ys`."""
        # By their own handles: those are what a concrete function captured.
        handles = [_platform.handle(v) for v in self.variables]
        return Sources(list(ys), self.captured, handles, list(times))

    @property
    def apart(self):
        """The same dynamics, evaluated in a graph of its own: see `ApartDynamics`."""
        return ApartDynamics(self)

    def snapshot(self):
        """The values of what can't be given its value when it is evaluated again."""
        return [tf.stop_gradient(v) for v in self.unseen]

    def unchanged(self, snapshot):
        """Whether another evaluation would see the values of a snapshot, a boolean scalar."""
        same = tf.constant(True)
        for v, before in zip(self.unseen, snapshot):
            equal = tf.equal(tf.stop_gradient(v), before)
            if before.dtype.is_floating:  # NaN does not equal NaN
                equal = tf.logical_or(equal, tf.math.is_nan(before))
            same = tf.logical_and(same, tf.reduce_all(equal))
        return same

    def vjp(self, t, ys, cotangents, with_values=False):
        """One evaluation under a tape of its own, and its vector-Jacobian product.

        Args:
            t: float64 scalar.
            ys: list of tensors.
            cotangents: list of tensors like `ys`.
            with_values: whether the values and the gradient for `t` are wanted.

        Returns:
            `(gradients, values)`: `Sources`, None where the dynamics don't depend on one, and a
            list of tensors, or None without `with_values`.
        """
        sources = self.sources(ys, [t] if with_values else [])
        with self.substituted():
            with tf.GradientTape(watch_accessed_variables=False) as tape:
                tape.watch(sources)
                values = self._evaluate(t, ys)

            def pull(cotangents):
                found = tape.gradient(values, sources, output_gradients=cotangents)
                return tf.nest.map_structure(
                    lambda g: None if g is None else tf.convert_to_tensor(g), found
                )

            return self.pulled(pull, ys, cotangents), values if with_values else None

    def pulled(self, pull, ys, cotangents):
        """Gradients by a linear function, whose numbers stay within half precision.

        Args:
            pull: from cotangents to `Sources`.
            ys: list of tensors, the state.
            cotangents: list of tensors like `ys`.
        """
        if self.narrow:
            scale = balance(cotangents)
            found = scaled(pull(scaled(cotangents, scale)), 1.0 / scale)
        else:
            found = pull(cotangents)
        dys = [
            tf.zeros_like(y) if g is None else tf.ensure_shape(g, y.shape)
            for g, y in zip(found.ys, ys)
        ]
        return found._replace(ys=dys)


class BoundOperator:
    """`Linear` dynamics within a solve.

    Args:
        dynamics: the `ClosedDynamics`.
        operator: callable that returns `Linear`.
    """

    def __init__(self, dynamics, operator):
        self._dynamics, self._operator = dynamics, operator

    def kept(self, ys, size):
        """See `Linear.kept`."""
        with self._dynamics.substituted():
            return self._operator().kept(ys, size)

    def solve(self, kept, ys, size, transposed=False):
        """See `Linear.solve`."""
        with self._dynamics.substituted():
            return self._operator().solve(kept, ys, size, transposed)


class ApartDynamics:
    """Dynamics whose evaluations the tapes of the caller can't see into.

    A tensor that both the caller and a tape inside of the dynamics watch would be counted twice:
    as what the dynamics read, and as the value that it was brought in as.
    """

    def __init__(self, dynamics):
        self._dynamics = dynamics
        self.live = dynamics.live

    def on(self, side):
        """See `ClosedDynamics.on`."""
        return ApartDynamics(self._dynamics.on(side))

    @property
    def parts(self):
        """See `ClosedDynamics.parts`."""
        parts = self._dynamics.parts
        return parts and tuple(ApartDynamics(part) for part in parts)

    @property
    def operator(self):
        """See `ClosedDynamics.operator`."""
        return self._dynamics.operator

    @property
    def mass(self):
        """See `ClosedDynamics.mass`."""
        return self._dynamics.mass

    def substituted(self):
        """See `ClosedDynamics.substituted`."""
        return self._dynamics.substituted()

    def __call__(self, t, ys):
        if _platform.in_control_flow():
            return self._dynamics(t, ys)
        return apart(lambda: self._dynamics(t, ys), ys)


class LiveDynamics:
    """The dynamics of those parts of the state that they depend on.

    Args:
        dynamics: `ClosedDynamics`.
        like: the whole state, for its shapes.
    """

    def __init__(self, dynamics, like):
        self._dynamics, self._like = dynamics, like

    def substituted(self):
        """See `ClosedDynamics.substituted`."""
        return self._dynamics.substituted()

    def part(self, ys):
        """The live parts of a state."""
        return [ys[i] for i in self._dynamics.live]

    def whole(self, ys):
        """The state with these live parts; the dynamics don't depend on the others."""
        live = dict(zip(self._dynamics.live, ys))
        return [live.get(i, tf.zeros_like(y)) for i, y in enumerate(self._like)]

    @property
    def parts(self):
        """See `ClosedDynamics.parts`."""
        parts = self._dynamics.parts
        return parts and tuple(LiveDynamics(part, self._like) for part in parts)

    @property
    def operator(self):
        """See `ClosedDynamics.operator`; of those parts of the state, too."""
        operator = self._dynamics.operator
        return operator and LiveOperator(operator, self)

    @property
    def mass(self):
        """See `ClosedDynamics.mass`: with one all parts of the state are live."""
        return self._dynamics.mass

    def __call__(self, t, ys):
        return self.part(self._dynamics(t, self.whole(ys)))


class LiveOperator:
    """A `BoundOperator` over the live parts of the state.

    Args:
        operator: `BoundOperator`.
        dynamics: `LiveDynamics`.
    """

    def __init__(self, operator, dynamics):
        self._operator, self._dynamics = operator, dynamics

    def kept(self, ys, size):
        """See `Linear.kept`."""
        return self._operator.kept(self._dynamics.whole(ys), size)

    def solve(self, kept, ys, size, transposed=False):
        """See `Linear.solve`."""
        whole = self._operator.solve(kept, self._dynamics.whole(ys), size, transposed)
        return self._dynamics.part(whole)


def apart(evaluate, like):
    """The result of a function in a loop of one pass, into which the tapes of the caller can't see.

    Args:
        evaluate: callable without arguments that returns a list of tensors.
        like: list of tensors of the same shapes and dtypes.
    """
    _, found = tf.while_loop(
        lambda pending, _: pending,
        lambda _, __: (tf.constant(False), evaluate()),
        (tf.constant(True), [tf.zeros_like(y) for y in like]),
        maximum_iterations=1,
        name="evaluation",
    )
    return found


class Caller:
    """Who asks for dynamics to be closed: a graph, in which they stay the same object."""

    def position(self, x):
        """By what a variable or eager tensor is known in later calls; None: by itself."""
        return None

    def traced(self):
        """Told that the dynamics were traced."""

    def found(self, read, trained):
        """Told what the dynamics read, and those of the variables that are trained."""

    def looks_at(self, tensor, value):
        """Told of an eager tensor whose value Python asked for, and the value."""


def refuse_forward_mode(tensors):
    """Refuses tangents of a forward accumulator, which TensorFlow can't lead through a loop."""
    if _platform.has_tangents(tensors):
        raise ValueError(
            "`tf.autodiff.ForwardAccumulator` can't see through a solve inside of a `tf.function`; "
            "use `tfsymadj.jvp`, which computes the same derivative. "
            "Received: tangents of what the solve depends on"
        )


class _Inputs:
    """What the dynamics read, brought into the graph of the solve as tensors.

    Args:
        caller: `Caller`.
        frozen: storages of Keras variables that are not trained.
    """

    def __init__(self, caller, frozen):
        self.frozen = frozen
        self._caller = caller
        self._graph = tf.compat.v1.get_default_graph()
        self._paused = _platform.recording_is_paused()
        self._brought = {}  # storage -> (variable or eager tensor, its value)
        self._values, self._others = {}, {}
        self._complete = False

    def is_trained(self, variable):
        """Whether a variable gets a gradient: also one that is frozen, if somebody watches it."""
        trained = variable.trainable and _platform.storage(variable) not in self.frozen
        return trained or _platform.is_watched(variable)

    def value(self, x):
        """The value of a variable or an eager tensor."""
        if self._complete:
            position = self._caller.position(x)
            if position is not None:
                known = self._values.get(position)
            else:
                reference, known = self._others.get(_platform.storage(x), (None, None))
                known = known if reference is not None and reference() is not None else None
            return self._late(x) if known is None else known
        key = _platform.storage(x)
        if _platform.is_kept_by_value(x, MAX_VALUES):
            return None  # so that shapes that are made of it are known
        if key not in self._brought:
            constant = _platform.is_variable(x) and not self.is_trained(x)
            # Recorded like the solve itself, also if the dynamics read it in `tf.stop_gradient`.
            with self._graph.as_default(), _platform.recording(not self._paused):
                # TensorFlow looks for variables behind the outputs by itself.
                value = tf.stop_gradient(x) if constant else tf.identity(x)
            refuse_forward_mode([value])
            self._brought[key] = x, value
        return self._brought[key][1]

    def complete(self, unseen):
        """From now on the dynamics read nothing else.

        Args:
            unseen: variables that TensorFlow reads by itself.
        """
        self._complete = True
        read = [x for x, _ in self._brought.values()]
        variables = [x for x in (*read, *unseen) if _platform.is_variable(x)]
        self._caller.found([*read, *unseen], [v for v in variables if self.is_trained(v)])
        for key, (x, value) in self._brought.items():
            position = self._caller.position(x)
            if position is None:
                # Not to keep it alive: a graph may outlive the weights. Nor is it taken for
                # something else that has the same storage later.
                self._others[key] = weakref.ref(x), value
            else:
                self._values[position] = value
        self._brought = {}

    def _late(self, x):
        if _platform.is_variable(x) and self.is_trained(x):
            raise ValueError(
                "`dynamics` must use the same variables at each call, but a later call read one "
                f"that the first did not. Received: {x.name}"
            )
        return None


def close(function, ys, owner=None, caller=None, jit_compile=None, lanes=0):
    """Finds out what the dynamics depend on, and that they are reproducible.

    Args:
        function: `(t, ys) -> dys` over lists of tensors.
        ys: list of tensors, the initial state; for its shapes and dtypes.
        owner: the user's object, searched for frozen Keras layers.
        caller: `Caller`.
        jit_compile: whether XLA is asked to compile them.
        lanes: 1 where there is a time for each entry of the state's first axis.

    Returns:
        `ClosedDynamics`.

    Raises:
        ValueError: if the dynamics are not reproducible, or XLA can't compile them.
    """
    caller = caller or Caller()
    inputs = _Inputs(caller, contents.frozen_storages(owner))
    losses = contents.losses(owner)
    time = tf.TensorSpec(ys[0].shape[:lanes], tf.float64)
    graph = _traced(getattr(function, "everything", function), time, ys, inputs, caller)
    if jit_compile:
        check_compilable(graph.as_graph_def())
    contents.refuse_losses(owner, losses)
    inputs.frozen = contents.frozen_storages(owner)  # of layers that the trace built, too
    reached = _reached(graph, through_stops=False)
    captured = [
        tensor
        for tensor, inside in graph.captures
        if (tensor.dtype.is_floating or tensor.dtype.is_complex)
        and id(inside) in reached
        and not _is_stopped(tensor)
    ]
    unseen = _unseen_reads(graph)
    variables = [v for v in unseen if inputs.is_trained(v)]
    if variables and _platform.in_control_flow():
        names = ", ".join(v.name for v in variables)
        raise ValueError(
            "`dynamics` read variables inside of a SavedModel or a concrete function, which "
            "has no gradient where the solve itself is in the body of a loop or a branch "
            "(`tf.while_loop`, `tf.map_fn`, `tf.cond`, `keras.layers.RNN`). Use the Python "
            f"function itself. Received: variables {names}"
        )
    inputs.complete(unseen)
    return ClosedDynamics(
        function, captured, variables, unseen, inputs, caller, _dependencies(graph, ys), time
    )


def _unseen_reads(graph):
    """The variables that the traced dynamics read by their handles.

    Raises:
        ValueError: where there is a handle of numbers, but no variable to be found.
    """
    handles = {id(x): x for x, _ in graph.captures if x.dtype == tf.resource}
    variables = [v for v in graph.variables if handles.pop(_platform.storage(v), None) is not None]
    # Handles are captured also where operations are only put beside a variable.
    others = [x for x in handles.values() if _platform.holds_numbers(x)]
    if others and not variables and reads_variables(graph.as_graph_def()):
        raise ValueError(
            "`dynamics` must not read a variable by raw operations on its handle, or its gradient "
            "would be missing; use the variable itself, `tf.gather` or the like. "
            f"Received: {others[0]}"
        )
    return variables


def _traced(function, time, ys, inputs, caller):
    """The graph of the dynamics, the same whenever they are traced."""

    def trace(t, *states):
        with _platform.substituted(inputs.value, caller.looks_at):
            return function(t, list(states))

    # Not the function's own shapes: a loop's state may have lost static dimensions.
    specs = [time, *(tf.TensorSpec(y.shape, y.dtype) for y in ys)]

    def traced():
        graph = tf.function(trace, autograph=False).get_concrete_function(*specs).graph
        definition = graph.as_graph_def()
        check_reproducible(definition)
        caller.traced()
        return graph, graph_content(definition)

    graph, content = traced()
    for _ in range(2):
        # A first trace may differ: it builds layers and fills caches.
        before, (graph, content) = content, traced()
        if content == before:
            return graph
    changed = sorted({op for op, _ in (content - before) + (before - content)})
    raise ValueError(
        "`dynamics` must give the same result whenever they are evaluated at the same point, "
        "or the gradient would be wrong; but each trace of them differs from the one before: "
        "they use a Python counter, or numbers drawn by `random` or NumPy. Draw them once "
        "outside of the solve and pass them through `args`. "
        f"Received: operations that change: {', '.join(changed)}"
    )


def _dependencies(graph, ys):
    """Indices of the parts of the state that the outputs of the traced dynamics depend on."""
    reached = _reached(graph)
    return [i for i, x in enumerate(graph.inputs[1 : len(ys) + 1]) if id(x) in reached]


def _reached(graph, through_stops=True):
    """The ids of the tensors of a graph that its outputs depend on.

    Args:
        graph: `FuncGraph`.
        through_stops: whether also those whose gradient `tf.stop_gradient` stops.
    """
    waiting, found, seen = list(graph.outputs), set(), set()
    while waiting:
        tensor = waiting.pop()
        found.add(id(tensor))
        if tensor.op.name not in seen and (through_stops or tensor.op.type != "StopGradient"):
            seen.add(tensor.op.name)
            waiting += tensor.op.inputs
    return found


def _is_stopped(tensor):
    """Whether a tensor comes out of `tf.stop_gradient`."""
    if _platform.is_eager(tensor):
        return False
    op = tensor.op
    while op.type in ("Identity", "Cast", "EnsureShape"):
        op = op.inputs[0].op
    return op.type == "StopGradient"
