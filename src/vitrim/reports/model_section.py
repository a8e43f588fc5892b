"""What the page shows of one model: removed parts, stages, classes, changed images, calibration, times.

Each function takes entries of `report.json` or `details.json` and returns plain data for the template, or nothing if
the entry is missing. Text is escaped by the template.
"""

import re
from collections.abc import Iterator, Sequence
from typing import Any

from vitrim.errors import counted, visible
from vitrim.reports import charts, formats
from vitrim.reports.stages import LARGER
from vitrim.reports.tables import MAX_CLASSES, Table, class_tables, confusion_table

THUMBNAIL = re.compile(r"data:image/(?:jpeg|png|webp);base64,[A-Za-z0-9+/]+={0,2}")
MAX_BLOCK_NAME = 40  # characters in the map; the table has the whole name
CHANGES = {  # sign, so that colour is not the only one; words; what the pictures are
    "now_wrong": ("\u2717", "now wrong"),
    "now_right": ("\u2713", "now right"),
    "still_wrong": ("\u2717", "still wrong, another class"),
    "": ("\u2717", "wrong"),
}


def model_section(ident: str, name: str, report: dict[str, Any], details: dict[str, Any]) -> dict[str, Any]:
    """Make everything about one model.

    Args:
        ident: with which ids of this section begin.
        name: of the model in the report.
        report: content of `report.json`.
        details: content of `details.json`; may be empty.
    """
    row: dict[str, Any] = next((row for row in report["models"] if row["name"] == name), {})
    stages = [stage for stage in report.get("stages") or () if stage.get("model") == name]
    curves = details.get("curves") or ()
    training = [charts.stages_chart(f"{ident}-stages", stages)]
    for number, curve in enumerate(curves):
        stage = formats.training_name(curve.get("stage", ""), len(curves))
        for key in ("loss", "top1"):
            training.append(charts.curves_chart(f"{ident}-{key}{number}", stage, curve.get("rows") or (), key))
    calibration = details.get("calibration") or {}
    return {
        "id": ident,
        "name": name,
        "facts": _facts(row),
        "kept": row.get("kept"),
        "is_from_larger": any(stage.get("name") == LARGER for stage in stages),
        "map": block_map(details.get("blocks") or ()),
        "training": [chart for chart in training if chart],
        "classes": class_tables(details.get("classes") or ()),
        "about_classes": _about_classes(details.get("classes") or (), report.get("data") or {}),
        "confusions": confusion_table(details.get("confusions") or ()),
        "changed": changed_images(details.get("changed") or {}, details.get("num_images")),
        "mistakes": tiles(details.get("mistakes") or ()),
        "calibration": calibration_section(f"{ident}-calibration", calibration),
        "seconds": seconds_table(details.get("seconds") or ()),
    }


def _about_classes(classes: Sequence[dict[str, Any]], data: dict[str, Any]) -> str:
    """Say how many images the smallest class has, and which classes are not in the tables."""
    smallest = min((row.get("num_images") or 0 for row in classes), default=0)
    num_absent = max(0, (data.get("num_classes") or 0) - len(classes))
    sentences = []
    if smallest:
        which = "smallest class that was measured" if num_absent else "smallest class"
        sentences.append(
            f"The {which} has {counted(smallest, 'validation image')}, so one image changes its accuracy by "
            f"{formats.decimal(100 / smallest)} points."
        )
    if num_absent:
        has, its, it_is = ("has", "its", "it is") if num_absent == 1 else ("have", "their", "they are")
        sentences.append(
            f"{counted(num_absent, 'class')} {has} no validation image, so {its} accuracy is not measured and {it_is} "
            "not in the table."
        )
    if len(classes) > MAX_CLASSES:
        sentences.append(f"Of {len(classes):,} classes, only the two ends of the list are shown.")
    return " ".join(sentences)


def _facts(row: dict[str, Any]) -> str:
    """What is seen of a model whose part of the page is closed."""
    numbers = {"accuracy": formats.percents(row.get("top1")), "parameters": formats.count(row.get("params"))}
    return ", ".join(f"{value} {name}" for name, value in numbers.items() if value != formats.NOTHING)


def block_map(blocks: Sequence[dict[str, Any]]) -> dict[str, Any] | None:
    """Make the map of what was removed: one row for each block, and a table that says the same in words."""
    if not blocks:
        return None
    values = [value for group in _groups(blocks) for value in group.get("importance") or () if formats.is_number(value)]
    largest = max(values, default=0) or 1.0
    rows = [_map_row(block, largest) for block in blocks]
    num_removed = sum(not block.get("is_kept", True) for block in blocks)
    return {"rows": rows, "table": _map_table(blocks), "num_removed": num_removed, "has_importance": bool(values)}


def _groups(blocks: Sequence[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    for block in blocks:
        yield from block.get("groups") or ()


def _map_row(block: dict[str, Any], largest: float) -> dict[str, Any]:
    """One block of the map. `largest` is the importance of the most important head of the model."""
    strips, bars = [], []
    for group in block.get("groups") or ():
        number, num_kept = group.get("count") or 0, group.get("num_kept") or 0
        if group.get("kind") == "heads" and "kept" in group:
            kept = set(group["kept"])
            scores = _scores(group)
            heads = [
                {"is_kept": index in kept, "strength": _strength(scores[index], largest)} for index in range(number)
            ]
            strips.append({"heads": heads, "about": _heads_text(group), "text": f"{num_kept} of {number}"})
            width = group.get("kept_width") or 0
            if group.get("width") and num_kept:
                bars.append(_bar("head width", width, group["width"], f"Head width: {width} of {group['width']}."))
        elif number:
            bars.append(_bar_of(group))
    if not block.get("is_kept", True):
        bars = []
    for strip in strips:  # the numbers of the whole block, because a row has one place for the focus
        strip["tip"] = " ".join([f"{strip['about']}.".capitalize(), *(bar["tip"] for bar in bars)])
    return {
        "name": formats.short(block.get("name", ""), MAX_BLOCK_NAME),
        "is_kept": bool(block.get("is_kept", True)),
        "importance": formats.fraction(block["importance"]) if formats.is_number(block.get("importance")) else "",
        "strips": strips,
        "bars": bars,
    }


def _scores(group: dict[str, Any]) -> list[Any]:
    """The importance of each head; None where it is not known."""
    found = list(group.get("importance") or ())
    return found + [None] * (group.get("count", 0) - len(found))


def _strength(value: Any, largest: float) -> int:
    """How dark a head is drawn, in percent."""
    return round(18 + 82 * max(0.0, min(1.0, value / largest))) if formats.is_number(value) else 60


def _bar(label: str, kept: int, number: int, said: str) -> dict[str, Any]:
    """A bar of the map, with what is said about it under the pointer."""
    return {"label": label, "text": f"{kept:,} of {number:,}", "percent": round(100 * kept / number, 1), "tip": said}


def _bar_of(group: dict[str, Any]) -> dict[str, Any]:
    """The bar of a group whose units are not drawn one by one, such as neurons."""
    kind, kept, number = str(group.get("kind", "")), group.get("num_kept") or 0, group["count"]
    fraction = formats.fraction(group.get("importance_kept"))
    known = "" if fraction == formats.NOTHING else f"; they carry {fraction} of the importance"
    return _bar(kind, kept, number, f"{kind.capitalize()}: {kept:,} of {number:,} are kept{known}.")


def _heads_text(group: dict[str, Any]) -> str:
    """What is shown for the heads of a block under the pointer and on focus."""
    kept = set(group.get("kept") or ())
    parts = []
    for index, value in enumerate(_scores(group)):
        known = f" {formats.fraction(value, 2)}" if formats.is_number(value) else ""
        parts.append(f"head {index}{known}{'' if index in kept else ' (removed)'}")
    return ", ".join(parts)


def _map_table(blocks: Sequence[dict[str, Any]]) -> Table:
    rows = []
    for block in blocks:
        importance = formats.fraction(block.get("importance"))
        if not block.get("is_kept", True):
            rows.append(
                [str(block.get("name", "")), "removed", importance, formats.NOTHING, formats.NOTHING, formats.NOTHING]
            )
            continue
        groups = block.get("groups") or ()
        heads = [group for group in groups if group.get("kind") == "heads"]
        others = [group for group in groups if group.get("kind") != "heads"]
        rows.append(
            [
                str(block.get("name", "")),
                "kept",
                importance,
                "; ".join(f"{g.get('num_kept', 0)} of {g.get('count', 0)}: {_heads_text(g)}" for g in heads),
                "; ".join(f"{g['kept_width']} of {g['width']}" for g in heads if g.get("width") and "kept_width" in g),
                " ".join(_bar_of(group)["tip"] for group in others if group.get("count")),
            ]
        )
    header = ["Block", "Kept", "Importance", "Heads, with their importance", "Head width", "Neurons"]
    return Table(caption="What was removed, in words", header=header, rows=rows)


def changed_images(changed: dict[str, Any], num_images: Any) -> dict[str, Any] | None:
    """Make the part about images whose prediction changed; None if nothing is known about them."""
    counts = {key: changed.get(f"num_{key}") for key in ("now_wrong", "now_right", "still_wrong")}
    if not any(isinstance(value, int) for value in counts.values()):
        return None
    wrong, right, still = (value or 0 for value in counts.values())
    of_all = f" of {num_images:,}" if isinstance(num_images, int) and num_images else ""
    if not wrong + right + still:
        same = (
            f"The compressed model predicts the same class as the original for every one{of_all or ' of the'} images."
        )
        return {"sentence": same, "tiles": []}
    sentence = (
        f"The compressed model predicts another class than the original for {wrong + right + still:,}{of_all} images: "
        f"{wrong:,} {_was(wrong)} right before, {right:,} {_is(right)} right now, and {still:,} {_is(still)} wrong in "
        "both."
    )
    shown = tiles(changed.get("images") or ())
    if 0 < len(shown) < wrong + right + still:
        sentence += f" The {len(shown)} about which the models are surest:"
    return {"sentence": sentence, "tiles": shown}


def _is(count: int) -> str:
    return "is" if count == 1 else "are"


def _was(count: int) -> str:
    return "was" if count == 1 else "were"


def tiles(images: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Make the pictures with their labels and predictions. A thumbnail that is no data URL of a picture is left out."""
    found = []
    for image in images:
        sign, words = CHANGES.get(image.get("change", ""), CHANGES[""])
        predictions = [
            {
                "model": title,
                "name": str(image[key].get("class", "")),
                "sure": formats.fraction(image[key].get("confidence"), 0),
            }
            for key, title in (("dense", "original" if image.get("small") else "model"), ("small", "compressed"))
            if image.get(key)
        ]
        name = str(image.get("file") or f"image {image.get('index', '')}")
        thumbnail = str(image.get("thumbnail") or "")
        said = "; ".join(f"{one['model']} says {one['name']} ({one['sure']} sure)" for one in predictions)
        found.append(
            {
                "sign": sign,
                "words": words,
                "is_good": sign == "\u2713",
                "name": name,
                "label": str(image.get("label", "")),
                "predictions": predictions,
                "thumbnail": thumbnail if THUMBNAIL.fullmatch(thumbnail) else "",
                "alt": visible(f"{name}: labelled {image.get('label', '')}; {said}"),
            }
        )
    return found


def calibration_section(ident: str, calibration: dict[str, Any]) -> dict[str, Any] | None:
    """Make the reliability diagram and a sentence about its error; None if there is nothing to draw."""
    chart = charts.reliability_chart(ident, calibration)
    if chart is None:
        return None
    errors = {key: (calibration.get(key) or {}).get("ece") for key in ("dense", "small")}
    known = {key: formats.decimal(value) for key, value in errors.items() if formats.is_number(value)}
    sentence = ""
    if len(known) == 2:
        sentence = (
            f"On average, the confidence of the compressed model is {known['small']} points away from how often it is "
            f"right; for the original, it is {known['dense']} points. This number is called expected calibration error "
            "(ECE)."
        )
    elif "dense" in known:
        sentence = (
            f"On average, the confidence of the model is {known['dense']} points away from how often it is right. This "
            "number is called expected calibration error (ECE)."
        )
    return {"chart": chart, "sentence": sentence}


def seconds_table(seconds: Sequence[dict[str, Any]]) -> Table | None:
    """Make the table of the time of each stage; None if no time is known."""
    known = [row for row in seconds if formats.is_number(row.get("seconds"))]
    if not known:
        return None
    total, longest = (combine(row["seconds"] for row in known) for combine in (sum, max))
    names = [formats.stage_name(row.get("name", "")) for row in known]
    names = [name[:1].upper() + name[1:] for name in names]
    rows = [[name, formats.duration(row["seconds"])] for name, row in zip(names, known, strict=True)]
    rows.append(["Together", formats.duration(total)])
    bars = [row["seconds"] / (longest or 1) for row in known] + [0.0]
    return Table(caption="Time of each stage", header=["Stage", "Time"], rows=rows, bars=bars)
