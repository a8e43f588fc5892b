"""The command line: the app, and the exit status of each kind of ending.

Exit status 0: done. 2: the user must change something, or pressed Ctrl-C. 1: a bug in vitrim, or a check of `verify`
that does not hold. 143 and 129: ended by SIGTERM and SIGHUP (128 and the number of the signal). The commands are in
`vitrim.cli.commands`.
"""

import errno
import io
import os
import signal
import sys
import traceback
from collections.abc import Sequence

from cyclopts import App, CycloptsError, Parameter

from vitrim import __version__
from vitrim.asking import LOWER_ANY, is_out_of_memory, reason
from vitrim.cli.commands import COMMANDS
from vitrim.cli.export import with_kind
from vitrim.cli.messages import check_words, in_options, usage_error
from vitrim.cli.streams import forgiving
from vitrim.errors import UserError, visible
from vitrim.runs import processes, signals

# System errors that the user can fix: a full disk, a missing permission, a path that is not a folder.
PLACE_PROBLEMS = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR}
PLACE_PROBLEMS |= {errno.EISDIR, errno.ENAMETOOLONG, errno.ELOOP}

CONTINUED = {"demo", "train", "compress"}  # the same command continues its run

SPIN_COUNT = "1000"  # passes of the loop in which a thread of OpenMP waits for others; its default is 300,000

app = App(
    name="vitrim",
    help="Make a trained Vision Transformer smaller and faster, and keep its accuracy.",
    version=f"vitrim {__version__}",
    help_format="markdown",
    default_parameter=Parameter(negative="", show_default=False),  # the help texts state the defaults
    suppress_keyboard_interrupt=False,  # `run` prints how to continue
)
for position, command in enumerate(COMMANDS):
    app.command(command, sort_key=position)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run a command and exit with its status."""
    limit_spinning()
    escape_unencodable()
    with forgiving() as streams:
        status = run(arguments)
        if (problem := streams.problem()) and not status:
            status = _complain(f"Standard output cannot be written: {problem}.")
            status = 0 if _command(arguments) in CONTINUED | {"export"} else status  # their result is in files
    processes.end(status)
    sys.exit(status)


def limit_spinning() -> None:
    """Let threads of OpenMP that wait for each other soon give up their core. Call it before torch is imported.

    By default, GNU's OpenMP runs a loop while it waits, for about 10 ms. Where another program uses one of two cores,
    the thread that waits takes the core of the thread that it waits for, and training became up to 60 times slower.
    Without any loop, small models would be slower on a quiet machine. docs/log.md has the times. The result does not
    change. `GOMP_SPINCOUNT` and `OMP_WAIT_POLICY` that the user has set are kept.
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", SPIN_COUNT)


def escape_unencodable() -> None:
    """Write characters that the encoding of standard output or error lacks as escapes, so that none ends a command."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # it is None where it was closed
            stream.reconfigure(errors="backslashreplace")


def run(arguments: Sequence[str] | None = None) -> int:
    """Run a command and return its exit status, as this module says.

    Args:
        arguments: words of the command line; by default those of this process.
    """
    with signals.handled():
        return _run(arguments)


def _run(arguments: Sequence[str] | None) -> int:
    try:
        processes.begin()
        words = sys.argv[1:] if arguments is None else arguments
        check_words(words)
        words = with_kind(words) if _command(arguments) == "export" else words
        return app(words, exit_on_error=False, print_error=False, result_action="return_value") or 0
    except UserError as problem:
        return _complain(in_options(str(problem), sys.argv[1:] if arguments is None else arguments))
    except CycloptsError as problem:
        return _complain(usage_error(problem))
    except KeyboardInterrupt as stop:
        return _interrupted(arguments, getattr(stop, "number", 0))  # the signal may be that of another process
    except OSError as problem:
        if signals.received():  # by a part that has ended before this one, such as another process
            return _interrupted(arguments, signals.received())
        if problem.errno in PLACE_PROBLEMS:
            return _complain(f"Cannot read or write {problem.filename or 'a file'}: {problem.strerror}.")
        return _report_bug()
    except Exception as problem:
        if signals.received():
            return _interrupted(arguments, signals.received())
        if sentence := processes.explain_lost_connection(problem):
            return _complain(sentence)
        if is_out_of_memory(problem):
            return _complain(f"There is not enough memory: {reason(problem)}. {LOWER_ANY}")
        return _report_bug()


def _command(arguments: Sequence[str] | None) -> str:
    """The name of the command; empty if there is none."""
    words = sys.argv[1:] if arguments is None else arguments
    return words[0] if words else ""


def _interrupted(arguments: Sequence[str] | None, number: int) -> int:
    """Say that a signal has ended the command; 0 stands for an interruption by something else."""
    how = f"Ended by {signals.signal_name(number)}" if number not in (0, signal.SIGINT) else "Interrupted"
    goes_on = " Run the same command again to continue from the last checkpoint."
    if os.environ.get("RANK", "0") == "0":  # of several processes, the first says it
        _complain(f"{how}.{goes_on if _command(arguments) in CONTINUED else ''}")
    return signals.exit_status(number) if number else 2


def _complain(message: str) -> int:
    if processes.is_first_to_say(message):
        print(f"vitrim: {visible(message)}", file=sys.stderr, flush=True)
    return 2


def _report_bug() -> int:
    traceback.print_exc()
    print("This is a bug in vitrim. Please report it with the lines above.", file=sys.stderr)
    return 1
