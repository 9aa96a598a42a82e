"""How exact the gradients are: errors relative to back-propagation in float64.

    python benchmarks/exactness.py
    python benchmarks/exactness.py --quick --no-plot

Adaptive steps over tolerances, in float64 and float32: against the exact gradient of the steps that
were taken (replayed in float64), and against the gradient of the exact solution. Fixed steps in
float32 over their number: against the same steps in float64, for a contractive and for a
conservative problem. All in graph mode. See README.md here.
"""

import math

import common
import numpy as np
import tensorflow as tf

import tfsymadj

BATCH = 4
ADAPTIVE = ["backprop", "ACA", "continuous adjoint", "symplectic, auto"]
FIXED = ["backprop", "ACA", "continuous adjoint", "symplectic, auto", "symplectic, stages"]
ADAPTIVE_COLUMNS = "{:<9}{:>10}{:>7}  {:<20}{:>15}{:>15}"
FIXED_COLUMNS = "{:<13}{:>7}  {:<20}{:>11}{:>11}{:>11}"


class Contractive(tf.Module):
    """dy/dt = -y + W2 tanh(W1 y + b) with |W1| = |W2| = 0.9: solutions approach each other."""

    size, end = 8, 5.0

    def __init__(self, dtype):
        super().__init__()
        self.first = weight([8, 32], 0.9, 0, dtype)
        self.bias = weight([1, 32], 1.0, 1, dtype)
        self.second = weight([32, 8], 0.9, 2, dtype)

    def __call__(self, t, y):
        return -y + tf.tanh(y @ self.first + self.bias) @ self.second


class Conservative(tf.Module):
    """Coupled oscillators: d2q/dt2 = -W^T tanh(W q + b), which keeps an energy; |W| = 2."""

    size, end = 8, 10.0

    def __init__(self, dtype):
        super().__init__()
        self.matrix = weight([4, 32], 2.0, 0, dtype)
        self.bias = weight([1, 32], 1.0, 1, dtype)

    def __call__(self, t, y):
        q, p = tf.split(y, 2, axis=1)
        force = -tf.tanh(q @ self.matrix + self.bias) @ tf.transpose(self.matrix)
        return tf.concat([p, force], axis=1)


PROBLEMS = {"contractive": Contractive, "conservative": Conservative}


def weight(shape, norm, seed, dtype):
    """A random matrix of a spectral norm; the same float32 numbers in every dtype."""
    values = tf.random.stateless_normal(shape, [2, seed])
    values *= norm / tf.linalg.norm(values, 2)
    return tf.Variable(tf.cast(values, dtype))


def initial_state(size, dtype):
    return tf.cast(tf.random.stateless_normal([BATCH, size], [1, 1]), dtype)


class Recorder(tfsymadj.PIController):
    """A `PIController` that lists the steps it accepts."""

    def __init__(self, tolerance):
        super().__init__(tolerance, tolerance)
        self.steps = []

    def get_config(self):
        return {"tolerance": self.rtol}

    def for_method(self, method):
        self.error_order = super().for_method(method).error_order
        return self

    def adapt(self, state, proposal, error):
        accepted, state = super().adapt(state, proposal, error)

        def record(accepted, step):
            if accepted:
                self.steps.append(float(step))
            return accepted

        found = tf.numpy_function(record, [accepted, proposal.step], tf.bool)
        return tf.ensure_shape(found, []), state


class Replay(tfsymadj.Controller):
    """Takes given steps, whatever the error."""

    def __init__(self, steps):
        self._steps = tf.constant(steps, tf.float64)

    def get_config(self):
        return {"steps": self._steps}

    def num_steps(self, ts):
        return self._steps.shape[0]

    def initial_state(self, first_step):
        return tf.zeros([], tf.int32)

    def propose(self, state, t, start, end):
        step = self._steps[state]
        hits_end = tf.equal(state + 1, self._steps.shape[0])
        zero = tf.zeros([], tf.float64)  # no gradient for the times
        return tfsymadj.Proposal(step, tf.where(hits_end, end, t + step), hits_end, zero, zero)

    def adapt(self, state, proposal, error):
        return tf.constant(True), state + 1


def gradient(problem, dtype, name, end=1.0, **options):
    """The gradient for y0 and all weights as arrays, and the stats."""
    method = common.GRADIENTS[name]
    options = dict(on_failure="status") | options
    function = common.gradient_function([problem(dtype)], method, options, "graph", (0.0, end))
    gradients, stats = function(initial_state(8, dtype))
    return [x.numpy().astype(np.float64) for x in gradients], stats


def accepted_steps(problem, dtype, tolerance, max_steps):
    """The steps that an adaptive solve takes."""
    recorder, dynamics = Recorder(tolerance), problem(dtype)
    tf.function(
        lambda y0: (
            tfsymadj.solve(dynamics, y0, (0.0, 1.0), controller=recorder, max_steps=max_steps).y
        )
    )(initial_state(8, dtype))
    return recorder.steps


def error(found, reference):
    """Norm of the difference relative to the reference, over all entries of lists of arrays."""
    difference = math.hypot(*(np.linalg.norm(a - b) for a, b in zip(found, reference)))
    return difference / math.hypot(*(np.linalg.norm(b) for b in reference))


def network(dtype):
    return common.Network(size=8, width=32, dtype=dtype)


def run_adaptive(tolerances):
    """Rows of the errors over tolerances, printed."""
    print("dopri5, adaptive: errors of the gradient for y0 and the weights")
    header = ["dtype", "tolerance", "steps", "gradient", "of its steps", "of the problem"]
    print(ADAPTIVE_COLUMNS.format(*header))
    exact = dict(method="dopri8", rtol=1e-13, atol=1e-13)
    true, _ = gradient(network, tf.float64, "symplectic, auto", **exact)
    rows = []
    for dtype in (tf.float64, tf.float32):
        for tolerance in tolerances:
            options = dict(rtol=tolerance, atol=tolerance, max_steps=2**15)
            steps = accepted_steps(network, dtype, tolerance, options["max_steps"])
            own, _ = gradient(
                network, tf.float64, "backprop", method="dopri5", controller=Replay(steps)
            )
            for name in ADAPTIVE:
                found, stats = gradient(network, dtype, name, **options)
                assert int(stats.num_accepted) == len(steps), (stats, len(steps))
                row = dict(dtype=dtype.name, x=tolerance, name=name)
                row |= dict(own=error(found, own), true=error(found, true))
                rows.append(row)
                numbers = [f"{row[key]:.1e}" for key in ("own", "true")]
                line = ADAPTIVE_COLUMNS.format(
                    dtype.name, f"{tolerance:.0e}", len(steps), name, *numbers
                )
                print(line, flush=True)
    return rows


def run_fixed(counts):
    """Rows of the errors over the number of steps, printed."""
    print("\nrk4, fixed steps, float32: errors of the gradients relative to float64, same steps")
    print(FIXED_COLUMNS.format("problem", "steps", "gradient", "y0", "weights", "all"))
    rows = []
    for kind, problem in PROBLEMS.items():
        for count in counts:
            options = dict(method="rk4", num_steps=count, end=problem.end)
            reference, _ = gradient(problem, tf.float64, "backprop", **options)
            for name in FIXED:
                found, _ = gradient(problem, tf.float32, name, **options)
                row = dict(kind=kind, x=count, name=name, all=error(found, reference))
                rows.append(row)
                parts = [error(found[:1], reference[:1]), error(found[1:], reference[1:])]
                numbers = [f"{value:.1e}" for value in (*parts, row["all"])]
                print(FIXED_COLUMNS.format(kind, count, name, *numbers), flush=True)
    return rows


def plot(adaptive, fixed, path):
    """Errors against the tolerance, and against the number of steps."""
    plt = common.pyplot()
    figure, axes = plt.subplots(1, 2, figsize=(12, 5.4), layout="constrained")
    panels = [
        (axes[0], adaptive, ADAPTIVE, "dtype", "own", ["float64", "float32"]),
        (axes[1], fixed, FIXED, "kind", "all", list(PROBLEMS)),
    ]
    for axis, rows, names, kind, key, kinds in panels:
        for value, line in zip(kinds, ["-", "--"]):
            for name in names:
                points = [
                    (row["x"], row[key])
                    for row in rows
                    if row[kind] == value and row["name"] == name and row[key] > 0
                ]
                common.draw(axis, points, name, linestyle=line)
        axis.set(xscale="log", yscale="log", ylabel="relative error of the gradient")
        axis.grid(True, alpha=0.3)
        axis.spines[["top", "right"]].set_visible(False)
        styles = [
            plt.Line2D([], [], color="black", linestyle=line, label=value)
            for value, line in zip(kinds, ["-", "--"])
        ]
        axis.legend(handles=styles, frameon=False, loc="best")
    axes[0].invert_xaxis()
    axes[0].set(xlabel="tolerance (rtol = atol)", title="dopri5, adaptive steps")
    axes[1].set(xlabel="number of steps N", title="rk4, fixed steps, float32 against float64")
    handles, labels = axes[1].get_legend_handles_labels()
    figure.legend(handles[: len(FIXED)], labels[: len(FIXED)], loc="outside lower center", ncols=5)
    figure.suptitle(
        "Error relative to the exact gradient of the steps taken, for y0 and all weights\n"
        f"TensorFlow {tf.__version__}, graph mode",
        fontsize=10,
    )
    common.save(figure, path)


def main():
    arguments = common.parser(__doc__).parse_args()
    print(common.machine(), end="\n\n")
    exponents = range(2, 11, 4) if arguments.quick else range(2, 11)
    adaptive = run_adaptive([10.0**-k for k in exponents])
    fixed = run_fixed([10, 100] if arguments.quick else [10, 100, 1000, 10000])
    if arguments.plot:
        plot(adaptive, fixed, arguments.output / "exactness.png")


if __name__ == "__main__":
    main()
