"""Error messages in the words of the command line. What is wrong is decided elsewhere: here it is only said."""

import re
from collections.abc import Mapping, Sequence
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin

from cyclopts import (
    CoercionError,
    CycloptsError,
    MissingArgumentError,
    RepeatArgumentError,
    UnknownCommandError,
    UnknownOptionError,
    UnusedCliTokensError,
)

from vitrim.checks import MAX_DIGITS
from vitrim.cli.options import OPTIONS_OF_SETTING
from vitrim.cli.values import ImageSize, Numbers
from vitrim.errors import SettingError, cut_name, shown
from vitrim.known.meaning import advice_for, nearest, says_what_goes
from vitrim.known.settings import recipe_settings

# Options of earlier versions, by command, and what to use instead.
RENAMED = {
    ("compress", "--train-batch-size"): "--batch-size",
    ("plan", "--train-batch-size"): "--batch-size",
    ("evaluate", "--batch-size"): "--eval-batch",
}
FRACTIONS = ("--keep", "--keep-params", "--keep-macs", "--crop-pct")
RECIPES = {"compress": "default", "plan": "default", "train": "train"}  # the recipe whose settings --set changes
MAX_WORDS = 500
MAX_SHOWN = 100  # characters of a wrong value
WORDS: dict[Any, str] = {
    Numbers: "a number, or several with commas",
    ImageSize: "height and width such as 480x640, or one number for both",
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    str: "a text",
}


def check_words(words: Sequence[str]) -> None:
    """Refuse a command line of so many words that its options would be read for minutes.

    Raises:
        SettingError: there are more than `MAX_WORDS` words.
    """
    if len(words) > MAX_WORDS:
        raise SettingError(
            f"The command line has {len(words):,} words; expected at most {MAX_WORDS}. Write settings into a recipe "
            "(--recipe FILE), and put folders of images into one folder."
        )


def in_options(message: str, arguments: Sequence[str]) -> str:
    """Name the options that were given instead of the settings that they set.

    Args:
        message: of a `UserError`.
        arguments: words of the command line. A setting that `--set` changes keeps its name.
    """
    used = {word.partition("=")[0] for word in arguments if word.startswith("--")}
    changed = set(re.findall(r"(?:^|\s|--set=)([a-z_.]+)\s*=", " ".join(arguments)))
    message = re.sub(r"(?<=et )depth\.blocks(?= to )", "--depth", message)  # what to try, given or not
    for setting, options in OPTIONS_OF_SETTING.items():
        option = next((option for option in options if option in used), None)
        if option is None or setting in changed:
            continue
        pattern = rf"(?<![\w.-]){re.escape(setting)}(?!\.?\w)" if "." in setting else rf"^{setting}(?= is )"
        message = re.sub(pattern, option, message)
    message = re.sub(r"(--[a-z-]+)(?: or \1)+", r"\1", message)
    if message.startswith("--batch-size is ") and "--latency" in used:
        message += " For the images of one timed forward pass, use --latency-batch."
    return message


def usage_error(problem: CycloptsError) -> str:
    """What is wrong with the words of the command line, in one line, and how to see an example."""
    command = problem.command_chain[0] if problem.command_chain else ""
    if isinstance(problem, UnknownCommandError) and problem.unused_tokens:
        return f"{_unknown_command(problem)} `vitrim --help` lists the commands."
    if not command:
        return f"{_one_line(problem)} `vitrim --help` lists the commands."
    if isinstance(problem, UnknownOptionError):
        return f"{_unknown_option(command, problem)} `vitrim {command} --help` shows an example."
    return f"{_about(problem)} `vitrim {command} --help` shows an example."


def _unknown_command(problem: UnknownCommandError) -> str:
    assert problem.app is not None and problem.unused_tokens
    word = problem.unused_tokens[0]
    names = [name for name in problem.app if not name.startswith("-")]
    near = nearest(word, names)
    found = f"vitrim has no command {cut_name(word)}."
    return f"{found} Did you mean `vitrim {near}`?" if near else f"{found} Its commands are {', '.join(names)}."


def _unknown_option(command: str, problem: UnknownOptionError) -> str:
    """What is unknown, and the option or setting that it may have meant, by its letters or its meaning."""
    option = (problem.token.keyword or problem.token.value).partition("=")[0]
    found = f"{command} has no option {cut_name(option)}."
    if new := RENAMED.get((command, option)):
        return f"{found} Use {new} instead."
    if sentence := advice_for(option):
        return f"{found} {sentence}"
    options = _options(problem)
    settings: dict[str, list[str]] = {}  # by the last part of the key
    for key in recipe_settings(RECIPES[command]) if command in RECIPES else ():
        settings.setdefault(key.rpartition(".")[2], []).append(key)
    near = nearest(option, {**options, **dict.fromkeys(settings, "")})
    if near is not None and near in options:
        goes = near == "--keep" and says_what_goes(option)
        note = " It is what stays: to remove 30 %, write --keep 0.7." if goes else ""
        text = re.split(r" [(]default|[;:]|, or ", options[near])[0]
        return f"{found} Did you mean {near} ({text})?{note}"
    if near:
        return f"{found} It is a setting of the recipe: {' '.join(f'--set {key}=VALUE' for key in settings[near][:2])}."
    return found


def _options(problem: UnknownOptionError) -> Mapping[str, str]:
    """The options of the command, by their long names, with their help texts."""
    found = {}
    for argument in problem.argument_collection:
        name = max(argument.names, key=len, default="")
        if name.startswith("--") and not argument.field_info.is_positional:
            found[name] = argument.parameter.help or ""
    return found


def _about(problem: CycloptsError) -> str:
    if isinstance(problem, MissingArgumentError) and problem.argument is not None:
        return _missing(problem)
    if isinstance(problem, CoercionError) and problem.argument is not None:
        token = problem.token or problem.argument.tokens[-1]
        return _wrong_value(token.keyword or _name(problem.argument), token.value, problem.argument.hint)
    if isinstance(problem, RepeatArgumentError):
        return f"{problem.token.keyword} was given twice."
    if isinstance(problem, UnusedCliTokensError) and problem.unused_tokens:
        return f"Cannot use {' '.join(problem.unused_tokens)}: {_expected_words(problem)}."
    return _one_line(problem)


def _expected_words(problem: UnusedCliTokensError) -> str:
    """What a command takes besides options: `expected MODEL and options`."""
    assert problem.app is not None
    arguments = problem.app.assemble_argument_collection()
    names = [_name(argument) for argument in arguments if argument.field_info.is_positional]
    return f"expected {' '.join(names)} and options" if names else "the command takes no such word"


def _missing(problem: MissingArgumentError) -> str:
    """The argument was left out, or an option was given without its value."""
    if problem.keyword is not None:
        return f"{problem.keyword} has no value."
    return f"{_name(problem.argument)} is missing."


def _name(argument: Any) -> str:
    """`MODEL` for a positional argument; `--output (-o)` for an option."""
    if argument.field_info.is_positional:
        return argument.name.lstrip("-").upper()
    names = sorted(argument.names, key=len, reverse=True)
    return f"{names[0]} ({names[1]})" if len(names) > 1 else names[0]


def _wrong_value(option: str, value: str, hint: Any) -> str:
    """`--depth is auot; expected a whole number or auto.`"""
    percents = [re.fullmatch(r"([0-9]+(?:\.[0-9]+)?) *%", part.strip()) for part in value.split(",")]
    if option in FRACTIONS and all(percents):
        fractions = ",".join(f"{float(percent[1]) / 100:g}" for percent in percents if percent)
        return f"{option} is {value}; expected a fraction above 0 and at most 1. For {value}, write {fractions}."
    if option == "--max-drop" and percents[0]:
        return f"{option} is {value}; expected percentage points. For {value}, write {percents[0][1]}."
    kinds = [kind for kind in _flat(hint) if kind is not NoneType]
    values = [str(choice) for kind in kinds if get_origin(kind) is Literal for choice in get_args(kind)]
    expected = [WORDS.get(kind, str(kind)) for kind in kinds if get_origin(kind) is not Literal] + values
    has_digits = value.strip().isdecimal() and len(value) > MAX_DIGITS
    least = f" of at most {MAX_DIGITS} digits" if has_digits else ""
    found = cut_name(value, MAX_SHOWN) if value.strip() else shown(value)
    text = f"{option} is {found}; expected {_either(expected)}{least}."
    near = nearest(value, values)
    return f"{text} Did you mean {near}?" if near and len(values) > 1 else text


def _flat(hint: Any) -> list[Any]:
    """The members of a union, without annotations."""
    if get_origin(hint) in (Union, UnionType):
        return [kind for member in get_args(hint) for kind in _flat(member)]
    return [get_args(hint)[0]] if hasattr(hint, "__metadata__") else [hint]


def _either(options: Sequence[str]) -> str:
    return options[0] if len(options) == 1 else f"{', '.join(options[:-1])} or {options[-1]}"


def _one_line(problem: CycloptsError) -> str:
    return " ".join(str(problem).split())
