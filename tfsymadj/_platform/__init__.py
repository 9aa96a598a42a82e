"""The one place that reaches into TensorFlow's and Keras' private parts, and why.

* `reads`: TensorFlow has no public way to say "while this Python function is traced, let a
  variable's read, or an eager tensor that it closes over, be that tensor of this graph".
* `graphs`, `tapes`: nor to ask where operations are traced to, or what tapes have seen.
* `variables`: nor has Keras one to say "this `tf.Variable`, which somebody else made, is one of the
  layer's variables".
* `frames`: nor has AutoGraph one to ask what line a line of generated code was.

`tests/test_platform.py` fails on the day that one of the private names changes its meaning.
"""

from tfsymadj._platform.frames import original_line
from tfsymadj._platform.graphs import in_control_flow, in_function_graph, is_stateful
from tfsymadj._platform.reads import is_variable, storage, substituted
from tfsymadj._platform.tapes import recording_tapes, tapes_record
from tfsymadj._platform.variables import adopted

__all__ = [
    "adopted",
    "in_control_flow",
    "in_function_graph",
    "is_stateful",
    "is_variable",
    "original_line",
    "recording_tapes",
    "storage",
    "substituted",
    "tapes_record",
]
