"""The one place that reaches into TensorFlow's and Keras' private parts, and why.

* `reads`: TensorFlow has no public way to say "while this Python function is traced, let a
  variable's read, or an eager tensor that it closes over, be that tensor of this graph".
* `gradients`: nor one for custom gradients that are forgotten with their graph.
* `graphs`, `tapes`: nor to ask where operations are traced to, or what tapes have seen.
* `functions`: nor to say that many functions of one piece of code are no mistake.
* `variables`: nor has Keras one to say "this `tf.Variable`, which somebody else made, is one of the
  layer's variables".
* `layers`: nor has Keras one to walk through all the layers in a layer; and `layer.losses`, which
  holds the regularizers of weights as well, can't be taken from; nor can a tensor be asked for
  the mask that comes with it.

What is redirected is so from the first solve on, and only where a thread traces dynamics.
`tests/test_platform.py` fails on the day that one of the private names changes its meaning.
"""

from tfsymadj._platform.functions import quietly_traced
from tfsymadj._platform.gradients import with_gradient
from tfsymadj._platform.graphs import in_control_flow, in_function_graph, is_stateful
from tfsymadj._platform.layers import (
    collected_losses,
    drop_loss,
    is_built,
    mask_of,
    parts,
    with_mask,
)
from tfsymadj._platform.reads import holds_numbers, is_eager, is_variable, storage, substituted
from tfsymadj._platform.tapes import (
    accessed,
    is_watched,
    recording,
    recording_is_paused,
    recording_tapes,
    tapes_record,
)
from tfsymadj._platform.variables import adopted

__all__ = [
    "accessed",
    "adopted",
    "collected_losses",
    "drop_loss",
    "holds_numbers",
    "in_control_flow",
    "in_function_graph",
    "is_built",
    "is_eager",
    "is_stateful",
    "is_variable",
    "is_watched",
    "mask_of",
    "parts",
    "quietly_traced",
    "recording",
    "recording_is_paused",
    "recording_tapes",
    "storage",
    "substituted",
    "tapes_record",
    "with_gradient",
    "with_mask",
]
