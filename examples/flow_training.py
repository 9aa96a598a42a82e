"""What the examples of continuous normalizing flows share: their dynamics and their training."""

import numpy as np
import tensorflow as tf

from tfsymadj.layers import ConcatSquash, TimeSequential

tf.get_logger().setLevel("ERROR")


def build_dynamics(size, hidden, activation, identity=True):
    """A network that moves points of `size` numbers, with hidden layers of the given sizes.

    With `identity` its last layer starts as zero: then nothing moves, and the flow starts as the
    identity.
    """
    last = ConcatSquash(size)
    dynamics = TimeSequential([*(ConcatSquash(n, activation) for n in hidden), last])
    dynamics.build((), (None, size))
    if identity:
        for weight in (last.kernel, last.shift_kernel):
            weight.assign(tf.zeros_like(weight))
    return dynamics


def noise(flows, seed):
    """Keywords by which a chain's `log_prob` hands a seed of its own to each of the flows."""
    return {flow.name: {"seed": tf.stack([seed, i])} for i, flow in enumerate(flows)}


def train_step(loss, weights, optimizer):
    """Compiles `step(batch, seed) -> loss`, which updates the weights."""

    @tf.function(reduce_retracing=True)
    def step(batch, seed):
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(weights)
            value = loss(batch, seed)
        optimizer.apply_gradients(zip(tape.gradient(value, weights), weights))
        return value

    return step


def batches(data, size, seed):
    """Shuffled batches of one size, epoch after epoch, without end."""
    random = np.random.default_rng(seed)
    size = min(size, len(data))
    while True:
        order = random.permutation(len(data))
        for start in range(0, len(data) - size + 1, size):
            yield tf.constant(data[order[start : start + size]])


def fit(step, data, validate, weights, *, max_steps, every, patience, bar=None):
    """Trains until the validation score has not improved for `patience` steps.

    Leaves the weights of the best validation score.

    Args:
        step: as of `train_step`.
        data: iterator over batches.
        validate: callable without arguments; the higher its result, the better.
        weights: list of variables.
        max_steps: stop here at the latest.
        every: steps from one validation to the next.
        patience: see above.
        bar: `keras.utils.Progbar` of `max_steps`, or None.

    Returns:
        List of `(number of steps, mean loss since the last validation, validation score)`.
    """
    history, losses, best = [], [], (-np.inf, 0, None)
    for number in range(1, max_steps + 1):
        losses.append(step(next(data), tf.constant(number)))
        if number % every and number < max_steps:
            continue
        loss, score = float(np.mean(losses)), float(validate())
        history.append((number, loss, score))
        losses = []
        if score > best[0]:
            best = score, number, [w.numpy() for w in weights]
        stop = number - best[1] >= patience
        if bar is not None:
            values = [("loss", loss), ("validation", score)]
            bar.update(number, values, finalize=stop or number == max_steps)
        if stop:
            break
    if best[2] is None:
        raise FloatingPointError(f"No validation score is a number: {history}")
    for weight, value in zip(weights, best[2]):
        weight.assign(value)
    return history
