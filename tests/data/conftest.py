"""Image sets that several files of this folder test."""

import pytest

from builders.images import file_set, memory_set
from vitrim.data.images import ImageSet


@pytest.fixture(scope="session")
def _files(tmp_path_factory: pytest.TempPathFactory) -> ImageSet:
    return file_set(tmp_path_factory.mktemp("images"))


@pytest.fixture(params=["memory", "files"])
def images(request: pytest.FixtureRequest) -> ImageSet:
    """24 images of 12 x 10 pixels and 4 classes, in memory and as files. Tests must not change the files."""
    return memory_set(24, 12, 10) if request.param == "memory" else request.getfixturevalue("_files")
