"""Gradients of small problems with tfsymadj, as `turns.py` asks for them."""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import measure
import tensorflow as tf

import tfsymadj

ACTIVATIONS = {"elu": tf.nn.elu, "tanh": tf.tanh}


def build(series, method, count):
    """The gradient; `method` is `outputs-mode`: `xla`, `jit` (the solve by itself) or `graph`; with
    `own` in place of outputs each example has steps of its own. `outputs-mode-given`: the outputs
    are returned and their cotangents given, so that no loss is within what is measured;
    `outputs-mode-forward`: the loss alone, without a gradient.
    """
    outputs, mode, *rest = method.split("-")
    given, forward = "given" in rest, "forward" in rest
    own, outputs = outputs == "own", "auto" if outputs == "own" else outputs
    times = series.times(count)  # no tensor, which would get a gradient too
    kernels, biases = ([tf.Variable(x) for x in arrays] for arrays in series.data()[:2])
    y0, activation = tf.constant(series.data()[2]), ACTIVATIONS[series.activation]
    if series.num_steps is None:
        # The elementary controller, which is the peers' default.
        controller = tfsymadj.PIController(series.rtol, series.atol, proportional=0.0, integral=1.0)
        options = dict(controller=controller, outputs=outputs)
        options |= dict(batch_axis=0, max_steps=measure.MOST) if own else {}
    else:
        options = dict(method="rk4", num_steps=series.num_steps // (count - 1))

    def dynamics(t, y):
        if not biases:
            (a, b, c, d), (prey, predators) = tf.unstack(kernels[0]), tf.unstack(y)
            meetings = prey * predators
            return tf.stack([a * prey - b * meetings, d * meetings - c * predators])
        for kernel, bias in zip(kernels[:-1], biases[:-1]):
            y = activation(y @ kernel + bias)
        slopes = y @ kernels[-1] + biases[-1]
        return slopes if series.spread == 1.0 else series.rates * slopes

    @tf.function(jit_compile=mode == "xla")
    def gradient(start, cotangents):
        with tf.GradientTape() as tape:
            tape.watch(start)
            solution = tfsymadj.solve(
                dynamics, start, times, jit_compile=True if mode == "jit" else None, **options
            )
            target = solution.y if given else loss(solution.y)
        gradients = tape.gradient(target, [start, *kernels, *biases], cotangents)
        return target, gradients, solution.stats

    @tf.function(jit_compile=mode == "xla")
    def value(start):
        options["gradient"] = tfsymadj.NoGradient()
        solution = tfsymadj.solve(dynamics, start, times, **options)
        return loss(solution.y), solution.stats

    cotangents = tf.fill([count, *y0.shape], 1e-4) if given else tf.ones([])
    # Python's part of a call of a `tf.function`, to find the trace for the arguments, takes longer
    # than some of these gradients.
    if forward:
        value = value.get_concrete_function(y0)
    else:
        gradient = gradient.get_concrete_function(y0, cotangents)

    def run():
        if forward:
            target, stats = value(y0)
            return target.numpy(), stats
        target, gradients, stats = gradient(y0, cotangents)
        for x in gradients:
            x.numpy()
        return (lambda: loss(target)) if given else target, stats

    return run


def loss(y):
    return tf.reduce_mean(y**2)


def facts(series, method, count, stats):
    return dict(
        steps=int(tf.reduce_max(stats.num_steps)),
        evaluations=int(tf.reduce_max(stats.num_evaluations)),
    )


if __name__ == "__main__":
    measure.serve(build, facts, f"TensorFlow {tf.__version__}")
