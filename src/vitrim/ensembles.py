"""Evaluate the mean of the softmax outputs of several models: an ensemble, or what several teachers teach.

The mean is expressed as logits, so it is evaluated and learned like the output of one model.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vitrim.asking import within_memory
from vitrim.data.images import ImageData
from vitrim.data.matching import device_of, match_labels, names_of_outputs, preprocessing_of
from vitrim.data.workers import NumWorkers
from vitrim.evaluation import Evaluation, check_classifier, evaluate_outputs, with_classes
from vitrim.hooks import eval_mode
from vitrim.judging import model_logits
from vitrim.models import describe
from vitrim.models.wrappers import unwrapped
from vitrim.runs.progress import log


def mean_logits(logits: Sequence[Tensor], temperature: float = 1.0) -> Tensor:
    """Logits whose softmax at this temperature is the mean of several softmax outputs at this temperature.

    The mean of softmax(z/T) is T-softened already; T times its logarithm are logits of it. So every loss term that
    reads logits works with the mean, too.

    Args:
        logits: `(B, C)` each.
        temperature: T.

    Returns:
        `(B, C)`; of one entry, this entry itself.
    """
    if len(logits) == 1:
        return logits[0]
    logs = torch.stack([F.log_softmax(values / temperature, dim=-1) for values in logits])  # (entries, B, C)
    return temperature * (logs.logsumexp(dim=0) - math.log(len(logits)))


@within_memory("evaluate the models", "Lower batch_size of the evaluation (--eval-batch), or use fewer models.")
@torch.no_grad()
def evaluate_ensemble(
    models: Sequence[nn.Module],
    data: ImageData,
    *,
    flip: bool = False,
    batch_size: int = 256,
    num_workers: NumWorkers = "auto",
    description: str = "evaluating",
) -> Evaluation:
    """Measure the accuracy of the mean of the softmax outputs of several models, each on its own device.

    Images are prepared for each model as for its own evaluation. Which output belongs to which class is found as for
    one model. If the models do not have the same outputs in the same order, softmax is over the classes of the data
    set.

    Args:
        models: one or several. Each is evaluated in eval mode, and is in its own mode afterwards.
        data: its validation images are used. Class names that were stated in it are those of the first model, and of
            models that carry no names.
        flip: the mean is also over each image and its mirror image.
        batch_size: images in each batch of a process.
        num_workers: as for `evaluate`.
        description: shown before the progress bar.

    Raises:
        DataError: as for `evaluate`, of any of the models.
    """
    models = [unwrapped(model) for model in models]
    matched = []
    for number, model in enumerate(models):
        check_classifier(model)
        own_names = number > 0 and names_of_outputs(model)
        matched.append(
            match_labels(replace(data, outputs=(), class_names=None if own_names else data.class_names), model)
        )
    outputs = [found.outputs or tuple(range(len(data.classes))) for found in matched]
    sizes = [describe(model).num_classes for model in models]
    are_equal = len(set(zip(outputs, sizes, strict=True))) == 1
    if not are_equal:
        log(f"the models have other outputs: softmax is over the {len(data.classes)} classes of {data.name}")
    prepared = [preprocessing_of(model) for model in models]
    views = [one for number, one in enumerate(prepared) if one not in prepared[:number]]
    predict = _mean_of(models, [views.index(one) for one in prepared], None if are_equal else outputs, flip=flip)
    with eval_mode(*models):
        found = evaluate_outputs(
            predict,
            (matched[0] if are_equal else data).validation,
            views,
            device=device_of(models[0]),
            batch_size=batch_size,
            num_workers=num_workers,
            description=description,
        )
    return with_classes(found, matched[0].outputs if are_equal else ())


def _mean_of(
    models: Sequence[nn.Module], view_of: Sequence[int], outputs: Sequence[tuple[int, ...]] | None, *, flip: bool
) -> Callable[..., Tensor]:
    """The mean of the models' softmax outputs, as a function from views of the same images to logits.

    Args:
        models: in eval mode.
        view_of: which view each model takes.
        outputs: of each model, the output of each class; None to use all outputs in their order.
        flip: the mean is also over mirror images.
    """

    def predict(*views: Tensor) -> Tensor:
        found = []
        for number, (model, view) in enumerate(zip(models, view_of, strict=True)):
            images = views[view].to(device_of(model))
            for shown in (images, images.flip(-1)) if flip else (images,):
                logits = model_logits(model, shown).to(views[0].device)
                found.append(logits if outputs is None else logits[:, list(outputs[number])])
        return mean_logits(found)

    return predict
