"""What the tests have seen of each package, kept for the page."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

FILE = Path(__file__).parents[2] / "build" / "clients.json"


def note(package: str, **values: Any) -> None:
    """Add to what is known of a package."""
    seen = json.loads(FILE.read_text()) if FILE.exists() else {}
    seen.setdefault(package, {}).update(values)
    FILE.parent.mkdir(exist_ok=True)
    FILE.write_text(json.dumps(seen, indent=1))
