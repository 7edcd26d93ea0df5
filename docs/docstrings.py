"""A griffe extension: one text for several parameters, "alpha, beta: ...", is the text of each."""

import re

from griffe import Extension

_SEVERAL = re.compile(r"(?P<indent> +)(?P<names>\w+(?:, \w+)+)(?P<text>: .*(?:\n(?P=indent) +.*)*)")


class Several(Extension):
    def on_instance(self, *, obj, **_):
        if obj.docstring:
            obj.docstring.value = _SEVERAL.sub(_each, obj.docstring.value)


def _each(match):
    return "\n".join(
        f"{match['indent']}{name}{match['text']}" for name in match["names"].split(", ")
    )
