"""The five tabular data sets of the papers on continuous normalizing flows, from local files.

    python examples/tabular_data.py --data FOLDER              # sizes of all five
    python examples/tabular_data.py --data FOLDER power gas    # of some

FOLDER is the unpacked archive data.tar.gz of https://zenodo.org/records/1161203, published with
"Masked Autoregressive Flow for Density Estimation" (Papamakarios, Pavlakou and Murray,
arXiv:1705.07057), whose preprocessing is repeated here, its peculiarities included, because
log-likelihoods can be compared only on the same numbers. Nothing is downloaded, and no pickle is
loaded, because that can run any code that is in it.

    set        columns      train  validation       test   files
    power            6  1,659,917     184,435    204,928   power/data.npy
    gas              8    852,174      94,685    105,206   gas/ethylene_CO.csv or .txt, see `load`
    hepmass         21    315,123      35,013    174,987   hepmass/1000_train.csv, 1000_test.csv
    miniboone       43     29,556       3,284      3,648   miniboone/data.npy
    bsds300         63  1,000,000      50,000    250,000   BSDS300/BSDS300.hdf5
"""

import argparse
import pathlib
import typing

import numpy as np

COLUMNS = {"power": 6, "gas": 8, "hepmass": 21, "miniboone": 43, "bsds300": 63}
ARCHIVE = "data.tar.gz of https://zenodo.org/records/1161203"
CONVERSION = """import pandas
pandas.read_pickle("ethylene_CO.pickle").to_csv("ethylene_CO.csv", index=False)"""


class Splits(typing.NamedTuple):
    """Float32 arrays `(rows, columns)`."""

    train: np.ndarray
    validation: np.ndarray
    test: np.ndarray


def load(name, folder, seed=42, check=True):
    """One of the sets, preprocessed as published.

    The archive has GAS as a pickle, which is not read. Either convert it to gas/ethylene_CO.csv
    with pandas, if you trust it (the error for a missing file says how); then the numbers are the
    published ones. Or put ethylene_CO.txt of the UCI repository ("Gas sensor array under dynamic
    gas mixtures") into the folder gas: of this recording the archive has a random quarter in random
    order, and another one is drawn here, so that results are comparable but not equal.

    Args:
        name: "power", "gas", "hepmass", "miniboone" or "bsds300", in lower or upper case.
        folder: path of the unpacked archive.
        seed: integer, of POWER's order and noise and of the rows drawn from the raw text of GAS;
            that of the publication is 42 (default). The other sets have nothing random.
        check: whether the number of columns must be the published one.

    Returns:
        `Splits`.

    Raises:
        FileNotFoundError: if a file is missing.
        ImportError: for BSDS300, if h5py is not installed.
        ValueError: if there is no such set, if the columns of a file are not the published ones,
            or if the result has another number of columns than the published one or is not finite.
    """
    key = str(name).lower()
    if key not in READERS:
        raise ValueError(f"`name` must be one of {', '.join(READERS)}. Received: {name!r}")
    splits = Splits(*(x.astype("float32") for x in READERS[key](pathlib.Path(folder), seed)))
    columns = {x.shape[1] for x in splits}
    if check and columns != {COLUMNS[key]}:
        raise ValueError(
            f"`folder` must hold {key} data with {COLUMNS[key]} columns after preprocessing; "
            f"check=False accepts others. Received: {sorted(columns)}"
        )
    if not all(np.isfinite(x).all() for x in splits):
        raise ValueError(
            f"`folder` must hold {key} data that are finite after preprocessing. "
            f"Received: {str(folder)!r}"
        )
    return splits


def _power(folder, seed):
    data = np.load(_find(folder, "power/data.npy"), allow_pickle=False)
    if data.shape[1:] != (8,):
        raise ValueError(f"power/data.npy must have 8 columns. Received: shape {data.shape}")
    # The generator's calls in the published order, which makes the numbers the published ones.
    random = np.random.RandomState(seed)
    rows = len(data)
    # Without reactive power and total intensity: power, voltage, three meters, time.
    data = data[random.permutation(rows)][:, [0, 2, 4, 5, 6, 7]].astype("float64")
    # Noise as wide as the last digit; the time has none.
    data[:, 1:2] += 0.01 * random.rand(rows, 1)
    data[:, :1] += 0.001 * random.rand(rows, 1)
    data[:, 2:5] += random.rand(rows, 3)
    return _standardized(*_split(data))


def _gas(folder, seed):
    path = _find(folder, "gas/ethylene_CO.csv", "gas/ethylene_CO.txt")
    if path.suffix == ".csv":
        header = _header(path)
        others = {"Time", "Meth", "Eth"}
        if not others.issubset(header):
            raise ValueError(
                f"{path} must name the columns Time, Meth and Eth in its first line. "
                f"Received: {', '.join(header)}"
            )
        # The index of the rows, if it was written, has no name.
        sensors = [i for i, column in enumerate(header) if column not in others | {""}]
        data = _read_text(path, sensors, ",")
    else:
        # Time and two concentrations come first.
        data = _read_text(path, range(3, 19))
        rows = np.random.RandomState(seed).permutation(len(data))[: round(len(data) / 4)]
        data = data[rows]
    near = np.corrcoef(data, rowvar=False) > 0.98
    # Of two columns that say the same, the later one stays.
    data = data[:, [i for i in range(len(near)) if not near[i, i + 1 :].any()]]
    # With the test data, and before splitting, as published.
    return _split((data - data.mean(0)) / data.std(0, ddof=1))


def _hepmass(folder, seed):
    path = _find(folder, "hepmass/1000_train.csv")
    # The test file has a column too many, its last one.
    columns = range(len(_header(path)))
    train = _read_text(path, columns, ",")
    test = _read_text(_find(folder, "hepmass/1000_test.csv"), columns, ",")
    # The first column is the class: 1 is the signal, 0 the background.
    train, test = (x[x[:, 0] == 1, 1:] for x in (train, test))
    # Published as the removal of columns with values that recur more than five times; what the
    # program that was published counts is how often the smallest value occurs.
    keep = np.sum(train == train.min(0), axis=0) <= 5
    train, test = train[:, keep], test[:, keep]
    mean, std = train.mean(0), train.std(0, ddof=1)
    return *_cut((train - mean) / std), (test - mean) / std


def _miniboone(folder, seed):
    data = np.load(_find(folder, "miniboone/data.npy"), allow_pickle=False)
    return _standardized(*_split(data.astype("float64")))


def _bsds300(folder, seed):
    path = _find(folder, "BSDS300/BSDS300.hdf5")
    try:
        import h5py
    except ImportError as error:
        raise ImportError(f"{path} is read by h5py: pip install h5py") from error
    with h5py.File(path, "r") as file:
        return [file[split][:] for split in ("train", "validation", "test")]


READERS = {
    "power": _power,
    "gas": _gas,
    "hepmass": _hepmass,
    "miniboone": _miniboone,
    "bsds300": _bsds300,
}


def _find(folder, *names):
    """The path of the first of the files that is there."""
    for name in names:
        if (folder / name).is_file():
            return folder / name
    message = f"{folder / names[0]} is missing. "
    if (folder / names[0]).with_suffix(".pickle").is_file():
        message += (
            "Pickles are not loaded, because they can run code. If you trust this one, convert it "
            f"in its folder with an installation of pandas that reads it:\n\n{CONVERSION}\n\n"
            f"or put the text file {names[-1]} of the UCI repository there. "
        )
    raise FileNotFoundError(
        f"{message}`folder` must be the unpacked archive {ARCHIVE}, with {' or '.join(names)} in "
        f"it. Received: {str(folder)!r}"
    )


def _header(path):
    with open(path) as file:
        return [name.strip() for name in file.readline().split(",")]


def _read_text(path, columns, delimiter=None):
    """Columns of a text file with one line of names."""
    # A name may begin with the character of comments.
    return np.loadtxt(
        path, delimiter=delimiter, skiprows=1, usecols=columns, comments=None, ndmin=2
    )


def _cut(data):
    """All but the last tenth of the rows, and that tenth."""
    rows = len(data) - int(0.1 * len(data))
    return data[:rows], data[rows:]


def _split(data):
    """The test data are the last tenth, the validation data the last tenth of the rest."""
    rest, test = _cut(data)
    return *_cut(rest), test


def _standardized(train, validation, test):
    """Mean 0 and variance 1 of training and validation data together."""
    both = np.concatenate([train, validation])
    mean, std = both.mean(0), both.std(0)
    return tuple((x - mean) / std for x in (train, validation, test))


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(READERS)}")
    parser.add_argument(
        "--data", type=pathlib.Path, default="data", help="folder of the data (default: data)"
    )
    parser.add_argument("--seed", type=int, default=42, help="of random numbers (default: 42)")
    arguments = parser.parse_args()

    print(f"{'set':<10}{'columns':>8}{'train':>11}{'validation':>12}{'test':>11}")
    for name in arguments.names or READERS:
        splits = load(name, arguments.data, arguments.seed)
        train, validation, test = (len(x) for x in splits)
        columns = splits.train.shape[1]
        print(f"{name:<10}{columns:>8}{train:>11,}{validation:>12,}{test:>11,}", flush=True)


if __name__ == "__main__":
    main()
