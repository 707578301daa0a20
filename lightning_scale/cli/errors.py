"""Whose error it is: one sentence for a configuration's, out of a parser's page; the traceback for one of somebody's code."""

from __future__ import annotations

import re
import sys
import traceback
from collections.abc import Iterable
from difflib import get_close_matches

from lightning_scale.alias import FLAG
from lightning_scale.errors import two_callbacks

# What a parser lists beside the real reason when a value fits none of a type's alternatives.
_ALTERNATIVES = re.compile(
    r"^(Not a valid subclass of|Subclass types expect one of|a class path \(str\)|a dict with|a dict without"
    r"|Does not validate against|Subtypes:|Errors:|Given value|Expected a path but .* invalid$"
    r"|Expected a (dot import path string|<class '[^']+'>$|typing\.))"
)
_KEY = re.compile(r'^Parser key "([^"]+)":\s*(.*)$')


# What builds classes from configurations, and checks their arguments.
_BUILDING = {*sys.stdlib_module_names, "jsonargparse", "lightning", "lightning_scale", "torch", "yaml"}


def users_own(error: BaseException | None) -> BaseException | None:
    """The error, or the one that it came from, which passed through other code than what builds classes from configurations."""
    while error is not None:
        frames = traceback.walk_tb(error.__traceback__)
        if any(str(f.f_globals.get("__name__")).partition(".")[0] not in _BUILDING for f, _ in frames):
            return error
        error = error.__cause__ or error.__context__
    return None


def raise_users_own(error: BaseException | None) -> None:
    """Raise such an error as its code has raised it: with its traceback, and without what a parser says of it."""
    own = users_own(error)
    if own is not None:
        context = own.__context__
        try:
            raise own
        finally:
            own.__context__ = context


def sentence(message: str, known: Iterable[str] = ()) -> str:
    """What matters of a parser's message: where in the configuration, what was wrong, what to write instead.

    Args:
        message: As jsonargparse or a class's constructor wrote it. One-line messages come back nearly as they are.
        known: Option names the parser knows, to suggest one near a misspelt one.
    """
    keys: list[str] = []
    reason = ""
    for raw in message.splitlines():
        line = raw.strip(" -\t")
        if match := _KEY.match(line):
            keys.append(match[1])
            line = match[2]
        if line and not _ALTERNATIVES.match(line):
            # "Problem with X:" is followed by the problem; anything else is the reason itself.
            reason = f"{reason} {line}".strip()
            if not line.endswith(":"):
                break
    if not reason:
        reason = _what_was_expected(message)
    where = ": ".join(keys)
    return _reworded(f"{where}: {reason}" if where else reason, list(known))


def repeated_callback(message: str) -> str | None:
    """The sentence where Lightning found two callbacks of one type that both have a state; None for another message."""
    match = re.match(r"Found more than one stateful callback of type `(\w+)`", message)
    if match is None:
        return None
    return two_callbacks(match[1])


def _what_was_expected(message: str) -> str:
    """Where a value is of none of the kinds that are taken: these kinds."""
    kinds = [kind.split(".")[-1] for kind in re.findall(r"Expected a <class '([^']+)'>", message) if kind != "NoneType"]
    for choices in re.findall(r"Expected a typing\.Literal\[(.*)\]", message):
        kinds += [choice.strip(" '") for choice in choices.split(",")]
    if "Expected a dot import path string" in message:
        kinds.append("a class path such as package.module.Class")
    given = re.search(r"Given value: (.*)", message)
    got = f", got {given[1].rstrip('>')}" if given else ""
    return f"expected {' or '.join(dict.fromkeys(kinds)) or 'another value (see --help)'}{got}."


def _reworded(text: str, known: list[str]) -> str:
    text = re.sub(r"Expected a <class '([^']+)'>\. Got value: (.*)", r"expected \1, got \2.", text)
    text = re.sub(r"the following arguments are required: (.+)", r"\1 must be given.", text)
    if match := re.search(r"(?:does not accept option|Option) '([^']+)'(?: is not accepted)?", text):
        name = match[1]
        near = get_close_matches(name, known, n=1)
        hint = f"write '{near[0]}'" if near else "see --help for the options there are, or --print_config"
        text = f"{text[: match.start()]}there is no option '{name}': {hint}."
        text = re.sub(r"Subcommand '(\w+)' ", r"\1: ", text)
    if match := re.search(r"Import path pytorch_lightning\.(\S+)", text):
        text += (
            f", for pytorch_lightning's classes are not those of lightning.pytorch: write lightning.pytorch.{match[1]}."
            f" For a package that is not yours give {FLAG}."
        )
    return text
