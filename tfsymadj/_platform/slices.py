"""Derivatives of slices under XLA, of any order.

There TensorFlow writes the gradient of a slice, and so that of `tf.concat`, as an operation without
a gradient of its own, so that a function of it could be differentiated twice only.
"""

import tensorflow as tf
from tensorflow.compiler.tf2xla.ops import gen_xla_ops
from tensorflow.python.framework import ops


def _of_update(op, gradient):
    _, update, begin = op.inputs
    kept = gen_xla_ops.xla_dynamic_update_slice(gradient, tf.zeros_like(update), begin)
    return kept, gen_xla_ops.xla_dynamic_slice(gradient, begin, tf.shape(update)), None


def _of_slice(op, gradient):
    operand, begin, _ = op.inputs
    zeros = tf.zeros_like(operand)
    return gen_xla_ops.xla_dynamic_update_slice(zeros, gradient, begin), None, None


def _register():
    for name, gradient in (("XlaDynamicUpdateSlice", _of_update), ("XlaDynamicSlice", _of_slice)):
        if name not in ops.gradient_registry.list():
            tf.RegisterGradient(name)(gradient)


_register()
