"""``python -m lightning_scale.cli`` is the ``lightning-scale`` command."""

from __future__ import annotations

from lightning_scale.cli.command import main

if __name__ == "__main__":
    main()
