"""Several processes train one run together."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from typer.testing import CliRunner

from smarttrim_cli.cli.app import app
from smarttrim_cli.engine.devices import several_on_cpu
from smarttrim_cli.engine.evaluate import evaluate
from smarttrim_cli.engine.finetune import finetune
from smarttrim_cli.engine.runs import Run
from smarttrim_cli.engine.sharing import Share, leave_group
from smarttrim_cli.errors import UserError
from tests.engine.test_steering import GUIDED
from tests.engine.tiny_run import metrics, tiny_recipe, tree

ROOT = Path(__file__).resolve().parents[2]
_SCRIPT = f"""
import sys
from pathlib import Path
import torch.distributed
from smarttrim_cli.engine.finetune import finetune
from smarttrim_cli.engine.trainer import Trainer
from tests.engine.tiny_run import tiny_recipe
torch.set_num_threads(1)
train = Trainer.train

def told(trainer):
    print(f"process draws {{torch.rand(()).item()}}", flush=True)
    train(trainer)

Trainer.train = told
finetune(tiny_recipe(Path(sys.argv[1]), *{GUIDED!r}))
assert torch.distributed.get_world_size() == 2
"""


_ONE_FAILS = """
import os, sys
from pathlib import Path
from smarttrim_cli.engine import ending
from smarttrim_cli.engine.finetune import finetune
from smarttrim_cli.errors import SmartTrimError
from smarttrim_cli.tasks.vqa import VqaTask
from tests.engine.tiny_run import tiny_recipe

def broken(*args):
    raise SmartTrimError("an image is damaged")

if os.environ["RANK"] == "1":
    setattr(*{"calibrate": (ending, "calibrate"), "score": (VqaTask, "predict")}[sys.argv[2]], broken)
try:
    removal = "pruning.calibrate={remove_unprofitable: true, call_macs: 1.0e+4}"
    finetune(tiny_recipe(Path(sys.argv[1]), "train.max_steps=2", "evaluate.max_instances=8", removal))
except SmartTrimError as error:
    print(f"process {os.environ['RANK']}: {error.message}", flush=True)
    os._exit(0)  # torch's threads abort one in ten processes that end after an error, which is said by then
"""


_STOPS = """
import os, signal, sys
from pathlib import Path
from smarttrim_cli.engine.finetune import finetune
from smarttrim_cli.engine.stopping import Stopped
from smarttrim_cli.engine.trainer import Trainer
from smarttrim_cli.errors import SmartTrimError, UserError
from tests.engine.tiny_run import tiny_recipe

one = os.environ["RANK"] == "1"
what, at = sys.argv[2], int(sys.argv[3])
next_batch, seen = Trainer.next_batch, []

class Bad:
    def __next__(self):
        raise UserError("an image is damaged")

def amid(trainer, loader):
    seen.append(loader)
    if one and len(seen) == at and what == "signal":
        signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGTERM)  # as a launcher would pass it on
    if one and len(seen) == at and what == "loss":
        next(trainer.objective.parameters()).data.fill_(float("nan"))
    return next_batch(trainer, Bad() if one and len(seen) == at and what == "sample" else loader)

Trainer.next_batch = amid
try:
    finetune(tiny_recipe(Path(sys.argv[1]), *sys.argv[4:]))
except Stopped as stopped:
    print(f"process {os.environ['RANK']}: {stopped.exit_code}", flush=True)
except SmartTrimError as error:
    print(f"process {os.environ['RANK']}: {error.message}", flush=True)
os._exit(0)  # torch's threads abort one in ten processes that end after an error, which is said by then
"""


_RESUMES = """
import shutil, sys
from pathlib import Path
import torch
from smarttrim_cli.engine import validation
from smarttrim_cli.engine.finetune import finetune
from smarttrim_cli.engine.inference import batches
from tests.engine.tiny_run import tiny_recipe

predict = validation.predict

def both(bundle, loader, modes, *rest, share):
    results = predict(bundle, loader, modes, *rest, share=share)
    whole = predict(bundle, batches(bundle, bundle.task.split_name("eval"), 3, 8), modes, *rest)
    said, alone = (
        [[(r["id"], r["prediction"], r["score"]) for r in one[modes[0]].records], one[modes[0]].macs]
        for one in (results, whole)
    )
    own = f"process {share.rank} of {share.count}: {len(loader.dataset)}"
    print(f"{own}, the same as alone: {said == alone}", flush=True)
    return results

validation.predict = both
folder = Path(sys.argv[1])
settings = ("train.max_steps=5", "train.save_steps=3", "logging.logging_steps=2", "evaluate.max_instances=8")
finetune(tiny_recipe(folder, *settings))
if torch.distributed.get_rank() == 0:
    shutil.copytree(folder / "run", folder / "whole")
torch.distributed.barrier()
torch.manual_seed(999)
finetune(tiny_recipe(folder, *settings), resume=str(folder / "run/checkpoints/step-3"))
"""


def launched(*arguments: str, where: Path) -> str:
    """What two processes say on standard output: each into a file of its own, so that no lines mix."""
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    launch += ["--redirects=1", f"--log-dir={where / 'said'}"]
    own = {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(
        [*launch, *arguments],
        env={**os.environ, **own},
        cwd=where,
        capture_output=True,
        text=True,
        timeout=500,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    said = sorted((where / "said").rglob("stdout.log"))
    assert len(said) == 2
    return "".join(path.read_text(encoding="utf-8") for path in said)


BAD_SAMPLE = ["another process could not load its samples", "an image is damaged"]
WARM = (*GUIDED, "strategy.guidance_warmup.steps=8")


def test_torchrun_without_a_gpu(tmp_path: Path) -> None:
    """With all that is done between processes: solved threshold, guidance, shift of the warm start."""
    script = tmp_path / "run.py"
    script.write_text(_SCRIPT, encoding="utf-8")
    said = launched(str(script), str(tmp_path), where=tmp_path)
    draws = [line for line in said.splitlines() if "process draws" in line]
    assert len(draws) == len(set(draws)) == 2, "noise is not the same in both"
    rows = [row for row in metrics(tmp_path / "run") if "macs_ratio" in row]
    assert len(rows) == len({row["step"] for row in rows}), "each step is logged once"
    assert rows[-1]["step"] == 12 and abs(rows[-1]["macs_ratio"] - 1 / 1.4) < 0.1
    assert Run(tmp_path / "run").summary()["steps"] == 12


@pytest.mark.parametrize(
    ("what", "others"), [("calibrate", "calibrate the budget"), ("score", "run its part of the split")]
)
def test_an_end_that_fails_in_one_process_stops_all(what: str, others: str, tmp_path: Path) -> None:
    """The others do not wait for it, and what was trained is kept."""
    script = tmp_path / "run.py"
    script.write_text(_ONE_FAILS, encoding="utf-8")
    said = launched(str(script), str(tmp_path), what, where=tmp_path)
    assert "process 1: an image is damaged" in said
    assert f"process 0: another process could not {others}" in said
    weights = load_file(str(tmp_path / "run/checkpoints/step-2/weights.safetensors"))
    trimmers = {name.split(".")[2] for name in weights if name.startswith("model.trimmers.")}
    assert len(trimmers) == 14  # with those that the other process had taken out
    assert (tmp_path / "run/model").exists() is (what == "score")


@pytest.mark.parametrize(
    ("what", "at", "settings", "said", "kept"),
    [
        ("signal", 3, (), ["143", "143"], "step-3"),
        ("sample", 4, (), BAD_SAMPLE, "step-3"),
        ("sample", 4, WARM, BAD_SAMPLE, "warmup-3"),
        (
            "loss",
            3,
            ("train.save_steps=2",),
            ["training has diverged: the loss is nan at step 3"] * 2,
            "step-2",
        ),
    ],
    ids=["signal", "sample", "sample in the warm start", "loss"],
)
def test_what_stops_one_process_stops_all_with_a_checkpoint(
    what: str, at: int, settings: tuple[str, ...], said: list[str], kept: str, tmp_path: Path
) -> None:
    script = tmp_path / "run.py"
    script.write_text(_STOPS, encoding="utf-8")
    output = launched(str(script), str(tmp_path), what, str(at), *settings, where=tmp_path)
    assert all(f"process {rank}: {message}" in output for rank, message in enumerate(said)), output
    assert [path.name for path in (tmp_path / "run/checkpoints").iterdir()] == [kept]
    state = torch.load(tmp_path / "run/checkpoints" / kept / "state.pt", weights_only=True)
    assert len(state["random"]) == 2


def test_processes_resume_bit_identically(tmp_path: Path) -> None:
    """A checkpoint between two lines of the log; with another number of processes it is refused."""
    script = tmp_path / "run.py"
    script.write_text(_RESUMES, encoding="utf-8")
    said = launched(str(script), str(tmp_path), where=tmp_path)
    for rank in (0, 1):
        assert f"process {rank} of 2: 4, the same as alone: True" in said
    rows = [approximately(row) for row in metrics(tmp_path / "whole")]  # sums of means are rounded
    assert metrics(tmp_path / "run") == rows
    assert tree(tmp_path / "run/model") == tree(tmp_path / "whole/model")
    before = tree(tmp_path / "run")
    with pytest.raises(UserError, match="from a run of 2 processes, this one has 1"):
        finetune(tiny_recipe(tmp_path, "train.max_steps=5"), resume=str(tmp_path / "run/checkpoints/step-3"))
    assert tree(tmp_path / "run") == before


def test_processes_evaluate_their_parts(trained: Path, tmp_path: Path) -> None:
    """The report is that of one process, whose batches are others."""
    shutil.copytree(trained, tmp_path / "run")
    said = launched(
        *("-m", "smarttrim_cli", "evaluate", str(tmp_path / "run"), "evaluate.batch_size=4", "--json"),
        *("--baseline", "random", "--predictions-out", str(tmp_path / "two.jsonl")),
        where=tmp_path,
    )
    two = json.loads(said)
    one = evaluate(
        str(tmp_path / "run"),
        overrides=["evaluate.batch_size=4"],
        baselines=["random"],
        predictions_out=tmp_path / "one.jsonl",
    )
    assert two == approximately(json.loads(json.dumps(one)))
    assert {"relevance", "difficulty", "baselines"} <= two.keys()
    ids = [
        [json.loads(line)["id"] for line in (tmp_path / file).open()] for file in ("one.jsonl", "two.jsonl")
    ]
    assert ids[0] == ids[1] and len(ids[0]) == two["count"]


def test_a_group_is_left(tmp_path: Path) -> None:
    leave_group()  # outside of one there is nothing to do
    meeting = f"file://{tmp_path / 'meeting'}"
    torch.distributed.init_process_group("gloo", init_method=meeting, rank=0, world_size=1)
    leave_group()
    assert not torch.distributed.is_initialized()


def approximately(value: Any) -> Any:
    """Numbers up to rounding, at any depth."""
    if isinstance(value, dict):
        return {key: approximately(inner) for key, inner in value.items()}
    return pytest.approx(value, rel=1e-6) if isinstance(value, float) else value


def test_a_share_is_a_part_in_order() -> None:
    dataset: Any = list(range(7))
    parts = [list(Share(rank, 3, torch.device("cpu")).part(dataset)) for rank in range(3)]
    assert parts == [[0, 1], [2, 3], [4, 5, 6]]
    assert list(Share(0, 1, torch.device("cpu")).part(dataset)) == dataset
    assert [len(list(Share(rank, 9, torch.device("cpu")).part(dataset))) for rank in range(9)].count(0) == 2


def test_what_is_not_in_parts_is_run_by_the_first(monkeypatch: pytest.MonkeyPatch, trained: Path) -> None:
    """Tasks in two stages; the others have nothing to do, and say nothing."""
    monkeypatch.setattr(
        "smarttrim_cli.engine.evaluate.share_of_this_process", lambda: Share(1, 2, torch.device("cpu"))
    )
    monkeypatch.setattr("smarttrim_cli.tasks.vqa.VqaTask.two_stage", True, raising=False)
    before = (trained / "summary.json").read_bytes()
    assert evaluate(str(trained)) == {}
    assert (trained / "summary.json").read_bytes() == before


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
