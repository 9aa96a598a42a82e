"""Refuses another backend of Keras before anything else is imported."""

import json
import os
import pathlib


def _configured():
    """The backend that Keras will choose, read without importing it: that may itself fail."""
    name = os.environ.get("KERAS_BACKEND")
    if name:
        return name, "the environment variable KERAS_BACKEND"
    home = os.environ.get("KERAS_HOME") or pathlib.Path("~").expanduser() / ".keras"
    path = pathlib.Path(home) / "keras.json"
    try:
        return json.loads(path.read_text()).get("backend", "tensorflow"), str(path)
    except (OSError, ValueError, AttributeError):
        return "tensorflow", "Keras' default"


_name, _source = _configured()
if _name != "tensorflow":
    raise ImportError(
        "tfsymadj needs Keras' TensorFlow backend: its solver and its gradients are TensorFlow "
        "operations, which JAX, PyTorch and the others can't run. Set KERAS_BACKEND=tensorflow "
        f"before `keras` is imported for the first time. Received: {_name!r} from {_source}"
    )
