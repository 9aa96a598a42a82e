"""The one place that reaches into TensorFlow's and Keras' private parts, and why.

* `reads`: TensorFlow has no public way to say "while this Python function is traced, let a
  variable's read, or an eager tensor that it closes over, be that tensor of this graph".
* `gradients`: nor one for custom gradients that are forgotten with their graph.
* `graphs`, `tapes`: nor to ask where operations are traced to, or what tapes have seen.
* `kernels`: nor to ask what XLA can compile.
* `functions`: nor to call a trace with other captured tensors than its own.
* `shapes`: nor to notice that Python looks at a size that is not known.
* `keras_state`: Keras has no public way to call a layer later as it would be called now.
* `layers`: nor one to walk through all the layers in a layer; `layer.losses`, which holds the
  regularizers of weights as well, can't be taken from, and no tensor asked for its mask.
* `variables`: nor has Keras one to say "this `tf.Variable`, which somebody else made, is one of the
  layer's variables".
* `slices`: nor can it differentiate a slice three times under XLA.
* `frames`: nor has AutoGraph one to ask what line a line of generated code was.

What is redirected is so from the first solve on, and only where a thread traces dynamics; but for
the variables that a tape lists, of which each is listed once, whoever asks.
`tests/test_platform.py` fails on the day that one of the private names changes its meaning.
"""

from tfsymadj._platform import slices  # noqa: F401 - importing it registers gradients
from tfsymadj._platform.frames import original_line
from tfsymadj._platform.functions import (
    CLOSED,
    ConcreteFunction,
    TracedFunction,
    call,
    forget_variables,
)
from tfsymadj._platform.gradients import gradients, with_gradient
from tfsymadj._platform.graphs import in_control_flow, in_function_graph, is_stateful
from tfsymadj._platform.keras_state import CallState, call_arguments, stateless_scope
from tfsymadj._platform.kernels import can_be_compiled
from tfsymadj._platform.layers import (
    collected_losses,
    drop_loss,
    is_built,
    mask_of,
    parts,
    with_mask,
)
from tfsymadj._platform.reads import (
    handle,
    holds_numbers,
    is_eager,
    is_kept_by_value,
    is_variable,
    storage,
    substituted,
)
from tfsymadj._platform.shapes import watched_shapes
from tfsymadj._platform.tapes import (
    accessed,
    has_tangents,
    is_watched,
    recording,
    recording_is_paused,
    recording_tapes,
    tapes_record,
)
from tfsymadj._platform.variables import adopted

__all__ = [
    "CallState",
    "ConcreteFunction",
    "CLOSED",
    "TracedFunction",
    "accessed",
    "adopted",
    "call",
    "call_arguments",
    "can_be_compiled",
    "collected_losses",
    "drop_loss",
    "forget_variables",
    "gradients",
    "handle",
    "has_tangents",
    "holds_numbers",
    "in_control_flow",
    "in_function_graph",
    "is_built",
    "is_eager",
    "is_kept_by_value",
    "is_stateful",
    "is_variable",
    "is_watched",
    "mask_of",
    "parts",
    "recording",
    "recording_is_paused",
    "original_line",
    "recording_tapes",
    "stateless_scope",
    "storage",
    "substituted",
    "tapes_record",
    "watched_shapes",
    "with_gradient",
    "with_mask",
]
