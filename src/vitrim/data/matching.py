"""Fit data to a model: its labels, its preprocessing, its calibration images.

Comparing names is in `class_names`, measuring an unknown order of classes in `class_order`.
"""

from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from vitrim.data.batches import check_channels, eval_batches
from vitrim.data.classes.class_names import ClassNames, are_numbered, join, look_up, read_class_names
from vitrim.data.classes.class_order import IMAGENET_ORDER, measure_order, possible_orders
from vitrim.data.classes.imagenet_names import synsets_of, synsets_of_outputs
from vitrim.data.image_ops import RECOLOURED_CHANNELS
from vitrim.data.images import ImageData, ImageSet
from vitrim.data.preprocessing import Preprocessing
from vitrim.errors import DataError, UnsupportedModel, counted
from vitrim.models import adapter_for, describe, origin_of, record_origin
from vitrim.models.channels import with_channels
from vitrim.models.label_names import descriptions_of
from vitrim.models.wrappers import unwrapped
from vitrim.runs.progress import log

OWN_ORDER = "the order of the data set"
MIN_VALIDATION_IMAGES = 50  # with fewer, an unclear order of classes is measured on training images


def preprocessing_of(model: nn.Module) -> Preprocessing:
    """Return how images are prepared for a model: as recorded with its weights, else from its configuration.

    Raises:
        UnsupportedModel: no adapter knows the model.
        SettingError: the record is damaged.
    """
    try:
        recorded = origin_of(model).preprocessing
    except UnsupportedModel:
        recorded = {}
    configured = adapter_for(model).preprocessing(unwrapped(model))
    if not recorded or "mean" not in configured:
        return Preprocessing.from_dict(recorded or configured)
    channels = len(configured["mean"])  # as many as the model takes now; its first convolution may have been replaced
    return Preprocessing.from_dict(with_channels(recorded, channels))


def device_of(model: nn.Module) -> torch.device:
    """Return the device of the model's first parameter."""
    return next(model.parameters()).device


def match_labels(data: ImageData, model: nn.Module, *, learns: bool = False) -> ImageData:
    """Return the data set with labels that are the outputs of a model, and its classes in the order of the outputs.

    The first of these decides: names that the user stated (`data.class_names`); names that the model carries; the order
    of the data set, where no other one is usual; else a measurement on up to 200 validation images. If that is unclear,
    classes that are not sorted, as a Hugging Face data set may have them, are in the order of the data set. What was
    decided is printed on standard error, unless all names are equal.

    Args:
        learns: whether the model is to be trained on these labels. If its order is unclear, it then learns that of the
            data set.

    Raises:
        DataError: the model has no output for a class, class names do not fit, or the order of the classes is unclear.
            Or the images have other channels than the model's.
    """
    data = _match_channels(data, model)
    known, num_outputs = _outputs_of(model)
    if data.class_names is not None:
        return _match_stated(data, data.class_names, known, num_outputs)
    if data.classes == known or (data.in_output_order and len(data.classes) == num_outputs):
        return data
    if known and not _is_numbering(known, data.classes):
        columns = _names_by_column(model, known)
        index, names, notes = find_outputs(data.classes, columns)
        if index is not None:
            return _with_outputs(data, index, names, notes)
        if not all(name.isdecimal() for name in data.classes):
            raise DataError(_unmatched(data, columns))
    return _match_by_order(data, model, known, num_outputs, learns=learns)


def name_outputs(model: nn.Module, names: str | Path | Sequence[str] | ClassNames) -> None:
    """Note the class names of a model's outputs on it, as `read_class_names` reads them.

    Raises:
        DataError: there is not one name for each output, or two outputs would have the same name.
        UnsupportedModel: the model does not tell how it was made, so nothing can be noted.
    """
    stated = read_class_names(names)
    origin = origin_of(model)
    num_outputs = int(origin.model_args["num_classes"])
    if len(stated) != num_outputs or not stated.in_order:
        raise DataError(_wrong_number(stated, num_outputs))
    record_origin(model, replace(origin, classes=stated.names))


def note_classes(model: nn.Module, data: ImageData) -> nn.Module:
    """Note the classes of a data set on a model that was trained on its labels, if it tells how it was made.

    Returns:
        The same model.
    """
    with suppress(UnsupportedModel):
        origin = origin_of(model)
        if len(data.classes) == int(origin.model_args["num_classes"]):
            record_origin(model, replace(origin, classes=data.classes))
    return model


def fits_outputs(data: ImageData, model: nn.Module) -> bool:
    """Whether a model has an output for each class: by its class names if it has some, else by their number."""
    known, num_outputs = _outputs_of(model)
    if data.class_names is not None:  # whether they fit is checked by `match_labels`
        return not len(data.class_names) == len(data.classes) != num_outputs
    if known and not _is_numbering(known, data.classes):
        return find_outputs(data.classes, _names_by_column(model, known))[0] is not None
    return num_outputs == len(data.classes)


def names_of_outputs(model: nn.Module) -> tuple[str, ...]:
    """The class names that a model carries, in the order of its outputs; empty if it has none."""
    return _outputs_of(model)[0]


def find_outputs(
    folders: Sequence[str], columns: Sequence[tuple[str, ...]]
) -> tuple[tuple[int, ...] | None, tuple[str, ...], tuple[str, ...]]:
    """Find the output of each folder.

    Args:
        folders: names of class folders.
        columns: names of the outputs; each column names them in another way. The first that has all folders decides,
            else the synsets of ImageNet that folders and outputs mean.

    Returns:
        The outputs, or None if a folder has no output or several; the column that decided; and notes for the user.
    """
    for column in columns:
        joined = join(folders, column)
        if joined.is_complete:
            return tuple(index for index in joined.index if index is not None), column, joined.notes
    meant = synsets_of(folders)
    for column in columns if all(meant) else ():
        joined = join(meant, synsets_of(column))
        if joined.is_complete:
            outputs = tuple(index for index in joined.index if index is not None)
            pair = f"{folders[0]!r} with {column[outputs[0]]!r}"
            note = f"the folders are matched by ImageNet's list of synsets and words, such as {pair}"
            return outputs, column, (note,)
    return None, (), ()


def _outputs_of(model: nn.Module) -> tuple[tuple[str, ...], int]:
    """The class names that the model carries, if any, and the number of its outputs."""
    try:
        origin = origin_of(model)
    except UnsupportedModel:  # it does not tell how it was made, but can be evaluated
        return (), describe(model).num_classes
    return origin.classes, int(origin.model_args["num_classes"])


def _is_numbering(known: tuple[str, ...], folders: tuple[str, ...]) -> bool:
    """Whether names of outputs only count them, so that they may be made up.

    If folders have these names, they are trusted where sorting them in any way leaves them in this order.
    """
    if not are_numbered(known):
        return False
    return not set(folders) <= set(known) or known != tuple(sorted(known))


def _names_by_column(model: nn.Module, known: tuple[str, ...]) -> list[tuple[str, ...]]:
    return [known, *filter(None, [descriptions_of(model, known)])]


def _match_stated(data: ImageData, stated: ClassNames, known: tuple[str, ...], num_outputs: int) -> ImageData:
    """Match the labels by names that the user stated: the outputs in order, or a dictionary for the model's names."""
    if known and len(stated.columns) > 1:
        rows_by_column = [look_up(known, words) for words in stated.columns]  # for each output, its row
        rows = max(rows_by_column, key=lambda rows: sum(row is not None for row in rows))
        in_order = stated.in_order and all(row in (None, output) for output, row in enumerate(rows))
        if any(row is not None for row in rows) and not (in_order and len(stated) == num_outputs):
            return _match_by_dictionary(data, stated, known, rows)
    if len(stated) != num_outputs or not stated.in_order:
        raise DataError(_wrong_number(stated, num_outputs))
    index, column, notes = find_outputs(data.classes, stated.columns)
    if index is None:
        raise DataError(_unmatched(data, stated.columns, stated.source))
    if known and known not in stated.columns:
        notes = (*notes, f"the class names are those of {stated.source}, not the model's own, such as {known[0]!r}")
    return _with_outputs(data, index, column, notes)


def _match_by_dictionary(
    data: ImageData, stated: ClassNames, known: tuple[str, ...], rows: tuple[int | None, ...]
) -> ImageData:
    """Match the labels where rows of names that the user stated join the folders with the model's names.

    Args:
        rows: the row of each output.
    """
    output_of = {row: output for output, row in enumerate(rows) if row is not None}
    best = max(stated.columns, key=lambda column: sum(row in output_of for row in join(data.classes, column).index))
    joined = join(data.classes, best)
    lost = [name for name, row in zip(data.classes, joined.index, strict=True) if row not in output_of]
    if lost or joined.ambiguous:
        reason = joined.ambiguous[0] if joined.ambiguous else f"no class of the model is found for {lost[0]!r}"
        raise DataError(
            f"{stated.source} does not join the folders of {data.name} with the model's class names, such as "
            f"{known[0]!r}: {reason}. State one name a line, in the order of the model's outputs."
        )
    names = tuple(known[output] if row is None else best[row] for output, row in enumerate(rows))
    note = f"the model's own class names, such as {known[0]!r}, are looked up in {stated.source}"
    return _with_outputs(data, tuple(output_of[row] for row in joined.index if row is not None), names, (note,))


def _match_by_order(
    data: ImageData, model: nn.Module, known: tuple[str, ...], num_outputs: int, *, learns: bool
) -> ImageData:
    """Match the labels where names do not help: by the only order that is possible, else by measuring.

    Args:
        known: names of outputs that are none of the folders; empty if there are none.
    """
    classes, own_order = data.classes, tuple(range(len(data.classes)))
    unnamed = not known or _is_numbering(known, classes)
    orders = possible_orders(classes, num_outputs)
    states_order = unnamed and len(classes) == num_outputs and classes != tuple(sorted(classes))
    if states_order:  # these are no sorted folders, but the model may have learned from such folders
        orders = {OWN_ORDER: own_order, **{name: order for name, order in orders.items() if order != own_order}}
    if unnamed and list(orders.values()) == [own_order]:
        return data
    if not orders:
        raise DataError(_unmatched(data, [known]) if known else _no_names(data, num_outputs))
    choice = measure_order(model, data.validation, orders, preprocessing_of(model))
    if choice.name is None and choice.num_images < MIN_VALIDATION_IMAGES:
        on_training = measure_order(model, data.train, orders, preprocessing_of(model), kind="training images")
        choice = on_training if on_training.num_images > choice.num_images else choice
    if choice.name is None and learns and len(classes) == num_outputs:
        log(f"{data.name}: the order of the classes in the model is unclear; it learns them in the order of the data")
        return replace(data, in_output_order=True)
    if choice.name is None and states_order:
        log(f"{data.name}: {OWN_ORDER} is used for the outputs of the model; images do not confirm it: {choice.result}")
        return replace(data, in_output_order=True)
    if choice.name is None:
        what = "no names for" if unnamed else "other names for"
        raise DataError(
            f"The model has {what} the {len(classes)} classes of {data.name}, and the order of its {num_outputs} "
            f"outputs is unclear: {choice.result}. Is it trained on these classes? Then state their names in the order "
            "of the model's outputs, one name a line, with class_names (`--class-names FILE`)."
        )
    index = orders[choice.name]
    names = known
    if unnamed and len(classes) == num_outputs:
        names = tuple(name for _, name in sorted(zip(index, classes, strict=True)))
    elif unnamed:
        numbers = tuple(map(str, range(num_outputs)))
        names = synsets_of_outputs(num_outputs) if choice.name == IMAGENET_ORDER else known or numbers
    return _with_outputs(data, index, names, (f"classes are in {choice.name}: {choice.result}",))


def _with_outputs(
    data: ImageData, index: tuple[int, ...], names: tuple[str, ...], notes: tuple[str, ...] = ()
) -> ImageData:
    """The data set with the output `index[i]` as the label of its class `i`, and the names of all outputs."""
    for note in notes:
        log(f"{data.name}: {note}")
    if len(index) < len(names):
        log(f"{data.name}: it has {len(index)} of the model's {len(names)} classes; all {len(names)} can be predicted")
    labels, train, validation = torch.tensor(index), data.train, data.validation
    if index != tuple(range(len(index))):
        train, validation = (replace(part, labels=labels[part.labels]) for part in (train, validation))
    data = replace(data, train=train, validation=validation, class_names=None, in_output_order=True)
    return replace(data, classes=names, outputs=index)


def _wrong_number(stated: ClassNames, num_outputs: int) -> str:
    kind = "name" if stated.in_order else "pair"
    joins = "" if len(stated.columns) < 2 else " A file of pairs can also explain the model's own names, if all match."
    unordered = "" if stated.in_order else " of names, which do not state the order of the outputs,"
    return (
        f"{stated.source} has {counted(len(stated), kind)}{unordered} but the model has "
        f"{counted(num_outputs, 'output')}; expected one name for each output, in their order, such as "
        f"{', '.join(name[:60] for name in stated.columns[0][:3])}.{joins}"
    )


def _no_names(data: ImageData, num_outputs: int) -> str:
    return (
        f"The data set {data.name} has {len(data.classes)} classes, but the model has "
        f"{counted(num_outputs, 'output')} and no class names. Pass `--num-classes {len(data.classes)}` for a new "
        "model, fine-tune this one with `vitrim train`, or state the names of its outputs with class_names "
        "(`--class-names FILE`)."
    )


def _unmatched(data: ImageData, columns: Sequence[tuple[str, ...]], source: str = "") -> str:
    """Why the folders do not fit the names of the outputs, in the column that fits best."""
    results = {column: join(data.classes, column) for column in columns}
    names, joined = max(results.items(), key=lambda item: sum(index is not None for index in item[1].index))
    advice = (
        "State the names of the folders in the order of the model's outputs with class_names (`--class-names FILE`)"
    )
    if joined.ambiguous:
        return (
            f"The classes of {data.name} cannot be matched to those of {source or 'the model'}: {joined.ambiguous[0]}. "
            f"{advice}."
        )
    unknown = [name for name, index in zip(data.classes, joined.index, strict=True) if index is None]
    unused = [name for position, name in enumerate(names) if name and position not in joined.index]
    if source:
        others = (
            f"{counted(len(unused), 'name')} in it without a class, such as {', '.join(unused[:3])}. " if unused else ""
        )
        return (
            f"{counted(len(unknown), 'class')} of {data.name} not found in {source}, such as {', '.join(unknown[:3])}. "
            f"{others}Every class must have a name in it."
        )
    return (
        f"The data set {data.name} has {counted(len(unknown), 'class')} that the model was not trained for, such as "
        f"{', '.join(unknown[:3])}. The model has {len(names)} classes, such as {', '.join((unused or names)[:3])}. "
        f"Are these the same classes under other names? {advice}. Else train the model on this data set with "
        "`vitrim train`, or use another data set."
    )


def _match_channels(data: ImageData, model: nn.Module) -> ImageData:
    """Check the number of channels, and note what is particular to images that are not RGB."""
    preprocessing = preprocessing_of(model)
    for images in (data.train, data.validation):
        check_channels(images, preprocessing.channels)
    if preprocessing.channels == 3:
        return data
    mean, std = (", ".join(f"{value:.3g}" for value in values) for values in (preprocessing.mean, preprocessing.std))
    name = "1 channel" if preprocessing.channels == 1 else f"{preprocessing.channels} channels"
    notes = [f"{name}: the pixels are normalised with mean {mean} and std {std}, from the model's configuration"]
    if preprocessing.channels not in RECOLOURED_CHANNELS:
        notes.append(f"{name}: RandAugment moves pixels but changes no colours")
    new = [note for note in notes if note not in data.notes]
    for note in new:
        log(note)
    return replace(data, notes=(*data.notes, *new)) if new else data


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """Batches of images without augmentation, on the model's device. Can be iterated any number of times.

    Attributes:
        images: the calibration images.
        model: its configuration says how they are prepared.
        batch_size: images in each batch; the last batch may be smaller.
    """

    images: ImageSet
    model: nn.Module
    batch_size: int

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        preprocessing, device = preprocessing_of(self.model), device_of(self.model)
        return eval_batches(self.images, preprocessing, batch_size=self.batch_size, device=device)

    def __len__(self) -> int:
        return -(-len(self.images) // self.batch_size)
