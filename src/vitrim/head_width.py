"""Which width the heads get. `auto` cuts the model once with each candidate width, and compares the divergences."""

from collections.abc import Callable
from dataclasses import replace

from vitrim.data.images import ImageSet
from vitrim.data.matching import Calibration
from vitrim.depth import MAX_HELD_OUT, MIN_HELD_OUT, mean_divergence
from vitrim.errors import BudgetError
from vitrim.importance.scores import Scores
from vitrim.planning import Planner
from vitrim.runs.progress import log
from vitrim.source import head_widths

NEGLIGIBLE = 1e-6  # divergence in nats; rounding errors of equal models are smaller
TOLERANCE = 1.02  # of two widths whose divergences differ by less than 2 %, the larger one is taken


def compare_head_widths(planner: Planner, scores: Scores) -> dict[int, float]:
    """The divergence from the dense model after the cut and `recover`, by head width.

    The images are training images held out from `recover`. Nothing is trained. Widths are tried from the largest one
    down, until one is worse than the best. Widths with which no plan meets the budget are left out.

    Args:
        planner: with a rotation.
        scores: of the model that is cut.
    """
    calibration, held_out = _images(planner)
    found: dict[int, float] = {}
    for width in head_widths(planner.source.start.structure, planner.recipe):
        candidate = replace(planner, head_width=width)
        try:
            candidate.check(())
        except BudgetError:
            continue  # heads of this width cannot become few enough; narrower ones may
        plan = candidate.plan_in_one_step(scores)
        found[width] = mean_divergence(candidate.cut(plan, calibration), planner.source.model, held_out)
        log(f"head width {width}: divergence from the dense model {found[width]:.3g}")
        if found[width] > min(found.values()):
            break  # narrower heads lose more than what they leave for neurons gains
    return found


def choose_head_width(planner: Planner, divergences: Callable[[], dict[int, float]]) -> int:
    """The head width, as the recipe says. `auto` takes the width with the smallest divergence, or a larger one as good.

    Args:
        planner: of a recipe that narrows heads.
        divergences: returns the divergences by head width, see `compare_head_widths`. It is called for `auto` only.
    """
    widths = head_widths(planner.source.start.structure, planner.recipe)
    if len(widths) == 1:
        return widths[0]
    found = divergences()
    limit = TOLERANCE * min(found.values(), default=0.0) + NEGLIGIBLE
    best = max((width for width, divergence in found.items() if divergence <= limit), default=widths[-1])
    smallest = min(found, key=lambda width: found[width], default=best)
    gain = found[best] - found[smallest] if found else 0.0
    why = f"; {smallest} diverges less by {gain:.1g}, which is too little to count" if gain else ""
    log(f"heads keep {best} of {widths[0]} directions{why}")
    return best


def _images(planner: Planner) -> tuple[Calibration, Calibration]:
    """Calibration images for `recover`, and other training images to judge the result on."""
    images, settings = planner.source.data.train, planner.recipe.importance
    held_out = min(max(MIN_HELD_OUT, min(MAX_HELD_OUT, len(images) // 5)), len(images) // 2)
    few = min(settings.num_images, len(images) - held_out)
    order = images.sample(min(few + held_out, len(images) - 1), planner.recipe.seed)

    def batches(part: ImageSet) -> Calibration:
        return Calibration(images=part, model=planner.source.model, batch_size=settings.batch_size)

    return batches(order.subset(range(few))), batches(order.subset(range(few, len(order))))
