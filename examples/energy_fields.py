"""Partial differential equations learned as energies: Korteweg-de Vries and Cahn-Hilliard.

    python examples/energy_fields.py            # about four minutes on two cores
    python examples/energy_fields.py --quick    # every part, in less than a minute

A network learns the density of an energy H, and du/dt = G grad H(u) is solved; G is known. Another
one with as many weights learns du/dt itself. Both see single steps of solutions, and then foretell
whole ones from unseen initial fields. Last, all gradient methods train the same model.

Setting: Table 4 of Matsubara, Miyatake, Yaguchi, arXiv:2102.09750; `field_data.py` makes the data.
"""

import argparse
import os
import pathlib
import sys
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
# Without it TensorFlow does not count tensors below 256 KiB on a CPU.
os.environ.setdefault("TF_CPU_ALLOCATOR_USE_BFC", "1")

import keras
import matplotlib
import numpy as np
import tensorflow as tf
from field_data import CahnHilliard, KortewegDeVries

import tfsymadj
from tfsymadj.layers import EnergyDynamics, PeriodicDifference

matplotlib.use("Agg")
import matplotlib.pyplot as plt

tf.get_logger().setLevel("ERROR")
DEVICE = "GPU:0" if tf.config.list_physical_devices("GPU") else "CPU:0"
GRADIENTS = ["symplectic_adjoint", "aca", "baseline", "backprop", "continuous_adjoint"]
COLORS = {
    "truth": "#BBBBBB",
    "energy-based": "#0072B2",
    "unstructured": "#D55E00",
    "energy-based, learned": "#009E73",
}
MODELS = ["energy-based", "unstructured"]


class Data:
    """Solutions of one equation, and the scales that models start from.

    Args:
        field: the equation.
        unit: what is 1 to a network; the smaller, the finer it tells values of u apart.
        quick: whether to make few and short ones.
    """

    def __init__(self, field, unit, quick):
        count = 40 if quick else 200
        self.field, self.unit, self.t = field, unit, field.interval * np.arange(count + 1)
        self.train = field.data(seed=0, batch=6, count=count).astype("float32")
        self.test = field.data(seed=1, batch=4 if quick else 10, count=count)
        self.rate = float(np.diff(self.train, axis=1).std()) / field.interval


class Neighbours(keras.Layer):
    """`(batch, points)` to `(batch, points, 2 reach + 1)`: the values at and around each point.

    With a dense layer behind it a convolution, and twice as fast as one in XLA on a CPU.
    """

    def __init__(self, reach):
        super().__init__()
        self.reach = reach

    def call(self, u):
        return tf.stack([tf.roll(u, i, 1) for i in range(-self.reach, self.reach + 1)], -1)


def build(name, data, dtype="float32"):
    """The dynamics. In both models du/dt depends on three neighbours on each side."""
    spacing, derivative = data.field.spacing, data.field.derivative
    keras.config.set_dtype_policy(dtype)

    def network(reach, width, scale):
        model = keras.Sequential([keras.Input([data.field.points])])
        model.add(keras.layers.Rescaling(1.0 / data.unit))
        model.add(Neighbours(reach))
        model.add(keras.layers.Dense(width, "silu"))
        model.add(keras.layers.Dense(width, "silu"))
        model.add(keras.layers.Dense(1))
        model.add(keras.layers.Rescaling(scale))
        return model

    if name == "energy-based":
        # One neighbour for the density makes two for its gradient, and three with G.
        energy = network(1, 16, data.rate * data.unit * spacing**derivative)
        dynamics = EnergyDynamics(energy, PeriodicDifference(derivative, spacing))
    else:
        dynamics = network(3, 15, data.rate)
        dynamics.add(keras.layers.Reshape([data.field.points]))
    keras.config.set_dtype_policy("float32")
    return dynamics


def pairs(fields, jump=1):
    """Fields, and those `jump` intervals later."""
    points = fields.shape[-1]
    return fields[:, :-jump].reshape(-1, points), fields[:, jump:].reshape(-1, points)


def fit(layer, data, updates, bar, name, learning_rate, jit_compile, jump=1):
    """Losses, seconds of each update, and peak bytes of the first one."""
    before, after = pairs(data.train, jump)
    scale = np.mean((after - before) ** 2)
    schedule = keras.optimizers.schedules.CosineDecay(
        0.0, updates, warmup_target=learning_rate, warmup_steps=min(50, updates // 4)
    )
    optimizer = keras.optimizers.Adam(schedule, beta_2=0.97)
    layer.build([None, before.shape[1]])
    weights = layer.trainable_variables
    optimizer.build(weights)

    @tf.function(jit_compile=jit_compile)
    def update(u, target):
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean((layer(u) - target) ** 2) / scale
        optimizer.apply_gradients(zip(tape.gradient(loss, weights), weights))
        return loss

    rng, losses, seconds = np.random.default_rng(0), [], []
    used = tf.config.experimental.get_memory_info(DEVICE)["current"]
    tf.config.experimental.reset_memory_stats(DEVICE)
    for i in range(updates):
        chosen = rng.integers(len(before), size=32)
        start = time.perf_counter()
        losses.append(float(update(before[chosen], after[chosen])))
        seconds.append(time.perf_counter() - start)
        if i == 0:
            peak = tf.config.experimental.get_memory_info(DEVICE)["peak"] - used
        bar.add(1, [(name, losses[-1])])
    return losses, seconds, peak


def one_step_error(layer, data):
    """Error after an interval in parts of the change, for all unseen fields."""
    before, after = pairs(data.test.astype("float32"))
    return np.sqrt(np.mean((layer(before) - after) ** 2) / np.mean((after - before) ** 2))


def energy(function, u):
    """Energies `(batch, times)` above those of the flat field with the same mean.

    The dynamics tell a learned energy up to a constant and a multiple of the mean only.
    """
    flat = np.broadcast_to(u[:, :1].mean(-1, keepdims=True), u[:, :1].shape)
    values = np.asarray(function(np.concatenate([flat, u], 1).reshape(-1, u.shape[2])))
    values = values.reshape(len(u), -1)
    return values[:, 1:] - values[:, :1]


def fault(values, field):
    """How far an energy that is kept leaves its start, or the largest rise of one that decays."""
    if field.derivative == 1:
        return np.max(np.abs(values / values[:, :1] - 1))
    return np.max(np.diff(values, axis=1)) / np.ptp(values)


def roll_out(name, layer, data, method):
    """Solves from the unseen initial fields, in float64 so that energies are those of the flow."""
    dynamics = build(name, data, "float64")
    solver = tfsymadj.ODELayer(
        dynamics, data.t, return_sequences=True, method=method, rtol=1e-6, atol=1e-7,
        max_steps=100_000, on_failure="status", dtype="float64",
    )  # fmt: skip
    solver.build(data.test[:, 0].shape)
    solver.set_weights(layer.get_weights())
    u = solver(data.test[:, 0]).numpy()
    errors = np.sqrt(np.mean((u - data.test) ** 2, axis=(0, 2))) / data.test.std()
    errors = np.nan_to_num(errors, nan=np.inf)  # NaN: not reached
    energies = [energy(data.field.energy, u)]
    if name == "energy-based":
        energies.append(energy(dynamics.energy_of, u))
    return {
        "u": u,
        "energies": energies,
        "one step": one_step_error(layer, data),
        "roll-out": np.sqrt(np.mean(errors**2)),
        "good": np.mean(np.maximum.accumulate(errors) < 0.1),
        "mass": np.abs(u.mean(-1) - u[:, :1].mean(-1)).max(),
    }


def compare_gradients(data, method, updates, bar, jit_compile, jump=16):
    """Rows of the table: the same model trained by each gradient method on longer pieces."""
    rows = {}
    for gradient in GRADIENTS:
        keras.utils.set_random_seed(0)
        layer = tfsymadj.ODELayer(
            build("energy-based", data), data.t[[0, jump]], method=method, num_steps=2 * jump,
            gradient=gradient,
        )  # fmt: skip
        losses, seconds, peak = fit(layer, data, updates, bar, gradient, 1e-2, jit_compile, jump)
        short = tfsymadj.ODELayer(layer.dynamics, data.t[:2], method=method, num_steps=2)
        rows[gradient] = (
            np.mean(losses[-5:]), one_step_error(short, data), 1e3 * np.median(seconds[1:]),
            peak / 2**20,
        )  # fmt: skip
    return rows


def draw(sets, results, path, i=0):
    """Space and time, and the energy, of one unseen initial field for each equation."""
    plt.rcParams.update({"font.size": 11, "axes.spines.top": False, "axes.spines.right": False})
    figure, axes = plt.subplots(2, 5, figsize=(18, 8), layout="constrained")
    for row, data, result in zip(axes, sets, results):
        truth, u = data.test[i], {name: result[name]["u"][i] for name in MODELS}
        errors = [u[name] - truth for name in MODELS]
        bound = np.abs(errors[0]).max()
        values = {"cmap": "cividis", "vmin": truth.min(), "vmax": truth.max()}
        differences = {"cmap": "PuOr", "vmin": -bound, "vmax": bound}
        titles = [f"{data.field.name}: truth", *[f"{word}, {MODELS[0]}" for word in
                  ("Prediction", "Error")], f"Error, {MODELS[1]}"]  # fmt: skip
        images = [
            axis.imshow(
                image.T, origin="lower", aspect="auto", **style,
                extent=[0, data.t[-1], 0, data.field.length],
            )
            for axis, image, style in zip(
                row, [truth, u["energy-based"], *errors], [values] * 2 + [differences] * 2
            )
        ]  # fmt: skip
        for axis, title in zip(row, titles):
            axis.set(title=title, xlabel="Time (dimensionless)", ylabel="x (dimensionless)")
        bars = [(images[1], row[:2], "u", "neither"), (images[3], row[2:4], "Error of u", "both")]
        for image, axes_above, label, extend in bars:
            figure.colorbar(
                image, ax=axes_above, label=label, extend=extend, location="bottom", shrink=0.6,
                aspect=40, ticks=plt.MaxNLocator(5),  # one each: a locator serves a single axis
            )  # fmt: skip

        curves = [energy(data.field.energy, data.test), *[result[x]["energies"][0] for x in MODELS]]
        curves.append(result["energy-based"]["energies"][1])
        for (name, color), curve, width in zip(COLORS.items(), curves, [6, 2, 2, 3]):
            style = ":" if "learned" in name else "-"
            row[4].plot(data.t, curve[i], style, color=color, linewidth=width, label=name)
        low, high = curves[0][i].min(), curves[0][i].max()
        margin = 0.1 * max(abs(low), abs(high))
        row[4].set(title="Energy above the flat field's", ylim=(low - margin, high + margin))
        row[4].set(xlabel="Time (dimensionless)", ylabel="Energy (dimensionless)")
    handles, labels = row[4].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower right", ncols=4, frameon=False)
    figure.savefig(path, dpi=130)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a short run, to try it out")
    parser.add_argument(
        "--output", type=pathlib.Path, default="out", help="folder to write to (default: out)"
    )
    parser.add_argument("--seed", type=int, default=0, help="of random numbers (default: 0)")
    parser.add_argument("--method", help="of the solver (default: dopri5, if quick bosh3)")
    arguments = parser.parse_args()
    quick, jit_compile = arguments.quick, not arguments.quick
    method = arguments.method or ("bosh3" if quick else "dopri5")
    arguments.output.mkdir(parents=True, exist_ok=True)
    # One large block to cut from, never written to: else tensors get blocks of twice their size.
    tf.raw_ops.Empty(shape=[8, 2**30], dtype=tf.uint8, init=False)

    def progress(title, total, names):
        print(title)
        interval = 0.1 if sys.stdout.isatty() else 15.0
        return keras.utils.Progbar(
            total, unit_name="update", stateful_metrics=names, interval=interval
        )

    start = time.perf_counter()
    sets = [Data(KortewegDeVries(), 1.0, quick), Data(CahnHilliard(), 0.25, quick)]
    updates, results = 40 if quick else 2000, []
    for data in sets:
        results.append({})
        bar = progress(data.field.name, len(MODELS) * updates, MODELS)
        for name in MODELS:
            keras.utils.set_random_seed(arguments.seed)
            layer = tfsymadj.ODELayer(build(name, data), data.t[:2], method=method, num_steps=2)
            fit(layer, data, updates, bar, name, 3e-2, jit_compile)
            results[-1][name] = roll_out(name, layer, data, method)
    updates = 3 if quick else 40
    bar = progress("Gradient methods", len(GRADIENTS) * updates, GRADIENTS)
    rows = compare_gradients(sets[0], method, updates, bar, jit_compile)
    picture = arguments.output / "energy_fields.png"
    draw(sets, results, picture)

    checks = {}
    print("\nUnseen initial fields. Error of one step: in parts of the change; of the roll-out: of")
    print("the field; good: the part of the time before an error of 0.1. Energy, true and learned:")
    print("how far it leaves its start, for Cahn-Hilliard its largest rise; below 0 it only falls.")
    for data, result in zip(sets, results):
        print(f"{data.field.name:<19}one step  roll-out      good      mass      true   learned")
        for name in MODELS:
            row = [result[name][key] for key in ("one step", "roll-out", "good", "mass")]
            row += [fault(values, data.field) for values in result[name]["energies"]]
            print(f"  {name:<15}", *(f"{x:>9.2g}" for x in row))
        ours, other = (result[name] for name in MODELS)
        bound = 0.01 if data.field.derivative == 1 else 0.0
        checks[f"{data.field.name}, energy"] = fault(ours["energies"][1], data.field) < bound
        for error in ("one step", "roll-out"):
            checks[f"{data.field.name}, {error}"] = quick or ours[error] < other[error]
    print("\nThe energy-based model of Korteweg-de Vries, trained on pieces of 32 steps")
    print(f"{'gradient':<19}      loss  one step  time (ms)  peak (MiB)")
    for name, (loss, error, milliseconds, peak) in rows.items():
        print(f"{name:<19}{loss:>10.6f}{error:>10.4f}{milliseconds:>11.0f}{peak:>12.1f}")
    (loss, *_, peak), (exact, *_, most) = rows["symplectic_adjoint"], rows["backprop"]
    checks["loss of the symplectic adjoint method"] = abs(loss / exact - 1) < 0.01
    checks["memory of the symplectic adjoint method"] = 5 * peak < most
    print(f"\nTime     {time.perf_counter() - start:.0f} s")
    print(f"Picture  {picture}")
    if not all(checks.values()):
        sys.exit("Not as it must be: " + "; ".join(x for x, holds in checks.items() if not holds))


if __name__ == "__main__":
    main()
