"""The record of one arm, `arm.json`: all values that the tables need, for one seed and one fraction to keep."""

import json
import os
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import nn

from benchmarks.cell import RECORD, Cell, Job, read_evaluation, seconds_in
from benchmarks.config import WITHOUT_TEACHER, dense_recipe, student_training
from benchmarks.divergence import compare_logits, logits_on
from benchmarks.step_seconds import SEARCH, step_seconds
from vitrim.costs.counting import count_cost
from vitrim.runs.environment import environment
from vitrim.runs.files import write_text
from vitrim.runs.processes import is_main_process, wait_for_all


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """The result of an arm. Evaluations are dictionaries from `Evaluation.to_dict`.

    Attributes:
        model: the final model.
        evaluation: evaluation of the final model.
        stages: name, top-1, parameters and multiply-adds after each stage. The last one is the final model.
        after_cut: evaluation right after the first pruning. None for arms that do not prune.
        after_recover: evaluation after the recovery that follows the first pruning. None for arms without recovery.
        recovered: the model after this recovery. None for arms without recovery.
        has_teacher: whether each training step also runs the dense model.
    """

    model: nn.Module
    evaluation: dict[str, Any]
    stages: list[dict[str, Any]]
    after_cut: dict[str, Any] | None = None
    after_recover: dict[str, Any] | None = None
    recovered: nn.Module | None = None
    has_teacher: bool = True


def write_record(cell: Cell, job: Job, dense: nn.Module, outcome: Outcome) -> None:
    """Write `arm.json` atomically. An arm with this file is finished."""
    wait_for_all()
    if is_main_process():
        text = json.dumps(_record(cell, job, dense, outcome), indent=1, allow_nan=False)
        write_text(cell.folder(job) / RECORD, text + "\n")
    wait_for_all()


def _record(cell: Cell, job: Job, dense: nn.Module, outcome: Outcome) -> dict[str, Any]:
    config, folder = cell.config, cell.folder(job)
    cost, dense_cost = count_cost(outcome.model), count_cost(dense)
    params_ratio, macs_ratio = cost.fraction_of(dense_cost)
    near = partial(_compare_with_dense, cell, job.seed)
    rows, seconds = read_metrics(folder / "metrics.jsonl"), seconds_in(folder)
    return {
        "cell": config.name,
        "model": config.model_name,
        "dataset": config.dataset,
        "keep": job.keep,
        "arm": job.arm,
        "seed": job.seed,
        "dense_seed": cell.dense_seed(job.seed),
        "fixed_macs": config.fixed_macs,
        "dense_folder": os.path.relpath(cell.dense_folder(job.seed), cell.out),
        "student_epochs": config.student_epochs,
        "search_epochs": _search_epochs(rows, cell),
        "dense_epochs": dense_recipe(config, job.seed).training.epochs,
        "tuning": config.tuning_share > 0,
        "teacher": config.teacher.text or None,
        "top1_teacher": cell.target(job.seed)["top1"] if config.teacher.text else None,
        "stages": outcome.stages,
        "evaluation": outcome.evaluation,
        "after_cut": outcome.after_cut,
        "after_recover": outcome.after_recover,
        "dense": read_evaluation(cell.dense_folder(job.seed) / "evaluation.json"),
        "against_dense": near(outcome.model),
        "recovered_against_dense": near(outcome.recovered) if outcome.recovered is not None else None,
        "params_ratio": params_ratio,
        "macs_ratio": macs_ratio,
        "seconds": seconds,
        "step_seconds": step_seconds(folder, seconds),
        "images_per_second": _speed(rows),
        "train_macs_per_image": 3 * cost.macs
        + (_teacher_macs(cell, job, dense_cost.macs) if outcome.has_teacher else 0),
        "threads": torch.get_num_threads(),
        "environment": environment(next(outcome.model.parameters()).device),
        "command": cell.command,
        "commit": cell.commit,
    }


def _teacher_macs(cell: Cell, job: Job, dense: int) -> int:
    """Return the multiply-adds of all teachers for one image. With a better teacher, the dense model runs, too."""
    if job.arm in WITHOUT_TEACHER:
        return dense
    passes = 2 if cell.config.teacher.flip else 1
    if not cell.teachers:
        return passes * dense
    return dense + passes * sum(count_cost(model).macs for model in cell.teachers)


def _compare_with_dense(cell: Cell, seed: int, model: nn.Module) -> dict[str, Any]:
    return compare_logits(cell.dense_logits(seed), logits_on(model, cell.data.validation))


def read_metrics(file: Path) -> list[dict[str, Any]]:
    """Read the epochs in `metrics.jsonl`: one row for each epoch of each training. No rows if there is no file."""
    lines = file.read_text(encoding="utf-8").splitlines() if file.is_file() else []
    return [row for row in map(json.loads, lines) if "event" not in row]


def _search_epochs(rows: list[dict[str, Any]], cell: Cell) -> float:
    """Return the epochs of training that all candidates of the depth search used together."""
    last_steps: dict[str, int] = {}
    for row in rows:
        if row["stage"].startswith(SEARCH):
            last_steps[row["stage"]] = max(row["step"], last_steps.get(row["stage"], 0))
    num_images = len(cell.data.train)
    batch_size = min(student_training(cell.config).batch_for(num_images), num_images)
    return sum(last_steps.values()) * batch_size / num_images


def _speed(rows: list[dict[str, Any]]) -> float | None:
    """Return training images per second, the median over the epochs. The first epoch may contain a compilation."""
    speeds = [row["images_per_second"] for row in rows if not row["stage"].startswith(SEARCH)]
    return median(speeds) if speeds else None
