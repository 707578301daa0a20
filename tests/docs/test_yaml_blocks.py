"""The YAML that pages show is taken by the command, beside a model and data, and its optimizer is built."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import yaml

from lightning_scale.cli import ScaleCLI
from tests.cli.test_cli import BASE
from tests.distributed.meshes import FSDP2
from tests.docs.pages import PAGES, Block, blocks

YAML = [block for page in PAGES for block in blocks(page, "yaml")]


@pytest.mark.parametrize("block", YAML, ids=lambda block: block.name)
def test_yaml_blocks_are_taken(block: Block, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if "ZeRO" in block.text:
        pytest.importorskip("deepspeed", reason="DeepSpeed is not installed")
    if "FSDP2" in block.text and not FSDP2:
        pytest.skip("FSDP2Strategy needs torch 2.7")
    monkeypatch.chdir(tmp_path)
    base = copy.deepcopy(BASE)
    base["trainer"]["max_steps"] = -1
    shown = yaml.safe_load(block.text)
    if "optimizer" in shown:
        del base["optimizer"]
    for file, content in (("base.yaml", yaml.safe_dump(base)), ("shown.yaml", block.text)):
        Path(file).write_text(content)
    cli = ScaleCLI(args=["--config", "base.yaml", "--config", "shown.yaml"], run=False)

    if "optimizer" in shown:
        cli.model.configure_model()
        built = cli.model.configure_optimizers()
        optimizer = built["optimizer"] if isinstance(built, dict) else built
        assert type(optimizer).__name__ == shown["optimizer"]["class_path"].split(".")[-1]
    trainer = shown.get("trainer", {})
    there = {type(callback).__name__ for callback in cli.trainer.callbacks}
    for entry in trainer.get("callbacks+", trainer.get("callbacks", [])):
        path = entry if isinstance(entry, str) else entry["class_path"]
        assert path.split(".")[-1] in there
    if "strategy" in trainer:
        assert type(cli.trainer.strategy).__name__ == trainer["strategy"]["class_path"].split(".")[-1]


def test_pages_show_yaml() -> None:
    assert len(YAML) > 10
