"""Pucks that collide: masses, restitution and friction from what is seen of them.

    python examples/collisions.py            # about a minute on two cores
    python examples/collisions.py --quick    # every part, with fewer throws and steps

Four pucks slide over a table with walls. Of some throws the starts are known, and the positions
with noise; unknown are the masses, up to a common factor, the restitution of pucks and of walls,
and the friction. A collision is the event of one solve; the next one starts from the velocities
that the impulse leaves. Quasi-Newton steps use gradients through all collisions and their times.
Throws held out are then predicted.
"""

import argparse
import itertools
import os
import pathlib
import sys
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import matplotlib
import numpy as np
import tensorflow as tf
from scipy.optimize import minimize

import tfsymadj

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib import patheffects

TABLE, RADIUS = np.array([1.6, 1.0]), 0.08
PUCKS, MOST = 4, 14  # collisions of a throw
PAIRS = np.array(list(itertools.combinations(range(PUCKS), 2)))
# From pucks to pairs: the second one's value less the first one's.
INCIDENCE = np.eye(PUCKS)[PAIRS[:, 1]] - np.eye(PUCKS)[PAIRS[:, 0]]
TIMES = np.linspace(0.1, 2.0, 20)
NOISE, SCALE = 0.005, 0.05  # of positions; of errors that count for less than their square
HORIZONS = [0.7, 1.2, 2.0]
NAMES = [f"mass {i + 1} / mass 1" for i in range(1, PUCKS)]
NAMES += ["restitution of pucks", "restitution of walls", "friction"]
TRUTH = np.array([0.5, 1.8, 1.2, 0.9, 0.7, 0.12])
GUESS = np.array([1.0, 1.0, 1.0, 0.7, 0.9, 0.05])
COLORS = ["#E69F00", "#0072B2", "#009E73", "#D55E00"]
# From one collision to the next there are few steps: their stage values are all kept. A glancing
# blow may be missed between two looks at the gaps, of which there are eight in each step.
STAGES = tfsymadj.SymplecticAdjoint(checkpoints="stages")
SOLVER = {"rtol": 1e-6, "atol": 1e-6, "max_step": 0.1, "max_steps": 64, "gradient": STAGES}


def slide(t, y, friction):
    """Of positions and velocities, (2, pucks, 2), with Coulomb's friction, smooth near rest."""
    velocity = y[..., 1, :, :]
    speed = tf.sqrt(tf.reduce_sum(velocity**2, -1, keepdims=True) + 0.05**2)
    return tf.stack([velocity, -9.81 * friction * velocity / speed], -3)


def rescaled_slide(s, y, friction, durations):
    """The same with a time of its own for each row, from zero to one."""
    return durations * slide(s, y, friction)


def gaps_to_walls(y):
    """(2, pucks, 2): to the walls at zero, and to those opposite."""
    return tf.stack([y[0] - RADIUS, TABLE - RADIUS - y[0]])


def gaps_of_pairs(y):
    return tf.norm(INCIDENCE @ y[0], axis=-1) - 2 * RADIUS


EVENTS = [
    tfsymadj.Event(lambda t, y: tf.reduce_min(gaps_to_walls(y)), direction=-1),
    tfsymadj.Event(lambda t, y: tf.reduce_min(gaps_of_pairs(y)), direction=-1),
]


def least(x):
    """One where the smallest entry is, else zero."""
    flat = tf.reshape(x, [-1])
    return tf.reshape(tf.one_hot(tf.argmin(flat), tf.size(flat), dtype=x.dtype), tf.shape(x))


def off_wall(y, restitution):
    """The velocities after the puck at a wall has bounced."""
    hit = tf.reduce_sum(least(gaps_to_walls(y)), 0)
    return y[1] * (1.0 - (1.0 + restitution) * hit)


def off_puck(y, masses, restitution):
    """The velocities after two pucks have exchanged an impulse along their normal."""
    between = INCIDENCE @ y[0]
    normals = between / tf.norm(between, axis=-1, keepdims=True)
    approach = tf.reduce_sum(normals * (INCIDENCE @ y[1]), -1)
    reduced = 1.0 / tf.reduce_sum(INCIDENCE**2 / masses, -1)
    impulses = -(1.0 + restitution) * reduced * approach * least(gaps_of_pairs(y))
    return y[1] + tf.transpose(INCIDENCE) @ (impulses[:, tf.newaxis] * normals) / masses[:, None]


def simulate(theta, start, times, most):
    """Positions at some times, (times, pucks, 2), and the number of collisions.

    Args:
        theta: logarithms of the unknowns.
        start: (2, pucks, 2).
        times: float64 vector.
        most: the largest number of collisions that are computed.
    """
    unknowns = tf.exp(theta)
    masses = tf.concat([tf.ones_like(unknowns[:1]), unknowns[: PUCKS - 1]], 0)
    of_pucks, of_walls, friction = tf.unstack(unknowns[PUCKS - 1 :])
    end = times[-1]
    # The last start before each of the times.
    begun, starts = tf.zeros_like(times), tf.tile(start[tf.newaxis], [len(times), 1, 1, 1])

    def collide(n, found, t, y, begun, starts):
        event = tfsymadj.solve(
            slide, y, tf.stack([t, end]), args=(friction,), event=EVENTS, **SOLVER
        ).event
        # Without an event the next start is of no use, but must not be NaN: nor its derivative.
        found = event.index >= 0
        t, y = tf.where(found, event.t, t), tf.where(found, event.y, y)
        bounced, pushed = off_wall(y, of_walls), off_puck(y, masses, of_pucks)
        y = tf.stack([y[0], tf.where(tf.equal(event.index, 0), bounced, pushed)])
        later = tf.logical_and(found, times > t)
        begun = tf.where(later, t, begun)
        starts = tf.where(later[:, None, None, None], y, starts)
        n += tf.cast(found, tf.int32)
        # No solve starts at the end.
        return n, tf.logical_and(found, t < end - 1e-6), t, y, begun, starts

    n, _, _, _, begun, starts = tf.while_loop(
        lambda n, found, *_: tf.logical_and(found, n < most),
        collide,
        (0, tf.constant(True), tf.zeros_like(end), start, begun, starts),
        maximum_iterations=MOST,
    )
    durations = (times - begun)[:, None, None, None]
    y = tfsymadj.odeint(rescaled_slide, starts, [0.0, 1.0], args=(friction, durations), rtol=1e-6)
    return y[-1, :, 0], n


@tf.function
def compiled_simulate(theta, start, times, most):
    return simulate(theta, start, times, most)


def predict(unknowns, start, times=TIMES, most=MOST):
    y, n = compiled_simulate(
        tf.constant(np.log(unknowns)), start, tf.constant(times), tf.constant(most)
    )
    return y.numpy(), int(n)


@tf.function
def loss_and_gradient(theta, start, seen, weights):
    """Of one throw. Where a collision is missed the errors are large, and say little."""
    with tf.GradientTape() as tape:
        tape.watch(theta)
        y, _ = simulate(theta, start, tf.constant(TIMES), MOST)
        errors = tf.reduce_sum((y - seen) ** 2, [1, 2])
        loss = tf.reduce_sum(weights * tf.math.log1p(errors / SCALE**2))
    return loss, tape.gradient(loss, theta)


def throw(random):
    """Pucks at rest, but for two that are thrown into the middle."""
    while True:
        y = random.uniform(1.5 * RADIUS, TABLE - 1.5 * RADIUS, (PUCKS, 2))
        if gaps_of_pairs([y]).numpy().min() > RADIUS:
            break
    velocity = np.zeros((PUCKS, 2))
    for i in random.choice(PUCKS, 2, replace=False):
        others = np.delete(y, i, 0)
        aim = others[random.integers(len(others))] + random.normal(size=2) * RADIUS / 2 - y[i]
        velocity[i] = random.uniform(1.5, 2.5) * aim / np.linalg.norm(aim)
    return tf.constant(np.stack([y, velocity]))


def fit(throws, most):
    """The unknowns after each step, and the number of gradients."""
    path, count = [GUESS], 0
    # Late positions depend on early collisions so much that they are added when these are right.
    for horizon in HORIZONS:
        weights = tf.constant((TIMES <= horizon).astype(float))

        def value_and_gradient(theta, weights=weights):
            found = [
                [x.numpy() for x in loss_and_gradient(tf.constant(theta), *throw, weights)]
                for throw in throws
            ]
            return [sum(x) for x in zip(*found)]

        found = minimize(
            value_and_gradient, np.log(path[-1]), jac=True, method="L-BFGS-B",
            bounds=[(x - 1.5, x + 1.5) for x in np.log(GUESS)], options={"maxiter": most},
            callback=lambda theta: path.append(np.exp(theta)),
        )  # fmt: skip
        count += found.nfev
        loss = found.fun / np.sum(weights)
        print(f"Up to {horizon:.1f} s: loss {loss:.4f} after {found.nfev} gradients", flush=True)
    return np.array(path), count


def draw_table(axis, start, paths, masses, title):
    """Paths of all pucks over the table, the masses at their starts, the true ends as circles."""
    axis.add_patch(plt.Rectangle((0, 0), *TABLE, fill=False, linewidth=2.5))
    for i, color in enumerate(COLORS):
        for y, style in paths:
            axis.plot(*y[:, i].T, color=color, **style)
        x = start[0, i].numpy()
        axis.add_patch(plt.Circle(x, RADIUS, color=color, alpha=0.25, linewidth=0))
        axis.add_patch(plt.Circle(paths[0][0][-1, i], RADIUS, color=color, fill=False, alpha=0.6))
        axis.text(
            *x, f"{masses[i]:.2f}", ha="center", va="center", fontsize=10, zorder=5,
            path_effects=[patheffects.withStroke(linewidth=3, foreground="white")],
        )  # fmt: skip
    axis.set(xlim=(-0.03, TABLE[0] + 0.03), ylim=(-0.03, TABLE[1] + 0.03), aspect="equal")
    axis.set_title(title)
    axis.axis("off")


def draw(start, path, errors, picture):
    plt.rcParams.update({"font.size": 11, "axes.spines.top": False, "axes.spines.right": False})
    figure, axes = plt.subplots(
        2, 2, figsize=(12, 8), height_ratios=[1.35, 1], layout="constrained"
    )
    fine = np.linspace(1e-3, TIMES[-1], 800)
    truth = predict(TRUTH, start, fine)[0]
    wide = {"linewidth": 6, "alpha": 0.35}
    for axis, name, unknowns in zip(axes[0], ["untrained", "learned"], path[[0, -1]]):
        paths = [(truth, wide), (predict(unknowns, start, fine)[0], {"linewidth": 1.6})]
        draw_table(
            axis, start, paths, [1.0, *unknowns[: PUCKS - 1]],
            f"Held-out throw: truth (wide) and {name} model",
        )  # fmt: skip
    ratios, left, right = path / TRUTH, *axes[1]
    for i, name in enumerate(NAMES):
        color = COLORS[i + 1] if i < PUCKS - 1 else ["#000000", "#777777", "#CC79A7"][i - PUCKS + 1]
        left.plot(ratios[:, i], color=color, label=name, linewidth=1.8)
    left.axhline(1, color="#000000", linewidth=0.8, linestyle=":")
    left.set(title="Learning", xlabel="Step", ylabel="Estimate / truth", xlim=(0, None))
    left.legend(frameon=False, fontsize=9.5, ncols=2)
    for (name, values), color in zip(errors.items(), ["#0072B2", "#D55E00", "#777777"]):
        right.semilogy(TIMES, 1e3 * np.sqrt((values**2).mean((0, 2))), "o-", color=color,
                       label=name, markersize=4)  # fmt: skip
    noise = 1e3 * NOISE * 2**0.5  # of both coordinates
    right.axhline(noise, color="#000000", linewidth=0.8, linestyle=":", label="noise of the data")
    right.set(title="Throws held out", xlabel="Time (s)", ylabel="RMS error (mm)", xlim=(0, None))
    right.legend(frameon=False, fontsize=9.5, ncols=2)
    figure.savefig(picture, dpi=130)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a short run, to try it out")
    parser.add_argument(
        "--output", type=pathlib.Path, default="out", help="folder to write to (default: out)"
    )
    parser.add_argument("--seed", type=int, default=0, help="of random numbers (default: 0)")
    arguments = parser.parse_args()
    quick = arguments.quick
    arguments.output.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(arguments.seed)

    begin, throws, collisions = time.perf_counter(), [], 0
    for _ in range(3 if quick else 8):
        start = throw(random)
        y, n = predict(TRUTH, start)
        throws.append((start, y + NOISE * random.normal(size=y.shape)))
        collisions += n
    print(f"Learning from {len(throws)} throws with {collisions} collisions")
    path, count = fit(throws, 12 if quick else 25)

    unseen = [throw(random) for _ in range(4 if quick else 16)]
    models = {"learned": (path[-1], MOST), "untrained": (GUESS, MOST)}
    models["no collisions"] = (path[-1], 0)
    truth, numbers = zip(*(predict(TRUTH, start) for start in unseen))
    errors = {
        name: np.array([
            np.linalg.norm(predict(unknowns, start, most=most)[0] - y, axis=-1)
            for start, y in zip(unseen, truth)
        ])
        for name, (unknowns, most) in models.items()
    }  # fmt: skip

    print(f"\n{'':<22}{'truth':>8}{'guess':>8}{'learned':>9}")
    for name, x, y, z in zip(NAMES, TRUTH, GUESS, path[-1]):
        print(f"{name:<22}{x:8.3f}{y:8.3f}{z:9.3f}")
    print(f"\n{'Held out, mm':<22}{'RMS':>8}{'median':>8}")
    rms = {name: np.sqrt(np.mean(x**2)) for name, x in errors.items()}
    for name, x in errors.items():
        print(f"{name:<22}{1e3 * rms[name]:8.1f}{1e3 * np.median(x):8.2f}")
    picture = arguments.output / "collisions.png"
    draw(unseen[np.argmax(numbers)], path, errors, picture)
    print(f"{count} gradients of {len(throws)} throws; time {time.perf_counter() - begin:.0f} s")
    print(f"Picture {picture}")
    if rms["learned"] > 0.5 * min(rms["untrained"], rms["no collisions"]):
        sys.exit("What was learned predicts little.")


if __name__ == "__main__":
    main()
