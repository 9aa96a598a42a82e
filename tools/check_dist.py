"""Builds wheel and sdist twice, checks both, and tries the wheel in an environment of its own.

    python tools/check_dist.py             # or: make dist

needs `build` and `twine`. What was checked is left in `dist/`. `--no-install` leaves out the
environment, which downloads TensorFlow.
"""

import argparse
import os
import pathlib
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile

ROOT = pathlib.Path(__file__).parents[1]
SMOKE = pathlib.Path(__file__).with_name("smoke.py")
#: Without a commit to take the time from: the one that the build backend has by default.
FALLBACK_EPOCH = "1580601600"


def epoch():
    """The time of the last commit, in seconds, by which all files of a build are dated."""
    if "SOURCE_DATE_EPOCH" in os.environ:
        return os.environ["SOURCE_DATE_EPOCH"]
    command = ["git", "log", "-1", "--format=%ct"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    return result.stdout.strip() or FALLBACK_EPOCH


def build(source, target):
    """The files that a build of a folder makes, by name."""
    command = [sys.executable, "-m", "build", "--outdir", target, source]
    subprocess.run(
        command, check=True, env={**os.environ, "SOURCE_DATE_EPOCH": epoch()}, stdout=sys.stderr
    )
    return {path.name: path.read_bytes() for path in sorted(pathlib.Path(target).iterdir())}


def copy_of_sources(folder):
    """The sources elsewhere, with other dates: nothing of that may get into a build."""
    copy = pathlib.Path(folder) / "somewhere" / "else"
    # Environments, caches and outputs; the build ignores them, but copying takes time.
    skipped = shutil.ignore_patterns(".*", "__pycache__", "dist", "out", "site", "*.egg-info")
    shutil.copytree(ROOT, copy, ignore=skipped)
    shutil.copy2(ROOT / ".gitignore", copy)  # the build reads it, and puts it into the sdist
    for path in copy.rglob("*"):
        os.utime(path, (1_000_000_000, 1_000_000_000))
    return copy


def check_content(folder, version):
    """The wheel has the package, its licence and the mark of its types, and nothing else."""
    wheel = next(folder.glob("*.whl"))
    names = zipfile.ZipFile(wheel).namelist()
    info = f"tfsymadj-{version}.dist-info"
    for needed in ("tfsymadj/py.typed", "tfsymadj/__init__.py", f"{info}/licenses/LICENSE"):
        if needed not in names:
            raise SystemExit(f"{wheel.name} lacks {needed}")
    sources = {str(p.relative_to(ROOT)) for p in (ROOT / "tfsymadj").rglob("*.py")}
    if not sources <= set(names):
        raise SystemExit(f"{wheel.name} lacks {sorted(sources - set(names))}")
    for name in names:
        if not name.startswith(("tfsymadj/", f"{info}/")):
            raise SystemExit(f"{wheel.name} has {name}")

    sdist = next(folder.glob("*.tar.gz"))
    with tarfile.open(sdist) as archive:
        parts = {pathlib.PurePath(name).parts[1:] for name in archive.getnames()}
    if any("tests" in part for part in parts):
        raise SystemExit(f"{sdist.name} has tests")
    for needed in (("LICENSE",), ("CHANGELOG.md",), ("tfsymadj", "py.typed")):
        if needed not in parts:
            raise SystemExit(f"{sdist.name} lacks {'/'.join(needed)}")


def try_in_new_environment(folder, version):
    """Installs the wheel without extras, and uses it."""
    with tempfile.TemporaryDirectory() as home:
        subprocess.run([sys.executable, "-m", "venv", home], check=True)
        python = pathlib.Path(home) / "bin" / "python"
        wheel = next(folder.glob("*.whl"))
        subprocess.run([python, "-m", "pip", "install", "--quiet", wheel], check=True)
        # From another folder, so that it is the wheel that is imported.
        subprocess.run([python, SMOKE, version], check=True, cwd=home)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--no-install", action="store_true")
    arguments = parser.parse_args()

    dist = ROOT / "dist"
    shutil.rmtree(dist, ignore_errors=True)
    with tempfile.TemporaryDirectory() as folder:
        built = build(ROOT, dist)
        again = build(copy_of_sources(folder), pathlib.Path(folder) / "dist")
    if built != again:
        different = [name for name in built if built[name] != again.get(name)]
        raise SystemExit(f"Two builds differ in {different or sorted(again)}")
    version = next(dist.glob("*.whl")).name.split("-")[1]
    check_content(dist, version)
    command = [sys.executable, "-m", "twine", "check", "--strict", *dist.iterdir()]
    subprocess.run(command, check=True)
    if not arguments.no_install:
        try_in_new_environment(dist, version)
    print(f"dist/ has {' and '.join(built)}, built twice with the same bytes")


if __name__ == "__main__":
    main()
