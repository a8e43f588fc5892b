"""Reports and details for tests of the page, in the forms of `report.json` and `details.json`. Numbers are invented."""

import base64
import copy
import io
from typing import Any

import numpy as np
from PIL import Image

from vitrim.recipe import load_recipe, to_table

Content = tuple[dict[str, Any], dict[str, dict[str, Any]]]  # the arguments of `to_html`
ANIMALS = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
STAGES = ("dense", "width cut", "width recover", "width distil", "depth cut", "depth recover", "depth distil")


def thumbnail(seed: int) -> str:
    """A small picture as a data URL."""
    noise = np.random.default_rng(seed).integers(0, 256, (6, 6, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(noise).resize((96, 96), Image.Resampling.BICUBIC).save(buffer, "JPEG", quality=70)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()


def model_row(name: str, keep: float, top1: float, dense_top1: float | None = None) -> dict[str, Any]:
    """An entry of `models`: a ViT-S of which a fraction is kept. Without `dense_top1`, the dense model."""
    row: dict[str, Any] = {
        "name": name,
        "keep": keep,
        "top1": top1,
        "top1_low": top1 - 1.9,
        "top1_high": min(100.0, top1 + 1.5),
        "top5": min(100.0, top1 + 3.0),
        "params": round(21_670_000 * keep),
        "macs": round(4_600_000_000 * keep),
        "file_bytes": round(86_700_000 * keep),
        "latency_ms": 41.3 * (0.12 + 0.88 * keep),
        "latency_p90_ms": 44.0 * keep,
        "latency_ratio": 0.12 + 0.88 * keep,
        "latency_ratio_low": 0.11 + 0.87 * keep,
        "latency_ratio_high": 0.13 + 0.89 * keep,
        "classes_at_zero": {"classes": [], "num_classes": 10, "by_chance": []},
    }
    if dense_top1 is not None:
        difference = top1 - dense_top1
        row |= {
            "difference": difference,
            "difference_low": difference - 0.8,
            "difference_high": difference + 0.7,
            "difference_p_value": 0.0371,
            "kept": "11 of 12 blocks, 50 of 72 heads of width 48 (before: 64), 12,400 of 18,432 neurons",
        }
    return row


def report_of(models: list[dict[str, Any]], data: str = "photos", num_classes: int = 10) -> dict[str, Any]:
    """A report of a run of `compress` with these models."""
    recipe = to_table(load_recipe("default"))
    recipe["seed"] = 3
    recipe["width_training"]["epochs"] = 40
    stages = []
    for row in models[1:]:
        losses = (0.0, 31.0, 6.5, 1.4, 9.8, 4.1, models[0]["top1"] - row["top1"])
        stages += [
            {"model": row["name"], "name": stage, "top1": models[0]["top1"] - loss,
             "params": row["params"], "macs": row["macs"]}
            for stage, loss in zip(STAGES, losses, strict=True)
        ]  # fmt: skip
    name = models[-1]["name"]
    return {
        "title": f"vit_small_patch16_224 on {data}: {name}",
        "verdict": f"The compressed model has {name} of the size, runs in 73 % of the time, and is as accurate as the "
        "original within 0.8 points.",
        "command": f"vitrim compress runs/dense --data {data} --keep 0.7 --set width_training.epochs=40 "
        "-o 'runs/small one'",
        "architecture": "vit_small_patch16_224",
        "models": models,
        "stages": stages,
        "data": {"name": data, "num_classes": num_classes, "num_train": 4050, "num_validation": 450},
        "latency": None,
        "busy": "",
        "notes": ["validation split cut from training: 10 % per class, seed 0"],
        "environment": {
            "device": "cpu",
            "cpu": "AMD EPYC 7763 64-Core Processor",
            "cores": 8,
            "threads": 4,
            "dtype": "float32",
            "versions": {"python": "3.12.4", "vitrim": "0.1.0", "torch": "2.14.1", "timm": "1.0.31"},
        },
        "recipe": recipe,
    }


def blocks(keep: float = 0.7, num_blocks: int = 12, num_heads: int = 6) -> list[dict[str, Any]]:
    """The map of a model whose second last block is removed."""
    random = np.random.default_rng(5)
    found = []
    for index in range(num_blocks):
        is_kept = index != num_blocks - 2
        scores = random.dirichlet(np.ones(num_heads)) / num_blocks
        num_kept = max(1, round(num_heads * min(1.0, keep + random.normal(0, 0.2)))) if is_kept else 0
        kept = sorted(np.argsort(-scores)[:num_kept].tolist())
        num_neurons = round(1536 * keep * random.uniform(0.6, 1.4)) if is_kept else 0
        found.append(
            {
                "name": f"blocks.{index}",
                "is_kept": is_kept,
                "importance": float(random.uniform(0.02, 0.15)),
                "groups": [
                    {"key": "heads", "kind": "heads", "count": num_heads, "num_kept": num_kept, "kept": kept,
                     "width": 64,
                     "kept_width": 48, "importance": scores.tolist(), "importance_kept": 0.97},
                    {"key": "neurons", "kind": "neurons", "count": 1536, "num_kept": num_neurons,
                     "importance_total": 0.08, "importance_kept": 0.93},
                ],
            }
        )  # fmt: skip
    return found


def calibration(shift: float) -> dict[str, Any]:
    """Ten bins of a model whose accuracy is below its confidence by `shift`."""
    bins = [
        {"low": low / 10, "high": (low + 1) / 10, "count": 2 * low * low, "confidence": low / 10 + 0.05,
         "accuracy": max(0.0, low / 10 + 0.05 - shift)}
        for low in range(10)
    ]  # fmt: skip
    return {"bins": bins, "ece": 100 * shift}


def image(number: int, change: str, names: tuple[str, ...]) -> dict[str, Any]:
    """An image with both predictions."""
    label, other = names[number % len(names)], names[(number + 3) % len(names)]
    right, wrong = {"class": label, "confidence": 0.93}, {"class": other, "confidence": 0.51}
    pairs = {
        "now_wrong": (right, wrong),
        "now_right": (wrong, right),
        "still_wrong": (wrong, {**wrong, "class": names[0]}),
    }
    dense, small = pairs[change]
    file = f"{label}/{number:04d}.jpg" if number % 3 else ""
    return {
        "index": number, "file": file, "label": label, "change": change, "dense": dense, "small": small,
        "thumbnail": thumbnail(number),
    }  # fmt: skip


def details_of(names: tuple[str, ...] = ANIMALS, keep: float = 0.7, num_images: int = 45) -> dict[str, Any]:
    """Details of a smaller model with these classes."""
    random = np.random.default_rng(2)
    before, changes_of_classes = (random.normal(*law, len(names)).tolist() for law in ((90, 3), (-0.5, 3)))
    changes = ("now_wrong", "now_right", "still_wrong", "now_wrong", "now_right")
    rows = [{"epoch": epoch, "loss": 2.0 / epoch + 0.1, "validation_loss": 1.7 / epoch + 0.2, "top1": 96 - 9.0 / epoch}
            for epoch in range(1, 21)]  # fmt: skip
    return {
        "format": 1,
        "num_images": num_images * len(names),
        "classes": [
            {"name": name, "num_images": num_images, "dense_top1": dense, "top1": min(100.0, dense + change)}
            for name, dense, change in zip(
                names, before, changes_of_classes, strict=True
            )
        ],
        "confusions": [
            {"label": names[n % len(names)], "predicted": names[(n + 2) % len(names)], "dense": n % 3,
             "small": 4 - n % 5}
            for n in range(12)
        ],
        "changed": {
            "num_now_wrong": 7, "num_now_right": 5, "num_still_wrong": 2,
            "images": [image(number, changes[number % 5], names) for number in range(14)],
        },
        "calibration": {"dense": calibration(0.02), "small": calibration(0.045)},
        "blocks": blocks(keep),
        "curves": [{"stage": "width", "rows": rows},
                   {"stage": "depth", "rows": [{**row, "top1": None} for row in rows]}],
        "seconds": [{"name": "score heads and neurons", "seconds": 12.3}, {"name": "width distil", "seconds": 4012.0},
                    {"name": "depth distil", "seconds": 3950.5}, {"name": "evaluate", "seconds": 31.0}],
    }  # fmt: skip


def attempt(keep: float, kind: str, difference: float, latency_ratio: float | None = None) -> dict[str, Any]:
    """An entry of `tries` of a search with a limit of one point."""
    return {
        "name": f"{100 * keep:.0f} %", "kind": kind, "keep": keep, "difference": difference, "low": difference - 0.5,
        "passes": difference > -0.5, "disagree": 0.031, "latency_ratio": latency_ratio,
    }  # fmt: skip


def photo_run() -> Content:
    """One smaller model of photos, found by a search, with teachers, notes and a latency limit."""
    dense = model_row("dense", 1.0, 96.2)
    report = report_of([dense, model_row("70 %", 0.7, 95.8, 96.2)])
    report["busy"] = (
        "The machine was busy when latencies were measured (load 9.1 on 8 cores). Their "
        "ratios hold for that moment only."
    )
    report["latency"] = {
        "on": "model", "batch_size": 1, "budget_ms": 30.0, "predicted_ms": 29.5, "measured_ms": 33.0,
        "measured_low_ms": 32.1,
        "measured_high_ms": 33.9, "dense_ms": 41.0, "difference": 0.118,
    }  # fmt: skip
    report["teachers"] = [
        {"name": "vit_base_patch16_224", "weights": "sha256:1f3a", "about": "86 M parameters, top-1 97.1 %"}
    ]
    report["search"] = {
        "max_drop": 1.0, "objective": "keep", "confidence": 0.95, "num_looks": 6, "num_images": 450,
        "sentence": "70 % is the smallest size that was tried whose accuracy is at most 1 point lower.",
        "tries": [
            attempt(0.5, "short", -3.1, latency_ratio=0.56),
            attempt(0.7, "short", -0.31, latency_ratio=0.73),
            attempt(0.7, "full", -0.4),
        ],
    }  # fmt: skip
    return report, {"70 %": details_of()}


def digits_demo() -> Content:
    """Two sizes and a dense control."""
    dense = model_row("dense", 1.0, 97.8)
    models = [dense, model_row("70 %", 0.7, 97.6, 97.8), model_row("50 %", 0.5, 96.9, 97.8)]
    report = report_of(models, "digits")
    report["models"].append({**model_row("dense control", 1.0, 98.0, 97.8), "kept": ""})
    digits = tuple("0123456789")
    return report, {
        name: {**details_of(digits), "blocks": blocks(keep, num_blocks=6, num_heads=3)}
        for name, keep in (("70 %", 0.7), ("50 %", 0.5))
    }


def many_classes() -> Content:
    """1,000 classes, and a model of 24 blocks with 16 heads."""
    names = tuple(f"n{number:08d} class number {number}" for number in range(1000))
    dense = model_row("dense", 1.0, 81.2)
    report = report_of([dense, model_row("60 %", 0.6, 80.1, 81.2)], "imagenet", 1000)
    return report, {"60 %": {**details_of(names, num_images=50), "blocks": blocks(0.6, 24, 16)}}


def train_run() -> Content:
    """A run of `train`: one model."""
    report = report_of([model_row("vit_small_patch16_224", 1.0, 96.2)])
    report["recipe"] = {**to_table(load_recipe("train")), "seed": 7}
    report |= {
        "title": "vit_small_patch16_224 on photos",
        "verdict": "The model is right on 96.2 % of the images.",
        "stages": [],
    }
    found = details_of()
    mistakes = [
        {key: value for key, value in one.items() if key not in ("small", "change")}
        for one in found["changed"]["images"]
    ]
    kept = {key: found[key] for key in ("format", "num_images", "curves", "seconds")}
    kept["confusions"] = [{key: row[key] for key in ("label", "predicted", "dense")} for row in found["confusions"]]
    classes = [{key: value for key, value in row.items() if key != "top1"} for row in found["classes"]]
    return report, {
        "vit_small_patch16_224": {
            **kept, "classes": classes, "calibration": {"dense": calibration(0.02)}, "mistakes": mistakes,
            "curves": [{**kept["curves"][0], "stage": "train"}],
        }
    }  # fmt: skip


def old_report() -> Content:
    """A report of version 0.1.0, without any later key, and no details."""
    report = report_of([model_row("dense", 1.0, 96.2), model_row("-30 %", 0.7, 95.8, 96.2)])
    for row in report["models"]:
        for key in ("classes_at_zero", "kept", "latency_ratio_low", "latency_ratio_high"):
            row.pop(key, None)
    return {key: value for key, value in report.items() if key not in ("verdict", "command", "busy")}, {}


def strange_names() -> Content:
    """Names of classes and models that are HTML, formulas, long, or written from right to left."""
    names = (
        "<script>alert(1)</script>", "<img src=x onerror=alert(1)>", "\u05d7\u05ea\u05d5\u05dc",
        "\u0642\u0637 \u202e evil",
        "\u732b", "$\\frac{1}{2}$", "a" * 200, "two words " * 20, "&amp; \"quoted\" 'name'", "{{ page.title }} {% x %}",
    )  # fmt: skip
    name = "70 % <b>\u0642\u0637\u0629</b> $x_1$ " + "long" * 50
    report = report_of([model_row("dense", 1.0, 96.2), model_row(name, 0.7, 95.8, 96.2)], "<i>data</i>" + "x" * 200)
    found = details_of(names)
    found["changed"]["images"][0]["file"] = "d/" * 90 + "<u>.jpg"
    found["changed"]["images"][1]["thumbnail"] = "https://example.org/tracker.png"
    found["changed"]["images"][2]["thumbnail"] = ""
    for block in found["blocks"]:
        block["name"] = f"<b>{block['name']}</b>" + ".layer" * 30
    found["curves"][0]["stage"] = "<b>$stage$</b>" * 20
    return report, {name: found}


def without(content: Content, *keys: str) -> Content:
    """The same content without some keys of the details."""
    report, details = copy.deepcopy(content)
    return report, {
        name: {key: value for key, value in found.items() if key not in keys} for name, found in details.items()
    }


CONTENTS = {
    "photos": photo_run,
    "digits": digits_demo,
    "many-classes": many_classes,
    "train": train_run,
    "old": old_report,
    "strange-names": strange_names,
}
