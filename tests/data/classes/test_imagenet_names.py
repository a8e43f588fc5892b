"""Laws of ImageNet's synsets and words."""

import pytest

from vitrim.data.classes.imagenet_names import synsets_of, synsets_of_outputs

TENCH, SHARK, BIRD, MACHINE = "n01440764", "n01484850", "n02012849", "n03126707"


@pytest.mark.parametrize(
    "name, synset",
    [
        (TENCH, TENCH),
        (f"{TENCH}-tench", TENCH),
        ("tench, Tinca tinca", TENCH),
        ("tench", TENCH),
        ("Tinca_tinca", TENCH),
        ("great white shark", SHARK),
        ("maillot", "n03710637"),  # the whole description of one class, and a word of another
        ("maillot, tank suit", "n03710721"),
        ("crane", ""),
        ("fish", ""),
        ("", ""),
    ],
)
def test_a_name_means_the_only_synset_that_has_it(name: str, synset: str) -> None:
    assert synsets_of([name]) == (synset,)


def test_the_place_of_an_ambiguous_name_among_all_names_tells_what_it_means() -> None:
    from timm.data import ImageNetInfo

    words = ImageNetInfo().label_descriptions()
    standard = synsets_of_outputs(1000)
    assert words.count("crane") == 2
    assert synsets_of(words) == standard and standard[134] == BIRD and standard[517] == MACHINE
    assert synsets_of([text.split(",")[0].replace(" ", "_") for text in words]) == standard
    assert synsets_of(words[::-1])[::-1] == tuple(
        "" if word == "crane" else standard[i] for i, word in enumerate(words)
    )


def test_only_numbers_of_outputs_of_imagenet_have_synsets() -> None:
    assert len(synsets_of_outputs(21843)) == 21843
    assert synsets_of_outputs(10) == () == synsets_of_outputs(0)
