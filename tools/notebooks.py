"""Makes notebooks, and pages of the site, of the scripts in `docs/notebooks`.

    python tools/notebooks.py --output out/notebooks    # the notebooks, without outputs
    python tools/notebooks.py --run                     # or: make notebooks, the pictures

The scripts have the form of jupytext: `# %%` begins a cell of code, `# %% [markdown]` one of text,
which is commented out. What is printed is not kept; pictures are those that the scripts save.
"""

import argparse
import json
import os
import pathlib
import re
import subprocess
import sys

FOLDER = pathlib.Path(__file__).parents[1] / "docs" / "notebooks"
SAVED = re.compile(r'\.savefig\("(.*?)"')


def cells_of(script):
    """`(kind, text)` of each cell, of kind "markdown" or "code"."""
    for part in re.split(r"^# %%", "\n" + script, flags=re.MULTILINE)[1:]:
        title, _, body = part.partition("\n")
        body = body.strip("\n")
        if title.strip() == "[markdown]":
            yield "markdown", re.sub(r"^# ?", "", body, flags=re.MULTILINE)
        else:
            yield "code", body


def as_notebook(script):
    """The notebook as JSON, in the format nbformat 4.5."""
    cells = []
    for number, (kind, text) in enumerate(cells_of(script)):
        cell = {"cell_type": kind, "id": f"cell-{number}", "metadata": {}}
        cell["source"] = text.splitlines(keepends=True)
        if kind == "code":
            cell |= {"execution_count": None, "outputs": []}
        cells.append(cell)
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    metadata = {"kernelspec": kernel, "language_info": {"name": "python"}}
    notebook = {"cells": cells, "metadata": metadata, "nbformat": 4, "nbformat_minor": 5}
    return json.dumps(notebook, indent=1, ensure_ascii=False) + "\n"


def as_page(script, name):
    """The page of the site: text, code, and each picture below the cell that saves it."""
    parts = []
    for kind, text in cells_of(script):
        parts.append(text if kind == "markdown" else f"```python\n{text}\n```")
        if kind == "code":
            parts += [f"![What this cell draws]({picture})" for picture in SAVED.findall(text)]
        if len(parts) == 1:
            parts.append(f"[As a notebook]({name}.ipynb) · [As a script]({name}.py)")
    return "\n\n".join(parts) + "\n"


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=pathlib.Path, help="where to write notebooks")
    parser.add_argument("--run", action="store_true", help="run the scripts, for their pictures")
    arguments = parser.parse_args()
    for path in sorted(FOLDER.glob("*.py")):
        if arguments.output:
            arguments.output.mkdir(parents=True, exist_ok=True)
            target = arguments.output / f"{path.stem}.ipynb"
            target.write_text(as_notebook(path.read_text(encoding="utf-8")), encoding="utf-8")
        if arguments.run:
            print(path.name, flush=True)
            environment = {**os.environ, "MPLBACKEND": "Agg", "TF_CPP_MIN_LOG_LEVEL": "3"}
            subprocess.run([sys.executable, path], check=True, cwd=FOLDER, env=environment)


if __name__ == "__main__":
    main()
