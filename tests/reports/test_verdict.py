"""Laws of the verdict: plain words for smaller, faster, noise, gain and loss; old reports have one too."""

from typing import Any

import pytest

from vitrim.reports.verdict import verdict, verdict_in, with_verdict

DENSE = {"name": "dense", "params": 1000, "top1": 97.1, "latency_ms": 10.0, "latency_ratio": 1.0}


def small(name: str = "70 %", **changes: Any) -> dict[str, Any]:
    """A model that is 30 % smaller and 23 % faster, and as accurate within noise."""
    times = {"latency_ratio": 0.77, "latency_ratio_low": 0.75, "latency_ratio_high": 0.79}
    accuracy = {"difference": -0.2, "difference_low": -1.2, "difference_high": 0.8, "difference_p_value": 0.7}
    return {"name": name, "params": 700, **times, **accuracy, **changes}


def report(*others: dict[str, Any], **changes: Any) -> dict[str, Any]:
    recipe, data = {"latency": {"batch_size": 1}}, {"num_validation": 341}
    return {"models": [DENSE, *others], "recipe": recipe, "data": data, "latency": None, **changes}


def test_a_smaller_and_faster_model_of_the_same_accuracy() -> None:
    assert verdict(report(small())) == (
        "30 % smaller and 23 % faster at batch 1 on this machine; accuracy -0.2 points, within the noise of 341 images."
    )


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"latency_ratio": 1.2, "latency_ratio_low": 1.1, "latency_ratio_high": 1.3}, "20 % slower"),
        ({"latency_ratio": 0.9, "latency_ratio_low": 0.7, "latency_ratio_high": 1.1}, "about as fast"),
        ({"latency_ratio": 0.9, "latency_ratio_low": None, "latency_ratio_high": None}, "10 % faster"),
        ({"latency_ratio": 2.5, "latency_ratio_low": 2.1, "latency_ratio_high": 3.0}, "2.5 times as slow"),
        ({"params": 1000}, "as large as before"),
        ({"params": 1100}, "10 % larger"),
        (
            {"difference": -2.5, "difference_high": -1.0},
            "accuracy -2.5 points, a loss that the 341 images show clearly",
        ),
        ({"difference": 0.9, "difference_low": 0.1}, "accuracy +0.9 points, a gain that the 341 images show clearly"),
        ({"difference": 0.9}, "accuracy +0.9 points, within the noise"),
        ({"difference": -0.04}, "accuracy -0.04 points"),
        ({"difference": 0.0, "difference_low": 0.0, "difference_high": 0.0}, "accuracy unchanged on 341 images"),
        ({"difference": 0.0}, "accuracy unchanged, within the noise of 341 images"),
    ],
)
def test_each_change_is_said_as_what_it_is(changes: dict[str, Any], text: str) -> None:
    assert text in verdict(report(small(**changes)))


def worse(name: str, params: int) -> dict[str, Any]:
    times = {"latency_ratio": 0.6, "latency_ratio_low": 0.55, "latency_ratio_high": 0.65}
    return small(name, params=params, **times, difference=-3.0, difference_high=-2.0)


def test_of_several_sizes_the_smallest_without_a_clear_loss_is_named() -> None:
    control = {**DENSE, "name": "dense control", "params": 10}
    assert verdict(report(small("90 %", params=900), small(), control, worse("50 %", 500))) == (
        "Of 3 sizes, the smallest without a clear loss of accuracy is 70 %: 30 % smaller and 23 % faster at batch 1 on "
        "this machine; accuracy -0.2 points, within the noise of 341 images."
    )


def test_of_sizes_whose_noise_hides_a_large_loss_none_is_named() -> None:
    unsure = {"difference": -9.0, "difference_low": -25.0, "difference_high": 4.0}
    found = verdict(report(small("90 %", params=900, **unsure), small("50 %", params=500, **unsure)))
    assert found.startswith("The images are too few to say which of 2 sizes loses accuracy. 90 %: 10 % smaller")


def test_several_sizes_that_all_lose_have_a_clause_each() -> None:
    assert verdict(report(worse("70 %", 700), worse("50 %", 500))) == (
        "All 2 sizes lose accuracy. 70 %: 30 % smaller, 40 % faster, accuracy -3.0 points (a clear loss); "
        "50 %: 50 % smaller, 40 % faster, accuracy -3.0 points (a clear loss) "
        "(speed at batch 1 on this machine, accuracy on 341 images)."
    )


def test_a_busy_machine_is_said() -> None:
    assert "23 % faster at batch 1 on this machine (busy when timed);" in verdict(report(small(), busy="It was busy."))


def test_a_training_has_its_accuracy() -> None:
    assert verdict(report()) == "Accuracy 97.1 % on 341 images."


@pytest.mark.parametrize(
    ("measured", "text"),
    [
        (11.2, "the limit was met (11.2 ms, limit 12 ms)"),
        (12.3, "met within 5 % (12.3 ms"),
        (13.0, "was missed (13 ms"),
    ],
)
def test_a_limit_in_milliseconds_is_named(measured: float, text: str) -> None:
    assert text in verdict(report(small(), latency={"measured_ms": measured, "budget_ms": 12.0}))


def test_a_report_of_an_earlier_version_has_a_verdict_too() -> None:
    new = {"latency_ratio_low", "latency_ratio_high", "difference_low", "difference_high", "difference_p_value"}
    old = report({key: value for key, value in small().items() if key not in new})
    assert (
        verdict_in(old)
        == "30 % smaller and 23 % faster at batch 1 on this machine; accuracy -0.2 points on 341 images."
    )
    assert verdict_in(with_verdict(old)) == verdict_in(old)
    least = {"models": [DENSE, {"name": "small", "params": 700}]}
    assert verdict_in(least) == "30 % smaller."


def test_the_verdict_has_no_p_value() -> None:
    assert "p =" not in verdict(report(small())) and "0.7" not in verdict(report(small()))
