"""Flags that can be given in the environment too, and errors that are one line."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from typing import Any, NoReturn

_YES = dict.fromkeys(["1", "true", "yes", "on"], True) | dict.fromkeys(["", "0", "false", "no", "off"], False)


class Command(argparse.ArgumentParser):
    """The arguments of `revolve <name>`. `--some-flag` falls back to the variable REVOLVE_<NAME>_SOME_FLAG."""

    def __init__(self, name: str, description: str, *, usage: str | None = None, epilog: str = "") -> None:
        self._prefix = f"REVOLVE_{name.upper().replace('-', '_')}_"
        note = f"Each flag can be set in the environment: --some-flag is {self._prefix}SOME_FLAG."
        super().__init__(
            prog=f"revolve {name}",
            usage=usage,
            description=description,
            epilog=f"{epilog}\n\n{note}".strip(),
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
        self._flags: list[argparse.Action] = []

    def flag(self, *names: str, group: argparse._ArgumentGroup | None = None, **settings: Any) -> None:
        """As `add_argument` for an optional one; the variable is named after its first long name."""
        self._flags.append((group or self).add_argument(*names, **settings))

    def variable(self, action: argparse.Action) -> str:
        """The environment variable of a flag."""
        long = next(name for name in action.option_strings if name.startswith("--"))
        return self._prefix + long[2:].upper().replace("-", "_")

    def read(self, argv: Sequence[str]) -> argparse.Namespace:
        """Parse; the command line wins over the environment. Words after `--` are never flags."""
        for action in self._flags:
            text = os.environ.get(self.variable(action))
            if text is not None:
                self.set_defaults(**{action.dest: self._convert(action, text)})
        words = list(argv)
        tail: list[str] = []
        if "--" in words:
            cut = words.index("--")
            words, tail = words[:cut], words[cut + 1 :]
        found, unknown = self.parse_known_intermixed_args(words)
        if unknown:
            self._refuse(unknown[0])
        found.tail = tail
        found.prog = self.prog
        return found

    def error(self, message: str) -> NoReturn:
        """End with code 2 and one line on stderr."""
        self.exit(2, f"{self.prog}: {message} (see {self.prog} --help)\n")

    def _convert(self, action: argparse.Action, text: str) -> Any:
        if action.nargs == 0:
            word = text.strip().lower()
            if word not in _YES:
                self.error(f"{self.variable(action)} is {text!r}; it takes 1 or 0")
            return _YES[word]
        if isinstance(action, argparse._AppendAction):
            return [word for word in text.replace(",", " ").split() if word]
        try:
            value = action.type(text) if callable(action.type) else text
        except (argparse.ArgumentTypeError, ValueError) as error:
            self.error(f"{self.variable(action)}: {error}")
        if action.choices is not None and value not in action.choices:
            self.error(f"{self.variable(action)} is {text!r}; it takes one of {', '.join(map(str, action.choices))}")
        return value

    def _refuse(self, word: str) -> NoReturn:
        from difflib import get_close_matches

        if not word.startswith("-"):
            self.error(f"one argument too many: {word!r}")
        names = [name for action in self._flags for name in action.option_strings]
        near = get_close_matches(word.partition("=")[0], names, 1, 0.6)
        hint = f"did you mean {near[0]}?" if near else "put -- before arguments that begin with a dash"
        self.error(f"no flag {word}; {hint}")


def seconds(text: str) -> float:
    """A positive number of seconds."""
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 < value < 1e9:
        raise argparse.ArgumentTypeError(f"{text!r} is no positive number of seconds")
    return value


def count(text: str) -> int:
    """A whole number from 0 on."""
    if not text.isascii() or not text.isdigit():
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number")
    return int(text)


def jobs(text: str) -> int:
    """A number of workers from 1 on, or a percentage of this machine's CPUs."""
    number = text.removesuffix("%")
    if not number.isascii() or not number.isdigit() or int(number) == 0:
        raise argparse.ArgumentTypeError(f"{text!r} is neither a number of workers (from 1 on) nor a share such as 50%")
    return int(number) if number == text else max(1, cpus() * int(number) // 100)


def size(text: str) -> int:
    """Bytes, from a text such as 500M or 2GiB."""
    from ..pool.vitals import parse_memory

    try:
        return parse_memory(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no size in bytes such as 500M or 2GiB") from None


def cpus() -> int:
    """CPUs that this process may use."""
    from ..pool.vitals import usable_cpus

    return usable_cpus()


def say(text: str) -> None:
    """A line on stderr in one piece: `print` writes its end apart, and several processes may share the terminal."""
    sys.stderr.write(text + "\n")
    sys.stderr.flush()
