"""The command line: any words end with status 2 and one line, or with 0 for help."""

import contextlib
import io

from hypothesis import given
from hypothesis import strategies as st

from builders.fuzz import numbers, texts, tried
from vitrim import cli

COMMANDS = ["train", "compress", "evaluate", "inspect", "plan", "export"]
MODELS = ["no/such/model.pth", "no such model", "library:x"]
WITH_VALUE = [
    *("--data", "--keep", "--keep-params", "--latency", "--epochs", "--seed", "--set", "--recipe", "--batch-size"),
    *("--img-size", "--model-arg", "--depth", "--on", "--mean", "--crop-pct", "--value-range", "--holdout", "-o"),
    *(
        "--teacher",
        "--against",
        "--split",
        "--scores",
        "--class-names",
        "--num-workers",
        "--limit-per-class",
        "--format",
    ),
]
FLAGS = ["--pretrained", "--strict", "--int8", "--half", "--", "-", "--=", "-x", "--unknown"]
arguments = st.one_of(
    numbers.map(str), texts.map(lambda text: text.replace("\0", "")), st.sampled_from(["digits", "0.5"])
)
options = st.one_of(
    st.tuples(st.sampled_from(WITH_VALUE), arguments).map(list),
    st.tuples(st.sampled_from(WITH_VALUE), arguments).map(lambda pair: [f"{pair[0]}={pair[1]}"]),
    st.sampled_from(FLAGS).map(lambda flag: [flag]),
    arguments.map(lambda text: [text]),
)


@tried(100)
@given(
    command=st.one_of(st.sampled_from(COMMANDS), texts),
    model=st.sampled_from(MODELS),
    words=st.lists(options, max_size=4),
)
def test_any_words_end_in_one_line(command: str, model: str, words: list[list[str]]) -> None:
    out, err = io.StringIO(), io.StringIO()
    given_words = [command, model, *(word for option in words for word in option)]
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        status = cli.run(given_words)
    lines = err.getvalue().splitlines()
    complaints = [line for line in lines if line.startswith("vitrim: ")]
    if status == 0:  # such as an empty line: the help is shown
        assert out.getvalue()
    else:
        assert status == 2, err.getvalue()
        assert len(complaints) == 1 and lines[-1] == complaints[0], err.getvalue()
        assert len(complaints[0]) < 3500
