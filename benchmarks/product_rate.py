"""How much of a gradient's time its matrix products need, at the rate that the machine gives them.

    python benchmarks/product_rate.py
    python benchmarks/product_rate.py --workloads W3 --rounds 9

An evaluation of the dynamics is a product for each layer; a taped one and its derivative are three
of them. The same products of the same shapes are timed alone, under XLA, in the same run. What they
would take for all evaluations of a gradient, divided by the time of the gradient, is how close the
gradient is to the machine's own rate. See README.md here.
"""

import statistics
import time

import common
import tensorflow as tf
from workloads import WORKLOADS

import tfsymadj

REPEATS = 200
CHECKPOINTS = ("auto", "sqrt", "steps", "stages")
COLUMNS = "{:<9}{:<9}{:>13}{:>13}{:>10}{:>15}{:>12}{:>9}"


class Network(tf.Module):
    """A workload's tanh network of the state and the time."""

    def __init__(self, data):
        super().__init__()
        self.kernels = [tf.Variable(x) for x in data.kernels]
        self.biases = [tf.Variable(x) for x in data.biases]

    def __call__(self, t, y):
        x = tf.concat([y, t * tf.ones_like(y[:, :1])], axis=1)
        for kernel, bias in zip(self.kernels[:-1], self.biases[:-1]):
            x = tf.tanh(x @ kernel + bias)
        return x @ self.kernels[-1] + self.biases[-1]


def products(shapes, batch, taped):
    """A compiled function that computes an evaluation's products `REPEATS` times.

    Args:
        shapes: of the kernels.
        batch: rows.
        taped: whether the two products of a layer's derivative are computed, too.
    """
    kernels = [tf.random.normal(shape) for shape in shapes]
    inputs = [tf.random.normal([batch, n]) for n, _ in shapes]

    def body(i, inputs, kernels):
        new_inputs, new_kernels = [], []
        for x, w in zip(inputs, kernels):
            y = x @ w
            if taped:
                # The results are used, but hardly: or the compiler would leave products out.
                new_kernels.append(w + 1e-20 * tf.matmul(x, y, transpose_a=True))
                new_inputs.append(x + 1e-20 * tf.matmul(y, w, transpose_b=True))
            else:
                new_kernels.append(w)
                new_inputs.append(x + 1e-20 * y[:, :1])
        return i + 1, new_inputs, new_kernels

    @tf.function(jit_compile=True)
    def run():
        _, xs, ws = tf.while_loop(lambda i, *_: i < REPEATS, body, (0, inputs, kernels))
        return tf.add_n([tf.reduce_sum(x[0]) for x in [*xs, *ws]])

    return run


def seconds_of(function):
    start = time.perf_counter()
    function().numpy()
    return time.perf_counter() - start


def make_gradient(work, data, checkpoints):
    """`() -> (gradients' sum, stats)`, compiled."""
    network, y0 = Network(data), tf.constant(data.y0)
    options = dict(
        method=work.method, gradient=tfsymadj.SymplecticAdjoint(checkpoints), max_steps=64
    )
    if work.adaptive:
        options |= dict(rtol=work.tolerance, atol=work.tolerance)
    else:
        options |= dict(num_steps=work.num_steps)

    @tf.function(jit_compile=True)
    def run():
        with tf.GradientTape() as tape:
            solution = tfsymadj.solve(network, y0, (0.0, 1.0), **options)
            loss = tf.reduce_mean(solution.y[-1] ** 2)
        return tape.gradient(loss, [*network.kernels, *network.biases]), solution.stats

    return run


def measure(name, rounds):
    """Prints a workload's rows."""
    work = WORKLOADS[name]
    data = work.data()
    shapes = [kernel.shape for kernel in data.kernels]
    flops = sum(2 * work.batch * n * m for n, m in shapes)
    alone = {taped: products(shapes, work.batch, taped) for taped in (False, True)}
    gradients = {c: make_gradient(work, data, c) for c in CHECKPOINTS}
    times = {key: [] for key in [*alone, *gradients]}
    stats = {}
    for i in range(1 + rounds):  # in turns; the first round compiles
        for taped, function in alone.items():
            seconds = seconds_of(function) / REPEATS
            times[taped] += [seconds] if i else []
        for c, function in gradients.items():
            start = time.perf_counter()
            found, stats[c] = function()
            found[0].numpy()
            times[c] += [time.perf_counter() - start] if i else []
    plain, taped = (statistics.median(times[key]) for key in (False, True))
    for c in CHECKPOINTS:
        counts = stats[c]
        s = {"rk38": 4, "dopri5": 6, "dopri8": 12}[work.method]
        differentiated = int(counts.num_accepted) * s
        others = int(counts.num_evaluations) + int(counts.num_backward_evaluations) - differentiated
        seconds = statistics.median(times[c])
        needed = others * plain + differentiated * taped
        rate = flops * (others + 3 * differentiated) / seconds / 1e9
        fraction = f"{100 * needed / seconds:.0f} %"
        numbers = [others, differentiated, f"{seconds:.3f}", f"{needed:.3f}", f"{rate:.0f}"]
        print(COLUMNS.format(name, c, *numbers, fraction), flush=True)
    print(
        f"  alone: {flops / plain / 1e9:.0f} GFLOP/s forward, "
        f"{3 * flops / taped / 1e9:.0f} with derivatives\n"
    )


def main():
    parser = common.parser(__doc__, figure=False)
    parser.add_argument(
        "--workloads", nargs="+", choices=WORKLOADS, default=["W1a-100", "W3"],
        help="names (default: W1a-100 W3)",
    )  # fmt: skip
    parser.add_argument("--rounds", type=int, default=5, help="of measuring (default: 5)")
    arguments = parser.parse_args()
    print(common.machine(), end="\n\n")
    print(
        COLUMNS.format(
            "work", "keeps", "evaluations", "taped", "s", "products, s", "GFLOP/s", "of it"
        )
    )
    for name in arguments.workloads:
        measure(name, 1 if arguments.quick else arguments.rounds)


if __name__ == "__main__":
    main()
