"""For the reference: examples of docstrings as their own section.

The package writes `Example:`, a blank line and a session at the same indentation, as Keras does;
the reader of Google's style wants `Examples:` and the session indented below it.
"""

import re
import textwrap

import griffe


class Examples(griffe.Extension):
    """Rewrites the examples of all docstrings."""

    def on_object(self, *, obj, **kwargs):
        if obj.docstring:
            obj.docstring.value = with_sections(obj.docstring.value)


#: The title, and a paragraph that is a session.
EXAMPLE = re.compile(r"^Example:\n\n(>>>.*\n(?:.+\n)*)", re.MULTILINE)


def with_sections(text):
    def section(found):
        return "Examples:\n" + textwrap.indent(found[1], "    ")

    return EXAMPLE.sub(section, text + "\n").rstrip("\n")
