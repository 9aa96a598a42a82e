"""Who is speaking? A neural CDE reads recordings of which two thirds are missing, beside a GRU.

    pip install sktime                          # for the data that come with it
    python examples/spoken_vowels.py            # about two minutes on two cores
    python examples/spoken_vowels.py --quick    # every part, in about 40 s

Data: JapaneseVowels of the UEA archive (Kudo, Toyama, Shimbo 1999). Nine men say two vowels; a
recording has 7 to 29 frames of 12 cepstral coefficients. Of each recording 40 % of the frames are
lost, and of those left half of all entries, at random. The neural CDE (Kidger et al.,
arXiv:2005.08926) gets a series with holes, its times, and a mask for recordings of unequal length.
The GRU gets zeros for what is missing, which entries those are, the times and their differences.
Both are then tested on more and on less data than they were trained with.
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

from tfsymadj import controls
from tfsymadj.layers import CDELayer

matplotlib.use("Agg")
import matplotlib.pyplot as plt

FRAMES, CHANNELS, SPEAKERS = 29, 12, 9
#: Parts of the frames, and of their entries, that are left.
LEFT = {"complete": (1.0, 1.0), "as trained": (0.6, 0.5), "sparser": (0.5, 0.3)}
DRAWS = 5  # of what is lost, for training
COLORS = {"neural CDE": "#D55E00", "GRU": "#0072B2"}


def load_data():
    """Recordings `(examples, frames, channels)`, NaN after their ends, and who speaks; twice."""
    try:
        from sktime.datasets import load_japanese_vowels
    except ImportError:
        sys.exit("The data come with the package sktime, which is missing: pip install sktime")
    sets = []
    for split in ("train", "test"):
        frames, labels = load_japanese_vowels(split=split, return_type="nested_univ")
        x = np.full((len(frames), FRAMES, CHANNELS), np.nan, "float32")
        for row, (_, series) in zip(x, frames.iterrows()):
            values = np.stack([np.asarray(channel) for channel in series], 1)
            row[: len(values)] = values
        sets.append((x, np.asarray(labels).astype(int) - 1))
    mean, deviation = np.nanmean(sets[0][0], (0, 1)), np.nanstd(sets[0][0], (0, 1))
    return [((x - mean) / deviation, speakers) for x, speakers in sets]


def lose(x, left, random):
    """What is left: values with NaN, times, and which rows are frames; these come first."""
    frames, entries = left
    kept = ~np.isnan(x[..., 0]) & (random.random(x.shape[:2]) < frames)
    values = np.where(random.random(x.shape) < entries, x, np.nan)
    order = np.argsort(~kept, 1, kind="stable")
    times = 0.1 * order.astype("float32")
    values = np.take_along_axis(values, order[..., None], 1).astype("float32")
    return values, times, np.take_along_axis(kept, order, 1)


def for_cde(values, times, mask):
    return [values, times, mask]


def for_gru(values, times, mask):
    seen, gaps = ~np.isnan(values), np.diff(times, axis=1, prepend=times[:, :1])
    parts = [np.nan_to_num(values), seen, times[..., None], gaps[..., None]]
    return [np.concatenate(parts, -1).astype("float32"), mask]


def build_cde(hidden=40, width=48):
    x, t = keras.Input((FRAMES, CHANNELS)), keras.Input((FRAMES,))
    mask = keras.Input((FRAMES,), dtype="bool")
    matrix = keras.layers.Dense(hidden * (1 + CHANNELS), "tanh")
    network = keras.Sequential([keras.layers.Dense(width, "relu"), matrix])
    first = keras.layers.Dense(hidden)
    reader = CDELayer(network, first, interpolation="linear", method="heun", num_steps=1)
    return keras.Model([x, t, mask], keras.layers.Dense(SPEAKERS)(reader(x, t=t, mask=mask)))


def build_gru(units=83):
    x, mask = keras.Input((FRAMES, 2 * CHANNELS + 2)), keras.Input((FRAMES,), dtype="bool")
    return keras.Model(
        [x, mask], keras.layers.Dense(SPEAKERS)(keras.layers.GRU(units)(x, mask=mask))
    )


MODELS = {"neural CDE": (build_cde, for_cde, 5e-3), "GRU": (build_gru, for_gru, 1e-2)}


def train(name, data, epochs, seed):
    """A model, trained on several draws of what is lost."""
    build, encode, rate = MODELS[name]
    keras.utils.set_random_seed(seed)
    (x, speakers), random = data, np.random.default_rng(seed)
    draws = [encode(*lose(x, LEFT["as trained"], random)) for _ in range(DRAWS)]
    inputs, labels = [np.concatenate(part) for part in zip(*draws)], np.tile(speakers, DRAWS)
    model = build()
    steps = epochs * -(-len(labels) // 45)
    model.compile(
        keras.optimizers.Adam(keras.optimizers.schedules.CosineDecay(rate, steps), clipnorm=1.0),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        jit_compile=True,
    )
    model.fit(inputs, labels, batch_size=45, epochs=epochs, verbose=0)
    return model


def accuracy(model, name, data, left):
    x, speakers = data
    inputs = MODELS[name][1](*lose(x, left, np.random.default_rng(99)))
    return np.mean(np.argmax(model.predict_on_batch(inputs), -1) == speakers)


def draw(data, found, path):
    plt.rcParams.update({"font.size": 11, "axes.spines.top": False, "axes.spines.right": False})
    figure, (left, right) = plt.subplots(1, 2, figsize=(13, 4.8), layout="constrained")
    x = data[0][5]
    values, times, mask = lose(x[None], LEFT["as trained"], np.random.default_rng(0))
    values, times = values[0][mask[0]], times[0][mask[0]]
    path_of = controls.linear(times.astype(float), values)
    grid, whole = np.linspace(times[0], times[-1], 300), 0.1 * np.arange(FRAMES)
    for channel, color in ((0, "#009E73"), (1, "#CC79A7"), (3, "#E69F00")):
        left.plot(grid, path_of(grid)[:, channel], color=color, linewidth=2)
        left.plot(whole, x[:, channel], "o", color=color, markerfacecolor="white", alpha=0.5)
        left.plot(times, values[:, channel], "o", color=color)
    left.set(title="Three of twelve channels: observed, lost, and the path that is read")
    left.set(xlabel="Time", ylabel="Coefficient (standardized)")
    for k, (name, rows) in enumerate(found.items()):
        place = np.arange(len(LEFT)) + 0.36 * (k - 0.5)
        mean = 100.0 * rows.mean(0)
        right.bar(place, mean, 0.32, color=COLORS[name], label=name)
        right.plot(place, 100.0 * rows.T, "o", color="#000000", markersize=4, alpha=0.6)
        for at, value in zip(place, mean):
            right.text(at, 31, f"{value:.1f}", ha="center", color="white", fontsize=10)
    right.set_xticks(
        range(len(LEFT)), [f"{name}\n{100 * a * b:.0f} % left" for name, (a, b) in LEFT.items()]
    )
    right.set(title="Test recordings whose speaker is found", ylabel="%", ylim=(30, 110))
    right.set_yticks(range(40, 101, 20))
    right.legend(frameon=False, loc="upper center", ncols=2)
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
    training, test = load_data()
    epochs, starts = (6, 1) if quick else (16, 3)
    print(f"Training {2 * starts} models on {len(training[0])} recordings, {DRAWS} draws of each")
    bar = keras.utils.Progbar(2 * starts, unit_name="model")
    found, weights = {}, {}
    for name in MODELS:
        rows = []
        for seed in range(arguments.seed, arguments.seed + starts):
            model = train(name, training, epochs, seed)
            weights[name] = model.count_params()
            rows.append([accuracy(model, name, test, left) for left in LEFT.values()])
            bar.add(1)
        found[name] = np.array(rows)
    picture = output / "spoken_vowels.png"
    draw(test, found, picture)

    print(f"\nSpeakers found of {len(test[0])} test recordings, %, mean of {starts} starts")
    print(f"{'':<12}{'weights':>8}" + "".join(f"{name:>13}" for name in LEFT))
    for name, rows in found.items():
        cells = "".join(f"{100 * value:13.1f}" for value in rows.mean(0))
        print(f"{name:<12}{weights[name]:>8}{cells}")
    most = 100 * np.bincount(test[1]).max() / len(test[1])
    print(f"{'one speaker':<12}{0:>8}" + f"{most:13.1f}" * len(LEFT))
    print(f"Time {time.perf_counter() - start:.0f} s")
    print(f"Picture {picture}")
    if found["neural CDE"].mean(0)[1] < (0.7 if quick else 0.9):
        sys.exit("The neural CDE finds too few of the speakers.")


if __name__ == "__main__":
    main()
