"""Messages name the options that were given, and settings where no option was given."""

import pytest

from vitrim.cli.messages import in_options

BOTH = "Raise budget.params or budget.macs, or set depth.blocks to more than 2."


@pytest.mark.parametrize(
    ("message", "words", "said"),
    [
        (BOTH, "--keep 0.1", "Raise --keep, or set --depth to more than 2."),
        (BOTH, "--keep=0.1", "Raise --keep, or set --depth to more than 2."),
        (BOTH, "--keep-params 0.1", "Raise --keep-params or budget.macs, or set --depth to more than 2."),
        (BOTH, "--keep 0.9 --set budget.macs=0.1", "Raise --keep or budget.macs, or set --depth to more than 2."),
        (BOTH, "", "Raise budget.params or budget.macs, or set --depth to more than 2."),
        ("Raise budget.latency_ms.", "--latency 3ms", "Raise --latency."),
        ("depth.blocks is -1; expected", "--depth -1", "--depth is -1; expected"),
        ("depth.blocks is -1; expected", "--set=depth.blocks=-1", "depth.blocks is -1; expected"),
        ("depth.blocks is -1; expected", "", "depth.blocks is -1; expected"),
        ("batch_size is 6; expected a multiple of 8", "--batch-size 6", "--batch-size is 6; expected a multiple of 8"),
        ("batch_size is 0; expected", "--eval-batch 0", "--eval-batch is 0; expected"),
        ("The run has budget.params_low and recipe.seed", "--keep 0.1 --seed 1", None),
    ],
)
def test_the_options_that_were_given_are_named(message: str, words: str, said: str | None) -> None:
    assert in_options(message, words.split()) == (said or message)
