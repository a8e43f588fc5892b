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
