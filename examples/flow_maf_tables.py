"""Trains continuous normalizing flows on the five tabular sets of the papers on them.

    python examples/flow_maf_tables.py miniboone --data data

Started again with the same arguments it goes on where it was stopped, or only tests if it was done.
The data are local files, see tabular_data.py. At full size this is work for a GPU: hours for
MINIBOONE, days for the others.

Networks, batches and learning rates are those of FFJORD (Grathwohl et al., arXiv:1810.01367,
appendix), except that the end of the flow is at time 1 instead of being learned, which the networks
can make up for. The solver and its tolerances are those of the experiments of "Symplectic Adjoint
Method for Exact Gradient of Neural ODE with Minimal Memory" (Matsubara, Miyatake and Yaguchi,
arXiv:2102.09750), which compare the choices of --gradient on these flows.
"""

import argparse
import os
import pathlib
import statistics
import time
from typing import NamedTuple

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
# Without it TensorFlow does not count tensors below 256 KiB on a CPU.
os.environ.setdefault("TF_CPU_ALLOCATOR_USE_BFC", "1")

import keras
import numpy as np
import tabular_data
import tensorflow as tf
import tensorflow_probability as tfp
from flow_training import batches, build_dynamics, noise, train_step

from tfsymadj.bijectors import CNF, HutchinsonTrace
from tfsymadj.gradients import GRADIENTS

tfb, tfd = tfp.bijectors, tfp.distributions
DEVICE = "GPU:0" if tf.config.list_physical_devices("GPU") else "CPU:0"


class Setting(NamedTuple):
    flows: int
    layers: int  # hidden ones of each flow
    factor: int  # their size over the number of columns
    activation: str
    batch: int


SETTINGS = {
    "power": Setting(5, 3, 10, "tanh", 10_000),
    "gas": Setting(5, 3, 20, "tanh", 1000),
    "hepmass": Setting(10, 2, 10, "softplus", 10_000),
    "miniboone": Setting(1, 2, 20, "softplus", 1000),
    "bsds300": Setting(2, 3, 20, "softplus", 10_000),
}


def parse_arguments():
    formatter = argparse.ArgumentDefaultsHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], formatter_class=formatter)
    add = parser.add_argument
    add("table", choices=SETTINGS)
    add("--data", type=pathlib.Path, default="data", help="folder of the data")
    add("--output", type=pathlib.Path, default="out", help="folder to write to")
    add("--gradient", choices=GRADIENTS, default="symplectic_adjoint")
    add("--method", default="dopri5", help="of the solver")
    add("--rtol", type=float, default=1e-6)
    add("--atol", type=float, default=1e-8)
    add("--noise", choices=["gaussian", "rademacher"], default="gaussian", help="of the trace")
    add("--learning-rate", type=float, default=1e-3)
    add("--every", type=int, default=200, help="steps from one validation to the next")
    add("--patience", type=int, default=30, help="validations without improvement")
    add("--steps", type=int, default=1_000_000, help="of training, at most")
    add("--seed", type=int, default=0, help="of random numbers")
    papers = parser.add_argument_group("in place of the papers' settings")
    papers.add_argument("--flows", type=int)
    papers.add_argument("--hidden", type=int, nargs="+", help="sizes of a flow's hidden layers")
    papers.add_argument("--activation")
    papers.add_argument("--batch", type=int)
    arguments = parser.parse_args()
    setting, columns = SETTINGS[arguments.table], tabular_data.COLUMNS[arguments.table]
    arguments.flows = arguments.flows or setting.flows
    arguments.hidden = arguments.hidden or setting.layers * [setting.factor * columns]
    arguments.activation = arguments.activation or setting.activation
    arguments.batch = arguments.batch or setting.batch
    return arguments


class Training:
    """A flow, and all of its training that a checkpoint has to keep."""

    def __init__(self, columns, arguments):
        self.arguments = arguments
        self.base = tfd.MultivariateNormalDiag(tf.zeros([columns]))
        self.dynamics = [
            build_dynamics(columns, arguments.hidden, arguments.activation, identity=False)
            for _ in range(arguments.flows)
        ]
        density, flows = self.density(HutchinsonTrace(arguments.noise))
        self.weights = list(density.trainable_variables)
        self.optimizer = keras.optimizers.Adam(arguments.learning_rate)
        self.optimizer.build(self.weights)

        def loss(x, seed):
            return -tf.reduce_mean(density.log_prob(x, bijector_kwargs=noise(flows, seed)))

        self.step = train_step(loss, self.weights, self.optimizer)
        self.estimate = tf.function(density.log_prob, reduce_retracing=True)
        self.done, self.waited = tf.Variable(0), tf.Variable(0)
        self.score = tf.Variable(-np.inf)
        self.best = self.manager("best", weights=self.weights)
        self.latest = self.manager(
            "latest", weights=self.weights, optimizer=self.optimizer, done=self.done,
            waited=self.waited, score=self.score,
        )  # fmt: skip

    def density(self, trace):
        arguments = self.arguments
        flows = [
            CNF(
                dynamics, trace=trace, name=f"flow{i}", gradient=arguments.gradient,
                method=arguments.method, rtol=arguments.rtol, atol=arguments.atol,
            ) for i, dynamics in enumerate(self.dynamics)
        ]  # fmt: skip
        return tfd.TransformedDistribution(self.base, tfb.Chain(flows)), flows

    def manager(self, name, **parts):
        folder = self.arguments.output / f"{self.arguments.table}_{self.arguments.gradient}" / name
        return tf.train.CheckpointManager(tf.train.Checkpoint(**parts), folder, max_to_keep=1)

    def run(self, train, validation):
        arguments = self.arguments
        if self.latest.restore_or_initialize():
            print(f"Goes on after {int(self.done)} steps")
        data = batches(train, arguments.batch, [arguments.seed, int(self.done)])
        losses, seconds = [], []
        while int(self.done) < arguments.steps and int(self.waited) < arguments.patience:
            start = time.perf_counter()
            number = self.done.assign_add(1)
            seed = number + 1_000_000_007 * arguments.seed  # of another sequence for another seed
            losses.append(float(self.step(next(data), seed)))
            seconds.append(time.perf_counter() - start)
            if int(number) % arguments.every and int(number) < arguments.steps:
                continue
            score = mean_log_prob(self.estimate, validation, arguments.batch)
            print(
                f"step {int(number):>7}   training {-np.mean(losses):9.4f}   "
                f"validation {score:9.4f}   {statistics.median(seconds):.3f} s/step   "
                f"peak {memory():.0f} MiB",
                flush=True,
            )
            losses, seconds = [], []
            self.judge(score)

    def judge(self, score):
        """Keeps the best weights; divides the learning rate by 10 at each third of the patience."""
        if score > float(self.score):
            self.score.assign(score)
            self.waited.assign(0)
            self.best.save()
        else:
            self.waited.assign_add(1)
        third = int(self.waited) * 3 // self.arguments.patience
        rate = self.arguments.learning_rate * 0.1**third
        # Once lowered it stays so.
        self.optimizer.learning_rate.assign(min(rate, float(self.optimizer.learning_rate)))
        self.latest.save()

    def test(self, data):
        """Mean and standard error of the log-likelihood: exact trace, best weights."""
        if self.best.restore_or_initialize() is None:
            raise FloatingPointError("No validation score was a number.")
        density, _ = self.density("exact")
        log_prob = tf.function(density.log_prob, reduce_retracing=True)
        # As many vectors as a row has columns go through the network at once.
        size = max(1, self.arguments.batch // data.shape[1])
        values = all_log_probs(log_prob, data, size)
        return values.mean(), values.std(ddof=1) / len(values) ** 0.5


def all_log_probs(log_prob, data, size):
    parts = [log_prob(tf.constant(data[i : i + size])) for i in range(0, len(data), size)]
    return np.concatenate(parts)


def mean_log_prob(log_prob, data, size):
    return float(np.mean(all_log_probs(log_prob, data, size)))


def memory():
    return tf.config.experimental.get_memory_info(DEVICE)["peak"] / 2**20


def main():
    arguments = parse_arguments()
    keras.utils.set_random_seed(arguments.seed)
    splits = tabular_data.load(arguments.table, arguments.data)
    training = Training(splits.train.shape[1], arguments)
    count = sum(int(tf.size(weight)) for weight in training.weights)
    print(
        f"{arguments.table}: {len(splits.train):,} rows, {arguments.flows} flows with hidden "
        f"layers of {arguments.hidden}, {count:,} weights, {arguments.gradient}"
    )
    training.run(splits.train, splits.validation)
    print(f"Testing with {len(splits.test):,} rows")
    mean, error = training.test(splits.test)
    print(f"Test log-likelihood    {mean:.4f} ± {error:.4f} nats")


if __name__ == "__main__":
    main()
