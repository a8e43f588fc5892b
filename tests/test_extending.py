"""A criterion and a loss term are each added by a change to one source file. CONTRIBUTING.md shows the same."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import vitrim
from builders.runs import save_digits_model

SOURCE = Path(vitrim.__file__).parent

NEW_CRITERION = '''
def _widest(inputs: Inputs) -> Sums:
    """A higher score for a higher index."""
    sums = {}
    for block in inputs.structure.blocks:
        for group in prunable_groups(block):
            sums[group_name(block, group)] = torch.arange(group.count, dtype=torch.float64)
        sums[block.name] = torch.ones(1, dtype=torch.float64)
    return Sums(sums, 0)


CRITERIA: Mapping[str, Criterion] = {
    "widest": Criterion(_widest),
'''
NEW_TERM = '''
def _logits(inputs: LossInputs, settings: DistillationSettings) -> Tensor:
    """Mean squared error of the logits."""
    return F.mse_loss(inputs.student_logits, inputs.teacher_logits)


TERMS: Mapping[str, LossTerm] = {
    "logits": LossTerm(compute=_logits, needs=frozenset({"student logits", "teacher logits"})),
'''
CHECK = """
import json, sys
from pathlib import Path
import vitrim
from builders.runs import digits
run = Path(sys.argv[2])
data = digits(40, 20)
changes = ["importance.criterion=widest", "importance.num_images=20", "importance.steps=1", "importance.joint=false"]
changes += ["heads.width=full", "depth.blocks=0"]
changes += ["budget.params=0.6", "budget.macs=0.6", "budget.min_neurons=4", "latency.rounds=1"]
for stage in ("width_training", "depth_training"):
    changes += [f"{stage}.epochs=1", f"{stage}.batch_size=20", f"{stage}.distillation.logits=0.5"]
result = vitrim.compress(vitrim.load(sys.argv[1]), data, vitrim.load_recipe("default", changes), run)
for kept in result.plan.blocks:
    assert kept.neurons == tuple(range(64 - len(kept.neurons), 64)), kept.neurons
rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
assert all(row["logits"] > 0 for row in rows) and rows
"""


def insert(file: Path, before: str, text: str) -> None:
    source = file.read_text(encoding="utf-8")
    assert source.count(before) == 1
    file.write_text(source.replace(before, text.lstrip("\n")), encoding="utf-8")


def test_a_criterion_and_a_loss_term_need_one_file_each(tmp_path: Path) -> None:
    """With both, a whole compression runs: recipe, command, scores, training and metrics know them."""
    copy = Path(shutil.copytree(SOURCE, tmp_path / "src" / "vitrim"))
    insert(copy / "importance" / "criteria.py", "CRITERIA: Mapping[str, Criterion] = {\n", NEW_CRITERION)
    insert(copy / "losses.py", "TERMS: Mapping[str, LossTerm] = {", NEW_TERM.rstrip("\n") + "  #")
    insert(copy / "losses.py", "    hard: float = 0.0\n", "    hard: float = 0.0\n    logits: float = 0.0\n")
    model = save_digits_model(tmp_path / "model")
    paths = [str(copy.parent), str(Path(__file__).parent), str(Path(__file__).parents[1])]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", CHECK, str(model), str(tmp_path / "run")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
