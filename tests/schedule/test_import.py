from __future__ import annotations

import subprocess
import sys

import lightning_scale.schedule as schedule


def test_nothing_but_the_standard_library_is_imported() -> None:
    code = (
        "import sys; before = set(sys.modules); import lightning_scale.schedule;"
        " print(*sorted({name.split('.')[0] for name in set(sys.modules) - before}))"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    imported = set(run.stdout.split())
    assert "lightning_scale" in imported
    assert imported - sys.stdlib_module_names == {"lightning_scale"}


def test_nothing_of_ours_outside_the_schedule_is_imported() -> None:
    code = "import sys, lightning_scale.schedule; print(*[n for n in sys.modules if n.startswith('lightning_scale.')])"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert {name.split(".")[1] for name in run.stdout.split()} == {"schedule"}


def test_public_names_exist() -> None:
    assert len(schedule.__all__) == len(set(schedule.__all__))
    for name in schedule.__all__:
        assert getattr(schedule, name) is not None
