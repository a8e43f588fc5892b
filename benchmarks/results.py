"""The rows of `docs/results.json`: one for each cell, fraction to keep and arm, over all seeds.

Rows hold numbers only, not the result of each image. So two arms are compared only if both are among the measurements.
How rows are shown belongs to `document` and `plots`.
"""

import json
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.measurements import ARMS, CONTROL, CONTROLS, DISTILLED, VITRIM, Groups, Measurement
from benchmarks.statistics import paired_difference, paired_ratio
from vitrim.errors import DataError

Row = dict[str, Any]

# Peak of dense bf16 arithmetic without sparsity, in operations per second, from NVIDIA's data sheets.
BF16_PEAKS = {"H100": 989e12, "H200": 989e12, "A100": 312e12}
_MEANS = ("search_epochs", "params_ratio", "macs_ratio", "seconds", "images_per_second")
_CONTROL_DELTA = ("delta_control", "delta_control_low", "delta_control_high")
_DISTILLED_DELTA = ("delta_distilled", "delta_distilled_low", "delta_distilled_high")
_AGAINST = {  # what a row loses if the row of this control is replaced
    CONTROL: ("top1_dense_control", *_CONTROL_DELTA),
    DISTILLED: ("top1_dense_distilled", *_DISTILLED_DELTA),
}
_VITRIM_DELTA = ("vitrim_delta", "vitrim_low", "vitrim_high")
_RECOVER_LEAD = ("recover_lead", "recover_lead_low", "recover_lead_high")
_KL_LEAD = ("kl_lead", "kl_lead_low", "kl_lead_high")
_AGAINST_VITRIM = (*_VITRIM_DELTA, *_RECOVER_LEAD, *_KL_LEAD)


def to_rows(groups: Groups) -> list[Row]:
    """Return one row for each group, in the order of the tables."""
    rows = []
    for (cell, keep, _), members in groups.items():
        controls = {arm: groups.get((cell, 1.0, arm), []) for arm in CONTROLS}
        rows.append(_row(members, groups.get((cell, keep, VITRIM), []), controls))
    return sorted(rows, key=order_of)


def merge(earlier: Iterable[Row], new: Sequence[Row]) -> list[Row]:
    """Return the new rows, and the earlier rows that they do not replace.

    If a row of the arm vitrim or of a dense control is replaced, earlier rows lose their comparison with it.
    """
    merged = {_key(row): dict(row) for row in earlier}
    replaced = {_key(row) for row in new if _key(row) in merged and merged[_key(row)] != row}
    for key, row in merged.items():
        cell, keep, _ = key
        if (cell, keep, VITRIM) in replaced:
            row.update(dict.fromkeys(_AGAINST_VITRIM))
        for control, names in _AGAINST.items():
            if (cell, 1.0, control) in replaced:
                row.update(dict.fromkeys(names))
    merged.update({_key(row): row for row in new})
    return sorted(merged.values(), key=order_of)


def read_rows(path: Path) -> list[Row]:
    """Read rows from a JSON file. No rows if there is no file.

    Raises:
        DataError: the file is not valid JSON.
    """
    if not path.exists():
        return []
    try:
        return list(json.loads(path.read_text(encoding="utf-8")))
    except json.JSONDecodeError as problem:
        raise DataError(f"{path} is not valid JSON: {problem}. Restore it, or move it away to start again.") from None


def rows_to_text(rows: Sequence[Row]) -> str:
    """Return the rows as the text of a JSON file."""
    return json.dumps(rows, indent=1, allow_nan=False, ensure_ascii=False) + "\n"


def without_absolute_paths(command: str) -> str:
    """Shorten each absolute path in a command to its last part, because it only describes one machine."""
    return re.sub(r"(?<![\w.\-/])~?/(?:[^\s/'\"=,]+/)*([^\s/'\"=,]*)/?", r"\1", command)


def _row(members: list[Measurement], vitrim: list[Measurement], controls: dict[str, list[Measurement]]) -> Row:
    first, is_vitrim = members[0].values, members is vitrim
    others = [] if is_vitrim or first["arm"] in CONTROLS else vitrim  # the arm vitrim has no run with keep 1.0
    dense = difference(members, members, "dense", "correct")
    against = {
        arm: difference(control if first["arm"] != arm else [], members, "correct", "correct")
        for arm, control in controls.items()
    }
    row = {
        **{name: first[name] for name in ("cell", "model", "dataset", "keep", "arm")},
        "seeds": [m.seed for m in members],
        "dense_seed_shared": any(m.values.get("dense_seed", m.seed) != m.seed for m in members),
        "fixed_macs": first.get("fixed_macs", 0.0),
        **{name: first[name] for name in ("student_epochs", "dense_epochs", "tuning")},
        "teacher": first.get("teacher"),
        "top1_teacher": _mean(members, "top1_teacher"),
        "top1_dense": _top1(members, "dense"),
        "top1_dense_control": _top1(controls[CONTROL], "correct"),
        "top1_dense_distilled": _top1(controls[DISTILLED], "correct"),
        "top1_after_cut": _top1(members, "after_cut"),
        "top1_after_recover": _top1(members, "after_recover"),
        "top1": _top1(members, "correct"),
        "top1_seeds": [100 * float(m.correct.mean()) for m in members],
        **_named(dense, "delta_dense", "low", "high"),
        **_named(against[CONTROL], *_CONTROL_DELTA),
        **_named(against[DISTILLED], *_DISTILLED_DELTA),
        **_named(difference(members, others, "correct", "correct"), *_VITRIM_DELTA),
        **_recover_ratio(members),
        **_named(difference(members, others, "after_cut", "after_recover"), *_RECOVER_LEAD),
        "kl_dense": _mean_of(members, "divergence"),
        "kl_recovered": _mean_of(members, "divergence_after_recover"),
        **_agreement(members),
        **_kl_lead(members, others),
        "stages": _stages(members),
        **{name: _mean(members, name) for name in _MEANS},
        "step_seconds": _step_seconds(members),
        **_latency(members),
        "peak_share": _peak_fraction(members),
        "num_images": len(members[0].correct),
        **origin_of(members),
    }
    return {name: rounded(value) for name, value in row.items()}


def _named(difference: dict[str, float] | None, *names: str) -> dict[str, float | None]:
    values = (difference["points"], difference["low"], difference["high"]) if difference else (None, None, None)
    return dict(zip(names, values, strict=True))


def difference(
    first: list[Measurement], second: list[Measurement], first_name: str, second_name: str
) -> dict[str, float] | None:
    """Return second minus first over the seeds that both have. None if they have no seed in common."""
    pair = _common(first, second, first_name, second_name)
    return asdict(paired_difference(*pair)) if pair else None


def _common(
    first: list[Measurement], second: list[Measurement], first_name: str, second_name: str
) -> tuple[np.ndarray, np.ndarray] | None:
    """Return the values of both over the seeds that both have, `(S, N)` each. None if there is no such seed."""
    ones = {m.seed: getattr(m, first_name) for m in first if getattr(m, first_name) is not None}
    others = {m.seed: getattr(m, second_name) for m in second if getattr(m, second_name) is not None}
    seeds = sorted(ones.keys() & others.keys())
    return (np.stack([ones[s] for s in seeds]), np.stack([others[s] for s in seeds])) if seeds else None


def _recover_ratio(members: list[Measurement]) -> Row:
    """Return accuracy after `recover` and before training, divided by the accuracy of the dense model."""
    recovered = [(m.after_recover, m.dense) for m in members if m.after_recover is not None]
    ratio = None
    if recovered:
        after, dense = zip(*recovered, strict=True)
        ratio = paired_ratio(np.stack(after), np.stack(dense))
    values = (ratio.percent, ratio.low, ratio.high) if ratio else (None, None, None)
    return dict(zip(("recover_share", "recover_share_low", "recover_share_high"), values, strict=True))


def _agreement(members: list[Measurement]) -> dict[str, float | None]:
    """Return the percentage of images on which the arm and the dense model predict the same class."""
    same = [m.same for m in members if m.same is not None]
    found = asdict(paired_difference(np.zeros_like(same), np.array(same))) if same else None
    return _named(found, "agreement", "agreement_low", "agreement_high")


def _kl_lead(members: list[Measurement], vitrim: list[Measurement]) -> dict[str, float | None]:
    """Return the arm's divergence from the dense model, in percent of that of the arm vitrim."""
    pair = _common(members, vitrim, "divergence", "divergence")
    ratio = paired_ratio(*pair) if pair else None
    values = (ratio.percent, ratio.low, ratio.high) if ratio else (None, None, None)
    return dict(zip(_KL_LEAD, values, strict=True))


def _top1(members: list[Measurement], name: str) -> float | None:
    found = _mean_of(members, name)
    return None if found is None else 100 * found


def _mean_of(members: list[Measurement], name: str) -> float | None:
    """Return the mean over images and seeds of one value of each image."""
    found = [getattr(m, name) for m in members if getattr(m, name) is not None]
    return float(np.mean(found, dtype=np.float64)) if found else None


def _mean(members: list[Measurement], name: str) -> float | None:
    found = [m.values[name] for m in members if m.values.get(name) is not None]
    return float(np.mean(found)) if found else None


def _stages(members: list[Measurement]) -> dict[str, Row]:
    """Return the means over seeds for each stage. With `auto` depth, some seeds may have no depth stage."""
    found: dict[str, list[tuple[float, float, float]]] = {}
    for m in members:
        if not m.values["stages"]:
            continue
        last = m.values["stages"][-1]  # the final model, whose ratios to the dense one are known
        for stage in m.values["stages"]:
            params = m.values["params_ratio"] * stage["params"] / last["params"]
            macs = m.values["macs_ratio"] * stage["macs"] / last["macs"]
            found.setdefault(stage["name"], []).append((stage["top1"], params, macs))
    names = ("top1", "params_share", "macs_share")
    return {
        stage: {**dict(zip(names, np.mean(values, axis=0).tolist(), strict=True)), "num_seeds": len(values)}
        for stage, values in found.items()
    }


def _step_seconds(members: list[Measurement]) -> dict[str, float] | None:
    """Return the mean seconds of each step over the seeds that have them. None in records of earlier versions."""
    found = [m.values["step_seconds"] for m in members if m.values.get("step_seconds")]
    names = dict.fromkeys(name for seconds in found for name in seconds)
    return {name: float(np.mean([seconds.get(name, 0.0) for seconds in found])) for name in names} or None


def _latency(members: list[Measurement]) -> Row:
    """Return the latency of the seed that was timed: milliseconds of a batch, and the ratio to the dense model."""
    found: Row = next((m.latency for m in members if m.latency), {})
    return {
        **{f"latency_{name}": found.get(name) for name in ("ratio", "low", "high", "ms", "dense_ms", "on")},
        "latency_batch": found.get("batch_size"),
    }


def _peak_fraction(members: list[Measurement]) -> float | None:
    """Return training arithmetic as a fraction of the GPU's dense bf16 peak. None on a CPU or an unknown GPU."""
    fractions = []
    for m in members:
        peak = next((peak for name, peak in BF16_PEAKS.items() if name in m.values["environment"]["device"]), None)
        macs, speed = m.values["train_macs_per_image"], m.values["images_per_second"]
        if peak is None or macs is None or speed is None:
            return None
        fractions.append(2 * macs * speed / peak)  # a multiply-add is two operations
    return float(np.mean(fractions))


def origin_of(members: Sequence[Measurement]) -> Row:
    """Return hardware, command and commit of measurements. Values that differ are on lines of their own."""
    return {
        "hardware": _distinct(members, lambda m: hardware_line(m.values["environment"])),
        "command": _distinct(members, lambda m: without_absolute_paths(m.values["command"])),
        "commit": _distinct(members, lambda m: m.values["commit"]),
    }


def hardware_line(environment: dict[str, Any]) -> str:
    """Return hardware, precision and versions of a record as one line."""
    threads = environment["threads"]
    cpu = f"{environment['cpu']}, {environment['cores']} cores, {threads} thread{'s' if threads != 1 else ''}"
    gpu = "no GPU" if environment["device"] == "cpu" else environment["device"]
    versions = ", ".join(f"{name} {version}" for name, version in environment.get("versions", {}).items())
    return "; ".join(part for part in (gpu, cpu, environment.get("dtype"), versions) if part)


def _distinct(members: Sequence[Measurement], text: Callable[[Measurement], str | None]) -> str:
    return "\n".join(dict.fromkeys(text(m) or "unknown" for m in members))


def rounded(value: Any) -> Any:
    """Round to four decimals, so that the file does not depend on the last bit of a sum."""
    if isinstance(value, float):
        return round(value, 4) + 0.0  # no -0.0
    if isinstance(value, list):
        return [rounded(item) for item in value]
    return {name: rounded(item) for name, item in value.items()} if isinstance(value, dict) else value


def _key(row: Row) -> tuple[str, float, str]:
    return row["cell"], float(row["keep"]), row["arm"]


def order_of(row: Row) -> tuple[str, float, int]:
    """Return what rows are sorted by: cell, fraction to keep (largest first) and arm."""
    return row["cell"], -row["keep"], ARMS.index(row["arm"])
