"""The one place that reaches into TensorFlow's and Keras' private parts, and why.

* `reads`: TensorFlow has no public way to say "while this Python function is traced, let a
  variable's read, or an eager tensor that it closes over, be that tensor of this graph".
* `graphs`, `tapes`: nor to ask where operations are traced to, or what tapes have seen.
* `functions`: nor to say that many functions of one piece of code are no mistake.
* `variables`: nor has Keras one to say "this `tf.Variable`, which somebody else made, is one of the
  layer's variables".
* `layers`: nor has Keras one to walk through all the layers in a layer; and `layer.losses`, which
  holds the regularizers of weights as well, can't be taken from;
  nor a public way to ask for the mask that comes with a tensor.

`tests/test_platform.py` fails on the day that one of the private names changes its meaning.
"""

from tfsymadj._platform.functions import quietly_traced
from tfsymadj._platform.graphs import in_control_flow, in_function_graph, is_stateful
from tfsymadj._platform.layers import (
    collected_losses,
    drop_loss,
    is_built,
    mask_of,
    parts,
    with_mask,
)
from tfsymadj._platform.reads import is_variable, storage, substituted
from tfsymadj._platform.tapes import recording_tapes, tapes_record
from tfsymadj._platform.variables import adopted

__all__ = [
    "adopted",
    "collected_losses",
    "drop_loss",
    "in_control_flow",
    "in_function_graph",
    "is_built",
    "is_stateful",
    "is_variable",
    "mask_of",
    "parts",
    "quietly_traced",
    "recording_tapes",
    "storage",
    "substituted",
    "tapes_record",
    "with_mask",
]
