"""What a case has shown, and the file that keeps it."""

import json
from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

from tools.torture.runner import Ended

RIGHT = "right"
WRONG = "silently wrong"  # exit status 0 and another result
LOST = "lost"  # the run cannot be finished, or not as the message says
EXECUTED = "executed"  # code from a file was run
HANG = "hang"
TRACEBACK = "traceback"
UNCLEAR = "unclear"  # no sentence of vitrim, or another exit status than is documented
BAD = (WRONG, LOST, EXECUTED, HANG, TRACEBACK, UNCLEAR)


@dataclass(frozen=True, kw_only=True)
class Case:
    """One case.

    Attributes:
        kind: for the table.
        name: of the case; it decides the case completely.
        verdict: `RIGHT`, or one of `BAD`.
        about: the last message.
    """

    kind: str
    name: str
    verdict: str
    about: str = ""


class Record:
    """The cases that are done, one in each line of a file. A rerun goes on after the last."""

    def __init__(self, file: Path) -> None:
        """Read the file, if there is one."""
        self.file = file
        file.parent.mkdir(parents=True, exist_ok=True)
        lines = file.read_text().splitlines() if file.is_file() else []
        self.cases = [Case(**json.loads(line)) for line in lines]
        self._done = {(case.kind, case.name) for case in self.cases}

    def has(self, kind: str, name: str) -> bool:
        """Whether a case is done."""
        return (kind, name) in self._done

    def add(self, case: Case) -> None:
        """Write a case, and print it if it went wrong."""
        self.cases.append(case)
        with self.file.open("a") as file:
            file.write(json.dumps(asdict(case)) + "\n")
        if case.verdict != RIGHT:
            print(f"{case.kind} / {case.name}: {case.verdict}. {case.about}", flush=True)

    def table(self) -> str:
        """The counts as a table in markdown."""
        kinds = list(dict.fromkeys(case.kind for case in self.cases))
        lines = [f"| kind | cases | {RIGHT} | {' | '.join(BAD)} |", f"|---|{'---:|' * (2 + len(BAD))}"]
        for kind in [*kinds, None]:
            cases = [case for case in self.cases if kind in (None, case.kind)]
            counts = Counter(case.verdict for case in cases)
            numbers = " | ".join(str(counts[verdict]) for verdict in (RIGHT, *BAD))
            lines.append(f"| {kind or 'all'} | {len(cases)} | {numbers} |")
        return "\n".join(lines)

    def is_good(self, cases: Iterable[Case] | None = None) -> bool:
        """Whether all cases went right."""
        return all(case.verdict == RIGHT for case in (self.cases if cases is None else cases))


def refusal(ended: Ended, *, named: str = "") -> str:
    """The verdict on a command that should be refused: exit status 2 and one sentence.

    Args:
        ended: how it ended.
        named: must be in the message.
    """
    if ended.status is None:
        return HANG
    if ended.has_traceback:
        return TRACEBACK
    if ended.status == 0:
        return WRONG
    is_sentence = ended.message.startswith("vitrim: ") and named in ended.message and len(ended.message) < 3000
    return RIGHT if ended.status == 2 and is_sentence else UNCLEAR
