"""What a tape of the dynamics holds, and derivatives that begin with it.

An evaluation and its derivative are traced into one graph, which is cut in two at the tensors that
the derivative needs of the evaluation, its activations. Where these can be put into buffers, an
evaluation may be differentiated long after it took place, without another one.
"""

import dataclasses
import math
from typing import Any

import numpy as np
import tensorflow as tf

from tfsymadj.dynamics.closing import Sources

#: Operations that depend on the shapes of their inputs alone.
_SIZES = ("Shape", "ShapeN", "Size", "Rank")

#: What a size counts as that is not known before the solve runs: a batch of many examples.
UNKNOWN = 256


def num_bytes(x):
    """The bytes of a tensor, or of as many numbers as its shape tells; None without a rank."""
    if x.shape.rank is None or x.dtype in (tf.variant, tf.resource):
        return None
    return math.prod(UNKNOWN if n is None else n for n in x.shape) * x.dtype.size


def tape_of(dynamics, ys, with_values=False):
    """The `Tape` of dynamics; None where what it holds can't be told.

    Args:
        dynamics: `ClosedDynamics`.
        ys: list of tensors, the state; for its shapes and dtypes.
        with_values: whether activations are to include the dynamics' values.
    """
    number, has_derivative, structure, evaluation = len(ys), True, None, set()
    specs = [tf.TensorSpec(y.shape, y.dtype) for y in ys]

    def derivative(t, *tensors):
        nonlocal has_derivative, structure
        states, cotangents = list(tensors[:number]), list(tensors[number:])
        sources = dynamics.sources(states, [t])
        with dynamics.substituted():
            with tf.GradientTape(watch_accessed_variables=False) as tape:
                tape.watch(sources)
                values = dynamics(t, states)
            evaluation.update(tf.compat.v1.get_default_graph().get_operations())
            try:
                found = tape.gradient(values, sources, output_gradients=cotangents)
            except Exception:  # of any kind: it is raised again where the gradient is wanted
                has_derivative = False
                return values, []
        structure = tf.nest.map_structure(lambda g: g is not None, found)
        found = [tf.convert_to_tensor(g) for g in tf.nest.flatten(found) if g is not None]
        return values, found

    traced = tf.function(derivative, autograph=False)
    graph = traced.get_concrete_function(dynamics.time, *specs, *specs).graph
    if not has_derivative:
        return None
    inputs = graph.inputs[: 2 * number + 1]
    values, found = graph.outputs[:number], graph.outputs[number:]
    after = _reached(inputs[number + 1 :], _users)
    sizes = {op for op in graph.get_operations() if op.type in _SIZES and op not in after}
    # Not what only the derivative computes, even if it does not depend on cotangents: it may be
    # long, and it may fail.
    varies = evaluation & _reached(
        inputs[: number + 1], lambda op: [] if op in sizes else _users(op)
    )
    later = _reached(found, lambda op: [x for x in _sources_of(op) if x not in evaluation]) - sizes
    consumed = [*found, *(x for op in graph.get_operations() if op in later for x in op.inputs)]
    held = list({id(x): x for x in consumed if x.op in varies}.values())
    if with_values:
        held = list({id(x): x for x in (*held, *values)}.values())
    held_bytes = [num_bytes(x) for x in held]
    if None in held_bytes:
        return None
    cut = _cut(graph, evaluation, sizes, inputs, values, held, found, structure)
    return Tape(sum(held_bytes), cut)


@dataclasses.dataclass(frozen=True)
class Tape:
    """What a tape of one evaluation holds.

    Attributes:
        num_bytes: of the tensors which the derivative needs of the evaluation and which depend on
            the time or the state.
        halves: `Halves`, where the activations can be kept in buffers; else None.
    """

    num_bytes: int
    halves: Any = None


@dataclasses.dataclass(frozen=True, eq=False)
class Halves:
    """The evaluation of dynamics, and its derivative from the activations alone.

    They are put into a loop as operations, of which no tape of the caller knows.

    Attributes:
        first: `GraphDef` of the evaluation.
        second: that of the derivative.
        inputs: names of the time, the states and the cotangents.
        values: of the dynamics' values.
        held: the activations, a tuple of `(name, TensorSpec)`.
        found: names of the gradients.
        structure: `Sources` of booleans, whether there is a gradient.
        captured: tuple of `(name, tensor)`, what both read from outside, and large constants.
        sizes: tuple of `(name, array)`, what they read of shapes: XLA wants it to be constant.
    """

    first: Any
    second: Any
    inputs: tuple
    values: tuple
    held: tuple
    found: tuple
    structure: Sources
    captured: tuple
    sizes: tuple

    def zeros(self):
        """A list of tensors like the activations."""
        return [tf.zeros(spec.shape, spec.dtype) for _, spec in self.held]

    @property
    def num_bytes(self):
        """Of the activations."""
        return sum(num_bytes(spec) for _, spec in self.held)

    def evaluate(self, t, ys):
        """The dynamics' values, and the activations, lists of tensors."""
        names = [*self.values, *(name for name, _ in self.held)]
        results = self._imported(self.first, dict(zip(self.inputs, [t, *ys])), names)
        return results[: len(ys)], results[len(ys) :]

    def vjp(self, dynamics, activations, cotangents):
        """The derivative of an evaluation of the dynamics that were cut, like theirs.

        Args:
            dynamics: the `ClosedDynamics`.
            activations: of the evaluation.
            cotangents: list of tensors.

        Returns:
            `(gradients, values)`, the values None but for activations with values.
        """
        held = dict(zip((name for name, _ in self.held), activations))

        def pull(cotangents):
            given = dict(zip(self.inputs[len(cotangents) + 1 :], cotangents))
            results = iter(self._imported(self.second, held | given, self.found))
            return tf.nest.map_structure(lambda has: next(results) if has else None, self.structure)

        values = [held.get(name) for name in self.values]
        return dynamics.pulled(pull, cotangents, cotangents), values

    def recorded(self, dynamics, activations):
        """The dynamics, whose evaluations append what they leave to a list.

        Args:
            dynamics: the `ClosedDynamics` that were cut.
            activations: list.
        """

        def evaluate(t, ys):
            values, held = self.evaluate(t, ys)
            activations.append(held)
            return values

        return dynamics.replaced(evaluate)

    def _imported(self, definition, given, names):
        """The tensors of these names, where those that are given have other values."""
        graph = tf.compat.v1.get_default_graph()
        given = {name: graph.capture(x) for name, x in (*self.captured, *given.items())}
        inputs = [x for node in definition.node for x in node.input]
        used = {x if ":" in x else f"{x}:0" for x in inputs}
        read = {*used, *names}
        given |= {name: tf.constant(x) for name, x in self.sizes if name in read}
        wanted = [name for name in dict.fromkeys(names) if name not in given]
        imported = tf.graph_util.import_graph_def(
            definition,
            input_map={name: x for name, x in given.items() if name in used},
            return_elements=wanted,
            name="dynamics",
        )
        found = given | dict(zip(wanted, imported))
        return [found[name] for name in names]


def _cut(graph, evaluation, sizes, inputs, values, held, found, structure):
    """The `Halves` of a graph; None where something would be lost if its operations were put
    elsewhere, or a size is not known.

    Args:
        graph: `FuncGraph`.
        evaluation: the operations that were there before those of the derivative.
        sizes: those that tell shapes, but not of what depends on cotangents.
        inputs: lists of tensors, from here on: see `Halves`.
        values: likewise.
        held: likewise.
        found: likewise.
        structure: likewise.
    """
    outside = [(inside.name, x) for x, inside in graph.captures]
    if any(num_bytes(x) is None for _, x in outside):
        return None
    # Or sizes would be among the activations, which XLA wants to know.
    if not all(x.shape.is_fully_defined() for x in held):
        return None
    definition, checks = graph.as_graph_def(), set(graph.control_outputs)
    # The functions of custom gradients know only the tensors of the trace that they are from.
    if definition.library.function or any("_gradient_op_type" in x.attr for x in definition.node):
        return None
    if not checks <= evaluation:
        return None
    known = [x for op in sizes for x in zip(op.outputs, op.inputs)]
    if not all(of.shape.is_fully_defined() for _, of in known):
        return None
    large = [op for op in graph.get_operations() if op.type == "Const" and _is_large(op.outputs[0])]
    given = {x.op for x in (*inputs, *(inside for _, inside in graph.captures))}
    given |= {*sizes, *large}
    # What the derivative waits for was there when the activations were; that the evaluation waits
    # for the derivative saves memory in the graph that they are from.
    first = _needed({x.op for x in (*values, *held)} | checks, given, evaluation.__contains__)
    second = _needed(
        {x.op for x in found}, given | {x.op for x in held}, lambda op: op not in evaluation
    )
    return Halves(
        first=_part(definition, first),
        second=_part(definition, second),
        inputs=tuple(x.name for x in inputs),
        values=tuple(x.name for x in values),
        held=tuple((x.name, tf.TensorSpec(x.shape, x.dtype)) for x in held),
        found=tuple(x.name for x in found),
        structure=structure,
        # Large constants once, not once for each evaluation.
        captured=(*outside, *((op.outputs[0].name, _constant(op)) for op in large)),
        sizes=tuple((x.name, _size(x, of.shape)) for x, of in known),
    )


def _is_large(x):
    return x.dtype.is_floating and (num_bytes(x) or 0) > 1024


def _constant(op):
    return tf.constant(tf.make_ndarray(op.get_attr("value")))


def _size(x, shape):
    """What an operation of `_SIZES` tells of a shape, an array."""
    value = {"Size": shape.num_elements(), "Rank": shape.rank}.get(x.op.type, shape.as_list())
    return np.array(value, x.dtype.as_numpy_dtype)


def _part(definition, operations):
    """A `GraphDef` of some of the operations."""
    names, part = {op.name for op in operations}, tf.compat.v1.GraphDef()
    part.versions.CopyFrom(definition.versions)
    for node in definition.node:
        if node.name in names:
            copy = part.node.add()
            copy.CopyFrom(node)
            copy.attr.pop("_class", None)  # beside which other operations it is placed
            del copy.input[:]
            copy.input.extend(x for x in node.input if x[0] != "^" or x[1:] in names)
    return part


def _needed(operations, given, waits_for):
    """The operations that these depend on, themselves included, up to those that are given.

    Args:
        operations: set.
        given: set.
        waits_for: whether an operation is one to be waited for, where another one waits for it.
    """

    def sources(op):
        return [*_sources_of(op), *filter(waits_for, op.control_inputs)]

    return _reached_from(operations - given, lambda op: [x for x in sources(op) if x not in given])


def _users(op):
    return [user for x in op.outputs for user in x.consumers()]


def _sources_of(op):
    return [x.op for x in op.inputs]


def _reached(tensors, following):
    """The operations from those of some tensors on."""
    return _reached_from([x.op for x in tensors], following)


def _reached_from(operations, following):
    found, waiting = set(), list(operations)
    while waiting:
        op = waiting.pop()
        if op not in found:
            found.add(op)
            waiting += following(op)
    return found
