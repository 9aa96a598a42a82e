"""What mkdocs takes into the site from elsewhere: texts of the repository, tables, MathJax."""

import inspect
import pathlib
import re
import sys

import jupyter_server_mathjax
import yaml
from mkdocs.structure.files import File

import tfsymadj

ROOT = pathlib.Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tools"))
from notebooks import FOLDER, as_notebook, as_page  # noqa: E402 - beside this file

MATHJAX = pathlib.Path(jupyter_server_mathjax.__file__).parent / "static"
#: Parts of MathJax that no page asks for.
UNUSED = ("localization", "jax/output/SVG", "extensions/a11y", "fonts/HTML-CSS/STIX-Web/otf")

#: Pages that are texts of the repository, which are read there, too.
TEXTS = {
    "changelog.md": "CHANGELOG.md",
    "contributing.md": "CONTRIBUTING.md",
    "benchmarks.md": "benchmarks/README.md",
    "examples.md": "examples/README.md",
}
#: Where links of these texts lead to in the site.
TARGETS = {
    "../docs/": "",
    "docs/": "",
    "benchmarks/README.md": "benchmarks.md",
    "examples/README.md": "examples.md",
}


def on_config(config):
    config.copyright = f"tfsymadj {tfsymadj.__version__}, Apache-2.0, the tfsymadj authors"
    for name in tfsymadj.__all__:
        show_decorated(getattr(tfsymadj, name))
    if (ROOT / "docs" / "gpu.md").exists():  # where `make gpu-check` was run
        config.nav[-1]["Project"].insert(1, {"On a GPU": "gpu.md"})
    return config


def show_decorated(function):
    """The reference looks through decorators; what they make of signature and text is shown."""
    inner = inspect.unwrap(function) if inspect.isfunction(function) else function
    if inner is not function:
        inner.__doc__, inner.__signature__ = function.__doc__, inspect.signature(function)


def on_files(files, config):
    for page, text in TEXTS.items():
        content = with_links_to_pages((ROOT / text).read_text())
        if page == "benchmarks.md":
            content, tables = with_data(content)
            for name, rows in tables.items():
                files.append(File.generated(config, f"data/{name}", content=rows))
        files.append(File.generated(config, page, content=content))
    for path in sorted(FOLDER.glob("*.py")):
        script, name = path.read_text(encoding="utf-8"), f"notebooks/{path.stem}"
        files.append(File.generated(config, f"{name}.md", content=as_page(script, path.stem)))
        files.append(File.generated(config, f"{name}.ipynb", content=as_notebook(script)))
    citation = (ROOT / "CITATION.cff").read_text()
    files.append(File.generated(config, "CITATION.cff", content=citation))
    yaml.safe_load(citation)  # a file that is offered should be one
    for path in MATHJAX.rglob("*"):
        name = path.relative_to(MATHJAX).as_posix()
        if path.is_file() and not name.startswith(UNUSED):
            files.append(File.generated(config, f"mathjax/{name}", abs_src_path=str(path)))
    return files


def with_links_to_pages(text):
    """The text with links between files of the repository turned into those between pages."""

    def target(found):
        link = found[2]
        for start, page in TARGETS.items():
            if link.startswith(start):
                link = page + link.removeprefix(start)
                break
        return f"{found[1]}({link})"

    return re.sub(r"(\[[^\]]*\])\(([^)\s]+)\)", target, text)


def with_data(text):
    """The text with a link below each table of numbers, and the tables as CSV by name."""
    tables, lines, rows, section, ahead = {}, [], [], "", text.splitlines() + [""]
    for line in ahead:
        if line.startswith("## "):
            section = re.sub(r"\W+", "_", line[3:].partition(":")[0].replace("`", "")).strip("_")
        if line.startswith("|"):
            rows.append([cell.strip() for cell in line.strip("|").split("|")])
        elif rows:
            if any(re.match(r"[\d.]", cell) for row in rows[2:] for cell in row[1:]):
                number = sum(name.startswith(section) for name in tables) + 1
                name = f"{section}_{number}.csv"
                tables[name] = as_csv([rows[0], *rows[2:]])
                lines += ["", f"[This table as CSV](data/{name})"]
            rows = []
        lines.append(line)
    return "\n".join(lines), tables


def as_csv(rows):
    cells = [[cell.replace("`", "").replace('"', '""') for cell in row] for row in rows]
    return "".join(",".join(f'"{cell}"' for cell in row) + "\n" for row in cells)
