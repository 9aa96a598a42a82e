"""A ball that bounces: its drag, its restitution and its launch from the times of bounces.

    python examples/bouncing_ball.py            # about 20 seconds on two cores
    python examples/bouncing_ball.py --quick    # every part, with fewer steps

A ball is thrown and bounces with losses. Six bounces are heard and four positions are seen, with
noise. Gauss-Newton steps fit four unknowns to them, with derivatives through all bounces: a bounce
is the event of one solve and the start of the next one, from its state with the velocity reversed.
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
from scipy.optimize import least_squares

import tfsymadj

matplotlib.use("Agg")
import matplotlib.pyplot as plt

GRAVITY, HEIGHT = 9.81, 1.2
BOUNCES = 6
LATEST = 20.0  # by when even a bad guess has bounced so often
SEEN = np.array([0.3, 1.2, 2.1, 3.0])  # when the positions are known
NAMES = ["restitution", "drag, 1/m", "launch speed, m/s", "launch angle, degrees"]
UNITS = np.array([1.0, 1.0, 1.0, np.pi / 180])
TRUTH = UNITS * [0.78, 0.06, 7.0, 50.0]
GUESS = UNITS * [0.65, 0.02, 5.5, 60.0]
NOISE_OF_TIMES, NOISE_OF_POSITIONS = 0.01, 0.03
# From one bounce to the next there are few steps: their stage values are all kept.
STAGES = tfsymadj.SymplecticAdjoint(checkpoints="stages")
SOLVER = {"rtol": 1e-8, "atol": 1e-8, "max_steps": 64, "gradient": STAGES}
GROUND = tfsymadj.Event(lambda t, y: y[1], direction=-1)


def flight(t, y, drag):
    """Of the position and velocity (x, y, v_x, v_y): gravity, and drag by the speed's square."""
    velocity = y[..., 2:]
    slowed = drag * tf.norm(velocity, axis=-1, keepdims=True) * velocity
    return tf.concat([velocity, -slowed - [0.0, GRAVITY]], -1)


def rescaled_flight(s, y, drag, durations):
    """The same with a time of its own for each row, from zero to one."""
    return durations * flight(s, y, drag)


def simulate(theta, times):
    """Times of the bounces, and positions at some times."""
    restitution, drag, speed, angle = tf.unstack(theta)
    t = tf.zeros_like(drag)
    y = tf.stack([t, t + HEIGHT, speed * tf.cos(angle), speed * tf.sin(angle)])
    bounces = tf.TensorArray(tf.float64, BOUNCES, element_shape=[])
    # The last start before each of the times.
    begun, start = tf.zeros_like(times), tf.tile(y[tf.newaxis], [len(times), 1])

    def bounce(n, t, y, bounces, begun, start):
        span = tf.stack([t, LATEST])
        event = tfsymadj.solve(flight, y, span, args=(drag,), event=GROUND, **SOLVER).event
        y = event.y * tf.stack([1.0, 1.0, 1.0, -restitution])
        later = times > event.t
        begun = tf.where(later, event.t, begun)
        start = tf.where(later[:, tf.newaxis], y, start)
        return n + 1, event.t, y, bounces.write(n, event.t), begun, start

    _, _, _, bounces, begun, start = tf.while_loop(
        lambda n, *_: n < BOUNCES, bounce, (0, t, y, bounces, begun, start)
    )
    durations = (times - begun)[:, tf.newaxis]
    y = tfsymadj.odeint(rescaled_flight, start, [0.0, 1.0], args=(drag, durations), **SOLVER)
    return bounces.stack(), y[-1, :, :2]


@tf.function
def compiled_simulate(theta, times):
    return simulate(theta, times)


def residuals(theta, heard, positions):
    """In standard deviations."""
    bounces, found = simulate(theta, tf.constant(SEEN))
    late, off = (bounces - heard) / NOISE_OF_TIMES, (found - positions) / NOISE_OF_POSITIONS
    return tf.concat([late, tf.reshape(off, [-1])], 0)


@tf.function
def compiled_residuals(theta, *data):
    return residuals(theta, *data)


@tf.function
def pull_back(theta, weights, *data):
    """The gradient of the residuals' weighted sum."""
    with tf.GradientTape() as tape:
        tape.watch(theta)
        values = residuals(theta, *data)
    return tape.gradient(values, theta, weights)


def fit(data, most):
    """Gauss-Newton steps: estimates and their standard errors."""
    count = BOUNCES + 2 * len(SEEN)

    def jacobian(theta):
        theta = tf.constant(theta)
        return np.stack([pull_back(theta, row, *data) for row in tf.eye(count, dtype=theta.dtype)])

    found = least_squares(
        lambda theta: compiled_residuals(tf.constant(theta), *data).numpy(),
        GUESS, jacobian, x_scale=GUESS, bounds=(0, np.inf), max_nfev=most, xtol=1e-6,
    )  # fmt: skip
    return found, np.sqrt(np.diag(np.linalg.inv(found.jac.T @ found.jac)))


def check(data):
    """The gradient of half the squares' sum at the guess, and by central differences."""
    weights = compiled_residuals(tf.constant(GUESS), *data)
    exact = pull_back(tf.constant(GUESS), weights, *data).numpy()

    def cost(theta):
        return np.sum(compiled_residuals(tf.constant(theta), *data).numpy() ** 2) / 2

    shifts = 1e-5 * np.diag(GUESS)
    differences = [(cost(GUESS + s) - cost(GUESS - s)) / (2 * s.sum()) for s in shifts]
    return exact, np.array(differences)


def draw(data, thetas, path):
    plt.rcParams.update({"font.size": 11, "axes.spines.top": False, "axes.spines.right": False})
    figure, (above, below) = plt.subplots(2, 1, figsize=(10, 7), layout="constrained")
    heard, positions = (x.numpy() for x in data)
    t = np.linspace(0, heard[-1] + 0.1, 2000)
    styles = {
        "guess": {"color": "#999999", "linestyle": "--"},
        "truth": {"color": "#E69F00", "linewidth": 5, "alpha": 0.7},
        "fit": {"color": "#0072B2", "linewidth": 1.6},
    }
    for name, style in styles.items():
        bounces, curve = compiled_simulate(tf.constant(thetas[name]), tf.constant(t))
        flown = t < bounces[-1]  # nothing was computed beyond
        above.plot(*curve.numpy()[flown].T, label=name, **style)
        below.plot(t[flown], curve.numpy()[flown, 1], label=name, **style)
    marks = {"linestyle": "none", "color": "#000000", "zorder": 5}
    above.plot(*positions.T, marker="o", label="positions seen", **marks)
    below.plot(SEEN, positions[:, 1], marker="o", **marks)
    below.plot(heard, 0 * heard, marker="|", markersize=18, markeredgewidth=2, **marks)
    below.plot([], marker="|", markersize=11, label="bounces heard", **marks)
    above.set(title="Path", xlabel="Distance (m)", ylabel="Height (m)")
    below.set(title="Height over time", xlabel="Time (s)", ylabel="Height (m)")
    for axis in (above, below):
        axis.axhline(0, color="#000000", linewidth=0.8, zorder=0)
        axis.set_xlim(0)
        axis.legend(frameon=False, loc="upper right")
    figure.savefig(path, dpi=130)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a short run, to try it out")
    parser.add_argument(
        "--output", type=pathlib.Path, default="out", help="folder to write to (default: out)"
    )
    parser.add_argument("--seed", type=int, default=0, help="of random numbers (default: 0)")
    arguments = parser.parse_args()
    arguments.output.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(arguments.seed)

    begin = time.perf_counter()
    exact = compiled_simulate(tf.constant(TRUTH), tf.constant(SEEN))
    data = tuple(
        x + noise * random.normal(size=x.shape)
        for x, noise in zip(exact, [NOISE_OF_TIMES, NOISE_OF_POSITIONS])
    )
    gradient, differences = check(data)
    found, errors = fit(data, 6 if arguments.quick else 30)

    print(f"{'Gradient at the guess':<23}{'exact':>16}{'central differences':>22}")
    for name, x, y in zip(NAMES, gradient, differences):
        print(f"{name:<23}{x:16.6f}{y:22.6f}")
    print(f"\n{'':<23}{'truth':>8}{'guess':>8}{'estimate':>10}{'error':>8}")
    for row in zip(NAMES, *(x / UNITS for x in (TRUTH, GUESS, found.x, errors))):
        print("{:<23}{:8.3f}{:8.3f}{:10.3f}{:8.3f}".format(*row))
    freedom = len(found.fun) - len(TRUTH)
    print(f"chi squared {2 * found.cost:.1f}, {freedom} degrees of freedom")
    picture = arguments.output / "bouncing_ball.png"
    draw(data, {"guess": GUESS, "truth": TRUTH, "fit": found.x}, picture)
    print(f"{found.njev} Gauss-Newton steps; time {time.perf_counter() - begin:.0f} s")
    print(f"Picture {picture}")
    if np.max(np.abs(gradient / differences - 1)) > 1e-4:
        sys.exit("The gradient is not that of the differences.")


if __name__ == "__main__":
    main()
