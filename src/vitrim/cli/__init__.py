"""The command line: the app, and the exit status of each kind of ending.

Exit status 0: done. 2: the user must change something. 1: a bug in vitrim. The commands are in `vitrim.cli.commands`.
"""

import errno
import os
import sys
import traceback
from collections.abc import Sequence

from cyclopts import App, CycloptsError, Parameter

from vitrim import __version__
from vitrim.asking import LOWER_ANY, is_out_of_memory, reason
from vitrim.cli.commands import COMMANDS
from vitrim.cli.messages import in_options, usage_error
from vitrim.errors import UserError

# System errors that the user can fix: a full disk, a missing permission, a path that is not a folder.
PLACE_PROBLEMS = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR}
PLACE_PROBLEMS |= {errno.EISDIR, errno.ENAMETOOLONG, errno.ELOOP}

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
    sys.exit(run(arguments))


def limit_spinning() -> None:
    """Let threads of OpenMP that wait for each other soon give up their core. Call it before torch is imported.

    By default, GNU's OpenMP runs a loop while it waits, for about 10 ms. Where another program uses one of two cores,
    the thread that waits takes the core of the thread that it waits for, and training became up to 60 times slower.
    Without any loop, small models would be slower on a quiet machine. docs/log.md has the times. The result does not
    change. `GOMP_SPINCOUNT` and `OMP_WAIT_POLICY` that the user has set are kept.
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", SPIN_COUNT)


def run(arguments: Sequence[str] | None = None) -> int:
    """Run a command and return its exit status: 0, 2 if the user must change something, 1 for a bug in vitrim.

    Args:
        arguments: words of the command line; by default those of this process.
    """
    try:
        app(arguments, exit_on_error=False, print_error=False, result_action="return_value")
        return 0
    except UserError as problem:
        return _complain(in_options(str(problem), sys.argv[1:] if arguments is None else arguments))
    except CycloptsError as problem:
        return _complain(usage_error(problem))
    except KeyboardInterrupt:
        return _complain("Interrupted. Run the same command again to continue from the last checkpoint.")
    except OSError as problem:
        if problem.errno in PLACE_PROBLEMS:
            return _complain(f"Cannot read or write {problem.filename or 'a file'}: {problem.strerror}.")
        return _report_bug()
    except Exception as problem:
        if is_out_of_memory(problem):
            return _complain(f"There is not enough memory: {reason(problem)}. {LOWER_ANY}")
        return _report_bug()


def _complain(message: str) -> int:
    print(f"vitrim: {message}", file=sys.stderr)
    return 2


def _report_bug() -> int:
    traceback.print_exc()
    print("This is a bug in vitrim. Please report it with the lines above.", file=sys.stderr)
    return 1
