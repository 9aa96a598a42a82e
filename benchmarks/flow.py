"""One training step of a continuous normalizing flow, beside `tfb.FFJORD`.

    python benchmarks/flow.py
    python benchmarks/flow.py --modes XLA --rounds 5

The flow has the size that Grathwohl et al. (arXiv:1810.01367) use for MiniBooNE: 43 variables, two
hidden layers of 860, batch 1000, Hutchinson's estimate of the trace by one fixed Rademacher vector,
dopri5 at a tolerance of 1e-5. See README.md here.
"""

import json
import statistics
import time

import common
import keras
import numpy as np
import tensorflow as tf
import tensorflow_probability as tfp
from workloads import WORKLOADS

import tfsymadj
from tfsymadj.bijectors import CNF

MIB = 2**20
WORK = WORKLOADS["W2"]
MODES = ("graph", "XLA")
NAMES = [*(name for name in common.GRADIENTS if name != "symplectic, 32"), "tfb.FFJORD"]
COLUMNS = "{:<7}{:<20}{:>10}{:>9}{:>10}{:>11}{:>12}"
OPTIONS = dict(rtol=WORK.tolerance, atol=WORK.tolerance, max_steps=16)
# For the errors of rounding: adaptive steps are themselves rounded, and so not the same in float32
# and in float64. As many as the adaptive solve accepts.
EQUAL_STEPS = dict(num_steps=4)


class Dynamics(tf.Module):
    """A tanh network of the state and the time."""

    def __init__(self, dtype=tf.float32):
        super().__init__()
        data = WORK.data()
        self.kernels = [tf.Variable(tf.cast(x, dtype)) for x in data.kernels]
        self.biases = [tf.Variable(tf.cast(x, dtype)) for x in data.biases]

    def __call__(self, t, y):
        x = tf.concat([y, t * tf.ones_like(y[:, :1])], axis=1)
        for kernel, bias in zip(self.kernels[:-1], self.biases[:-1]):
            x = tf.tanh(x @ kernel + bias)
        return x @ self.kernels[-1] + self.biases[-1]


def data(dtype=tf.float32):
    """The batch and the noise of the trace."""
    found = WORK.data()
    return tf.constant(found.y0[:, :-1], dtype), tf.constant(found.noise, dtype)


class FixedNoise(tfsymadj.bijectors.HutchinsonTrace):
    """The noise that all frameworks get."""

    def draw(self, seed, shape, dtype):
        return (data(dtype)[1],)


def make_flow(name, dynamics, dtype=tf.float32, **options):
    """The bijector from noise to data: data at time 0, noise at time 1."""
    if name != "tfb.FFJORD":
        gradient = common.GRADIENTS[name]
        return CNF(
            dynamics, (1.0, 0.0), trace=FixedNoise(), gradient=gradient, **(OPTIONS | options)
        )

    def augmentation(ode_fn, state_shape, dtype):
        noise = data(dtype)[1]
        return tfp.bijectors.ffjord.trace_jacobian_hutchinson(
            ode_fn, state_shape, dtype, sample_fn=lambda *_, **__: noise[tf.newaxis]
        )

    tolerances = dict(rtol=WORK.tolerance, atol=WORK.tolerance)
    solver = tfp.math.ode.DormandPrince(**tolerances)
    ffjord = tfp.bijectors.FFJORD(
        dynamics, ode_solve_fn=solver.solve, trace_augmentation_fn=augmentation, dtype=dtype
    )
    return tfp.bijectors.Invert(ffjord)


def make_step(name, mode=None, dtype=tf.float32, **options):
    """`x -> loss, gradients`, and an update of size zero: all calls see the same weights."""
    dynamics = Dynamics(dtype)
    flow = make_flow(name, dynamics, dtype, **options)
    size = tf.zeros(WORK.size, dtype)
    base = tfp.distributions.MultivariateNormalDiag(size, size + 1.0)
    distribution = tfp.distributions.TransformedDistribution(base, flow)
    weights = [*dynamics.kernels, *dynamics.biases]
    optimizer = keras.optimizers.Adam(0.0)
    optimizer.build(weights)

    def step(x):
        with tf.GradientTape() as tape:
            loss = -tf.reduce_mean(distribution.log_prob(x))
        gradients = tape.gradient(loss, weights)
        optimizer.apply_gradients(zip(gradients, weights))
        return loss, gradients

    return step if mode is None else tf.function(step, jit_compile=mode == "XLA")


def flat(gradients):
    return np.concatenate([np.asarray(g, np.float64).ravel() for g in gradients])


def reference(**options):
    """The gradient in float64, back-propagated step by step."""
    step = make_step("ACA", "graph", tf.float64, **options)
    return flat(step(data(tf.float64)[0])[1])


def relative_error(gradient, expected):
    return float(np.linalg.norm(gradient - expected) / np.linalg.norm(expected))


def call(step, x):
    """Seconds of a step, its loss and gradients."""
    start = time.perf_counter()
    loss, gradients = step(x)
    gradients = [g.numpy() for g in gradients]
    return time.perf_counter() - start, float(loss), gradients


def peak(request):
    """Peak bytes of a second step, above what was held before the first one."""
    common.reserve()
    x, step = data()[0], make_step(request["name"], request["mode"])
    before = tf.config.experimental.get_memory_info(common.DEVICE)["current"]
    call(step, x)
    tf.config.experimental.reset_memory_stats(common.DEVICE)
    call(step, x)
    return tf.config.experimental.get_memory_info(common.DEVICE)["peak"] - before


def measure(mode, rounds, of_steps, of_flow):
    """Rows of a table for one mode; the methods take turns."""
    x = data()[0]
    steps = {name: make_step(name, mode) for name in NAMES}
    rows = {}
    for name, step in steps.items():
        true = relative_error(flat(call(step, x)[2]), of_flow)
        own = None
        if name not in ("tfb.FFJORD", "continuous adjoint"):
            equal = make_step(name, mode, **EQUAL_STEPS)
            own = relative_error(flat(call(equal, x)[2]), of_steps)
        rows[name] = dict(mode=mode, name=name, own=own, true=true, seconds=[])
    for _ in range(rounds):
        for name, step in steps.items():
            rows[name]["seconds"].append(call(step, x)[0])
    for name in NAMES:
        request = json.dumps(dict(name=name, mode=mode))
        rows[name]["peak"] = common.in_child(__file__, "--child", request) / MIB
    return list(rows.values())


def main():
    parser = common.parser(__doc__)
    parser.add_argument(
        "--modes", nargs="+", choices=MODES, default=MODES, help="of execution (default: all)"
    )
    parser.add_argument("--rounds", type=int, default=5, help="of measuring (default: 5)")
    arguments = parser.parse_args()
    if arguments.child:
        print(json.dumps(peak(arguments.child)))
        return

    title = "a training step of a flow 43-860-860-43, batch 1000, dopri5 at 1e-5, float32"
    print(common.machine(), title, sep="\n", end="\n\n", flush=True)
    header = ["mode", "gradient", "median s", "ratio", "peak MiB", "own error", "true error"]
    print(COLUMNS.format(*header))
    # The exact gradient of equal steps, and that of the flow itself.
    of_steps, of_flow = reference(**EQUAL_STEPS), reference(rtol=1e-10, atol=1e-10, max_steps=2**12)
    rows = []
    for mode in arguments.modes:
        found = measure(mode, 1 if arguments.quick else arguments.rounds, of_steps, of_flow)
        slowest = statistics.median(found[-1]["seconds"])
        for row in found:
            row["time"] = statistics.median(row["seconds"])
            numbers = [f"{row['time']:.3f}", f"{slowest / row['time']:.2f}", f"{row['peak']:.1f}"]
            own = "" if row["own"] is None else f"{row['own']:.1e}"
            errors = [own, f"{row['true']:.1e}"]
            print(COLUMNS.format(mode, row["name"], *numbers, *errors), flush=True)
        rows += found
    print("\nratio: how many times faster than tfb.FFJORD with TensorFlow Probability's own solver")
    print("own error of a gradient: relative to the exact one of the same steps, of equal size")
    print("true error: relative to the gradient of the flow without any error of discretisation")
    if arguments.plot:
        plot(rows, title, arguments.output / "flow_step.png")


def plot(rows, title, path):
    """Time against memory, a panel for each mode; the gradient's errors beside the names."""
    plt = common.pyplot()
    modes = list(dict.fromkeys(row["mode"] for row in rows))
    figure, axes = plt.subplots(
        1, len(modes), figsize=(5.4 * len(modes), 5.0), layout="constrained", squeeze=False
    )
    styles = common.STYLES | {"tfb.FFJORD": ("#F0E442", "*")}
    for axis, mode in zip(axes[0], modes):
        for row in rows:
            if row["mode"] == mode:
                color, marker = styles[row["name"]]
                axis.scatter(
                    row["peak"], row["time"], s=90, color=color, marker=marker, label=row["name"],
                    edgecolors="black", linewidths=0.6, zorder=3,
                )  # fmt: skip
        axis.set(xscale="log", xlabel="peak memory (MiB)", ylabel="time of a step (s)", title=mode)
        axis.margins(x=0.15, y=0.1)
        common.few_labels(axis.xaxis)
        axis.set_ylim(0.0, None)
        axis.grid(True, alpha=0.3)
        axis.spines[["top", "right"]].set_visible(False)
    handles, names = axes[0][0].get_legend_handles_labels()
    errors = {name: [] for name in names}
    for row in rows:
        errors[row["name"]].append(row["true"] if row["own"] is None else row["own"])
    labels = [f"{name}: {', '.join(f'{x:.0e}' for x in errors[name])}" for name in names]
    figure.legend(handles, labels, loc="outside lower center", ncols=2 * len(modes), fontsize=8)
    caption = f"beside the names: the gradient's relative error ({', '.join(modes)})"
    figure.suptitle(f"{title}\n{common.machine()}\n{caption}", fontsize=9)
    common.save(figure, path)


if __name__ == "__main__":
    main()
