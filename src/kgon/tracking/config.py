"""What loggers show of a job's settings."""

from typing import Any

_LOGGED_DEPTH = 3


def logged(settings: dict[str, Any]) -> dict[str, Any]:
    """Settings, as config.yaml has them, for a logger: each value once, three levels at most.

    References are left out. A deeper dict becomes a string: the class name if it is an object, else
    its text.
    """

    def below(node: dict[str, Any], depth: int) -> dict[str, Any]:
        kept = {}
        for name, value in node.items():
            if isinstance(value, dict):
                value = below(value, depth + 1)
                if value and depth >= _LOGGED_DEPTH:
                    value = value.get("_target_", str(value))
            if value != {} and not (isinstance(value, str) and "${" in value):
                kept[name] = value
        return kept

    return below(settings, 1)
