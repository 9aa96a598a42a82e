"""Continuous normalizing flows for TensorFlow Probability."""

try:
    import tensorflow_probability  # noqa: F401
except ImportError as error:
    raise ImportError(
        "`tfsymadj.bijectors` needs TensorFlow Probability: pip install 'tfsymadj[tfp]'. "
        f"Received: {error}"
    ) from error

from tfsymadj.bijectors.cnf import CNF, FlowSolution
from tfsymadj.bijectors.discrete import Logit, bits_per_dimension, dequantize
from tfsymadj.bijectors.ode_solve_fn import ode_solve_fn
from tfsymadj.bijectors.traces import ExactTrace, HutchinsonTrace, HutchPlusPlusTrace, Trace

__all__ = [
    "CNF",
    "ExactTrace",
    "FlowSolution",
    "HutchPlusPlusTrace",
    "HutchinsonTrace",
    "Logit",
    "Trace",
    "bits_per_dimension",
    "dequantize",
    "ode_solve_fn",
]
