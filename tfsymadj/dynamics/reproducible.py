"""Refuses dynamics that can't be solved: that may give another result for the same arguments, or
that XLA can't compile though it is to.
"""

import collections

from tfsymadj import _platform

_ALLOWED_STATEFUL = frozenset(
    {
        # reads
        "ReadVariableOp", "ResourceGather", "ResourceGatherNd", "VarHandleOp", "VariableShape",
        "VarIsInitializedOp", "DisableCopyOnRead", "LookupTableFindV2", "LookupTableSizeV2",
        # assertions and prints
        "Assert", "Print", "PrintV2", "CheckNumerics", "CheckNumericsV2",
        # control flow; their bodies are searched as well
        "StatefulPartitionedCall", "While", "If", "Case", "DeviceIndex", "For", "Empty",
        # the frame of a function
        "Placeholder", "PlaceholderWithDefault", "_Arg", "_Retval", "FakeParam",
    }
)  # fmt: skip

_REMEDIES = (
    (
        ("Assign", "Scatter", "ResourceApply", "Mutex", "Stack"),
        "they write to a variable (batch normalization in training mode, a seed generator of "
        "Dropout or GaussianNoise, a counter). Call the layer with `training=False`, or pass "
        "seeded stateless noise through `args`",
    ),
    (
        ("Random", "Multinomial", "ParameterizedTruncatedNormal"),
        "they draw new random numbers at each evaluation. Draw them once outside of the solve "
        "and pass them through `args`, or use `tf.random.stateless_*` with a seed from `args`",
    ),
    (
        ("PyFunc",),
        "they call back into Python, whose result TensorFlow can't know to be the same each time. "
        "Write them with TensorFlow operations",
    ),
)


def _nodes(definition):
    """The nodes of a `GraphDef` and of its functions."""
    yield from definition.node
    for function in definition.library.function:
        yield from function.node_def


def check_compilable(definition):
    """Refuses dynamics that XLA can't compile.

    Args:
        definition: `GraphDef` of the traced dynamics; nested functions are searched too, but for
            those that are for one kind of device alone.

    Raises:
        ValueError: naming the operation and the remedy.
    """
    functions = {f.signature.name: f.node_def for f in definition.library.function}
    waiting, seen = [definition.node], set()
    while waiting:
        for node in waiting.pop():
            called = {x.func.name for x in node.attr.values() if x.func.name} | {node.op}
            if node.op not in ("Case", "StatelessCase"):
                new = (called & functions.keys()) - seen
                seen |= new
                waiting += [functions[name] for name in new]
            if node.op not in functions and not _platform.can_be_compiled(node.op):
                raise ValueError(
                    "XLA can't compile the `dynamics`, as `jit_compile=True` asks for. Leave it "
                    "out, or write them with other operations. "
                    f"Received: operation {node.name!r} of type {node.op}"
                )


def graph_content(definition):
    """The operations and constants of a `GraphDef`, counted: `Counter` of `(type, value)`.

    Names say nothing, since they are numbered on from trace to trace.
    """
    return collections.Counter(
        (x.op, x.attr["value"].tensor.SerializeToString() if x.op == "Const" else b"")
        for x in _nodes(definition)
    )


def reads_variables(definition):
    """Whether a `GraphDef` or one of its functions reads a variable."""
    reads = ("ReadVariableOp", "ResourceGather", "ResourceGatherNd")
    return any(node.op in reads for node in _nodes(definition))


def check_reproducible(definition):
    """Refuses dynamics that may give another result for the same arguments.

    Args:
        definition: `GraphDef` of the traced dynamics; nested functions are searched too.

    Raises:
        ValueError: naming the operation and the remedy.
    """
    for node in _nodes(definition):
        if node.op in _ALLOWED_STATEFUL or not _platform.is_stateful(node.op):
            continue
        reason = next(
            (text for words, text in _REMEDIES if any(word in node.op for word in words)),
            "they use an operation with a state of its own. Move it out of the dynamics",
        )
        raise ValueError(
            "`dynamics` must give the same result whenever they are evaluated at the same point, "
            f"or the gradient would be wrong; but {reason}. "
            f"Received: operation {node.name!r} of type {node.op}"
        )
