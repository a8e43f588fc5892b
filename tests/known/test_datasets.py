"""The data sets by name: their archives are found under the names that the servers give them."""

import re

from vitrim.data.listing.sources import SOURCES
from vitrim.known import datasets


def test_sources_are_those_that_are_listed() -> None:
    assert SOURCES is datasets.SOURCES


def test_each_archive_and_folder_has_the_name_of_its_data_set_only() -> None:
    for name, source in SOURCES.items():
        for text in (source.url.rpartition("/")[2], *source.folder_names.split(", ")):
            letters = re.sub("[^a-z0-9]", "", text.lower())
            assert [other for other, found in SOURCES.items() if re.match(found.pattern, letters)] == [name]


def test_checksums_and_numbers_are_plausible() -> None:
    for source in SOURCES.values():
        assert re.fullmatch("[0-9a-f]{32}", source.md5)
        assert source.num_train % source.num_classes == source.num_validation % source.num_classes == 0
