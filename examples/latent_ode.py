"""A latent ODE on days of electricity demand, of which a few hours are known, beside a GRU.

    pip install sktime                         # for the data that come with it
    python examples/latent_ode.py              # about three minutes on two cores
    python examples/latent_ode.py --quick      # every part, in less than 40 s

Data: 1,096 days of Italian power demand by the hour (ItalyPowerDemand of the UCR archive), each
standardized by its own mean and deviation. Of each day 4 to 10 random hours before 16:00 are
observed. Models predict the other hours before 16:00 (interpolation) and those after
(extrapolation). The latent ODE is that of Rubanova, Chen, Duvenaud (arXiv:1907.03907), without
noise in the latent state: an ODE-RNN reads the observations backward in time, and an ODE starts
from what it found.
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

from tfsymadj.layers import ODELayer

matplotlib.use("Agg")
import matplotlib.pyplot as plt

HOURS, WINDOW = 24, 16
FEWEST, MOST = 4, 10  # observations of a day
TIMES = np.arange(HOURS) / HOURS
COLORS = {"latent ODE": "#D55E00", "GRU": "#0072B2", "Gaussian": "#009E73"}
COLORS |= {"linear, last value": "#CC79A7", "mean of the hour": "#777777"}


def load_data():
    """Days of training, validation and test, (days, hours); the split is always the same."""
    try:
        from sktime.datasets import load_italy_power_demand
    except ImportError:
        sys.exit("The data come with the package sktime, which is missing: pip install sktime")
    days = load_italy_power_demand(return_type="numpy3d")[0][:, 0].astype("float32")
    days = np.random.default_rng(0).permutation(days)
    return np.split(days, [600, 848])  # XLA compiles predictions of one size once


def observe(days, random):
    """Which hours are observed, (days, hours)."""
    counts = random.integers(FEWEST, MOST + 1, (len(days), 1))
    ranks = np.argsort(np.argsort(random.random((len(days), WINDOW)), 1), 1)
    return np.pad(ranks < counts, [(0, 0), (0, HOURS - WINDOW)])


def sequences(days, observed, backward):
    """Values, their times and those of the entries before them, (days, MOST, 3), midnight for the
    first, and which entries are no padding, (days, MOST).
    """
    order = np.argsort(~observed, 1, kind="stable")[:, :MOST]
    mask = np.take_along_axis(observed, order, 1)
    values, times = np.take_along_axis(days, order, 1), TIMES[order]
    earlier = np.pad(times[:, :-1], [(0, 0), (1, 0)])
    x = np.stack([values, times, earlier], -1).astype("float32") * mask[..., None]
    return (x[:, ::-1], mask[:, ::-1]) if backward else (x, mask)


class ODERNNCell(keras.Layer):
    """Takes in an observation, then goes back in time to the one before it."""

    def __init__(self, units, hidden, **kwargs):
        super().__init__(**kwargs)
        self.units = self.state_size = self.output_size = units
        layers = [keras.layers.Dense(hidden, "tanh"), keras.layers.Dense(units)]
        dynamics = keras.Sequential([keras.Input((units,)), *layers])
        self.evolve = ODELayer(dynamics, method="heun", num_steps=2, batch_axis=0)
        self.update = keras.layers.GRUCell(units)

    def build(self, shape):
        self.update.build((*shape[:-1], 1))
        self.evolve(tf.zeros([1, self.units]), t=tf.zeros([1, 2]))

    def call(self, inputs, states):
        _, (state,) = self.update(inputs[:, :1], states)
        # Each day from its own time to its own; where both are zero, in padding, no step is taken.
        state = self.evolve(state, t=inputs[:, 1:])
        return state, [state]


def build_latent_ode(units=24, hidden=28, latent=8):
    x, mask = keras.Input((MOST, 3)), keras.Input((MOST,), dtype="bool")
    layers = [keras.layers.Dense(2 * hidden, "tanh"), keras.layers.Dense(latent)]
    dynamics = keras.Sequential([keras.Input((latent,)), *layers])
    state = keras.layers.RNN(ODERNNCell(units, hidden))(x, mask=mask)
    start = keras.layers.Dense(latent)(state)
    path = ODELayer(dynamics, TIMES, return_sequences=True, method="heun", num_steps=1)(start)
    outputs = keras.layers.Dense(hidden, "tanh")(path)
    outputs = keras.layers.Dense(1)(outputs)
    return keras.Model([x, mask], keras.layers.Reshape((HOURS,))(outputs), name="latent_ode")


def build_gru(units=22, hidden=42):
    x, mask = keras.Input((MOST, 3)), keras.Input((MOST,), dtype="bool")
    state = keras.layers.GRU(units)(x, mask=mask)
    states = keras.layers.RepeatVector(HOURS)(state)
    times = keras.layers.Lambda(lambda s: tf.zeros_like(s[..., :1]) + TIMES[:, None])(states)
    outputs = keras.layers.Concatenate()([states, times])
    for _ in range(2):
        outputs = keras.layers.Dense(hidden, "tanh")(outputs)
    outputs = keras.layers.Dense(1)(outputs)
    return keras.Model([x, mask], keras.layers.Reshape((HOURS,))(outputs), name="gru")


def train(model, backward, data, steps, seed, bar):
    """Adam on fresh observations in each step; leaves the weights of the best validation error."""
    days, validation, _ = data
    random = np.random.default_rng(seed)
    rate = keras.optimizers.schedules.CosineDecay(1e-2, steps)
    model.compile(keras.optimizers.Adam(rate, clipnorm=1.0), "mse", jit_compile=True)
    known = observe(validation, np.random.default_rng(1))
    inputs = sequences(validation, known, backward)
    best, history = (np.inf, None), []
    for number in range(1, steps + 1):
        batch = days[random.integers(len(days), size=100)]
        x, mask = sequences(batch, observe(batch, random), backward)
        loss = model.train_on_batch([x, mask], batch)
        if number % 50 == 0:
            error = np.mean((model.predict_on_batch(list(inputs)) - validation)[~known] ** 2)
            history.append((number, error))
            if error < best[0]:
                best = (error, model.get_weights())
            bar.add(50, [("loss", float(loss)), ("validation", error)])
    model.set_weights(best[1])
    return history


def gaussian(train, days, observed):
    """Mean of the hours given those observed, if a day is a draw of a normal distribution."""
    mean, covariance = train.mean(0), np.cov(train.T) + 1e-3 * np.eye(HOURS)
    rows = []
    for day, o in zip(days, observed):
        gain = np.linalg.solve(covariance[np.ix_(o, o)], covariance[o])
        rows.append(mean + (day[o] - mean[o]) @ gain)
    return np.array(rows)


def errors(prediction, days, observed):
    """Squared errors of each day: interpolation, extrapolation."""
    squares, hidden = (prediction - days) ** 2, ~observed[:, :WINDOW]
    inside = np.sum(squares[:, :WINDOW] * hidden, 1) / np.sum(hidden, 1)
    return inside, squares[:, WINDOW:].mean(1)


def draw(days, observed, predictions, table, histories, path):
    plt.rcParams.update({"font.size": 11, "axes.spines.top": False, "axes.spines.right": False})
    figure, axes = plt.subplots(2, 3, figsize=(15, 8), layout="constrained")
    hours, learned = np.arange(HOURS), list(histories)
    for k, (axis, day, o) in enumerate(zip(axes[:, :2].flat, days, observed)):
        axis.axvspan(WINDOW - 0.5, HOURS - 0.5, color="#000000", alpha=0.06, linewidth=0)
        for name in ["Gaussian", *learned]:
            axis.plot(hours, predictions[name][k], color=COLORS[name], linewidth=2, label=name)
        axis.plot(hours[o], day[o], "o", color="#000000", label="observed")
        hollow = {"color": "#000000", "markerfacecolor": "white"}
        axis.plot(hours[~o], day[~o], "o", **hollow, label="to predict")
        axis.set(title=f"Test day {k + 1}, {o.sum()} hours observed", ylim=(-2.6, 3.4))
        axis.set(xlabel="Hour of the day", ylabel="Demand (standardized)")
        axis.set_xticks(range(0, 25, 4))
    axes[0, 0].legend(frameon=False, fontsize=9.5, ncols=3, loc="upper center")
    bars, training = axes[:, 2]
    for k, (name, parts) in enumerate(table.items()):
        x, values = np.arange(2) + 0.17 * (k - 2), [part.mean() for part in parts]
        bars.bar(x, values, 0.15, color=COLORS[name], label=name)
        for place, value in zip(x, values):
            bars.text(place, value + 0.008, f"{value:.2f}", ha="center", fontsize=8.5)
    bars.set_xticks(range(2), ["interpolation\n(before 16:00)", "extrapolation\n(after)"])
    bars.set(title=f"{len(days)} test days", ylabel="Mean squared error")
    bars.legend(frameon=False, fontsize=9.5, loc="upper left")
    for name in learned:
        for k, history in enumerate(histories[name]):
            label = None if k else f"{name}, each start"
            training.plot(*np.transpose(history), color=COLORS[name], alpha=0.8, label=label)
    training.set(title="Training", xlabel="Step", ylabel="Validation error, hidden hours")
    training.set(yscale="log")
    training.yaxis.set_major_formatter("{x:.2f}")
    training.yaxis.set_minor_formatter("{x:.2f}")
    training.legend(frameon=False, fontsize=9.5)
    figure.savefig(path, dpi=120)


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
    data = load_data()
    days, test = data[0], data[2]
    observed = observe(test, np.random.default_rng(2))
    steps, starts = (200, 1) if quick else (2500, 3)
    print(f"Training two models {steps} steps on {len(days)} days")
    bar = keras.utils.Progbar(2 * starts * steps, stateful_metrics=["loss", "validation"])
    predictions, table, histories, weights = {}, {}, {}, {}
    for name, build, backward in (
        ("latent ODE", build_latent_ode, True),
        ("GRU", build_gru, False),
    ):
        x, histories[name], states = list(sequences(test, observed, backward)), [], []
        for seed in range(arguments.seed, arguments.seed + starts):
            keras.utils.set_random_seed(seed)
            model = build()
            histories[name].append(train(model, backward, data, steps, seed, bar))
            states.append(model.predict_on_batch(x))
        predictions[name], weights[name] = states[0], model.count_params()
        table[name] = np.mean([errors(y, test, observed) for y in states], 0)
    for name, prediction in {
        "Gaussian": gaussian(days, test, observed),
        "mean of the hour": np.tile(days.mean(0), (len(test), 1)),
        "linear, last value": [np.interp(TIMES, TIMES[o], d[o]) for d, o in zip(test, observed)],
    }.items():
        predictions[name] = prediction
        table[name] = errors(prediction, test, observed)
    picture = output / "latent_ode.png"
    draw(test, observed, predictions, table, histories, picture)

    print(
        f"\nMean squared error of {len(test)} test days (standard error over days), {starts} starts"
    )
    print(f"{'':<23}{'weights':>7}{'interpolation':>19}{'extrapolation':>19}")
    for name in ("GRU", "Gaussian"):
        table[f"{name} - latent ODE"] = np.subtract(table[name], table["latent ODE"])
    for name, parts in table.items():
        cells = [f"{x.mean():.4f} ± {x.std(ddof=1) / len(x) ** 0.5:.4f}" for x in parts]
        print(f"{name:<23}{weights.get(name, ''):>7}" + "".join(f"{cell:>19}" for cell in cells))
    print(f"Time {time.perf_counter() - start:.0f} s")
    print(f"Picture {picture}")
    if np.any(np.mean(table["latent ODE"], -1) >= np.mean(table["mean of the hour"], -1)):
        sys.exit("The latent ODE is no better than the mean of the hour.")


if __name__ == "__main__":
    main()
