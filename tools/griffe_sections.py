"""For the reference: sections that the reader of Google's style does not know, and links.

The package writes `Example:`, a blank line and lines of the interpreter at the same indentation,
and `Call arguments:` and `Output shape:`, all as Keras does. Names of the package in backquotes
become links to their entries.
"""

import pathlib
import re
import textwrap

import griffe


class Sections(griffe.Extension):
    """Rewrites such sections and names in all docstrings."""

    def on_object(self, *, obj, **kwargs):
        if obj.docstring:
            obj.docstring.value = with_links(with_sections(obj.docstring.value), obj.name)


#: The title, and a paragraph that begins with the interpreter's prompt.
EXAMPLE = re.compile(r"^Example:\n\n(>>>.*\n(?:.+\n)*)", re.MULTILINE)
#: The title, and what is indented below it.
OTHERS = re.compile(
    r"^(Call arguments|Output shape|Keywords of .*):\n((?:    .*\n)+)", re.MULTILINE
)
ENTRY = re.compile(r"^(\w+): ", re.MULTILINE)


def with_sections(text):
    def examples(found):
        return "Examples:\n" + textwrap.indent(found[1], "    ")

    def others(found):
        entries = textwrap.dedent(found[2])
        return f"**{found[1]}:**\n\n" + ENTRY.sub(r"* **`\1`** – ", entries)

    return OTHERS.sub(others, EXAMPLE.sub(examples, text + "\n")).rstrip("\n")


def _entries():
    """The entries of the reference by the names that docstrings use for them."""
    pages = pathlib.Path(__file__).parents[1] / "docs" / "api"
    text = "".join(path.read_text() for path in pages.glob("*.md"))
    found = {}
    for path in re.findall(r"^::: (\S+)", text, re.MULTILINE):
        *rooms, name = path.split(".")
        if name[0].isupper():  # a small one may be a method or an argument
            found[name] = path
        found[".".join([*(room for room in rooms if room != name), name])] = path
    return found


ENTRIES = _entries()
NAME = re.compile(r"(?<!`)`([\w.]+)`(?!`)")


def with_links(text, own):
    def link(found):
        path = ENTRIES.get(found[1])
        return found[0] if path is None or found[1] == own else f"[{found[0]}][{path}]"

    return NAME.sub(link, text)
