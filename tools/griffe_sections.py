"""For the reference: the sections of docstrings that the reader of Google's style does not know.

The package writes `Example:`, a blank line and a session at the same indentation, and `Call
arguments:` and `Output shape:`, all as Keras does.
"""

import re
import textwrap

import griffe


class Sections(griffe.Extension):
    """Rewrites such sections in all docstrings."""

    def on_object(self, *, obj, **kwargs):
        if obj.docstring:
            obj.docstring.value = with_sections(obj.docstring.value)


#: The title, and a paragraph that is a session.
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
