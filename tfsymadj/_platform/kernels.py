"""Which operations XLA can compile."""

import functools

import tensorflow as tf
from tensorflow.python.framework import kernels

#: The frame of a function, which is no operation to XLA.
_FRAME = frozenset({"Placeholder", "PlaceholderWithDefault", "NoOp"})


@functools.cache
def _device():
    """The name of XLA's device; its kernels are registered when something is compiled."""
    with tf.init_scope():
        tf.function(lambda x: x + 1.0, jit_compile=True)(tf.zeros([]))
    return "XLA_GPU_JIT" if tf.config.list_logical_devices("GPU") else "XLA_CPU_JIT"


@functools.cache
def can_be_compiled(op_type):
    """Whether XLA has a kernel for the operation."""
    if op_type in _FRAME:
        return True
    device = _device()
    registered = kernels.get_registered_kernels_for_op(op_type).kernel
    return any(kernel.device_type == device for kernel in registered)
