"""Several processes train one run together."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from smarttrim_cli.cli.app import app
from smarttrim_cli.engine.devices import several_on_cpu
from smarttrim_cli.engine.runs import Run
from tests.engine.test_steering import GUIDED
from tests.engine.tiny_run import metrics

ROOT = Path(__file__).resolve().parents[2]
_SCRIPT = f"""
import sys
from pathlib import Path
import torch.distributed
from smarttrim_cli.engine.finetune import finetune
from tests.engine.tiny_run import tiny_recipe
torch.set_num_threads(1)
finetune(tiny_recipe(Path(sys.argv[1]), *{GUIDED!r}))
assert torch.distributed.get_world_size() == 2
"""


def test_torchrun_without_a_gpu(tmp_path: Path) -> None:
    """With all that is done between processes: solved threshold, guidance, shift of the warm start."""
    script = tmp_path / "run.py"
    script.write_text(_SCRIPT, encoding="utf-8")
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    own = {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(
        [*launch, str(script), str(tmp_path)],
        env={**os.environ, **own},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=500,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    rows = [row for row in metrics(tmp_path / "run") if "macs_ratio" in row]
    assert len(rows) == len({row["step"] for row in rows}), "each step is logged once"
    assert rows[-1]["step"] == 12 and abs(rows[-1]["macs_ratio"] - 1 / 1.4) < 0.1
    assert Run(tmp_path / "run").summary()["steps"] == 12


@pytest.mark.parametrize(("rank", "said"), [("0", True), ("1", False)])
def test_the_result_is_printed_once(rank: str, said: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("smarttrim_cli.engine.finetune.finetune", lambda *args, **kwargs: {"steps": 3})
    monkeypatch.setenv("RANK", rank)
    done = CliRunner().invoke(app, ["finetune", "quickstart", "--json"])
    assert done.exit_code == 0, done.output
    assert bool(done.stdout.strip()) is said


@pytest.mark.parametrize(("size", "several"), [("1", False), ("2", True)])
def test_one_process_is_not_several(size: str, several: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", size)
    monkeypatch.setattr("torch.accelerator.current_accelerator", lambda check_available: None)
    assert several_on_cpu() is several
