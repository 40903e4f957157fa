"""Evaluation: the full and the trimmed model on the same instances, with real removal."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from smarttrim_cli.engine.artifact import Bundle, build_task, load_model
from smarttrim_cli.engine.baselines import baseline_trimmers, evaluate_baseline
from smarttrim_cli.engine.build import section_of
from smarttrim_cli.engine.files import check_writable, finite, write_json, write_text
from smarttrim_cli.engine.inference import Predictions, batches, make_ready, predict
from smarttrim_cli.engine.loading import Loader
from smarttrim_cli.engine.relevance import TruthLog, watch
from smarttrim_cli.engine.report import Reporter, SilentReporter
from smarttrim_cli.engine.runs import find_subject, require_model, warn_of_unused
from smarttrim_cli.engine.scores import as_published, collapse_warning, paired, per_pair, score_summary
from smarttrim_cli.engine.sharing import Share, share_of_this_process
from smarttrim_cli.errors import UserError
from smarttrim_cli.recipe import Recipe, resolved_dict
from smarttrim_cli.tasks.base import Record, Task
from smarttrim_cli.tasks.records import read_records

_EVALUATED = (
    *("split", "count", "metric", "difference", "skipped", "unlabelled", "warning"),
    *("relevance", "relevance_patches", "difficulty"),
)
"""Of a summary, what is an evaluation's; so are its models' keys, but for those of ``profile``."""

_PROFILED = ("latency_ms", "peak_memory_mib", "parameters", "gmacs_torchprofile")


def evaluate(
    target: str | None,
    *,
    overrides: Sequence[str] = (),
    split: str | None = None,
    max_instances: int | None = None,
    baselines: Sequence[str] = (),
    predictions_out: Path | None = None,
    from_predictions: Path | None = None,
    submission_out: Path | None = None,
    reporter: Reporter | None = None,
) -> dict[str, Any]:
    """Score a run's full and trimmed model.

    Args:
        target: Run directory or recipe; None for the newest run.
        overrides: ``key=value`` for the recipe.
        split: Split or role (``test``, ``eval``, ...); None for the recipe's ``evaluate.split``.
        max_instances: At most this many, spread evenly over the split.
        baselines: Ways of trimming to compare with on the same weights, at equal MACs: ``random``, ``tome``,
            ``grad_all``, ``grad_layer``, ``saliency``.
        predictions_out: JSON-lines file for the predictions.
        from_predictions: Score this file instead of running the model; nothing that needs the model may be
            asked for beside it.
        submission_out: File for the official submission format.
        reporter: Receives messages and progress.

    Returns:
        ``metric`` (name of the main one); ``full`` and ``trimmed`` with score, standard error, scores by type
        and GMACs, without trimmers ``full`` alone; ``difference`` (trimmed minus full, paired, 95 %);
        ``speedup.macs``; ``baselines``; ``split`` and ``count``. On scenes also ``relevance``,
        ``relevance_patches`` and ``difficulty`` (:mod:`.relevance`). ``unlabelled``: how many instances have
        no reference, where others do. Of stored predictions ``missing``: how
        many instances have none. ``recipe``: what the run was trained by. Of several processes (``torchrun``)
        each runs its part of the split; all but the first return nothing, and write nothing.
    """
    reporter = reporter or SilentReporter()
    check_writable(predictions_out, "--predictions-out")
    check_writable(submission_out, "--submission-out")
    subject = find_subject(target, overrides)
    recipe = subject.recipe
    if from_predictions is not None:
        needs_model = {"--baseline": baselines, "--predictions-out": predictions_out}
        _refuse_beside_predictions(needs_model | {"--max-instances": max_instances})
        return _rescore(recipe, from_predictions, split, submission_out, reporter)
    run = require_model(subject, target)
    stored = split is None and max_instances is None and not overrides
    if stored:
        run.summary()  # a damaged one is no surprise at the end
    share = share_of_this_process()
    if not share.first:
        reporter = SilentReporter()
    warn_of_unused(overrides, reporter)
    model = run.model_identity()
    bundle = load_model(run.model, section_of(recipe.task), reporter.message)
    if getattr(bundle.task, "two_stage", False):  # every text with every image: there are no parts
        if not share.first:
            return {}
        share = replace(share, count=1)
    make_ready(bundle.model, share.device)
    if baselines and not bundle.model.sites:
        reporter.warn("the run has no trimmers, so nothing is compared with --baseline")
        baselines = ()
    _check_baselines(bundle, baselines)
    name = bundle.task.split_name(split or recipe.evaluate.split)
    if submission_out is not None:
        _check_submission(bundle.task, name)
    limit = max_instances or recipe.evaluate.max_instances
    workers = recipe.train.dataloader_num_workers
    loader = batches(bundle, name, recipe.evaluate.batch_size, limit, workers, share)
    truth = watch(bundle, name)
    results = _predictions(bundle, loader, f"evaluating on {name}", truth, share, reporter)
    if not share.first:
        return {}
    report = _report(bundle, results, name) | ({} if truth is None else truth.report(results["packed"]))
    _warn(report, results, reporter)
    if stored:  # before files and baselines, which may fail
        with run.storing(reporter):
            run.refuse_other_model(model)
            run.merge_summary(report, lambda summary: _of_others(summary, report))
    _write(bundle.task, results, predictions_out, submission_out)
    for baseline in baselines:
        report.setdefault("baselines", {})[baseline] = evaluate_baseline(
            baseline, bundle, recipe, name, limit, results["packed"], reporter
        )
    if stored and baselines:
        with run.storing(reporter):
            run.refuse_other_model(model)
            run.merge_summary(report)
    return report | {"recipe": resolved_dict(recipe)}


def _of_others(summary: Mapping[str, Any], report: Mapping[str, Any]) -> dict[str, Any]:
    """A summary without an earlier evaluation: what this one did not find, such as broken images, is gone."""
    rest = {key: value for key, value in summary.items() if key not in _EVALUATED}
    for side in ("full", "trimmed"):
        of_profile = {key: value for key, value in (rest.pop(side, None) or {}).items() if key in _PROFILED}
        rest |= {side: of_profile} if of_profile else {}
    before, now = summary.get("trimmed") or {}, finite(report.get("trimmed") or {})
    if any(before.get(key) != value for key, value in now.items()):
        rest.pop("baselines", None)  # they were compared with other predictions
    return rest


def _predictions(
    bundle: Bundle, loader: Loader, label: str, truth: TruthLog | None, share: Share, reporter: Reporter
) -> dict[str, Predictions]:
    """Of the full and the trimmed model; without trimmers a packed pass is the full one, and counted."""
    counted = not bundle.model.sites and not getattr(bundle.task, "two_stage", False)
    modes = ("full", "packed") if bundle.model.sites else ("packed",) if counted else ("full",)
    results = predict(bundle, loader, modes, reporter, label, None if truth is None else truth.add, share)
    if truth is not None:
        truth.join(share)
    return {"full": results["packed"]} if counted else results


def _check_baselines(bundle: Bundle, baselines: Sequence[str]) -> None:
    """Find out before the work whether there are such baselines, and the data to calibrate them on."""
    ranked = False
    for baseline in baselines:
        trimmers: Any = baseline_trimmers(bundle.model, baseline).values()
        ranked |= any(trimmer.by_importance for trimmer in trimmers)
    if baselines:  # heads are ranked as in training
        split = bundle.task.split_name("calibration")
        for training in (False, True) if ranked else (False,):
            bundle.task.dataset(split, bundle.processor, training=training)


def _report(bundle: Bundle, results: dict[str, Predictions], split: str) -> dict[str, Any]:
    task = bundle.task
    full = results["full"]
    report: dict[str, Any] = {"split": split, "count": len(full.records), "metric": task.metric}
    report["full"] = score_summary(task, full)
    trimmed = results.get("packed")
    if full.macs:
        report["full"]["gmacs_from"] = "cost model"
    if trimmed is None:
        return report
    count = len(trimmed.macs)
    report["full"]["gmacs"] = sum(trimmed.full_macs) / count / 1e9
    report["full"]["gmacs_by_part"] = {part: macs / count / 1e9 for part, macs in trimmed.full_parts.items()}
    report["full"] |= as_published(trimmed, full=True) | per_pair(full.records, trimmed.full_macs)
    report["trimmed"] = score_summary(task, trimmed)
    report["full"]["gmacs_from"] = report["trimmed"]["gmacs_from"] = "cost model"
    if task.metric in report["full"]:
        if report["full"][task.metric] > 0:
            report["trimmed"]["retained"] = report["trimmed"][task.metric] / report["full"][task.metric]
        report["difference"] = paired(trimmed.records, full.records)
    report["speedup"] = {"macs": sum(trimmed.full_macs) / sum(trimmed.macs)}
    return report


def _warn(report: dict[str, Any], results: dict[str, Predictions], reporter: Reporter) -> None:
    skipped = results["full"].skipped
    if skipped:
        report["skipped"] = skipped
        reporter.warn(f"{skipped} instances were skipped because of broken images")
    _warn_of_unlabelled(report, results["full"].records, reporter)
    speedup = report.get("speedup", {}).get("macs", math.inf)
    if speedup < 1:
        reporter.warn(f"the trimmed model costs more than the full one: {speedup:.3f}x fewer MACs")
    warning = None
    if "packed" in results:  # of a full model that answers so, too, trimming is not the cause
        full = collapse_warning(results["full"].records, trimmed=False)
        warning = full or collapse_warning(results["packed"].records)
    if warning:
        report["warning"] = warning
        reporter.warn(warning)


def _warn_of_unlabelled(report: dict[str, Any], records: Sequence[Record], reporter: Reporter) -> None:
    lacking = sum(record["score"] is None for record in records)
    if 0 < lacking < len(records):
        report["unlabelled"] = lacking
        text = f"{lacking} of {len(records)} instances have no reference"
        reporter.warn(f"{text}: scores are of the others")


def _write(
    task: Task, results: dict[str, Predictions], predictions: Path | None, submission: Path | None
) -> None:
    shown = results.get("packed", results["full"])
    if predictions is not None:
        lines = []
        for index, record in enumerate(shown.records):
            full = results["full"].records[index]
            line = {**record, "full_prediction": full["prediction"], "full_score": full["score"]}
            if len(shown.macs) == len(shown.records):  # else records are not one per forward pass
                line |= {"gmacs": shown.macs[index] / 1e9, "full_gmacs": shown.full_macs[index] / 1e9}
            lines.append(json.dumps(finite(line), ensure_ascii=False))
        write_text(predictions, "\n".join(lines) + "\n")
    if submission is not None:
        _write_submission(task, shown.records, submission)


def _check_submission(task: Task, split: str) -> None:
    """Find out before the work whether predictions of a split can be submitted."""
    check = getattr(task, "check_submission", None)
    if check is not None:
        check([sample.id for sample in task.samples(split)])


def _write_submission(task: Task, records: Sequence[Record], file: Path) -> None:
    content = task.submission(records)
    if isinstance(content, str):
        write_text(file, content)
    else:
        write_json(file, content)


def _refuse_beside_predictions(options: Mapping[str, Any]) -> None:
    """Refuse options that stored predictions cannot answer.

    Raises:
        UserError: One of them is given.
    """
    for option, value in options.items():
        if value:
            raise UserError(
                "runs the model, and --from-predictions runs none", where=option, hint="leave one of them out"
            )


def _rescore(
    recipe: Recipe, path: Path, split: str | None, submission: Path | None, reporter: Reporter
) -> dict[str, Any]:
    """Scores of stored predictions; no model is needed."""
    task = build_task(section_of(recipe.task), recipe.backbone.name, reporter.message)
    name = task.split_name(split or recipe.evaluate.split)
    stored = read_records(path)
    if submission is not None:
        _check_submission(task, name)
    trimmed = task.rescore(stored, name)
    report: dict[str, Any] = {
        "split": name,
        "count": len(stored),
        "metric": task.metric,
        "trimmed": task.summarize(trimmed),
    }
    there = len(task.samples(name))
    if len(stored) < there:
        report["missing"] = there - len(stored)
        text = f"{there - len(stored)} of the {there} instances of {name} have no prediction in {path}"
        reporter.warn(f"{text}: scores are of the others")
    _warn_of_unlabelled(report, trimmed, reporter)
    if submission is not None:
        _write_submission(task, trimmed, submission)
    if all("full_prediction" in record for record in stored):
        swapped: list[Record] = [{**record, "prediction": record["full_prediction"]} for record in stored]
        full = task.rescore(swapped, name)
        report["full"] = task.summarize(full)
        report["difference"] = paired(trimmed, full)
    return report | {"recipe": resolved_dict(recipe)}
