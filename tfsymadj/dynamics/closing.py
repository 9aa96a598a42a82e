"""The dynamics as the solver sees them: everything they use is an explicit tensor.

`close` traces the dynamics once and finds out what they capture. Variables are read once, outside
of the solver (`_platform.substituted`); together with the tensors that the dynamics close
over they are the `captured` inputs, for which the gradient methods return gradients. Without this
step `tf.custom_gradient` would silently return no gradient for them.
"""

import tensorflow as tf

from tfsymadj import _platform
from tfsymadj.dynamics import contents
from tfsymadj.dynamics.reproducible import check_reproducible, graph_content


class ClosedDynamics:
    """Dynamics `(t, ys) -> dys` over lists of tensors, with their captured inputs.

    Attributes:
        captured: the floating and complex tensors, other than `t` and `ys`, that the dynamics
            depend on: values of trainable variables, and whatever they close over.
        variables: trainable variables whose read could not be replaced by a value (inside of a
            `tf.function` or a SavedModel traced before). They are differentiated through
            `variables=` of `tf.custom_gradient`.
        live: indices of the parts of the state that the dynamics depend on. The others are mere
            integrals along the solution: a backward pass needs no values of them.
    """

    def __init__(self, function, captured, variables, substitute, live):
        self._function = function
        self._substitute = substitute
        self.captured = captured
        self.variables = variables
        self.live = live

    def __call__(self, t, ys):
        with _platform.substituted(self._substitute):
            return self._function(t, list(ys))

    def vjp(self, t, ys, cotangents, variables=(), with_values=False):
        """One evaluation under a tape of its own, and its vector-Jacobian product.

        Args:
            t: float64 scalar.
            ys: list of tensors.
            cotangents: list of tensors like `ys`.
            variables: the variables of `self.variables` to differentiate for.
            with_values: whether the values and the gradient for `t` are wanted.

        Returns:
            `(dys, dt, dcaptured, dvariables, values)`: lists of tensors, None where the dynamics
            don't depend on an input; `dt` and `values` are None without `with_values`.
        """
        sources = [*ys, *self.captured, *variables, *([t] if with_values else [])]
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(sources)
            values = self(t, ys)
        gradients = tape.gradient(values, sources, output_gradients=cotangents)
        gradients = [None if g is None else tf.convert_to_tensor(g) for g in gradients]
        n, m = len(ys), len(ys) + len(self.captured)
        dt = gradients.pop() if with_values else None
        dys = [
            tf.zeros_like(y) if g is None else tf.ensure_shape(g, y.shape)
            for g, y in zip(gradients[:n], ys)
        ]
        return dys, dt, gradients[n:m], gradients[m:], values if with_values else None


def close(function, ys, owner=None):
    """Finds out what the dynamics depend on, and that they are reproducible.

    Args:
        function: `(t, ys) -> dys` over lists of tensors.
        ys: list of tensors, the initial state; for its shapes and dtypes.
        owner: the user's object, searched for frozen Keras layers.

    Returns:
        `ClosedDynamics`.

    Raises:
        ValueError: if the dynamics are not reproducible.
    """
    outer = tf.compat.v1.get_default_graph()
    brought = {}  # storage -> (variable or eager tensor, its value in the graph of the solve)
    frozen = contents.frozen_storages(owner)
    losses = contents.losses(owner)

    def is_trained(variable):
        return variable.trainable and _platform.storage(variable) not in frozen

    def bring(x):
        key = _platform.storage(x)
        if key not in brought:
            constant = _platform.is_variable(x) and not is_trained(x)
            with outer.as_default():
                # `tf.custom_gradient` looks for variables behind the outputs by itself.
                brought[key] = x, tf.stop_gradient(x) if constant else tf.identity(x)
        return brought[key][1]

    def trace(t, *states):
        with _platform.substituted(bring):
            return function(t, list(states))

    # Not the function's own shapes: a loop's state may have lost static dimensions.
    specs = [tf.TensorSpec([], tf.float64), *(tf.TensorSpec(y.shape, y.dtype) for y in ys)]

    def traced():
        graph = tf.function(trace, autograph=False).get_concrete_function(*specs).graph
        definition = graph.as_graph_def()
        check_reproducible(definition)
        return graph, graph_content(definition)

    graph, content = traced()
    for _ in range(2):
        # A first trace may differ: it builds layers and fills caches.
        before, (graph, content) = content, traced()
        if content == before:
            break
    else:
        changed = sorted({op for op, _ in (content - before) + (before - content)})
        raise ValueError(
            "`dynamics` must give the same result whenever they are evaluated at the same point, "
            "or the gradient would be wrong; but each trace of them differs from the one before: "
            "they use a Python counter, or numbers drawn by `random` or NumPy. Draw them once "
            "outside of the solve and pass them through `args`. "
            f"Received: operations that change: {', '.join(changed)}"
        )
    contents.refuse_losses(owner, losses)
    frozen = contents.frozen_storages(owner)  # of layers that the trace built, too

    live = _dependencies(graph, len(ys))
    constant = {
        id(value) for x, value in brought.values() if _platform.is_variable(x) and not is_trained(x)
    }
    captured = [
        tensor
        for tensor, _ in graph.captures
        if (tensor.dtype.is_floating or tensor.dtype.is_complex) and id(tensor) not in constant
    ]
    variables = [v for v in graph.variables if is_trained(v)]
    if variables and _platform.in_control_flow():
        names = ", ".join(v.name for v in variables)
        raise ValueError(
            "`dynamics` read variables inside of a `tf.function` or SavedModel of their own, which "
            "has no gradient where the solve itself is in the body of a loop or a branch "
            "(`tf.while_loop`, `tf.map_fn`, `tf.cond`, `keras.layers.RNN`). Use the Python "
            f"function without `tf.function`. Received: variables {names}"
        )

    def substitute(x):
        known = brought.get(_platform.storage(x))
        if known is not None:
            return known[1]
        if _platform.is_variable(x) and is_trained(x):
            raise ValueError(
                "`dynamics` must use the same variables at each call, but a later call read one "
                f"that the first did not. Received: {x.name}"
            )
        return None

    return ClosedDynamics(function, captured, variables, substitute, live)


def _dependencies(graph, count):
    """Which of the last `count` explicit inputs of a traced function its outputs depend on."""
    states = {id(x): i for i, x in enumerate(graph.inputs[1 : count + 1])}
    waiting, seen, found = list(graph.outputs), set(), set()
    while waiting:
        tensor = waiting.pop()
        if id(tensor) in states:
            found.add(states[id(tensor)])
        if tensor.op.name not in seen:
            seen.add(tensor.op.name)
            waiting += tensor.op.inputs
    return sorted(found)
