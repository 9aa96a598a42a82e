"""One long series: a neural ODE fitted to 1,000 observations of a pendulum on a spring.

    python examples/long_series.py            # about half a minute on two cores
    python examples/long_series.py --quick    # every part, in less than 40 s

The bob swings and bounces, and the two motions hand their energy to each other. Its place is seen
at 1,000 irregular times, with noise; what happens in as long a time after that is to be predicted.
The model is a network for the potential, and the start. Fitted to all observations at once it ends
in a poor optimum: a wrong frequency is wrong everywhere. So it is fitted to the first 50, then to
50 more, and so on. These are a thousand solves through up to 1,000 outputs, which cost nothing
inside of steps (`outputs="auto"`); a solver that steps to each of them takes many times as many.
"""

import argparse
import os
import pathlib
import statistics
import sys
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
# BFGS has small matrices only, and threads that wait for each other take longer than those.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import keras
import matplotlib
import numpy as np
import tensorflow as tf
from scipy.optimize import minimize

import tfsymadj
from tfsymadj.layers import HamiltonianDynamics

matplotlib.use("Agg")
import matplotlib.pyplot as plt

GAP = 0.03  # mean time between two observations
NOISE = 0.02  # standard deviation; at rest the spring is 1 long
START = [0.7, -0.7, 0.0, 0.0]  # place and velocity
PIECE = 50  # observations that are added at a time
# With larger tolerances line searches end where the error jumps, by a step more or less.
SOLVER = {"rtol": 1e-4, "atol": 1e-5}
COLORS = {"growing horizon": "#0072B2", "all at once": "#D55E00", "mean": "#777777"}


def spring(place):
    """The potential. A bob at rest bounces twice as fast as it swings."""
    return 2.0 * (np.hypot(*place) - 0.75) ** 2 + place[1]


def pendulum(t, y):
    place, velocity = y[:2], y[2:]
    length = tf.norm(place)
    return tf.concat([velocity, 4.0 * (0.75 / length - 1.0) * place - [0.0, 1.0]], 0)


def observe(count, seed):
    """Times, the places at these times, and what is seen of them."""
    random = np.random.default_rng(seed)
    times = np.append(0.0, np.cumsum(GAP * random.uniform(0.2, 1.8, count - 1)))
    y = tfsymadj.odeint(
        pendulum, tf.constant(START, tf.float64), times, method="dopri8", rtol=1e-9, atol=1e-9
    )
    places = y[:, :2].numpy()
    return times, places, places + NOISE * random.normal(size=places.shape)


class Model:
    """Hamilton's equations with a network for the potential, and where it all begins."""

    def __init__(self, times, seen, hidden, seed):
        keras.utils.set_random_seed(seed)
        layers = [keras.layers.Dense(hidden, "tanh"), keras.layers.Dense(hidden, "tanh")]
        self.potential = keras.Sequential([keras.Input((2,)), *layers, keras.layers.Dense(1)])
        self.dynamics = HamiltonianDynamics(self.energy)
        # A parabola through the first observations tells place and velocity.
        parabola = np.polynomial.polynomial.polyfit(times[:12], seen[:12], 2)
        self.start = tf.Variable(parabola[:2].reshape(1, 4))
        self.variables = [*(w.value for w in self.potential.trainable_variables), self.start]

    def energy(self, y):
        place, velocity = tf.split(y, 2, axis=-1)
        return self.potential(place)[:, 0] + tf.reduce_sum(velocity**2, -1) / 2.0

    def solve(self, times, outputs="auto"):
        """Places at these times, and the solve's counts."""
        # Line searches try potentials that need thousands of steps, of which nothing is learned.
        max_steps = 512 if outputs == "auto" else 2 * len(times)
        solution = tfsymadj.solve(
            self.dynamics, self.start, times, outputs=outputs, max_steps=max_steps, **SOLVER
        )
        return solution.y[:, 0, :2], solution.stats

    def flat(self):
        return flat(self.variables)

    def assign(self, theta):
        ends = np.cumsum([v.shape.num_elements() for v in self.variables])[:-1]
        for variable, values in zip(self.variables, np.split(theta, ends)):
            variable.assign(values.reshape(variable.shape))


def flat(tensors):
    return np.concatenate([np.ravel(x) for x in tensors])


def up_to(times, count):
    """The times of the first observations, with those of the others a hair behind them.

    One compiled function then solves for any number of observations, and no further than to the
    last one of them: outputs cost nothing.
    """
    late = np.maximum(np.arange(len(times)) - count + 1, 0)
    return np.where(late, times[count - 1] + 1e-6 * late, times)


def make_gradient(model, seen, outputs="auto"):
    """`times, count -> mean squared error of the first observations, gradients, counts`."""

    @tf.function(jit_compile=True)
    def gradient(times, count):
        known = tf.cast(tf.range(len(seen)) < count, tf.float64)
        with tf.GradientTape() as tape:
            places, stats = model.solve(times, outputs)
            errors = tf.reduce_mean((places - seen) ** 2, -1)
            error = tf.reduce_sum(known * errors) / tf.reduce_sum(known)
        return error, tape.gradient(error, model.variables), stats

    return gradient


def fit(model, times, seen, horizons, iterations, bar):
    """BFGS for one number of observations after another; errors of all gradients on the way."""
    gradient, history = make_gradient(model, seen), []

    def value_and_gradient(theta, shown, count):
        model.assign(theta)
        error, gradients, _ = gradient(shown, count)
        history.append((float(error) ** 0.5, int(count)))
        # A line search understands no NaN, which is what a failed solve gives.
        if not np.isfinite(error):
            return 1e10, np.zeros(len(theta))
        return float(error) / NOISE**2, flat(gradients) / NOISE**2

    for count in horizons:
        inputs = tf.constant(up_to(times, count)), tf.constant(count)
        options = {"maxiter": 4 * iterations if count == len(seen) else iterations}
        found = minimize(
            value_and_gradient, model.flat(), inputs, method="BFGS", jac=True, options=options
        )
        model.assign(found.x)
        bar.add(1, [("observations", count), ("error", found.fun**0.5 * NOISE)])
    return np.array(history)


def costs(model, times, seen):
    """Steps and milliseconds of a gradient, with outputs inside of steps and with steps to them."""
    inputs = tf.constant(times), tf.constant(len(times))
    functions = {outputs: make_gradient(model, seen, outputs) for outputs in ("auto", "step")}
    seconds = {outputs: [] for outputs in functions}
    stats = {outputs: function(*inputs)[-1] for outputs, function in functions.items()}
    for _ in range(10):
        for outputs, function in functions.items():
            begin = time.perf_counter()
            flat(function(*inputs)[1])
            seconds[outputs].append(time.perf_counter() - begin)
    return {
        outputs: (int(found.num_steps), int(found.num_evaluations), 1e3 * statistics.median(times))
        for (outputs, found), times in zip(stats.items(), seconds.values())
    }


def rmse(places, truth):
    return np.sqrt(np.mean((places - truth) ** 2))


def draw_series(axis, k, times, truth, seen, predictions):
    count = len(seen)
    axis.axvspan(times[count - 1], times[-1], color="#000000", alpha=0.06, linewidth=0)
    axis.plot(times[:count], seen[:, k], ".", color="#000000", markersize=2, label="observed")
    axis.plot(
        times[count::10], truth[count::10, k], "o", color="#000000", markersize=3,
        markerfacecolor="white", markeredgewidth=0.7, label="what came after",
    )  # fmt: skip
    for name, places in predictions.items():
        axis.plot(times, places[:, k], color=COLORS[name], linewidth=1.3, label=name)
    low, high = truth[:, k].min(), truth[:, k].max()
    margin = 0.15 * (high - low)
    axis.set(ylabel="xz"[k], xlim=(0.0, times[-1]), ylim=(low - margin, high + margin))


def draw_plane(axis, model, places, seen):
    """The learned potential and the true one, and the path through them."""
    x, z = np.meshgrid(np.linspace(-0.85, 0.85, 86), np.linspace(-1.5, -0.45, 71))
    learned = model.potential(np.stack([x.ravel(), z.ravel()], 1)).numpy().reshape(x.shape)
    # It has no zero of its own.
    learned += np.mean(spring(seen.T)) - np.mean(model.potential(seen))
    levels = np.linspace(-0.88, -0.4, 13)
    axis.contourf(x, z, learned, levels, cmap="Blues_r", alpha=0.7, extend="both")
    axis.contour(x, z, spring([x, z]), levels, colors="#000000", linewidths=0.8, linestyles=":")
    axis.plot(*seen.T, ".", color="#000000", markersize=1.5)
    axis.plot(*places[: len(seen)].T, color=COLORS["growing horizon"], linewidth=1.2)
    axis.set(title="Learned potential (dotted: true), and the path", aspect="equal")
    axis.set(xlabel="x", ylabel="z")


def draw_fits(axis, histories):
    """The best errors so far, among those of as many observations."""
    for name, history in histories.items():
        error, count = history.T
        best = [np.minimum.accumulate(error[count == n]) for n in np.unique(count)]
        axis.semilogy(np.concatenate(best), color=COLORS[name], linewidth=1.3, label=name)
    axis.axhline(NOISE, color="#000000", linestyle=":", label="noise")
    axis.set(title="The fits", xlabel="gradient", ylabel="error of what is fitted (RMSE)")
    axis.legend(frameon=False)


def draw_costs(axis, count, table):
    for place, (steps, _, ms) in enumerate(table.values()):
        axis.bar(place, ms, 0.6, color=["#0072B2", "#56B4E9"][place])
        axis.text(place, ms, f"{steps:,} steps\n{ms:.0f} ms", ha="center", va="bottom")
    axis.set_xticks(range(len(table)), [f'outputs="{name}"' for name in table])
    axis.set(title=f"A gradient of {count:,} outputs", ylabel="ms")
    axis.margins(y=0.15)


def draw(model, times, truth, seen, predictions, histories, table, path):
    plt.rcParams.update({"font.size": 11, "axes.spines.top": False, "axes.spines.right": False})
    figure, axes = plt.subplot_mosaic(
        "xxx;zzz;pft", figsize=(14, 10), layout="constrained", height_ratios=[1, 1, 1.9],
        width_ratios=[1.7, 1.1, 0.9],
    )  # fmt: skip
    draw_series(axes["x"], 0, times, truth, seen, predictions)
    draw_series(axes["z"], 1, times, truth, seen, predictions)
    axes["x"].set_title(f"A pendulum on a spring, observed {len(seen):,} times", loc="left")
    axes["x"].legend(frameon=False, ncols=4, loc="lower right", bbox_to_anchor=(1.0, 0.98))
    axes["x"].tick_params(labelbottom=False)
    axes["z"].set_xlabel("time")
    draw_plane(axes["p"], model, predictions["growing horizon"], seen)
    draw_fits(axes["f"], histories)
    draw_costs(axes["t"], len(seen), table)
    figure.savefig(path, dpi=120)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a short run, to try it out")
    parser.add_argument(
        "--output", type=pathlib.Path, default="out", help="folder to write to (default: out)"
    )
    parser.add_argument("--seed", type=int, default=0, help="of random numbers (default: 0)")
    arguments = parser.parse_args()
    arguments.output.mkdir(parents=True, exist_ok=True)
    count, hidden, iterations = (150, 8, 20) if arguments.quick else (1000, 16, 40)
    keras.config.set_floatx("float64")  # for the line searches

    begin = time.perf_counter()
    times, truth, seen = observe(2 * count, arguments.seed)
    seen = seen[:count]
    horizons = {"growing horizon": range(PIECE, count + 1, PIECE), "all at once": [count]}
    bar = keras.utils.Progbar(
        sum(map(len, horizons.values())), stateful_metrics=["observations", "error"],
        unit_name="horizon",
    )  # fmt: skip
    models, histories, predictions, seconds = {}, {}, {}, {}
    for name, counts in horizons.items():
        start = time.perf_counter()
        models[name] = Model(times, seen, hidden, arguments.seed)
        histories[name] = fit(models[name], times[:count], seen, counts, iterations, bar)
        seconds[name] = time.perf_counter() - start
        predictions[name] = models[name].solve(times)[0].numpy()
    best = models["growing horizon"]
    table = costs(best, times[:count], seen)

    errors = {
        name: (rmse(y[:count], truth[:count]), rmse(y[count:], truth[count:]))
        for name, y in {**predictions, "mean": np.tile(seen.mean(0), (2 * count, 1))}.items()
    }
    print(f"\nError of the place (RMSE, noise {NOISE})")
    print(f"{'':<22}{'fitted':>8}{'after':>8}{'gradients':>11}{'s':>6}")
    for name, (fitted, after) in errors.items():
        cost = f"{len(histories[name]):11}{seconds[name]:6.0f}" if name in histories else ""
        print(f"{name:<22}{fitted:8.4f}{after:8.4f}{cost}")
    print(f"\n{f'Gradient of {count}':<22}{'steps':>8}{'evaluations':>13}{'ms':>8}")
    for outputs, (steps, evaluations, ms) in table.items():
        print(f"{outputs:<22}{steps:8}{evaluations:13}{ms:8.1f}")
    picture = arguments.output / "long_series.png"
    draw(best, times, truth, seen, predictions, histories, table, picture)
    print(f"Time {time.perf_counter() - begin:.0f} s")
    print(f"Picture {picture}")
    if not arguments.quick and max(errors["growing horizon"]) >= min(errors["mean"]):
        sys.exit("The model is no better than the mean of the observations.")


if __name__ == "__main__":
    main()
