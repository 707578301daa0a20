"""One sentence out of a parser's page."""

from __future__ import annotations


def sentence(message: str) -> str:
    """What matters of a parser's nested message: the most specific line, and where in the configuration it is.

    Args:
        message: As jsonargparse or a class's constructor wrote it; one-line messages come back as they are.
    """
    lines = [line.strip(" -\t") for line in message.strip().splitlines() if line.strip(" -\t")]
    return lines[0] if lines else "the configuration cannot be used."
