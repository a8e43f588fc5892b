"""The model card of a run: `README.md` of its repository on the Hugging Face Hub. Nothing is measured here.

Names of classes, models and data come from others. They are escaped for Markdown; huggingface_hub writes the YAML.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from vitrim.data.preprocessing import Preprocessing
from vitrim.errors import SettingError, visible
from vitrim.reports.report import in_markdown, markdown_templates, table_rows
from vitrim.reports.verdict import verdict_in

TEMPLATES = Path(__file__).parents[1] / "templates"
MAX_CLASSES = 100  # whose names the card lists
LICENSE = re.compile(r"[a-z0-9][a-z0-9.+-]*")
PUNCTUATION = re.compile(r"([!-/:-@\[-`{-~])")  # Markdown lets any of it be escaped


@dataclass(frozen=True, kw_only=True)
class CardFacts:
    """What a card is made from.

    Attributes:
        repository: such as `USER/NAME`.
        report: content of `report.json`, without paths.
        config: content of the model's `config.json`.
        files: names of the files of the repository.
        exported: names of those that other runtimes read.
        base: repository of the base model; empty if it is not known.
        license: empty if it is not known.
        data_set: repository of the data set; empty if it has none.
    """

    repository: str
    report: dict[str, Any]
    config: dict[str, Any]
    files: Sequence[str]
    exported: Sequence[str] = ()
    base: str = ""
    license: str = ""
    data_set: str = ""

    @property
    def library(self) -> str:
        """The library of the model: timm, transformers or torchvision."""
        return str((self.config.get("vitrim") or {}).get("library", "transformers"))


def model_card(facts: CardFacts) -> str:
    """The text of the card, with its metadata in front."""
    about, report = facts.config.get("vitrim") or {}, facts.report
    classes = list(about.get("classes") or ())
    header, rows = table_rows(in_markdown(report))
    text = (
        markdown_templates(TEMPLATES)
        .get_template("model_card.md.jinja")
        .render(
            facts=facts,
            report=in_markdown({**report, "verdict": _verdict(report)}),
            header=header,
            rows=rows,
            is_pruned=bool(about.get("plan")),
            classes=[escaped(name) for name in classes[:MAX_CLASSES]],
            num_classes=len(classes),
            preprocessing=_preprocessing(about),
            command=_code(report.get("command") or ""),
        )
    )
    card = ModelCard(f"---\n{_metadata(facts).to_yaml()}\n---\n\n{text}")
    assert card.data.to_dict() == _metadata(facts).to_dict(), "the metadata is read as it was written"
    return str(card)


def _metadata(facts: CardFacts) -> ModelCardData:
    report, last = facts.report, facts.report["models"][-1]
    name = facts.repository.rpartition("/")[2]
    result = EvalResult(
        task_type="image-classification",
        task_name="Image Classification",
        dataset_type=facts.data_set or metadata_name(report["data"]["name"]),
        dataset_name=visible(report["data"]["name"]),
        dataset_split="validation",
        metric_type="accuracy",
        metric_name="Top-1 accuracy",
        metric_value=round(last["top1"] / 100, 6),
    )
    is_pruned = bool((facts.config.get("vitrim") or {}).get("plan"))
    return ModelCardData(
        license=facts.license or None,
        base_model=facts.base or None,
        # one of adapter, finetune, merge, quantized; without it, the Hub takes a model with ONNX files for quantized
        base_model_relation="finetune" if facts.base else None,
        library_name=facts.library,
        pipeline_tag="image-classification",
        tags=["image-classification", "vision-transformer", "vitrim", *(["pruned"] if is_pruned else [])],
        datasets=[facts.data_set] if facts.data_set else None,
        metrics=["accuracy"],
        model_name=name,
        eval_results=[result],
    )


def check_license(license: str) -> str:
    """Return a license as the Hub writes it, such as `apache-2.0`.

    Raises:
        SettingError: the Hub has no license of such a form.
    """
    found = license.strip().lower()
    if not LICENSE.fullmatch(found):
        raise SettingError(
            f"--license is {license!r}; expected an identifier of the Hub, such as apache-2.0, mit, cc-by-nc-4.0 or "
            "other."
        )
    return found


def escaped(name: str) -> str:
    """A name as plain text of Markdown."""
    return PUNCTUATION.sub(r"\\\1", visible(name))


def metadata_name(name: str) -> str:
    """A name of a data set as an identifier of the Hub: letters, digits and `-_.`."""
    return re.sub(r"[^\w.-]+", "-", name, flags=re.ASCII).strip("-.") or "images"


def _verdict(report: dict[str, Any]) -> str:
    """The sentence of the report, with the name of the machine on which latency was measured."""
    about, on = report.get("environment") or {}, (report.get("recipe", {}).get("latency") or {}).get("on")
    device = about.get("device") if on not in ("cpu", "onnxruntime") and about.get("device") != "cpu" else None
    return verdict_in(report).replace("on this machine", f"on {device or about.get('cpu') or 'the machine of the run'}")


def _preprocessing(about: dict[str, Any]) -> str:
    try:
        return Preprocessing.from_dict(about.get("preprocessing") or {}).text()
    except (SettingError, KeyError, TypeError):  # vitrim prepares no images for this model
        return ""


def _code(text: str) -> str:
    """A line of a code block."""
    return visible(" ".join(text.splitlines()))
