"""The data sets that vitrim knows by name, with the places and checksums of their official archives."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class NamedDataset:
    """A data set that vitrim knows by name.

    Attributes:
        num_classes: a folder with another number of classes is not this data set.
        pattern: regular expression for the name of a folder or archive, in lower case without punctuation.
        url: of the official archive.
        md5: checksum of this archive.
        folder_names: official names of the unpacked folder, for messages.
        num_train, num_validation: number of images in its splits.
        img_size: height and width of its images in pixels.
        megabytes: size of the archive.
        content: what the images show, in some words.
    """

    num_classes: int
    pattern: str
    url: str
    md5: str
    folder_names: str
    num_train: int
    num_validation: int
    img_size: int
    megabytes: int
    content: str


SOURCES = {
    "cifar10": NamedDataset(
        num_classes=10,
        pattern="cifar10(?!0)",
        url="https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz",
        md5="c32a1d4ab5d03f1284b67883e8d87530",
        folder_names="cifar-10-batches-py, cifar-10-batches-bin",
        num_train=50_000,
        num_validation=10_000,
        img_size=32,
        megabytes=170,
        content="animals and vehicles",
    ),
    "cifar100": NamedDataset(
        num_classes=100,
        pattern="cifar100",
        url="https://www.cs.toronto.edu/~kriz/cifar-100-binary.tar.gz",
        md5="03b5dce01913d631647c71ecec9e9cb8",
        folder_names="cifar-100-python, cifar-100-binary",
        num_train=50_000,
        num_validation=10_000,
        img_size=32,
        megabytes=169,
        content="animals, plants, people, things",
    ),
    "tiny-imagenet": NamedDataset(
        num_classes=200,
        pattern="tinyimagenet",
        url="http://cs231n.stanford.edu/tiny-imagenet-200.zip",
        md5="90528d7ca1a48142e341f4ef8d21d0de",
        folder_names="tiny-imagenet-200",
        num_train=100_000,
        num_validation=10_000,
        img_size=64,
        megabytes=248,
        content="200 classes of ImageNet",
    ),
}
