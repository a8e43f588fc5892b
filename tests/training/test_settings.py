"""Laws of the training settings: values out of range are refused where the settings are made."""

import pytest

from vitrim.errors import SettingError
from vitrim.training.settings import TrainingSettings


def test_settings_out_of_range_are_refused() -> None:
    for changes in ({"epochs": -1}, {"accumulate": 0}, {"learning_rate": 0.0}, {"ema_decay": 1.5}, {"batch_size": 1}):
        with pytest.raises(SettingError, match=next(iter(changes))):
            TrainingSettings(**changes)
    with pytest.raises(SettingError, match=r"num_workers is -1"):
        TrainingSettings(num_workers=-1)
    assert TrainingSettings().num_workers == "auto"


@pytest.mark.parametrize(
    ("num_images", "expected"), [(60, 128), (12_799, 128), (12_800, 256), (50_000, 512), (100_000, 1024), (10**7, 1024)]
)
def test_an_automatic_batch_grows_with_the_images_and_the_learning_rate_with_its_root(
    num_images: int, expected: int
) -> None:
    settings = TrainingSettings(batch_size="auto", learning_rate=1e-3)
    assert settings.batch_for(num_images) == expected
    assert settings.rate_for(expected) == pytest.approx(1e-3 * (expected / 128) ** 0.5)
    fixed = TrainingSettings(batch_size=96, learning_rate=1e-3)
    assert (fixed.batch_for(num_images), fixed.rate_for(96)) == (96, 1e-3)


@pytest.mark.parametrize("num_processes", [1, 3, 5])
def test_an_automatic_batch_can_be_divided_into_pairs_on_each_process(num_processes: int) -> None:
    settings = TrainingSettings(batch_size="auto", accumulate=2)
    batch_size = settings.batch_for(10**6, num_processes)
    assert batch_size % (4 * num_processes) == 0 and 1000 <= batch_size <= 1024
