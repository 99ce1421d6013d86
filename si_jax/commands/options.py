"""A command's options, from signatures and docstrings; and how their texts are read."""

import collections
import contextlib
import functools
import inspect
import json
import operator
import os
import re
import shlex
import sys
import types
import typing
from collections.abc import Callable, Iterable, Sequence
from typing import Annotated, Any

import docstring_parser
from cyclopts import App, CycloptsError, Parameter

NAMES = {
    "architecture": "model",
    "benchmark": "dataset",
    "id_set": "id",
    "options": "set",
    "train_set": "train",
}
"""What a function of the library calls an argument -> its option, where the two differ."""

FILLED = ("command", "given")  # no options: the line, and what differs from its default


def command(name: str, *functions: Callable, **names: str) -> Callable:
    """A decorator that makes a command, whose `name` is as `si-jax evaluate`, of a function.

    Its keyword-only parameters are options, the others positional; a name may end in `_`. So are
    the optional parameters of `functions` of the library that a command line can hold; `names`
    gives an option's name other than by `NAMES`, '' for none. It is called with these functions
    first, each bound to the options that the user gave. Defaults and help come from signatures and
    docstrings, the text above the options from the module's. A mistake is a ValueError.
    """

    def decorate(main: Callable) -> Callable[..., None]:
        own = dict(list(inspect.signature(main).parameters.items())[len(functions) :])
        theirs = [_optional(function, own, names) for function in functions]
        every = collections.ChainMap(own, *theirs)
        options = {k: every[k] for found in every.maps for k in found if k not in FILLED}
        words = {key: names.get(key) or NAMES.get(key, key).strip("_") for key in options}
        flags = {key: f"--{word.replace('_', '-')}" for key, word in words.items()}

        @functools.wraps(main)
        def run(argv: list[str] | None = None) -> None:
            argv = sys.argv[1:] if argv is None else list(argv)
            line = shlex.join([*name.split(), *argv])

            def called(*arguments: Any, **given: Any) -> None:
                changed = {k: v for k, v in given.items() if v != options[k].default}
                values = {"command": line, "given": changed, **given}
                values |= {k: READ[k](v, flags[k]) for k, v in given.items() if k in READ}
                bound = [
                    functools.partial(function, **{k: v for k, v in values.items() if k in found})
                    for function, found in zip(functions, theirs, strict=True)
                ]
                main(*bound, *arguments, **{k: v for k, v in values.items() if k in own})

            texts = _texts(main, *functions)
            shown = [_shown(options[key], flags, texts.get(key, "")) for key in options]
            called.__signature__ = inspect.Signature(shown)  # type: ignore[attr-defined]
            usual = Parameter(consume_multiple=True, allow_repeating=True, negative=())
            app = App(
                name=name,
                help=inspect.getdoc(sys.modules[main.__module__]),
                help_format="plaintext",
                version_flags=(),
                suppress_keyboard_interrupt=False,  # `cli.run` says what an interruption saved
                default_parameter=usual,
                result_action="return_none",
            )
            app.default(called)
            app["--help"].show = False
            try:
                app(argv, exit_on_error=False, print_error=False)
            except CycloptsError as error:
                raise ValueError(" ".join(str(error).split()).rstrip(".")) from None

        return run

    return decorate


def _optional(function: Callable, own: Iterable[str], names: dict[str, str]) -> dict:
    """The optional parameters of a function that a line can hold, but for a command's own."""
    found = {}
    for key, p in inspect.signature(function).parameters.items():
        kind = list[str] | None if key in READ else _on_a_line(p.annotation)
        optional = p.kind is p.KEYWORD_ONLY or p.default is not p.empty
        if optional and kind and names.get(key, key) and (key not in own or key == "command"):
            found[key] = p.replace(kind=p.KEYWORD_ONLY, annotation=kind)
    return found


def _shown(parameter: inspect.Parameter, flags: dict[str, str], text: str) -> inspect.Parameter:
    """A parameter with its name on the command line and its help."""
    if parameter.default is None:
        text = re.sub(r"\bNone for\b", "default:", text)
    text = re.sub(r"; None for [^;]*$", "", text)
    text = re.sub(r"`(\w+)`", lambda m: flags.get(m[1], m[1]), text).replace('"', "")
    about: dict[str, Any] = {"help": text.replace("`", "").rstrip(".")}
    if parameter.kind is parameter.KEYWORD_ONLY:
        about["name"] = flag = flags[parameter.name]
        if parameter.annotation is bool and parameter.default:
            about["negative"] = f"--no-{flag[2:]}"
    return parameter.replace(annotation=Annotated[parameter.annotation, Parameter(**about)])


def _texts(*functions: Callable) -> dict[str, str]:
    """Parameter -> its description in the first docstring that has it."""
    texts: dict[str, str] = {}
    for function in reversed(functions):
        docstring = inspect.getdoc(function) or ""
        parsed = docstring_parser.parse(docstring, docstring_parser.Style.GOOGLE)
        texts |= {p.arg_name: " ".join((p.description or "").split()) for p in parsed.params}
    return texts


def _on_a_line(annotation: Any) -> Any:
    """What a command line holds of an annotation, paths as text; None where it holds nothing."""
    origin, inner = typing.get_origin(annotation), typing.get_args(annotation)
    if annotation is Any:  # images, here by their path
        return str | None
    if origin in (types.UnionType, typing.Union):
        kinds = [_on_a_line(kind) for kind in inner if kind is not os.PathLike]
        return functools.reduce(operator.or_, kinds) if all(kinds) else None
    if origin is Annotated:  # what the library checks by more than its type, it reads from text
        return str
    if origin in (list, tuple, Sequence):
        return annotation if all(_on_a_line(kind) for kind in inner if kind is not ...) else None
    plain = (str, int, float, bool, types.NoneType)
    return annotation if annotation in plain or origin is typing.Literal else None


def pairs(texts: Iterable[str], option: str, form: str = "NAME=PATH") -> dict[str, str]:
    """`["a=x", "b=y"]` -> {"a": "x", "b": "y"}; a name that is given twice is refused."""
    values: dict[str, str] = {}
    for text in texts:
        name, _, value = text.partition("=")
        if not (name and value):
            raise ValueError(f"{option} {text}: write it as {form}")
        if name in values:
            both = "" if value == values[name] else f": {values[name]} and {value}"
            raise ValueError(f"{option}: {name} is given twice{both}")
        values[name] = value
    return values


def detector_options(texts: Iterable[str], option: str = "--set") -> dict[str, dict]:
    """`["si-z.steps=3"]` -> {"si-z": {"steps": 3}}."""
    form = "DETECTOR.OPTION=VALUE"
    options: dict[str, dict] = {}
    for name, value in pairs(texts, option, form).items():
        detector, dot, key = name.partition(".")
        if not dot:
            raise ValueError(f"{option} {name}={value}: write it as {form}")
        key, given = key.replace("-", "_"), options.setdefault(detector, {})
        if key in given:
            raise ValueError(f"{option} gives {name} twice: choose one")
        given[key] = plain_value(value)
    return options


def labelled_detectors(texts: Iterable[str], option: str) -> dict[str, tuple[str, dict]]:
    """`["msp", "a=knn:k=5"]` -> `{"msp": ("msp", {}), "a": ("knn", {"k": 5})}`."""
    form = "NAME or LABEL=NAME:OPTION=VALUE,OPTION=VALUE"
    named = [text if {"=", ":"} & set(text) else f"{text}={text}" for text in texts]
    detectors: dict[str, tuple[str, dict]] = {}
    for label, value in pairs(named, option, form).items():
        if ":" in label:
            raise ValueError(f"{option} {label}={value}: write it as {form}")
        name, _, given = value.partition(":")
        # a comma that no further option follows belongs to the value
        values = pairs(re.split(r",(?=[\w-]+=)", given) if given else (), option, form)
        options = {key.replace("-", "_"): plain_value(one) for key, one in values.items()}
        detectors[label] = (name, options)
    return detectors


def grid(texts: Iterable[str], option: str) -> dict[str, list] | None:
    """`["k=1,5"]` -> {"k": [1, 5]}."""
    values = pairs(texts, option, "OPTION=VALUE,VALUE")
    return {k.replace("-", "_"): [*map(plain_value, v.split(","))] for k, v in values.items()}


def plain_value(text: str):
    """A number, `true`, `false`, `null` or a list as JSON writes it; any other text as it is."""
    with contextlib.suppress(json.JSONDecodeError):
        return json.loads(text)
    return text


READ: dict[str, Callable[[Iterable[str], str], Any]] = {
    "detectors": labelled_detectors,
    "grid": grid,
    "ood": pairs,
    "options": detector_options,
    "shifted": pairs,
}
"""Argument of the library that is no plain value -> a function of its texts and its option."""
