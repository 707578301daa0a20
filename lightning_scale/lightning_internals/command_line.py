"""The parsers of LightningCLI and jsonargparse, as far as the command looks into them or adds to them."""

from __future__ import annotations

from typing import Any

from lightning.pytorch.cli import LightningArgumentParser, LightningCLI

from lightning_scale.lightning_internals import names

Added = dict[str, tuple[Any, str]]
"""Classes that a parser has options of, by key: the class, or a tuple of base classes, and what it is linked to."""


def optimizers_added(parser: LightningArgumentParser) -> Added:
    """The optimizers that a parser has options of."""
    names.check(names.COMMAND_PARSER, parser)
    return parser._optimizers


def schedulers_added(parser: LightningArgumentParser) -> Added:
    """The schedulers that a parser has options of."""
    names.check(names.COMMAND_PARSER, parser)
    return parser._lr_schedulers


def automatic(added: Added) -> list[tuple[str, Any]]:
    """Those that the command builds itself, for they are linked to nothing: key, and class or tuple of base classes."""
    return [(key, kind) for key, (kind, link_to) in added.items() if link_to == "AUTOMATIC"]


def add_subcommand(
    cli: LightningCLI, parser: LightningArgumentParser, name: str, subparser: LightningArgumentParser, help: str
) -> None:
    """Add a subcommand beside Lightning's, which are there already."""
    names.check(names.COMMAND, cli)
    names.check(names.PARSER, parser)
    cli._subcommand_parsers[name] = subparser
    subcommands: Any = parser._subcommands_action
    names.check(names.SUBCOMMANDS, subcommands)
    subcommands.add_subcommand(name, subparser, help=help)


def option_names(parser: Any) -> list[str]:
    """Every option of a parser and of its subcommands."""
    names.check(names.PARSER, parser)
    found = []
    for action in parser._actions:
        found.append(action.dest)
        for subparser in action.choices.values() if isinstance(action.choices, dict) else ():
            found += option_names(subparser)
    return found
