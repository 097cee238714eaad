"""How shells are spoken to: click's completion, with what it lacks for words with a colon and options of two values."""

from __future__ import annotations

import os
import re

from click.shell_completion import (
    BashComplete,
    CompletionItem,
    FishComplete,
    ShellComplete,
    ZshComplete,
    add_completion_class,
    split_arg_string,
)

__all__ = ["register_shells"]

_BASH = """\
%(complete_func)s() {
    local -a response
    local item
    mapfile -t response < <(env COMP_LINE="${COMP_LINE:0:COMP_POINT}" COMP_WORDBREAKS="$COMP_WORDBREAKS" \
%(complete_var)s=bash_complete "$1")
    COMPREPLY=()
    for item in "${response[@]}"; do
        case "${item%%%%,*}" in
            dir) compopt -o dirnames ;;
            file) compopt -o default ;;
            plain) COMPREPLY+=("${item#*,}") ;;
        esac
    done
}

complete -o nosort -F %(complete_func)s %(prog_name)s
"""

_SPECIAL = re.compile(r"[^\w@%+=:,./-]")


class _Knowing(ShellComplete):
    """A shell's completion whose context knows, as `obj`, the words before the one that is asked for."""

    def get_completions(self, args: list[str], incomplete: str) -> list[CompletionItem[str]]:
        """What can stand in the place of `incomplete`, which may be `--option=` and the beginning of its value."""
        self.ctx_args["obj"] = tuple(args)
        items = super().get_completions(args, incomplete)
        option, equals, _ = incomplete.partition("=")
        if not (equals and option.startswith("-")):
            return items
        return [
            CompletionItem(f"{option}={item.value}", item.type, item.help) if item.type == "plain" else item
            for item in items
        ]


class _Bash(_Knowing, BashComplete):
    """bash, which takes `sweep:12` for three words, and wants only the rest of the last one back."""

    source_template = _BASH

    def get_completion_args(self) -> tuple[list[str], str]:
        """The words before the cursor, as the shell would pass them, and the one that has begun there."""
        line = os.environ["COMP_LINE"]
        *words, last = split_arg_string(f"{line}_")  # the sign shows whether a word has begun, or ends in a blank
        incomplete = last[:-1]
        raw = re.split(r"(?<!\\)\s", line)[-1]
        self._quoted = "'" in raw or '"' in raw
        breaks = "" if self._quoted else os.environ.get("COMP_WORDBREAKS", "")
        self._there = max((incomplete.rfind(sign) + 1 for sign in breaks), default=0)
        return words[1:], incomplete

    def format_completion(self, item: CompletionItem[str]) -> str:
        """What takes the place of the part that bash sees, written as it must stand on the line."""
        rest = str(item.value)[self._there :]
        return f"{item.type},{rest if self._quoted else _SPECIAL.sub(_escaped, rest)}"


def _escaped(sign: re.Match[str]) -> str:
    return f"\\{sign.group()}"


class _Zsh(_Knowing, ZshComplete):
    pass


class _Fish(_Knowing, FishComplete):
    pass


def register_shells() -> None:
    """Let click use these instead of its own."""
    for kind in (_Bash, _Zsh, _Fish):
        add_completion_class(kind)
