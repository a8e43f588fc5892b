"""The model card: its metadata are those of the Hub, and names from outside stay text."""

import re
from typing import Any

import pytest
import yaml
from huggingface_hub import ModelCard

from builders.reports import photo_run
from vitrim.sharing.card import CardFacts, escaped, model_card

HOSTILE = (
    "a|b",
    "<script>alert(1)</script>",
    "](http://evil)",
    "---\nlicense: mit",
    "`code` **bold** # head",
    "{{ 1 }}",
)


def card(**changes: Any) -> str:
    report = photo_run()[0]
    about = {"library": "timm", "plan": {"blocks": []}, "classes": list(HOSTILE), "preprocessing": {}}
    values: dict[str, Any] = {"repository": "me/small", "report": report, "config": {"vitrim": about}, "files": ()}
    return model_card(CardFacts(**{**values, **changes}))


def test_the_metadata_have_the_result_as_the_hub_reads_it() -> None:
    text = card(base="timm/vit_small", license="apache-2.0", data_set="uoft-cs/cifar10")
    data = ModelCard(text).data
    (result,) = data.eval_results or ()
    last = photo_run()[0]["models"][-1]
    assert result.metric_value == pytest.approx(last["top1"] / 100)
    assert (result.task_type, result.metric_type, result.dataset_type) == (
        "image-classification",
        "accuracy",
        "uoft-cs/cifar10",
    )
    front = yaml.safe_load(text.split("---\n")[1])
    assert front["base_model_relation"] == "finetune" and front["license"] == "apache-2.0"
    assert front["pipeline_tag"] == "image-classification" and front["library_name"] == "timm"


def test_what_is_not_known_is_left_out() -> None:
    front = yaml.safe_load(card().split("---\n")[1])
    assert not front.keys() & {"license", "base_model", "base_model_relation", "datasets"}
    assert "The license is not stated here" in card()


def test_names_from_outside_are_text() -> None:
    text = card()
    assert len(re.findall(r"^---$", text, re.M)) == 2
    assert not re.search(r"(?<!\\)(<script|\]\(http)", text)
    assert escaped("a|b <x>\n`y`") == r"a\|b \<x\>\\n\`y\`"
    assert r"\{\{ 1 \}\}" in text


@pytest.mark.parametrize(
    ("library", "line"),
    [
        ("timm", 'timm.create_model("hf-hub:me/small")'),
        ("transformers", 'AutoModelForImageClassification.from_pretrained("me/small")'),
        ("torchvision", 'vitrim.load(snapshot_download("me/small"))'),
    ],
)
def test_the_card_says_how_to_load_the_model(library: str, line: str) -> None:
    about = {"library": library, "plan": {"blocks": []}, "classes": [], "preprocessing": {}}
    assert line in card(config={"vitrim": about})
