"""A house identified from its heating, the weather and a thermometer: a system from its input.

    python examples/heated_room.py            # about half a minute on two cores
    python examples/heated_room.py --quick    # in about 20 s

A room and its walls store heat; both lose it to the outside. The heater is switched at known times
(`controls.steps`), the weather is a series with gaps (`controls.linear`), and both are arguments of
the dynamics. Four parameters are found by Gauss-Newton from noisy temperatures of the room alone:
once with steps of the solver that end where the heater is switched (`jumps`), once with equal steps
that don't know of it.
"""

import argparse
import os
import pathlib
import sys
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import matplotlib
import numpy as np
import tensorflow as tf

import tfsymadj
from tfsymadj import controls

matplotlib.use("Agg")
import matplotlib.pyplot as plt

NAMES = ("room to walls, 1/h", "walls to outside, 1/h", "room to outside, 1/h", "heater, K/h")
TRUTH = np.array([0.8, 0.12, 0.15, 6.0])
START = np.array([0.3, 0.3, 0.3, 3.0])
FIRST = np.array([18.0, 15.0])  # room and walls
HOURS, NOISE = 72.0, 0.1
TIMES = np.arange(0.0, HOURS + 0.1, 0.75)
COLORS = {"with jumps": "#D55E00", "without": "#0072B2"}
WAYS = {
    "with jumps": dict(method="dopri5", rtol=1e-6, atol=1e-6, max_steps=1000),
    "without": dict(method="rk4", step_size=0.75),
}


def house(t, y, theta, weather, heater):
    """The rates of both temperatures."""
    room, walls = tf.unstack(y)
    exchange, outer, draught, power = tf.unstack(theta)
    outside, on = weather(t)[0], heater(t)[0]
    flow = exchange * (walls - room)
    return tf.stack(
        [flow + draught * (outside - room) + power * on, outer * (outside - walls) - flow]
    )


def inputs(random):
    """Weather of every third hour, of which some are lost, and a heater that is often switched."""
    hours = np.arange(0.0, HOURS + 0.1, 3.0)
    outside = (
        5.0 + 6.0 * np.sin(2.0 * np.pi * (hours - 9.0) / 24.0) + random.normal(size=len(hours))
    )
    outside[random.random(len(hours)) < 0.25] = np.nan
    lengths = random.exponential(1.6, 200)
    switched = np.concatenate([[0.0], np.cumsum(0.2 + lengths)])
    switched = switched[switched < HOURS - 1.0]
    on = (np.arange(len(switched)) % 2).astype(float)
    return controls.linear(hours, outside[:, None]), controls.steps(switched, on[:, None])


def solve(theta, weather, heater, way):
    jumps = tf.concat([heater.knots, weather.knots], 0) if way == "with jumps" else None
    return tfsymadj.odeint(
        house,
        tf.constant(FIRST, theta.dtype),
        TIMES,
        args=(theta, weather, heater),
        jumps=jumps,
        **WAYS[way],
    )


def fit(weather, heater, measured, way, rounds=12):
    """Gauss-Newton for the logarithms of the parameters; estimates and standard errors."""
    logs = tf.Variable(np.log(START))

    @tf.function
    def improve():
        with tf.GradientTape() as tape:
            room = solve(tf.exp(logs), weather, heater, way)[:, 0]
        jacobian = tape.jacobian(room, logs)
        step = tf.linalg.lstsq(jacobian, (measured - room)[:, None])[:, 0]
        logs.assign_add(
            step * tf.minimum(tf.ones([], step.dtype), 0.7 / tf.reduce_max(tf.abs(step)))
        )
        return room, jacobian

    for _ in range(rounds):
        room, jacobian = improve()
    errors = NOISE * np.sqrt(np.diag(np.linalg.inv(jacobian.numpy().T @ jacobian.numpy())))
    estimate = np.exp(logs.numpy())
    return estimate, estimate * errors, room.numpy()


def draw(weather, heater, measured, fits, path):
    plt.rcParams.update({"font.size": 11, "axes.spines.top": False, "axes.spines.right": False})
    figure, (upper, lower) = plt.subplots(
        2, 1, figsize=(12, 7), layout="constrained", height_ratios=(2, 1), sharex=True
    )
    upper.plot(TIMES, measured, ".", color="#000000", markersize=5, label="measured")
    for name, (_, _, room) in fits.items():
        upper.plot(TIMES, room, color=COLORS[name], linewidth=1.6, label=f"fitted {name}")
    upper.set(title="Temperature of the room", ylabel="°C")
    upper.legend(frameon=False, ncols=3)
    grid = np.linspace(0.0, HOURS, 2000)
    lower.plot(grid, weather(grid)[:, 0], color="#009E73", label="outside, °C")
    lower.fill_between(grid, 12.0 * heater(grid)[:, 0], color="#E69F00", alpha=0.5, label="heater")
    lower.set(title="What drives it", xlabel="Hours")
    lower.legend(frameon=False, ncols=2)
    figure.savefig(path, dpi=120)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a short run, to try it out")
    parser.add_argument(
        "--output", type=pathlib.Path, default="out", help="folder to write to (default: out)"
    )
    parser.add_argument("--seed", type=int, default=0, help="of random numbers (default: 0)")
    arguments = parser.parse_args()
    output = arguments.output
    output.mkdir(parents=True, exist_ok=True)

    start = time.perf_counter()
    random = np.random.default_rng(arguments.seed)
    weather, heater = inputs(random)
    truth = solve(tf.constant(TRUTH), weather, heater, "with jumps")[:, 0]
    measured = truth.numpy() + NOISE * random.normal(size=len(TIMES))
    rounds = 8 if arguments.quick else 15
    fits = {way: fit(weather, heater, measured, way, rounds) for way in WAYS}
    picture = output / "heated_room.png"
    draw(weather, heater, measured, fits, picture)

    print(f"{'':<24}{'truth':>8}{'start':>8}{'with jumps':>20}{'without':>20}")
    for k, name in enumerate(NAMES):
        cells = [f"{x[k]:.3f} ± {e[k]:.3f}" for x, e, _ in fits.values()]
        print(f"{name:<24}{TRUTH[k]:8.3f}{START[k]:8.3f}" + "".join(f"{c:>20}" for c in cells))
    away = {way: np.max(np.abs(x - TRUTH) / e) for way, (x, e, _) in fits.items()}
    root = {way: np.std(measured - room) for way, (_, _, room) in fits.items()}
    print("largest deviation, standard errors  " + "".join(f"{x:20.1f}" for x in away.values()))
    print(
        f"residuals, K (noise {NOISE})            " + "".join(f"{x:20.3f}" for x in root.values())
    )
    print(f"Time {time.perf_counter() - start:.0f} s")
    print(f"Picture {picture}")
    if away["with jumps"] > 4.0:
        sys.exit("The parameters are not found.")


if __name__ == "__main__":
    main()
