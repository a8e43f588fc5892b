"""Images on which the smaller model predicts another class than the dense model, and images that a model gets wrong."""

import os
from pathlib import Path
from typing import Any

import numpy as np

from vitrim.data.images import ImageData
from vitrim.errors import visible
from vitrim.reports.predictions import Judged, Predictions
from vitrim.reports.thumbnails import thumbnail

MAX_IMAGES = 24
NOW_WRONG, NOW_RIGHT, STILL_WRONG = "now_wrong", "now_right", "still_wrong"


def changed_section(images: Judged, data: ImageData) -> dict[str, Any]:
    """The entry `changed` of `details.json`: how many predictions changed, and some of these images.

    As many images as possible are wrong now as are right now. If there are less than 24, images follow on which both
    models are wrong in different ways. Of each kind, those come first on which both models are confident, one of each
    class before a second one.

    Returns:
        An empty dictionary if there is no smaller model, or if the predictions were not noted.
    """
    dense, small = images.dense, images.small
    if small is None or not _is_known(dense) or not _is_known(small):
        return {}
    other = dense.predicted != small.predicted
    kinds = {
        NOW_WRONG: dense.correct & ~small.correct,
        NOW_RIGHT: ~dense.correct & small.correct,
        STILL_WRONG: ~dense.correct & ~small.correct & other,
    }
    certain = np.minimum(_confidence(dense), _confidence(small))
    rows = []
    for change, chosen in _chosen(images.labels, kinds, certain).items():
        for place in chosen:
            rows.append({**_row(images, data, place), "change": change, "small": _prediction(images, small, place)})
    return {**{f"num_{change}": int(mask.sum()) for change, mask in kinds.items()}, "images": rows}


def mistakes(images: Judged, data: ImageData) -> list[dict[str, Any]]:
    """The entry `mistakes` of `details.json`: at most 24 images that a model gets wrong with the highest confidence."""
    if not _is_known(images.dense):
        return []
    wrong = _ordered(images.labels, ~images.dense.correct, _confidence(images.dense))
    return [_row(images, data, place) for place in wrong[:MAX_IMAGES]]


def _is_known(model: Predictions) -> bool:
    return model.predicted is not None and model.confidence is not None


def _confidence(model: Predictions) -> np.ndarray:
    assert model.confidence is not None
    return model.confidence


def _chosen(labels: np.ndarray, kinds: dict[str, np.ndarray], certain: np.ndarray) -> dict[str, list[int]]:
    """Which images of each kind are shown, as places in `labels`."""
    ordered = {change: _ordered(labels, mask, certain) for change, mask in kinds.items()}
    half = MAX_IMAGES // 2
    wrong, right = len(ordered[NOW_WRONG]), len(ordered[NOW_RIGHT])
    counts = {NOW_WRONG: min(wrong, max(half, MAX_IMAGES - right))}
    counts[NOW_RIGHT] = min(right, MAX_IMAGES - counts[NOW_WRONG])
    counts[STILL_WRONG] = MAX_IMAGES - sum(counts.values())
    return {change: ordered[change][:count] for change, count in counts.items()}


def _ordered(labels: np.ndarray, mask: np.ndarray, certain: np.ndarray) -> list[int]:
    """The places in `mask`: the most certain image of each class, then the second of each class, and so on."""
    places = np.flatnonzero(mask)
    places = places[np.argsort(-certain[places], kind="stable")]
    seen: dict[int, int] = {}
    turns: list[tuple[int, int, int]] = []
    for place in places.tolist():
        label = int(labels[place])
        seen[label] = seen.get(label, 0) + 1
        turns.append((seen[label], len(turns), place))
    return [place for _, _, place in sorted(turns)]


def _row(images: Judged, data: ImageData, place: int) -> dict[str, Any]:
    index = int(images.indices[place])
    return {
        "index": index,
        "file": _file(data, index),
        "label": images.name(int(images.labels[place])),
        "dense": _prediction(images, images.dense, place),
        "thumbnail": thumbnail(data.validation, index),
    }


def _prediction(images: Judged, model: Predictions, place: int) -> dict[str, Any]:
    assert model.predicted is not None
    return {"class": images.name(int(model.predicted[place])), "confidence": float(_confidence(model)[place])}


def _file(data: ImageData, index: int) -> str:
    """The path of the file of a validation image, below the folder of the data set; empty if it has none."""
    files = data.validation.files or data.validation.decoded_from
    if not files:
        return ""
    path = files[index]
    if data.root and os.path.isabs(path) == os.path.isabs(data.root):
        path = os.path.relpath(path, data.root)
    outside = path.startswith("..") or os.path.isabs(path)
    return visible(Path(*Path(path).parts[-2:] if outside else Path(path).parts).as_posix())
