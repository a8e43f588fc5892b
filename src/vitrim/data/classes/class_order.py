"""Measure in which order a model without class names has its classes, on a few labelled images."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from accelerate.utils import broadcast_object_list
from scipy import stats
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn

from vitrim.data.batches import eval_batches
from vitrim.data.classes.class_names import folder_orders, number_of
from vitrim.data.classes.imagenet_names import synsets_of, synsets_of_outputs
from vitrim.data.images import ImageSet, rank_in_class
from vitrim.data.preprocessing import Preprocessing
from vitrim.hooks import eval_mode, logits_of
from vitrim.runs.processes import this_process

MAX_IMAGES = 200
BATCH_SIZE = 50
IMAGENET_ORDER = "the order of ImageNet"
# A wrong order makes every later number wrong, so one choice in a thousand may be by chance. Ten images on which only
# the better order is right are enough for that: 2^-10 < 0.001.
MAX_P_VALUE = 0.001


@dataclass(frozen=True, kw_only=True)
class Choice:
    """What the measurement says.

    Attributes:
        name: of the order; None if it is unclear.
        result: the numbers, as a part of a sentence.
        num_images: on how many images it is based.
    """

    name: str | None
    result: str
    num_images: int


def possible_orders(classes: tuple[str, ...], num_outputs: int) -> dict[str, tuple[int, ...]]:
    """The orders that a model with `num_outputs` unnamed outputs may have: for each, the output of each class.

    With one output for each class, these are the usual orders of folders. Names of ImageNet may be outputs of a model
    for all of ImageNet, and folders named by numbers may be named after outputs. Equal orders are listed once.
    """
    orders = folder_orders(classes) if len(classes) == num_outputs else {}
    more = {}
    standard = {synset: output for output, synset in enumerate(synsets_of_outputs(num_outputs))}
    if standard:
        more[IMAGENET_ORDER] = [standard.get(synset, -1) for synset in synsets_of(classes)]
    if all(name.isdecimal() for name in classes):
        more["the order of the numbers"] = [int(name) if number_of(name) < num_outputs else -1 for name in classes]
    for name, order in more.items():
        if -1 not in order and len(set(order)) == len(order) and tuple(order) not in orders.values():
            orders[name] = tuple(order)
    return orders


def measure_order(
    model: nn.Module,
    images: ImageSet,
    orders: Mapping[str, tuple[int, ...]],
    preprocessing: Preprocessing,
    *,
    kind: str = "images",
) -> Choice:
    """Compare the orders by the accuracy on up to 200 images, as many of each class that the orders place differently.

    The best order is chosen if it is better than each other one, and if no order at all is better than it; a single
    order if it is better than a guess. `MAX_P_VALUE` says what is better.

    All processes must call it. They follow the first one.

    Args:
        model: evaluated on its own device.
        images: their labels are positions of classes in each order.
        orders: one or more, from `possible_orders`.
        preprocessing: of the model.
        kind: what the images are, for the result.
    """
    table = torch.tensor(list(orders.values()))  # (orders, classes)
    in_question = (table != table[0]).any(dim=0) if len(table) > 1 else torch.ones(table.shape[1], dtype=torch.bool)
    sample = _sample(images, in_question[images.labels].nonzero().flatten())
    if not len(sample):
        return Choice(name=None, result="there are no images of these classes", num_images=0)
    predicted, labels = _predict(model, sample, preprocessing)
    if not len(labels):
        return Choice(name=None, result="no image of these classes can be decoded", num_images=0)
    right = table[:, labels] == predicted  # (orders, n)
    best, names = int(right.sum(dim=1).argmax()), list(orders)
    percents = [f"{name} {_percent(row)}" for name, row in zip(names, right, strict=True)]
    others = [percent for index, percent in enumerate(percents) if index != best]
    result = "; ".join([f"{_percent(right[best])} of {len(labels)} {kind} right", *others])
    if len(names) == 1:
        count, chance = int(right[0].sum()), 1 / table.shape[1]  # the chance of a guess among these classes
        clear = stats.binomtest(count, len(labels), chance, alternative="greater").pvalue < MAX_P_VALUE
    else:
        clear = all(_is_better(right[best], other) for index, other in enumerate(right) if index != best)
    fitted = _right_in_fitted_order(labels, predicted)
    if clear and _is_better(fitted, right[best]):
        clear, result = False, f"{result}; but another order {_percent(fitted)}"
    if clear:
        return Choice(name=names[best], result=result, num_images=len(labels))
    return Choice(name=None, result=f"{names[best]} {result}", num_images=len(labels))


def _sample(images: ImageSet, positions: Tensor) -> ImageSet:
    """Up to `MAX_IMAGES` of the images at these positions, in which the classes take turns. Only these are copied."""
    shuffled = positions[torch.randperm(len(positions), generator=torch.Generator().manual_seed(0))]
    turn = rank_in_class(images.labels[shuffled], seed=0)
    return images.subset(shuffled[turn.argsort(stable=True)][:MAX_IMAGES])


def _percent(right: Tensor) -> str:
    return f"{100 * float(right.double().mean()):.0f} %"


@torch.no_grad()
def _predict(model: nn.Module, images: ImageSet, preprocessing: Preprocessing) -> tuple[Tensor, Tensor]:
    """The output with the largest logit for each image, and its label, `(n,)` each; in all processes as in the first.

    Images that cannot be decoded any more are left out.
    """
    parameter = next(model.parameters())
    batches = eval_batches(images, preprocessing, batch_size=BATCH_SIZE, device=parameter.device, num_workers=0)
    with eval_mode(model):
        found = [
            (logits_of(model(batch.to(parameter.dtype))).argmax(dim=-1).cpu(), labels.cpu())
            for batch, labels in batches
        ]
    none = torch.empty(0, dtype=torch.int64)
    shared = [torch.cat(column) for column in zip((none, none), *found, strict=True)]
    if this_process().num_processes > 1:  # two GPUs may round differently
        broadcast_object_list(shared)
    return shared[0], shared[1]


def _is_better(first: Tensor, second: Tensor) -> bool:
    """Whether `first` is right on more images: one-sided exact sign test on those where only one is right."""
    only_first, only_second = int((first & ~second).sum()), int((second & ~first).sum())
    if not only_first:
        return False
    test = stats.binomtest(only_first, only_first + only_second, alternative="greater")
    return bool(test.pvalue < MAX_P_VALUE)


def _right_in_fitted_order(labels: Tensor, predicted: Tensor) -> Tensor:
    """Which images are right in the order that fits the predictions best, `(n,)`.

    The images of each class are halved. Each half is judged in the order that was fitted to the other half, so a fit to
    chance is not rewarded.
    """
    classes, row = labels.unique(return_inverse=True)
    outputs, column = predicted.unique(return_inverse=True)
    turn = torch.tensor([int((row[:i] == row[i]).sum()) % 2 for i in range(len(row))])
    right = torch.zeros(len(row), dtype=torch.bool)
    for half in (0, 1):
        counts = torch.zeros(len(classes), len(outputs), dtype=torch.int64)
        counts.index_put_((row[turn != half], column[turn != half]), torch.tensor(1), accumulate=True)
        rows, columns = linear_sum_assignment(counts.numpy(), maximize=True)
        fitted = torch.full((len(classes),), -1)
        fitted[torch.from_numpy(rows)] = torch.from_numpy(columns)
        right |= (turn == half) & (fitted[row] == column)
    return right
