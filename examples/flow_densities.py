"""Continuous normalizing flows that learn three densities in the plane, measured and drawn.

    python examples/flow_densities.py            # about six minutes on two cores
    python examples/flow_densities.py --quick    # every part, in seconds, with a poor result

A flow carries a Gaussian to the data, and is fitted by maximum likelihood to samples that are drawn
afresh for each step. How good it is can be said exactly, since the densities are known: no model
has a lower expected negative log-likelihood than their entropy, and what is above it is the
Kullback-Leibler divergence.
"""

import argparse
import os
import pathlib
import sys
import time
from types import SimpleNamespace
from typing import NamedTuple

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import keras
import matplotlib
import numpy as np
import tensorflow as tf
import tensorflow_probability as tfp

import tfsymadj
from tfsymadj.bijectors import CNF
from tfsymadj.layers import ConcatTime

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.animation import FuncAnimation, PillowWriter
from matplotlib.collections import LineCollection

tf.get_logger().setLevel("ERROR")
TIGHT = {"method": "dopri5", "rtol": 1e-5, "atol": 1e-5}
HALF_WIDTH = 4.5  # of the square that is drawn
FULL = SimpleNamespace(
    steps=2000, batch=512, held_out=20_000, pixels=200, particles=3000, frames=33
)
QUICK = SimpleNamespace(steps=100, batch=256, held_out=2000, pixels=50, particles=500, frames=5)


class Mixture:
    """Gaussians of equal weight and standard deviation."""

    def __init__(self, centres, deviation):
        self.centres, self.deviation = centres, deviation

    def sample(self, random, n):
        centres = random.choice(self.centres, n)
        return (centres + self.deviation * random.normal(size=(n, 2))).astype("float32")

    def log_prob(self, x):
        x, variance = np.asarray(x, "float64"), self.deviation**2
        squares = sum(np.subtract.outer(x[:, i], self.centres[:, i]) ** 2 for i in range(2))
        normalizer = np.log(2 * np.pi * variance * len(self.centres))
        return tf.reduce_logsumexp(-squares / (2 * variance), -1).numpy() - normalizer

    def entropy(self):
        """By quadrature: for Gaussians the sum over so fine a grid is exact to many digits."""
        edge = np.max(np.abs(self.centres)) + 8 * self.deviation
        points, axis = grid(edge, int(4 * edge / self.deviation))
        log_prob = self.log_prob(points)
        return -np.sum(np.exp(log_prob) * log_prob) * (axis[1] - axis[0]) ** 2


class Checkerboard:
    """Uniform on the eight black squares, of side 2, of a board of 4 x 4."""

    def sample(self, random, n):
        column = random.integers(4, size=n)
        row = 2 * random.integers(2, size=n) + column % 2
        corners = 2.0 * np.stack([column, row], -1) - 4.0
        return (corners + random.uniform(0, 2, size=(n, 2))).astype("float32")

    def log_prob(self, x):
        return np.full(len(x), -np.log(32.0))  # for points of the squares, all that are asked for

    def entropy(self):
        return np.log(32.0)


def polar(radius, angle):
    return np.stack([radius * np.cos(angle), radius * np.sin(angle)], -1)


def two_spirals():
    """Of one and a half turns each, with their centres so close that none can be seen."""
    angle = 3 * np.pi * np.sqrt((np.arange(250) + 0.5) / 250)  # evenly along the arm
    arm = polar(3.6 * angle / (3 * np.pi), angle)
    return Mixture(np.concatenate([arm, -arm]), 0.1)


DENSITIES = {
    "eight Gaussians": Mixture(polar(2.8, np.arange(8) * np.pi / 4), 0.35),
    "two spirals": two_spirals(),
    "checkerboard": Checkerboard(),
}


def grid(edge, n):
    """The centres of n x n pixels of [-edge, edge]^2, row by row, and one axis of them."""
    axis = edge * ((2 * np.arange(n) + 1) / n - 1)
    return np.stack(np.meshgrid(axis, axis), -1).reshape(-1, 2), axis


class Result(NamedTuple):
    data: np.ndarray
    density: np.ndarray
    samples: np.ndarray
    paths: np.ndarray
    line: str
    difference: float


def build_flow(dynamics, **options):
    """The distribution whose samples are those of a Gaussian, carried from time 0 to time 1."""
    base = tfp.distributions.MultivariateNormalDiag(tf.zeros(2))
    return tfp.distributions.TransformedDistribution(base, CNF(dynamics, t=(0.0, 1.0), **options))


def build_dynamics(width=64, depth=4):
    dynamics = keras.Sequential([keras.layers.Dense(width, "tanh") for _ in range(depth)])
    dynamics.add(keras.layers.Dense(2))
    dynamics = ConcatTime(dynamics)
    dynamics.build((), (None, 2))  # a flow takes layers that have their weights
    return dynamics


def train(dynamics, target, random, size):
    flow = build_flow(dynamics, method="bosh3", rtol=1e-3, atol=1e-3)
    rate = keras.optimizers.schedules.CosineDecay(
        0.0, size.steps, warmup_target=1e-2, warmup_steps=size.steps // 20
    )
    optimizer = keras.optimizers.Adam(rate)

    # Without XLA, which takes longer to compile and is not faster here.
    @tf.function
    def step(x):
        with tf.GradientTape() as tape:
            loss = -tf.reduce_mean(flow.log_prob(x))
        gradients = tape.gradient(loss, dynamics.trainable_variables)
        optimizer.apply(gradients, dynamics.trainable_variables)
        return loss

    interval = 0.1 if sys.stdout.isatty() else 15.0
    bar = keras.utils.Progbar(size.steps, stateful_metrics=["nats"], interval=interval)
    for _ in range(size.steps // 20):
        losses = [step(tf.constant(target.sample(random, size.batch))) for _ in range(20)]
        bar.add(20, [("nats", np.mean(losses))])


def evaluate(name, dynamics, target, random, size):
    """All that is measured, with solves so exact that the errors don't count."""
    flow = build_flow(dynamics, **TIGHT)
    held_out = target.sample(random, size.held_out)
    losses = -flow.log_prob(held_out).numpy()
    excess = losses + target.log_prob(held_out)
    entropy = target.entropy()
    difference = np.mean(losses) - entropy

    points, axis = grid(HALF_WIDTH, size.pixels)
    density = np.exp(flow.log_prob(points.astype("float32"))).reshape(len(axis), len(axis))
    mass = np.sum(density) * (axis[1] - axis[0]) ** 2

    start = tf.constant(random.normal(size=(size.particles, 2)), tf.float32)
    paths = tfsymadj.odeint(dynamics, start, np.linspace(0, 1, size.frames), **TIGHT)
    line = (
        f"{name:<16}{np.mean(losses):>10.4f}{entropy:>10.4f}"
        f"{difference:>10.4f} ± {np.std(losses) / len(losses) ** 0.5:.4f}"
        f"{np.mean(excess):>10.4f} ± {np.std(excess) / len(excess) ** 0.5:.4f}{mass:>9.4f}"
    )
    samples = flow.sample(size.held_out // 2).numpy()
    return Result(held_out, density, samples, paths.numpy(), line, difference)


def colors(points):
    """By the direction from the origin, which tells where a particle came from."""
    turns = np.arctan2(points[:, 1], points[:, 0]) / (2 * np.pi) % 1
    return 0.85 * plt.get_cmap("hsv")(turns)[:, :3]


def panels(rows, columns, size, extra):
    """A figure and its axes, all of the same square and without ticks."""
    plt.rcParams.update({"axes.edgecolor": "#bbbbbb", "axes.linewidth": 0.6})
    limits = (-HALF_WIDTH, HALF_WIDTH)
    look = {"xlim": limits, "ylim": limits, "xticks": [], "yticks": [], "aspect": "equal"}
    figsize = columns * size, rows * size + extra
    options = {"figsize": figsize, "layout": "constrained", "squeeze": False}
    return plt.subplots(rows, columns, subplot_kw=look, **options)


def draw(results, path):
    figure, axes = panels(len(results), 4, 2.7, 0.2)
    titles = "data", "learned density", "samples of the model", "from the Gaussian to the data"
    for panel, title in zip(axes[0], titles):
        panel.set_title(title)
    dots = {"s": 1.5, "alpha": 0.35, "linewidths": 0, "color": "#2a2a6a"}
    edges = [-HALF_WIDTH, HALF_WIDTH] * 2
    for (name, result), (data, density, samples, flow) in zip(results.items(), axes):
        data.set_ylabel(name, fontsize="large")
        data.scatter(*result.data[: len(result.samples)].T, **dots)
        top = np.quantile(result.density, 0.995)  # a few peaks would darken all the rest
        density.imshow(result.density, "magma", origin="lower", extent=edges, vmin=0, vmax=top)
        samples.scatter(*result.samples.T, **dots)
        paths = result.paths[:, :600]
        lines = {"colors": colors(paths[0]), "linewidths": 0.5, "alpha": 0.5}
        flow.add_collection(LineCollection(np.swapaxes(paths, 0, 1), **lines))
        flow.scatter(*paths[0].T, s=1, c="black", linewidths=0, zorder=2)
        flow.scatter(*paths[-1].T, s=2.5, c=colors(paths[0]), linewidths=0, zorder=2)
    figure.savefig(path, dpi=150)


def animate(results, path):
    figure, axes = panels(1, len(results), 3, 0.5)
    label, clouds = figure.supxlabel("t", fontsize="medium"), []
    for panel, (name, result) in zip(axes[0], results.items()):
        panel.set_title(name, fontsize="medium")
        dots = {"s": 2, "c": colors(result.paths[0]), "linewidths": 0}
        clouds.append((panel.scatter(*result.paths[0].T, **dots), result.paths))

    def show(frame):
        label.set_text(f"t = {frame / last:.2f}")
        for cloud, paths in clouds:
            cloud.set_offsets(paths[frame])

    last = len(clouds[0][1]) - 1
    frames = [0, 0, *range(last), *[last] * 8]  # stays a while where it ends
    FuncAnimation(figure, show, frames).save(path, PillowWriter(fps=12), dpi=80)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a short run, to try it out")
    parser.add_argument(
        "--output", type=pathlib.Path, default="out", help="folder to write to (default: out)"
    )
    parser.add_argument("--seed", type=int, default=0, help="of random numbers (default: 0)")
    parser.add_argument("--density", choices=list(DENSITIES), help="only this one")
    arguments = parser.parse_args()
    size = QUICK if arguments.quick else FULL
    arguments.output.mkdir(parents=True, exist_ok=True)

    results = {}
    for name in [arguments.density] if arguments.density else DENSITIES:
        print(f"Fitting a flow to the {name}")
        start = time.perf_counter()
        keras.utils.set_random_seed(arguments.seed)
        random, dynamics = np.random.default_rng(arguments.seed), build_dynamics()
        train(dynamics, DENSITIES[name], random, size)
        results[name] = evaluate(name, dynamics, DENSITIES[name], random, size)
        print(f"Fitted and measured in {time.perf_counter() - start:.0f} s\n")

    picture, animation = (arguments.output / f"flow_densities.{end}" for end in ("png", "gif"))
    draw(results, picture)
    animate(results, animation)

    print(f"Negative log-likelihood (NLL) of {size.held_out} fresh samples in nats, ± one standard")
    print("error. KL: the difference with the true log-density of the same samples in place of its")
    print("mean, which is less noisy. Mass: the learned density's integral over the picture.\n")
    print(f"{'':16}{'NLL':>10}{'entropy':>10}{'NLL - entropy':>19}{'KL':>19}{'mass':>9}")
    print(*(result.line for result in results.values()), sep="\n")
    print(f"\nPicture    {picture}\nAnimation  {animation}")
    gaussians = results.get("eight Gaussians")
    if gaussians and gaussians.difference > 0.05 and not arguments.quick:
        sys.exit("The eight Gaussians' likelihood is more than 0.05 nats below what is possible.")


if __name__ == "__main__":
    main()
