"""Other tests' environment has none of the packages, and these are not collected there."""

from __future__ import annotations

from importlib.util import find_spec

collect_ignore_glob = [] if find_spec("pytorch_forecasting") else ["test_*.py"]
