"""Makes the configuration of a new model of transformers from the settings that a user names."""

from typing import Any

from vitrim.errors import SettingError


def new_config(config_class: Any, settings: dict[str, Any]) -> Any:
    """A configuration with these settings. In a model of text and images, they are those of the vision part.

    Raises:
        SettingError: the configuration has no such key.
    """
    label_settings = {name: value for name, value in settings.items() if name in ("num_labels", "id2label", "label2id")}
    model_settings = {name: value for name, value in settings.items() if name not in label_settings}
    has_vision_config = "vision_config" in config_class.sub_configs
    default = config_class.sub_configs["vision_config"]() if has_vision_config else config_class()
    unknown = [name for name in model_settings if not hasattr(default, name)]
    if unknown:
        raise SettingError(f"{type(default).__name__} has no {', '.join(unknown)}.")
    if has_vision_config:
        return config_class(**label_settings, vision_config=model_settings)
    return config_class(**label_settings, **model_settings)
