"""The parsers of LightningCLI and jsonargparse, as far as the command looks into them or adds to them."""

from __future__ import annotations

from typing import Any

from lightning.pytorch.cli import LightningArgumentParser, LightningCLI

from lightning_scale.lightning_internals import names


def optimizers_added(parser: LightningArgumentParser) -> bool:
    """Whether a subclass of the command has given the parser an optimizer's options itself."""
    names.check(names.COMMAND_PARSER, parser)
    return bool(parser._optimizers)


def schedulers_added(parser: LightningArgumentParser) -> bool:
    """Whether a subclass of the command has given the parser a scheduler's options itself."""
    names.check(names.COMMAND_PARSER, parser)
    return bool(parser._lr_schedulers)


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
