"""Train a small BERT in several ways and put them beside each other: stages, 8-bit moments, ZeRO-2, cut batches, a kill."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

from tqdm import tqdm

from examples.comparisons.catalogue import COMPARISONS, VOCABULARY, ZERO, Comparison
from examples.comparisons.curves import read
from examples.comparisons.fits import Run, do_all, runs_of
from examples.comparisons.table import LEGEND, table
from examples.cores import cores
from lightning_scale.errors import ConfigurationError

_TEXT = "runs/comparisons/text"  # as the configurations have it
_VALIDATION_SHARE = 0.15


def main(arguments: Sequence[str] | None = None) -> None:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m examples.comparisons", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"{', '.join(COMPARISONS)}; all where none is named")
    parser.add_argument("--dir", type=Path, default=Path("runs/comparisons"), help="where the runs and the report go")
    parser.add_argument("--quick", action="store_true", help="a few steps and one seed: it shows that everything works")
    parser.add_argument("--cores", type=int, default=cores(), help="processes at once")
    options = parser.parse_args(arguments)
    for name in options.names:
        if name not in COMPARISONS:
            parser.error(f"there is no comparison {name!r}: write {', '.join(COMPARISONS)}")
    if options.cores < 1:
        parser.error(f"--cores is {options.cores}: write a whole number of at least 1")
    chosen = [COMPARISONS[name] for name in options.names or COMPARISONS]
    if options.quick:
        chosen = [comparison for comparison in chosen if comparison.quick]
    if ZERO in chosen and find_spec("deepspeed") is None:
        print("DeepSpeed is not installed: zero is left out.", file=sys.stderr)
        chosen.remove(ZERO)
    try:
        print(compare(chosen, options.dir.absolute(), options.cores, options.quick))
    except ConfigurationError as error:
        parser.exit(2, f"comparisons: {error}\n")
    except KeyboardInterrupt:
        parser.exit(130, "\nstopped; the same command goes on where it was\n")


def compare(comparisons: Sequence[Comparison], folder: Path, cores: int, quick: bool = False) -> str:
    """Do what is missing and write ``<name>.png`` and ``table.md`` into the folder; return the table."""
    from examples.bert import prepared

    prepared.prepare(_TEXT, None, VOCABULARY, _VALIDATION_SHARE)  # once, and not by several runs at the same time
    runs = {comparison.name: runs_of(comparison, folder, quick) for comparison in comparisons}
    everything = [run for some in runs.values() for run in some]
    due = [run for run in everything if not run.done()]
    with tqdm(total=len(everything), initial=len(everything) - len(due), desc="runs", unit="run") as bar:

        def finished(run: Run) -> None:
            bar.set_postfix_str(f"{run.comparison}, {run.variant.name}, seed {run.seed}", refresh=False)
            bar.update()

        do_all(due, cores, finished)
    text = "\n".join([*(_report(comparison, runs[comparison.name], folder) for comparison in comparisons), LEGEND])
    (folder / "table.md").write_text(text)
    return f"\n{text}\npictures: " + ", ".join(str(folder / f"{comparison.name}.png") for comparison in comparisons)


def _report(comparison: Comparison, runs: Sequence[Run], folder: Path) -> str:
    from examples.comparisons.picture import draw

    curves = {
        variant.name: {run.seed: read(run.folder / "report.csv") for run in runs if run.variant == variant}
        for variant in comparison.variants
    }
    draw(comparison, curves, folder / f"{comparison.name}.png")
    return table(comparison, curves)


if __name__ == "__main__":
    main()
