"""An interrupted and resumed run ends exactly as an uninterrupted one: the same bits."""

from __future__ import annotations

import json
import pickle
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from smarttrim_cli.engine import validation
from smarttrim_cli.engine.finetune import finetune
from smarttrim_cli.engine.scores import score_summary
from smarttrim_cli.engine.stopping import Stopped, Stopping
from smarttrim_cli.engine.trainer import Trainer
from smarttrim_cli.errors import UserError
from tests.engine.tiny_run import Recorder, metrics, recipe_file, tiny_recipe, tree

STEPS = ("train.save_steps=3", "train.eval_steps=4", "logging.logging_steps=2", "train.save_total_limit=9")
CASES: dict[str, tuple[str, ...]] = {
    "dropout and Gumbel noise": (),
    "accumulation, bf16": (
        "train.gradient_accumulation_steps=3",
        "train.per_device_train_batch_size=2",
        "train.mixed_precision=bf16",
    ),
    "cosine, cost of MACs, fast trimmers, no curriculum": (
        "optimizer.lr_scheduler_type=cosine",
        "optimizer.multipliers={trimmers: 100}",
        "strategy.cost_loss.on=macs",
        "strategy.stable_init.enabled=false",
        "strategy.curriculum.enabled=false",
    ),
    "no pruning, epochs, loader in a process": (
        "pruning=null",
        "train.max_steps=null",
        "train.num_train_epochs=0.5",
        "train.per_device_train_batch_size=10",
        "train.dataloader_num_workers=1",
    ),
}


class Interrupted(Exception):
    """Stands for whatever ends a run."""


def interrupted(monkeypatch: pytest.MonkeyPatch, recipe: Any, after: int, resume: str | None = None) -> None:
    """A run that ends in the middle of the step after so many."""
    step = Trainer._step

    def stop(trainer: Trainer, loader: Any) -> dict[str, float]:
        if trainer.progress.step == after:
            step(trainer, loader)
            raise Interrupted
        return step(trainer, loader)

    with monkeypatch.context() as patch, pytest.raises(Interrupted):
        patch.setattr(Trainer, "_step", stop)
        finetune(recipe, resume=resume)


def assert_same_end(first: Path, second: Path) -> None:
    assert metrics(first) == metrics(second)
    for name in ("model", "best", "checkpoints/step-6"):
        one, two = tree(first / name), tree(second / name)
        assert one.keys() == two.keys()
        different = {file for file in one if one[file] != two[file]}
        assert different <= {"state.json"}, name  # which has the seconds that training took


@pytest.fixture(scope="module")
def uninterrupted(settings: None, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Runs by name of the case, made when first asked for."""

    class Runs(dict[str, Path]):
        def __missing__(self, case: str) -> Path:
            folder = tmp_path_factory.mktemp("uninterrupted")
            finetune(tiny_recipe(folder, *STEPS, *CASES[case]))
            self[case] = folder / "run"
            return self[case]

    return Runs()


@pytest.mark.parametrize("case", CASES)
def test_resumed_run_ends_bit_identically(
    case: str, uninterrupted: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = tiny_recipe(tmp_path, *STEPS, *CASES[case])
    reference = uninterrupted[case]
    interrupted(monkeypatch, recipe, after=5)
    assert [path.name for path in (tmp_path / "run/checkpoints").iterdir()] == ["step-3"]
    assert not (tmp_path / "run/model").exists()
    torch.manual_seed(999)  # what a new process starts with is not what matters
    torch.rand(17)
    finetune(recipe, resume="auto")
    assert_same_end(tmp_path / "run", reference)


def test_interrupted_twice_and_in_the_first_steps(
    uninterrupted: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = "dropout and Gumbel noise"
    recipe = tiny_recipe(tmp_path, *STEPS, *CASES[case])
    interrupted(monkeypatch, recipe, after=2)  # no checkpoint yet, but a log: auto begins anew
    interrupted(monkeypatch, recipe, after=4, resume="auto")
    interrupted(monkeypatch, recipe, after=7, resume="auto")
    finetune(recipe, resume=str(tmp_path / "run/checkpoints/step-6"))
    assert_same_end(tmp_path / "run", uninterrupted[case])


def test_seed_matters(uninterrupted: dict[str, Path], tmp_path: Path) -> None:
    """Without it, bit-identity would show nothing."""
    finetune(tiny_recipe(tmp_path, *STEPS, "seed=43"))
    assert metrics(tmp_path / "run") != metrics(uninterrupted["dropout and Gumbel noise"])


KILLED = """
import os, signal, sys
import torch
from smarttrim_cli.engine import checkpoint
from smarttrim_cli.engine.finetune import finetune
from smarttrim_cli.recipe import load_recipe

torch.set_num_threads(1)
write = checkpoint.write_json

def kill_in_the_second(path, content):
    if content["step"] > 3:
        os.kill(os.getpid(), signal.SIGKILL)
    write(path, content)

checkpoint.write_json = kill_in_the_second
finetune(load_recipe(sys.argv[1], sys.argv[2:]))
"""


def test_killed_while_writing_a_checkpoint(uninterrupted: dict[str, Path], tmp_path: Path) -> None:
    run = tmp_path / "run"
    command = [sys.executable, "-c", KILLED, str(recipe_file(tmp_path)), f"output_dir={run}", *STEPS]
    ended = subprocess.run(command, cwd=Path(__file__).parents[2], capture_output=True, text=True)
    assert ended.returncode == -signal.SIGKILL, ended.stderr
    left = sorted(path.name for path in (run / "checkpoints").iterdir())
    assert len(left) == 2 and left[0].startswith(".step-6.") and left[1] == "step-3"
    with (run / "metrics.jsonl").open("a", encoding="utf-8") as file:
        file.write('{"step": 6, "lo')  # a line cut short
    finetune(tiny_recipe(tmp_path, *STEPS), resume="auto")
    assert_same_end(run, uninterrupted["dropout and Gumbel noise"])
    assert not list((run / "checkpoints").glob(".*"))


@pytest.fixture(scope="module")
def stopped_once(settings: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("stopped")
    with pytest.MonkeyPatch.context() as patch:
        interrupted(patch, tiny_recipe(folder, *STEPS), after=4)
    return folder


@pytest.fixture
def stopped(stopped_once: Path, tmp_path: Path) -> Path:
    """A run that was stopped after its checkpoint at step 3."""
    shutil.copytree(stopped_once, tmp_path, dirs_exist_ok=True)
    return tmp_path


def refused(folder: Path, *overrides: str, resume: str = "auto") -> UserError:
    """The error of resuming, which leaves the run as it was."""
    before = tree(folder / "run")
    with pytest.raises(UserError) as caught:
        finetune(tiny_recipe(folder, *STEPS, *overrides), resume=resume)
    assert tree(folder / "run") == before
    return caught.value


def test_other_length_or_model_is_refused(stopped: Path) -> None:
    error = refused(stopped, "train.max_steps=9")
    assert error.message == "the checkpoint is from a run of 8 steps, this one has 9"
    assert error.where and error.where.endswith("step-3")
    error = refused(stopped, "backbone.num_cross_layers=2")
    assert error.message == "the checkpoint is of another recipe: backbone.num_cross_layers is 2 and was 1"
    (stopped / "run/recipe.yaml").unlink()  # then the weights tell
    error = refused(stopped, "backbone.num_cross_layers=2")
    assert "missing: model.backbone.cross_modal_text_layers.1." in error.message
    assert error.where and error.where.endswith("weights.safetensors")


def test_other_recipe_is_refused_by_its_keys(stopped: Path) -> None:
    """The checkpoint's optimizer and data order are those of the recipe that it was trained by."""
    changed = ("seed=9", "optimizer.learning_rate=0.01", "task.data.seed=4")
    error = refused(stopped, *changed)
    assert "seed is 9 and was 42" in error.message and "optimizer.learning_rate is 0.01" in error.message
    assert error.where and error.where.endswith("step-3") and "recipe.yaml --resume" in str(error)
    again = tiny_recipe(stopped, *STEPS, "evaluate.batch_size=3", "train.save_total_limit=5", "description=d")
    finetune(again, resume="auto")  # what training does not depend on may change
    assert (stopped / "run/model/config.json").exists()


SECTIONS = (
    "pruning.target_sparsity={token: {vision: 0.6, text: 0.1}}",
    "optimizer.multipliers={}",
    "optimizer.multipliers={trimmers: 30, head: 5}",
    "strategy.teacher={checkpoint: runs/x}",
)


@pytest.mark.parametrize("section", SECTIONS)
def test_keys_that_come_or_go_are_another_recipe(stopped: Path, section: str) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("smarttrim_cli.engine.trainer.teaching_of", lambda *args: None)
        error = refused(stopped, section)
    assert error.message.startswith("the checkpoint is of another recipe: ") and "not given" in error.message


def test_a_damaged_recipe_is_not_passed_over_and_a_missing_one_is_said(stopped: Path) -> None:
    (stopped / "run/recipe.yaml").write_text("train: [")
    assert "recipe.yaml" in str(refused(stopped))
    (stopped / "run/recipe.yaml").unlink()
    reporter = Recorder()
    finetune(tiny_recipe(stopped, *STEPS), resume=str(stopped / "run/checkpoints/step-3"), reporter=reporter)
    assert any("recipe.yaml is missing" in text for text in reporter.warnings)


def test_other_data_are_refused(stopped: Path) -> None:
    """The same number of samples, in another order."""
    state = stopped / "run/checkpoints/step-3/state.json"
    content = json.loads(state.read_text())
    assert content["data"].split()[0].isdigit()
    state.write_text(json.dumps({**content, "data": content["data"].split()[0] + " 0123456789abcdef"}))
    error = refused(stopped)
    assert "the checkpoint is of other training data: " in error.message and "89abcdef" in error.message


def test_other_answers_are_refused(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As many, in another order: the weights fit, and every class would stand for another answer."""
    answers = json.loads((trained / "model/answers.json").read_text(encoding="utf-8"))
    file = tmp_path / "answers.json"
    file.write_text(json.dumps(answers), encoding="utf-8")
    recipe = tiny_recipe(tmp_path, *STEPS, f"task.answers={file}")
    interrupted(monkeypatch, recipe, after=4)
    file.write_text(json.dumps(list(answers)[::-1]), encoding="utf-8")
    with pytest.raises(UserError, match="was trained with other labels") as caught:
        finetune(recipe, resume="auto")
    assert "task.answers" in str(caught.value.hint)
    file.write_text(json.dumps(list(answers)), encoding="utf-8")  # the same in another form
    finetune(recipe, resume="auto")


def test_another_model_to_start_from_has_to_read_and_say_the_same(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its weights do not count any more, its words and pixels do."""
    other = tmp_path / "other"
    shutil.copytree(trained / "model", other)
    section = "backbone={{name: meter, checkpoint: '{}'}}"
    interrupted(monkeypatch, tiny_recipe(tmp_path, *STEPS, section.format(trained)), after=4)
    tokenizer, pixels = other / "tokenizer.json", other / "preprocessing.json"
    content = json.loads(tokenizer.read_text(encoding="utf-8"))
    words = content["model"]["vocab"]
    words["red"], words["blue"] = words["blue"], words["red"]
    tokenizer.write_text(json.dumps(content), encoding="utf-8")
    settings = json.loads(pixels.read_text(encoding="utf-8"))
    pixels.write_text(json.dumps({**settings, "mean": [0.5, 0.5, 0.5]}), encoding="utf-8")
    recipe = tiny_recipe(tmp_path, *STEPS, section.format(other))
    with pytest.raises(UserError, match="was trained with other tokens and images"):
        finetune(recipe, resume="auto")


def test_a_checkpoint_of_an_older_version_says_nothing_of_labels(stopped: Path) -> None:
    state = stopped / "run/checkpoints/step-3/state.json"
    content = json.loads(state.read_text(encoding="utf-8"))
    assert set(content.pop("meaning")) == {"labels", "tokens", "images"}
    state.write_text(json.dumps(content), encoding="utf-8")
    finetune(tiny_recipe(stopped, *STEPS), resume=str(state.parent))


def test_a_state_of_another_step_is_none_of_the_folder(stopped: Path) -> None:
    state = stopped / "run/checkpoints/step-3/state.json"
    state.write_text(json.dumps({**json.loads(state.read_text()), "step": 5}))
    assert refused(stopped).message == "not the state of a checkpoint"


SIGNALS = {"SIGINT": 130, "SIGTERM": 143, "SIGHUP": 129}


@pytest.fixture
def _heeds_signals() -> Iterator[None]:
    """Also where the tests run under nohup or in a script's background, which a training respects."""
    usual = {signal.SIGHUP: signal.SIG_DFL, signal.SIGINT: signal.default_int_handler}
    before = {number: signal.signal(number, handler) for number, handler in usual.items()}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.usefixtures("_heeds_signals")
@pytest.mark.parametrize("name", SIGNALS)
def test_a_signal_ends_training_with_a_checkpoint(
    name: str, uninterrupted: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = "dropout and Gumbel noise"
    recipe = tiny_recipe(tmp_path, *STEPS, *CASES[case])
    step, before = Trainer._step, signal.getsignal(signal.SIGTERM)

    def signalled(trainer: Trainer, loader: Any) -> dict[str, float]:
        if trainer.progress.step == 4:
            signal.raise_signal(getattr(signal, name))
        return step(trainer, loader)

    reporter = Recorder()
    with monkeypatch.context() as patch, pytest.raises(Stopped) as caught:
        patch.setattr(Trainer, "_step", signalled)
        finetune(recipe, reporter=reporter)
    assert caught.value.exit_code == SIGNALS[name] and signal.getsignal(signal.SIGTERM) is before
    assert (tmp_path / "run/checkpoints/step-5").is_dir() and "--resume auto" in reporter.messages[-1]
    finetune(recipe, resume="auto")
    assert_same_end(tmp_path / "run", uninterrupted[case])


def test_a_second_signal_ends_it_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def signalled(trainer: Trainer, loader: Any) -> dict[str, float]:
        signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGTERM)
        raise AssertionError("went on")

    monkeypatch.setattr(Trainer, "_step", signalled)
    with pytest.raises(Stopped):
        finetune(tiny_recipe(tmp_path, *STEPS))
    assert not (tmp_path / "run/checkpoints").exists()


@pytest.mark.usefixtures("_heeds_signals")
def test_a_handler_that_python_cannot_put_back_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    """One that was not installed from Python, as where a program embeds it, reads as None."""
    known = signal.getsignal
    monkeypatch.setattr(
        signal, "getsignal", lambda number: None if number == signal.SIGTERM else known(number)
    )
    trainer: Any = None
    before = known(signal.SIGTERM), known(signal.SIGINT)
    with Stopping(trainer).listening():
        assert known(signal.SIGTERM) is before[0] and known(signal.SIGINT) is not before[1]
    assert (known(signal.SIGTERM), known(signal.SIGINT)) == before


def test_run_that_has_ended_without_a_checkpoint_is_not_trained_anew(tmp_path: Path) -> None:
    finetune(tiny_recipe(tmp_path, "train.max_steps=2"))
    before = tree(tmp_path / "run")
    with pytest.raises(UserError, match="has ended, and left no checkpoint"):
        finetune(tiny_recipe(tmp_path, "train.max_steps=2", "seed=3"), resume="auto")
    assert tree(tmp_path / "run") == before


def test_run_that_has_ended_does_its_end_again_and_logs_it_once(tmp_path: Path) -> None:
    recipe = tiny_recipe(tmp_path, "train.max_steps=2", "train.save_steps=1", "evaluate.max_instances=8")
    finetune(recipe)
    before = metrics(tmp_path / "run")
    finetune(recipe, resume="auto")
    assert metrics(tmp_path / "run") == before


def test_going_back_removes_what_was_behind(
    uninterrupted: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Later checkpoints of the way that was left are neither kept in place of new ones nor gone on from."""
    case = "dropout and Gumbel noise"
    recipe = tiny_recipe(tmp_path, *STEPS, *CASES[case], "train.save_total_limit=2")
    finetune(recipe)
    checkpoints = tmp_path / "run/checkpoints"
    assert sorted(path.name for path in checkpoints.iterdir()) == ["step-6", "step-8"]
    shutil.copytree(uninterrupted[case] / "checkpoints/step-3", checkpoints / "step-3")
    interrupted(monkeypatch, recipe, after=7, resume=str(checkpoints / "step-3"))
    assert sorted(path.name for path in checkpoints.iterdir()) == ["step-3", "step-6"]
    finetune(recipe, resume="auto")
    assert_same_end(tmp_path / "run", uninterrupted[case])


def test_a_best_model_of_later_steps_goes_too(
    uninterrupted: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = "dropout and Gumbel noise"
    recipe = tiny_recipe(tmp_path, *STEPS, *CASES[case])
    shutil.copytree(uninterrupted[case], tmp_path / "run")
    assert (tmp_path / "run/best").exists()
    interrupted(monkeypatch, recipe, after=3, resume=str(tmp_path / "run/checkpoints/step-3"))
    assert not (tmp_path / "run/best").exists()


def test_a_best_model_of_another_end_goes_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The end is done again with settings that may differ: the best model is not that of the first one."""
    settings = ("train.max_steps=4", "train.save_steps=2", "train.eval_steps=2", "evaluate.max_instances=8")
    scores = [0.5, 0.9, 0.4]

    def score(task: Any, result: Any) -> dict[str, Any]:
        return {**score_summary(task, result), task.metric: scores.pop(0)}

    monkeypatch.setattr(validation, "score_summary", score)
    finetune(tiny_recipe(tmp_path, *settings))
    finetune(tiny_recipe(tmp_path, *settings, "pruning.calibrate.max_instances=5"), resume="auto")
    run = tmp_path / "run"
    assert [row["eval"]["accuracy"] for row in metrics(run) if "eval" in row] == [0.5, 0.4]
    assert tree(run / "best") == tree(run / "model")


def test_results_of_a_model_do_not_outlive_it(stopped: Path) -> None:
    """Going on from an earlier checkpoint makes another model: what was measured of the last one goes."""
    run = stopped / "run"
    (run / "summary.json").write_text(json.dumps({"trimmed": {"accuracy": 0.123}}), encoding="utf-8")
    (run / "predictions.jsonl").write_text("{}", encoding="utf-8")
    (run / "figures").mkdir()
    finetune(tiny_recipe(stopped, *STEPS), resume="auto")
    assert "trimmed" not in json.loads((run / "summary.json").read_text(encoding="utf-8"))
    assert not (run / "predictions.jsonl").exists() and not (run / "figures").exists()
    (run / "predictions.jsonl").write_text("{}", encoding="utf-8")
    finetune(tiny_recipe(stopped, *STEPS), resume="auto")  # at its end already: the same model
    assert (run / "predictions.jsonl").exists()


def test_path_that_is_no_checkpoint(stopped: Path) -> None:
    error = refused(stopped, resume=str(stopped / "run"))
    assert "not a checkpoint" in error.message and error.where == str(stopped / "run")


class Evil:
    """Unpickling it would run code."""

    def __reduce__(self) -> Any:
        return (exec, ("raise SystemExit('code from a checkpoint was run')",))


@pytest.mark.parametrize(
    ("file", "damage"),
    [
        *(
            (file, damage)
            for file in ("state.pt", "weights.safetensors")
            for damage in ("truncated", "missing")
        ),
        *(("state.pt", damage) for damage in ("empty", "text", "pickle")),
        *(("state.json", damage) for damage in ("truncated", "text")),
    ],
)
@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_damaged_checkpoint_names_the_file(stopped: Path, file: str, damage: str) -> None:
    path = stopped / "run/checkpoints/step-3" / file
    content = path.read_bytes()
    damaged = {
        "truncated": content[: len(content) // 2],
        "empty": b"",
        "text": b"hello",
        "pickle": pickle.dumps(Evil()),
    }
    if damage == "missing":
        path.unlink()
    else:
        path.write_bytes(damaged[damage])
    error = refused(stopped, resume=str(path.parent))
    assert file in str(error) and error.exit_code == 2 and "\n" not in error.message


def test_state_with_wrong_content(stopped: Path) -> None:
    folder = stopped / "run/checkpoints/step-3"
    (folder / "state.json").write_text(json.dumps({"step": 3}), encoding="utf-8")
    assert refused(stopped).where == str(folder / "state.json")


@pytest.mark.parametrize(
    "change",
    [
        {"step": None},
        {"step": -1},
        {"sums": []},
        {"best_score": "x"},
        {"sums": {"loss": "x"}},
        {"counts": {"loss": "x"}},
        {"counts": {"loss": 0}},
        {"meaning": "x"},
    ],
)
def test_state_with_values_of_another_kind(stopped: Path, change: dict[str, Any]) -> None:
    file = stopped / "run/checkpoints/step-3/state.json"
    state = json.loads(file.read_text(encoding="utf-8"))
    file.write_text(json.dumps({**state, **change}), encoding="utf-8")
    assert refused(stopped).where == str(file)


def test_lines_of_the_log_that_are_no_records(stopped: Path) -> None:
    with (stopped / "run/metrics.jsonl").open("ab") as file:
        file.write(b'{}\n[]\n3\n{"step": "x"}\n\xff\n')
        file.write(b'{"step": 99, "eval": {"accuracy": "x"}}\n{"step": 1, "warmup_step": "x"}\n')
        file.write(b"[" * 100_000)
    finetune(tiny_recipe(stopped, *STEPS), resume="auto")
    assert all("step" in row for row in metrics(stopped / "run"))


def test_state_of_other_optimizer(stopped: Path) -> None:
    file = stopped / "run/checkpoints/step-3/state.pt"
    state = torch.load(file, weights_only=True)
    del state["random"]
    torch.save(state, file)
    assert refused(stopped).where == str(file)
