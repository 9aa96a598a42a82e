"""Lynx and hare: the Lotka-Volterra equations against a small neural ODE, on years not fitted.

    python examples/lynx_hare.py            # about a minute and a half on two cores
    python examples/lynx_hare.py --quick    # every part, in less than 40 s

Data: furs that trappers brought to the Hudson's Bay Company from 1900 to 1920, in thousands. Models
are fitted to the years up to a cut and predict the rest, for three cuts. The figures are errors of
the natural logarithm: 0.7 is a factor of two. 21 years are few: nothing here is significant.
"""

import argparse
import os
import pathlib
import sys
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import keras
import matplotlib
import numpy as np
import tensorflow as tf
from scipy.optimize import minimize

import tfsymadj

matplotlib.use("Agg")
import matplotlib.pyplot as plt

HARE = [30, 47.2, 70.2, 77.4, 36.3, 20.6, 18.1, 21.4, 22, 25.4, 27.1, 40.3, 57, 76.6, 52.3, 19.5]
HARE += [11.2, 7.6, 14.6, 16.2, 24.7]
LYNX = [4, 6.1, 9.8, 35.2, 59.4, 41.7, 19, 13, 8.3, 9.1, 7.4, 8, 12.3, 19.5, 45.7, 51.1, 29.7]
LYNX += [15.8, 9.7, 10.1, 8.6]
FIRST = 1900
CUTS = [1912, 1914, 1916]  # the last years of the fits
INNER = 4  # the penalty is chosen by this many years before a cut, which it is fitted without
LOGS = np.log(np.stack([HARE, LYNX], 1))  # (years, species)
YEARS = np.arange(len(LOGS))
FINE = 4  # times a year, for smooth curves
TIMES = np.arange(FINE * (len(LOGS) - 1) + 1) / FINE
CENTER = 3.0  # of the logarithms, for the network
SOLVER = {"method": "rk4", "num_steps": 2}
COLORS = {"data": "#000000", "Lotka-Volterra": "#0072B2", "neural ODE": "#D55E00"}
COLORS |= {"ten years before": "#009E73", "mean": "#777777"}


def lotka_volterra(t, y, rates):
    """Slopes of the logarithms. The rates are scaled to populations of exp(CENTER)."""
    growth, hunted, death, fed = tf.unstack(tf.exp(rates))
    hare, lynx = tf.unstack(tf.exp(y - CENTER))
    return tf.stack([growth - hunted * lynx, fed * hare - death])


@tf.function(jit_compile=True)
def solve_lotka_volterra(theta, weights):
    """Logarithms at all times, error over the years of weight one, and its gradient."""
    with tf.GradientTape() as tape:
        tape.watch(theta)
        y = tfsymadj.odeint(lotka_volterra, theta[4:], TIMES, args=(theta[:4],), **SOLVER)
        value = tf.reduce_sum(weights[:, None] * (y[::FINE] - LOGS) ** 2)
    return y, value, tape.gradient(value, theta)


def fit_lotka_volterra(cut):
    """Four rates and the first year's numbers, from starts that match the slopes of the data."""
    known = LOGS[YEARS + FIRST <= cut]
    slope, scaled = np.gradient(known, axis=0), np.exp(known - CENTER)
    (growth, hunted), (death, fed) = (
        np.linalg.lstsq(np.stack([sign, -sign * x], 1), slope[:, k], rcond=None)[0]
        for k, (sign, x) in enumerate(
            [(np.ones(len(known)), scaled[:, 1]), (-np.ones(len(known)), scaled[:, 0])]
        )
    )
    start = np.append(np.log(np.maximum([growth, hunted, death, fed], 0.05)), known[0])
    weights = tf.constant((YEARS + FIRST <= cut).astype(float))

    def value_and_gradient(theta):
        _, value, gradient = solve_lotka_volterra(tf.constant(theta), weights)
        # A line search understands no NaN, which is what a failed solve gives.
        return (value, gradient) if np.isfinite(value) else (1e10, np.zeros(len(theta)))

    theta = minimize(value_and_gradient, start, jac=True, method="BFGS").x
    return theta, solve_lotka_volterra(tf.constant(theta), weights)[0].numpy()


class Networks:
    """Many small networks at once, each with weights of its own: one solve moves them all."""

    def __init__(self, members, hidden, seed):
        random = np.random.default_rng(seed)
        # The same starts in each group of members.
        shapes = [(2, hidden), (1, hidden), (hidden, 2), (1, 2)]
        scales = [0.7, 0.5, 0.3 / hidden**0.5, 0.0]
        groups, seeds = members
        self.weights = [
            tf.Variable(np.tile(scale * random.normal(size=(seeds, *shape)), (groups, 1, 1)))
            for shape, scale in zip(shapes, scales)
        ]
        # The logarithms of the first year are unknown too.
        self.start = tf.Variable(np.tile(LOGS[0] - CENTER, (groups * seeds, 1, 1)))

    def __call__(self, t, y):
        kernel, bias, last_kernel, last_bias = self.weights
        return tf.tanh(y @ kernel + bias) @ last_kernel + last_bias

    def states(self):
        """Logarithms, (members, times, species)."""
        y = tfsymadj.odeint(self, self.start, TIMES, **SOLVER)
        return tf.transpose(y[:, :, 0], [1, 0, 2]) + CENTER


def train(networks, last_years, penalties, steps, bar):
    """Fits each member to its own years with its own penalty on the kernels."""
    optimizer = keras.optimizers.Adam(keras.optimizers.schedules.CosineDecay(0.02, steps))
    variables = [*networks.weights, networks.start]
    optimizer.build(variables)

    @tf.function(jit_compile=True)
    def step(horizon):
        known = tf.cast(YEARS + FIRST <= tf.minimum(last_years, horizon)[:, None], tf.float64)
        with tf.GradientTape() as tape:
            errors = tf.reduce_mean((networks.states()[:, ::FINE] - LOGS) ** 2, -1)
            errors = tf.reduce_sum(known * errors, 1) / tf.reduce_sum(known, 1)
            size = [tf.reduce_sum(w**2, [1, 2]) for w in networks.weights[::2]]
            loss = tf.reduce_sum(errors + penalties * tf.add_n(size))
        optimizer.apply_gradients(zip(tape.gradient(loss, variables), variables))
        return tf.reduce_mean(errors)

    for number in range(steps):
        # Gradients through long trajectories of an untrained network lead nowhere: the years are
        # added one by one, until half of the training.
        horizon = FIRST + 4 + int(np.floor(2 * number / steps * len(YEARS)))
        error = step(tf.constant(horizon, tf.int64))
        if number % 25 == 24:
            bar.add(25, [("error", float(error) ** 0.5)])
    return tf.function(networks.states, jit_compile=True)().numpy()


def rmse(y, years):
    return np.sqrt(np.mean((y - LOGS)[years] ** 2))


def fit_neural_ode(penalties, seeds, hidden, steps, seed):
    """Predictions for each cut: the mean of several networks, with a penalty chosen before it."""
    groups = [(cut - k, p) for cut in CUTS for k in (INNER, 0) for p in penalties]
    last_years, decay = (np.repeat(x, seeds) for x in zip(*groups))
    networks = Networks((len(groups), seeds), hidden, seed)
    bar = keras.utils.Progbar(steps, unit_name="step", stateful_metrics=["error"])
    states = train(networks, last_years, decay, steps, bar)
    states = states.reshape(len(CUTS), 2, len(penalties), seeds, len(TIMES), 2)
    chosen = {}
    for cut, (inner, outer) in zip(CUTS, states):
        years = (YEARS + FIRST > cut - INNER) & (YEARS + FIRST <= cut)
        best = np.argmin([rmse(y.mean(0)[::FINE], years) for y in inner])
        chosen[cut] = outer[best]
    return chosen


def draw(lotka_volterra, networks, errors, cut, path):
    plt.rcParams.update({"font.size": 11, "axes.spines.top": False, "axes.spines.right": False})
    figure, axes = plt.subplots(2, 2, figsize=(13, 8), layout="constrained", width_ratios=[1.5, 1])
    years, data = YEARS + FIRST, np.exp(LOGS)
    curves = {"Lotka-Volterra": lotka_volterra, "neural ODE": networks.mean(0)}
    ticks = [5, 10, 20, 40, 80]
    for k, (axis, name) in enumerate(zip(axes[:, 0], ["Snowshoe hare", "Canada lynx"])):
        for y in networks:
            axis.plot(FIRST + TIMES, np.exp(y[:, k]), color=COLORS["neural ODE"], alpha=0.2)
        for model, y in curves.items():
            axis.plot(FIRST + TIMES, np.exp(y[:, k]), color=COLORS[model], label=model, linewidth=2)
        late = years > cut
        axis.plot(
            years[late], np.roll(data[:, k], 10)[late], ":", linewidth=2,
            color=COLORS["ten years before"], label="ten years before",
        )  # fmt: skip
        axis.plot(years[~late], data[~late, k], "o", color=COLORS["data"], label="fitted years")
        axis.plot(
            years[late], data[late, k], "o", color=COLORS["data"], markerfacecolor="white",
            label="years held out",
        )  # fmt: skip
        axis.axvspan(cut + 0.5, 1920.4, color="#000000", alpha=0.06, linewidth=0)
        axis.set(title=name, ylabel="Furs (thousands)", yscale="log", ylim=(3, 180))
        axis.set_xticks(range(1900, 1921, 4))
    axes[1, 0].set_xlabel("Year")
    axes[0, 0].legend(frameon=False, fontsize=9.5, ncols=3, loc="upper center")
    phase, bars = axes[:, 1]
    for model, y in curves.items():
        phase.plot(*np.exp(y).T, color=COLORS[model], linewidth=2)
    phase.plot(*data.T, "o-", color=COLORS["data"], linewidth=0.6, markersize=4)
    # Where no line passes.
    places = {1900: (-18, 0), 1905: (-18, -4), 1910: (17, 13), 1915: (0, 10), 1920: (-42, -39)}
    for year, place in places.items():
        phase.annotate(
            str(year), data[year - FIRST], place, textcoords="offset points", fontsize=9.5,
            ha="center", va="center",
            arrowprops={"arrowstyle": "-", "color": COLORS["mean"]} if year == 1920 else None,
        )  # fmt: skip
    phase.set(title="Phase plane", xlabel="Hare furs (thousands)", ylabel="Lynx furs (thousands)")
    phase.set(xscale="log", yscale="log")
    for axis in (phase.xaxis, phase.yaxis, axes[0, 0].yaxis, axes[1, 0].yaxis):
        axis.set_ticks(ticks, ticks)
        axis.set_minor_locator(plt.NullLocator())
    for k, (model, values) in enumerate(errors.items()):
        bars.bar(np.arange(len(CUTS)) + 0.2 * (k - 1.5), values, 0.18, color=COLORS[model])
        bars.bar(0, 0, color=COLORS[model], label=model)
    bars.set(title="Error of the years held out", xlabel="Last fitted year", ylim=(0, 1.15))
    bars.set_ylabel("RMSE of the natural logarithm")
    bars.set_xticks(range(len(CUTS)), CUTS)
    bars.legend(frameon=False, fontsize=9.5, ncols=2, loc="upper center")
    figure.savefig(path, dpi=130)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a short run, to try it out")
    parser.add_argument(
        "--output", type=pathlib.Path, default="out", help="folder to write to (default: out)"
    )
    parser.add_argument("--seed", type=int, default=0, help="of random numbers (default: 0)")
    arguments = parser.parse_args()
    quick, output = arguments.quick, arguments.output
    output.mkdir(parents=True, exist_ok=True)

    start = time.perf_counter()
    fits = {cut: fit_lotka_volterra(cut) for cut in CUTS}
    penalties = [1e-3, 1e-2] if quick else [1e-4, 1e-3, 3e-3, 1e-2]
    seeds, steps = (2, 500) if quick else (10, 2000)
    print(f"Fitting {2 * len(CUTS) * len(penalties) * seeds} small networks at once")
    networks = fit_neural_ode(penalties, seeds, 16, steps, arguments.seed)

    predictions, errors = {}, {}
    print(f"\n{'':<20}" + "".join(f"{f'1900-{cut}':>11}{'after':>7}" for cut in CUTS))
    for cut in CUTS:
        mean = LOGS[YEARS + FIRST <= cut].mean(0)
        predictions[cut] = {
            "Lotka-Volterra": fits[cut][1][::FINE],
            "neural ODE": networks[cut].mean(0)[::FINE],
            "ten years before": np.roll(LOGS, 10, 0),
            "mean": np.tile(mean, (len(LOGS), 1)),
        }
    for model in predictions[CUTS[0]]:
        known = [rmse(predictions[cut][model], YEARS + FIRST <= cut) for cut in CUTS]
        errors[model] = [rmse(predictions[cut][model], YEARS + FIRST > cut) for cut in CUTS]
        # What is repeated has no year before the first one.
        known = ["-" if model == "ten years before" else f"{x:.3f}" for x in known]
        print(f"{model:<20}" + "".join(f"{k:>11}{e:7.3f}" for k, e in zip(known, errors[model])))
    means = {model: np.mean(values) for model, values in errors.items()}
    print(f"Best on the years held out, mean over the cuts: {min(means, key=means.get)}")
    growth, hunted, death, fed = np.exp(fits[1914][0][:4])
    scale = np.exp(CENTER)
    print(
        f"Rates per year, to 1914: hares grow by {growth:.3f} - {hunted / scale:.4f} lynx, lynx by "
        f"{fed / scale:.4f} hares - {death:.3f} (thousands of furs)"
    )
    picture = output / "lynx_hare.png"
    draw(fits[1914][1], networks[1914], errors, 1914, picture)
    print(f"Time {time.perf_counter() - start:.0f} s")
    print(f"Picture {picture}")
    if max(means["Lotka-Volterra"], means["neural ODE"]) >= means["mean"]:
        sys.exit("A model is no better than the mean of the years before.")


if __name__ == "__main__":
    main()
