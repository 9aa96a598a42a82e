"""The site's sources: what `make docs` would find too, without its tools."""

import json
import pathlib
import re
import subprocess
import sys
import tempfile

import pytest

import tfsymadj
from tfsymadj import callbacks, controls, layers

ROOT = pathlib.Path(__file__).parents[1]
TEXTS = [
    "README.md",
    "CONTRIBUTING.md",
    "CHANGELOG.md",
    "benchmarks/README.md",
    "examples/README.md",
]
#: Pages that are made of texts outside of `docs`.
GENERATED = {"benchmarks.md", "changelog.md", "contributing.md", "examples.md"}
SCRIPTS = sorted((ROOT / "docs" / "notebooks").glob("*.py"))
GENERATED |= {f"notebooks/{path.stem}.md" for path in SCRIPTS}


def public_names():
    for name in tfsymadj.__all__:
        if name not in ("METHODS", "callbacks", "controls", "layers"):  # a mapping, rooms of names
            yield name
    yield from (f"controls.{name}" for name in controls.__all__)
    yield from (f"layers.{name}" for name in layers.__all__ if name != "ODELayer")
    for name, value in vars(callbacks).items():
        if isinstance(value, type) and value.__module__ == callbacks.__name__:
            yield f"callbacks.{name}"
    pytest.importorskip("tensorflow_probability")
    yield from (f"bijectors.{name}" for name in tfsymadj.bijectors.__all__)


def test_every_public_name_is_in_the_reference():
    text = "".join(path.read_text() for path in (ROOT / "docs" / "api").glob("*.md"))
    entries = re.findall(r"^::: (\S+)(?:\n    options: \{heading: (\S+)\})?$", text, re.MULTILINE)
    entries += [(name, "") for name in re.findall(r"^::: (\S+)$", text, re.MULTILINE)]
    there = {heading.rstrip(",}") or name for name, heading in entries}
    assert {f"tfsymadj.{name}" for name in public_names()} <= there
    assert "`tfsymadj.METHODS`" in text


def test_every_public_name_has_an_example():
    pages = "".join(path.read_text() for path in (ROOT / "docs").rglob("*.md"))
    blocks = "".join(re.findall(r"```python\n(.*?)```", pages, re.DOTALL))
    for name in public_names():
        thing = tfsymadj
        for part in name.split("."):
            thing = getattr(thing, part)
        shown = ">>>" in (thing.__doc__ or "") or "Example: see" in (thing.__doc__ or "")
        # What a solve returns is in an example with a comment that names it, if need be.
        assert shown or name.rpartition(".")[2] in blocks or name.lower() in blocks, name


def test_every_page_is_in_the_navigation():
    nav = (ROOT / "mkdocs.yml").read_text().partition("\nnav:\n")[2]
    named = re.findall(r": (\S+\.md)$", nav, re.MULTILINE)
    docs = ROOT / "docs"
    there = {path.relative_to(docs).as_posix() for path in docs.rglob("*.md")}
    assert sorted(named) == sorted((there - {"gpu.md"}) | GENERATED)


def notebook_of(path):
    command = [sys.executable, ROOT / "tools" / "notebooks.py", "--output"]
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run([*command, folder], check=True)
        return json.loads((pathlib.Path(folder) / f"{path.stem}.ipynb").read_text("utf-8"))


def code_of(text):
    return [line for line in text.splitlines() if line and not line.startswith("#")]


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.stem)
def test_notebooks_are_their_scripts(path):
    cells = notebook_of(path)["cells"]
    assert [cell["cell_type"] for cell in cells[:2]] == ["markdown", "code"]
    assert cells[0]["source"][0].startswith("# ")
    code = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    assert code_of("\n".join(code)) == code_of(path.read_text("utf-8"))


@pytest.mark.slow
@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.stem)
def test_notebooks_run(path, tmp_path, monkeypatch):
    """Cell by cell, in a process of its own, as a reader runs them."""
    monkeypatch.setenv("MPLBACKEND", "Agg")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    cells = notebook_of(path)["cells"]
    code = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    # By lines of files, since AutoGraph reads the source of functions.
    program = tmp_path / "program.py"
    program.write_text("\n\n".join(code), "utf-8")
    subprocess.run([sys.executable, program], check=True, cwd=tmp_path, timeout=300)
    picture = tmp_path / f"{path.stem}.png"
    assert picture.stat().st_size > 5_000
    assert (path.parent / picture.name).exists()


def anchors_of(path):
    titles = re.findall(r"^#+ (.*)$", path.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).strip().replace(" ", "-") for title in titles}


@pytest.mark.parametrize("name", TEXTS)
def test_links_between_files(name):
    text = re.sub(r"```.*?```", "", (ROOT / name).read_text(), flags=re.DOTALL)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if "://" in target:
            continue
        file, _, anchor = target.partition("#")
        path = (ROOT / name).parent / file if file else ROOT / name
        assert path.exists(), target
        assert not anchor or anchor in anchors_of(path), target
