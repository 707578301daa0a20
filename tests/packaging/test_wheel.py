"""The wheel, in an environment that has nothing else of ours: the command, the fragments, from another folder."""

from __future__ import annotations

import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]
CONFIG = {
    "seed_everything": 0,
    "model": {"class_path": "lightning.pytorch.demos.boring_classes.BoringModel"},
    "optimizer": {"class_path": "lightning_scale.optim.LAMB"},
    "trainer": {
        "accelerator": "cpu",
        "max_steps": 2,
        "max_epochs": -1,
        "limit_val_batches": 0,
        "enable_progress_bar": False,
        "enable_checkpointing": False,
        "logger": {"class_path": "lightning.pytorch.loggers.CSVLogger", "init_args": {"save_dir": "logs"}},
    },
}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder), str(ROOT)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    (built,) = folder.glob("*.whl")
    return built


def test_what_is_in_it(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    assert "lightning_scale/py.typed" in names
    for folder in ("callbacks", "strategies"):
        for path in (ROOT / folder).iterdir():
            assert f"lightning_scale/fragments/{folder}/{path.name}" in names
    assert not [n for n in names if n.startswith(("tests", "examples", "callbacks"))]
    assert any(n.endswith("licenses/LICENSE") for n in names)


@pytest.mark.timeout(300)
def test_the_command_finds_its_fragments_from_another_folder(wheel: Path, tmp_path: Path) -> None:
    home = tmp_path / "environment"
    venv.create(home, with_pip=False)
    python = home / "bin/python"
    site = next((home / "lib").glob("python*/site-packages"))
    install = [sys.executable, "-m", "pip", "--python", str(python), "install", "--no-deps", "--no-index", str(wheel)]
    subprocess.run(install, check=True, capture_output=True, timeout=120)
    # Dependencies are those of this environment, found by path: path files there (an editable install) do not count.
    (site / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")

    work = tmp_path / "work"
    work.mkdir()
    (work / "run.yaml").write_text(yaml.safe_dump(CONFIG))
    command = [str(home / "bin/lightning-scale"), "fit", "--config", "run.yaml"]
    command += ["--config", "callbacks/trust_ratio_monitor.yaml", "--config", "callbacks/gradient_accumulation.yaml"]
    batch = "--trainer.callbacks.init_args.batch_size=4"  # of the last callback
    done = subprocess.run([*command, batch], cwd=work, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr[-3000:]
    (metrics,) = work.rglob("metrics.csv")
    assert "trust_ratio/layer.weight" in metrics.read_text()
    where = subprocess.run(
        [str(python), "-c", "import lightning_scale; print(lightning_scale.__file__)"],
        cwd=work,
        capture_output=True,
        text=True,
        check=True,
    )
    assert str(home) in where.stdout
