"""Laws of the part about one model: the map, the changed images and the sentences."""

from builders.reports import blocks, calibration, image
from vitrim.reports.model_section import (
    block_map,
    calibration_section,
    changed_images,
    model_section,
    seconds_table,
    tiles,
)


def test_the_map_has_every_block_and_head_and_its_table_says_the_same() -> None:
    found = block_map(blocks(num_blocks=5, num_heads=4))
    assert found and [row["is_kept"] for row in found["rows"]] == [True, True, True, False, True]
    assert found["num_removed"] == 1
    for row, cells in zip(found["rows"], found["table"].rows, strict=True):
        (strip,) = row["strips"]
        assert len(strip["heads"]) == 4 and strip["about"].count("head ") == 4
        assert strip["about"].count("(removed)") == sum(not head["is_kept"] for head in strip["heads"])
        assert cells[0] == row["name"]
        assert all(bar["tip"] in strip["tip"] for bar in row["bars"])
        assert cells[1] == ("kept" if row["is_kept"] else "removed")
        assert not row["is_kept"] or strip["about"] in cells[3]


def test_a_more_important_head_is_darker() -> None:
    found = block_map(blocks(num_blocks=1, num_heads=5) * 2)
    assert found
    scores = blocks(num_blocks=1, num_heads=5)[0]["groups"][0]["importance"]
    strengths = [head["strength"] for head in found["rows"][0]["strips"][0]["heads"]]
    assert sorted(range(5), key=scores.__getitem__) == sorted(range(5), key=strengths.__getitem__)
    assert max(strengths) == 100


def test_a_map_without_importance_or_groups_is_drawn() -> None:
    group = {"key": "heads", "kind": "heads", "count": 3, "num_kept": 2, "kept": [0, 2]}
    found = block_map([{"name": "blocks.0", "is_kept": True, "groups": [group]}, {"name": "blocks.1"}])
    assert found and not found["has_importance"]
    assert found["rows"][0]["strips"][0]["tip"] == "Head 0, head 1 (removed), head 2."
    assert found["rows"][1]["strips"] == []


def test_classes_without_images_are_counted_and_are_not_the_smallest_class() -> None:
    classes = [{"name": "lemon", "num_images": 30, "dense_top1": 90.0}]
    report = {"models": [{"name": "dense"}], "data": {"num_classes": 2}}
    said = model_section("model1", "dense", report, {"classes": classes})["about_classes"]
    assert "smallest class that was measured has 30 validation images" in said and "3.3 points" in said
    assert "1 class has no validation image, so its accuracy is not measured and it is not in the table." in said
    report["data"] = {"num_classes": 1}
    said = model_section("model1", "dense", report, {"classes": classes})["about_classes"]
    assert said == "The smallest class has 30 validation images, so one image changes its accuracy by 3.3 points."


def test_every_picture_has_a_text_and_a_sign() -> None:
    found = tiles([image(number, change, ("cat", "dog")) for number, change in enumerate(("now_wrong", "now_right"))])
    assert [one["sign"] for one in found] == ["\u2717", "\u2713"]
    assert (
        found[0]["alt"]
        == "image 0: labelled cat; original says cat (93\u00a0% sure); compressed says dog (51\u00a0% sure)"
    )


def test_changes_are_counted_in_a_sentence() -> None:
    found = changed_images({"num_now_wrong": 1200, "num_now_right": 3, "num_still_wrong": 0}, 5000)
    assert found and "for 1,203 of 5,000 images: 1,200 were right before" in found["sentence"]
    same = changed_images({"num_now_wrong": 0, "num_now_right": 0, "num_still_wrong": 0}, 5000)
    assert same and same["sentence"].endswith("the same class as the original for every one of 5,000 images.")
    assert changed_images({}, 5000) is None


def test_calibration_is_explained_with_its_number() -> None:
    both = calibration_section("a", {"dense": calibration(0.02), "small": calibration(0.05)})
    one = calibration_section("a", {"dense": calibration(0.02)})
    assert both and "5.0 points away" in both["sentence"] and "for the original, it is 2.0 points" in both["sentence"]
    assert one and "the confidence of the model is 2.0 points" in one["sentence"]


def test_times_are_added_up() -> None:
    found = seconds_table(
        [{"name": "a", "seconds": 30.0}, {"name": "b", "seconds": 60.0}, {"name": "c", "seconds": None}]
    )
    assert found and [row[0] for row in found.rows] == ["A", "B", "Together"]
    assert found.rows[-1][1] == "1\u00a0min 30\u00a0s" and found.bars == [0.5, 1.0, 0.0]
    assert seconds_table([]) is None
