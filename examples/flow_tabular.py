"""Densities of two small tables: a continuous normalizing flow against Gaussians and mixtures.

    python examples/flow_tabular.py            # about four minutes on two cores
    python examples/flow_tabular.py --quick    # every part, in less than a minute

Data: breast cancer (569 rows, 30 columns) and wine (178 rows, 13 columns) of scikit-learn. Each
model is fitted to four fifths of the rows and judged by its log-likelihood on the last fifth, in
turn for all fifths. What a model has to choose, such as when training stops, is chosen on parts of
the four fifths.
"""

import argparse
import itertools
import os
import pathlib
import sys
import time
import warnings

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import keras
import matplotlib
import numpy as np
import tensorflow as tf
import tensorflow_probability as tfp
from flow_training import batches, build_dynamics, fit, noise, train_step
from scipy.special import logsumexp
from scipy.stats import multivariate_normal, multivariate_t
from sklearn.datasets import load_breast_cancer, load_wine
from sklearn.exceptions import ConvergenceWarning
from sklearn.mixture import GaussianMixture
from sklearn.model_selection import KFold
from threadpoolctl import threadpool_limits

from tfsymadj.bijectors import CNF

matplotlib.use("Agg")
import matplotlib.pyplot as plt

tfb, tfd = tfp.bijectors, tfp.distributions
# Data set, and the two columns that are drawn.
TABLES = {
    "breast cancer": (load_breast_cancer, ("worst area", "worst concavity")),
    "wine": (load_wine, ("flavanoids", "color_intensity")),
}
GAUSSIAN, STUDENT, MIXTURE = "Gaussian, full covariance", "Student-t", "Gaussian mixture"
ONE_FLOW, FLOWS = "CNF, one", "CNF, mean of several"
COLORS = dict(
    zip([GAUSSIAN, STUDENT, MIXTURE, ONE_FLOW, FLOWS],
        ["#555555", "#CC79A7", "#E69F00", "#56B4E9", "#0072B2"])
)  # fmt: skip


def fit_student_t(x, iterations=50):
    """Degrees of freedom, location and triangular scale of greatest likelihood, by the EM method.

    The heavier the tails, the less do distant points count.
    """
    size, fits = x.shape[1], []
    for df in (2, 3, 4, 5, 7, 10, 15, 25, 50, 100):
        loc, covariance = x.mean(0), np.cov(x.T, bias=True)
        for _ in range(iterations):
            z = np.linalg.solve(np.linalg.cholesky(covariance), (x - loc).T)
            weight = (df + size) / (df + np.sum(z**2, axis=0))
            loc = weight @ x / weight.sum()
            covariance = (weight * (x - loc).T) @ (x - loc) / len(x)
        fits.append((multivariate_t.logpdf(x, loc, covariance, df).sum(), df, loc, covariance))
    _, df, loc, covariance = max(fits, key=lambda fit: fit[0])
    return df, loc, np.linalg.cholesky(covariance)


class FlowDensity:
    """A CNF between a Student-t distribution and the data.

    It starts as the Student-t distribution that fits the data best, with its location and scale as
    an affine map behind the flow; the degrees of freedom are trained with the flow.
    """

    def __init__(self, size, hidden):
        self.size, self.hidden = size, hidden
        self.dynamics = build_dynamics(size, hidden, "tanh")
        self.log_df = tf.Variable(0.0)
        self.loc = tf.Variable(tf.zeros([size]), trainable=False)
        self.tril = tf.Variable(tf.eye(size), trainable=False)
        coarse = {"method": "rk4", "num_steps": 3}
        flow = CNF(self.dynamics, trace="hutchinson", name="flow", **coarse)
        density = self.density(flow)
        self.weights = list(density.trainable_variables)
        self.optimizer = keras.optimizers.AdamW(3e-3, weight_decay=0.3)
        self.optimizer.exclude_from_weight_decay([self.log_df])
        self.optimizer.build(self.weights)
        self.fresh = [v.numpy() for v in self.optimizer.variables]

        def loss(x, seed):
            return -tf.reduce_mean(density.log_prob(x, bijector_kwargs=noise([flow], seed)))

        # Compiled once for all folds.
        self.step = train_step(loss, self.weights, self.optimizer)
        rows = tf.TensorSpec([None, size])
        validated = self.density(CNF(self.dynamics, **coarse))
        self.validate = tf.function(validated.log_prob, input_signature=[rows])
        # What is reported does not depend on the step size.
        self.exact = self.density(CNF(self.dynamics, method="dopri5", rtol=1e-5, atol=1e-5))
        self.log_prob = tf.function(self.exact.log_prob, input_signature=[rows])
        self.sample = tf.function(self.exact.sample)

    def density(self, flow):
        base = tfd.MultivariateStudentTLinearOperator(
            df=tfp.util.DeferredTensor(self.log_df, tf.exp),
            loc=tf.zeros([self.size]),
            scale=tf.linalg.LinearOperatorIdentity(self.size),
        )
        affine = [tfb.Shift(self.loc), tfb.ScaleMatvecTriL(self.tril)]
        return tfd.TransformedDistribution(base, tfb.Chain([*affine, flow]))

    def fit(self, train, validation, seed, max_steps):
        keras.utils.set_random_seed(seed)
        self.dynamics.set_weights(build_dynamics(self.size, self.hidden, "tanh").get_weights())
        for variable, value in zip(self.optimizer.variables, self.fresh):
            variable.assign(value)
        df, loc, tril = fit_student_t(train)
        self.log_df.assign(np.log(df))
        self.loc.assign(loc)
        self.tril.assign(tril)
        return fit(
            self.step,
            batches(train.astype("float32"), 128, seed),
            lambda: np.mean(self.validate(validation)),
            self.weights,
            max_steps=max_steps,
            every=20,
            patience=100,
        )


def fit_mixture(x, splits, sizes):
    """A mixture of Gaussians; size, shape and smoothing of the best mean validation score."""

    def mixture(rows, size, shape, smoothing):
        return GaussianMixture(
            size, covariance_type=shape, reg_covar=smoothing, random_state=0
        ).fit(rows)

    def score(choice):
        return np.mean([mixture(x[train], *choice).score(x[test]) for train, test in splits])

    choices = itertools.product(sizes, ("full", "tied", "diag"), (1e-6, 1e-4, 1e-2))
    # Threads cost more than they gain on matrices this small.
    with threadpool_limits(1):
        return mixture(x, *max(choices, key=score))


def compare(table, arguments):
    """Held-out scores of all models for each fold, and samples of the first fold's models."""
    load, columns = TABLES[table]
    data = load()
    shown = [list(data.feature_names).index(column) for column in columns]
    x = data.data
    quick, scores, samples = arguments.quick, {name: [] for name in COLORS}, {}
    folds, members = (2, 2) if quick else (5, arguments.members)
    flow = FlowDensity(x.shape[1], (128,))
    bar = keras.utils.Progbar(folds * members, unit_name="flow", interval=arguments.interval)
    splits = KFold(5, shuffle=True, random_state=arguments.seed).split(x)
    for fold, (rest, test) in zip(range(folds), splits):
        mean, std = x[rest].mean(0), x[rest].std(0)
        train, held_out = (x[rest] - mean) / std, (x[test] - mean) / std
        inner = KFold(members, shuffle=True, random_state=fold)
        inner = list(inner.split(train))

        gaussian = multivariate_normal(train.mean(0), np.cov(train.T, bias=True))
        df, loc, tril = fit_student_t(train)
        mixture = fit_mixture(train, inner, range(1, 3 if quick else 9))
        log_probs, drawn = [], []
        for member, (fitted, validation) in enumerate(inner):
            seed = 1000 * arguments.seed + 100 * fold + member
            flow.fit(train[fitted], train[validation], seed, 60 if quick else 600)
            log_probs.append(flow.log_prob(held_out).numpy())
            if fold == 0:
                drawn.append(flow.sample(len(x) // members, seed=seed))
            bar.add(1)
        scores[GAUSSIAN].append(gaussian.logpdf(held_out).mean())
        scores[STUDENT].append(multivariate_t.logpdf(held_out, loc, tril @ tril.T, df).mean())
        scores[MIXTURE].append(mixture.score(held_out))
        scores[ONE_FLOW].append(np.mean(log_probs))
        # The density of the mixture of the members in equal parts.
        scores[FLOWS].append(np.mean(logsumexp(log_probs, axis=0) - np.log(members)))
        if fold == 0:
            samples = {
                "Data": x[:, shown],
                "Gaussian": (gaussian.rvs(len(x), random_state=0) * std + mean)[:, shown],
                "CNF": (np.concatenate(drawn) * std + mean)[:, shown],
            }
    return {name: np.array(values) for name, values in scores.items()}, samples


def mean_and_error(values):
    """Mean over the folds and its standard error."""
    return f"{values.mean():8.2f} ± {values.std(ddof=1) / len(values) ** 0.5:.2f}"


def draw(results, path):
    plt.rcParams.update({"font.size": 11, "axes.spines.top": False, "axes.spines.right": False})
    figure, axes = plt.subplots(
        len(results), 4, figsize=(14, 7), layout="constrained", width_ratios=[1.5, 1, 1, 1]
    )
    for row, (table, (scores, samples)) in zip(axes, results.items()):
        positions = np.arange(len(scores))
        row[0].plot(positions, list(scores.values()), color="#DDDDDD", zorder=0)
        for position, (name, values) in zip(positions, scores.items()):
            row[0].scatter(np.full(len(values), position), values, 25, COLORS[name], alpha=0.6)
            row[0].hlines(values.mean(), position - 0.3, position + 0.3, COLORS[name], linewidth=3)
        labels = [name.replace(", ", ",\n").replace(" mix", "\nmix") for name in scores]
        row[0].set_xticks(positions, labels, fontsize=9)
        row[0].set(title=f"{table.capitalize()}: held-out folds", ylabel="Log-likelihood (nats)")
        row[0].set_xlim(-0.5, len(scores) - 0.5)
        low, high = samples["Data"].min(0), samples["Data"].max(0)
        margin = 0.25 * (high - low)
        for axis, (name, points), color in zip(
            row[1:], samples.items(), ["#000000", COLORS[GAUSSIAN], COLORS[FLOWS]]
        ):
            axis.scatter(*points.T, 9, color, alpha=0.5, linewidths=0)
            x_name, y_name = (c.replace("_", " ").capitalize() for c in TABLES[table][1])
            axis.set(title=name, xlabel=x_name)
            axis.set_xlim(low[0] - margin[0], high[0] + margin[0])
            axis.set_ylim(low[1] - margin[1], high[1] + margin[1])
            if name == "Data":
                axis.set_ylabel(y_name)
            else:
                axis.set_yticklabels([])
    figure.savefig(path, dpi=130)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a short run, to try it out")
    parser.add_argument(
        "--output", type=pathlib.Path, default="out", help="folder to write to (default: out)"
    )
    parser.add_argument("--seed", type=int, default=0, help="of random numbers (default: 0)")
    parser.add_argument("--members", type=int, default=4, help="flows of a fold (default: 4)")
    arguments = parser.parse_args()
    arguments.interval = 0.1 if sys.stdout.isatty() else 15.0
    arguments.output.mkdir(parents=True, exist_ok=True)
    warnings.simplefilter("ignore", ConvergenceWarning)  # of mixtures that are not chosen

    start, results = time.perf_counter(), {}
    for table in TABLES:
        print(f"Density of {table}")
        results[table] = compare(table, arguments)
    picture = arguments.output / "flow_tabular.png"
    draw(results, picture)

    worse = []
    for table, (scores, _) in results.items():
        print(f"\nHeld-out log-likelihood of {table} (nats), {len(scores[FLOWS])} folds")
        for name, values in scores.items():
            print(f"  {name:<28}{mean_and_error(values)}")
        gain = scores[FLOWS] - scores[GAUSSIAN]
        print(f"  {'gain of the CNF':<28}{mean_and_error(gain)}")
        worse += [table] if gain.mean() <= 0 else []
    print(f"\nTime                   {time.perf_counter() - start:.0f} s")
    print(f"Picture                {picture}")
    if worse:
        sys.exit(f"The flow is not better than the Gaussian on {' and '.join(worse)}.")


if __name__ == "__main__":
    main()
