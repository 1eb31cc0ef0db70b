# SPDX-License-Identifier: Apache-2.0
"""`podctl completion` makes the shells' completion scripts from the table of verbs; `podctl complete` gives them the names that change."""

import argparse
import os

from rktd_units.cli.main import VERBS, Group, build_parser, list_verbs
from rktd_units.errors import RktdError
from rktd_units.paths import Layout

SHELLS = ("bash", "zsh", "fish")
KINDS = ("pods", "apps", "images", "keys", "volumes")


def add_script_arguments(parser: argparse.ArgumentParser) -> None:
    """SHELL"""
    parser.add_argument("shell", choices=SHELLS, metavar="SHELL", help=", ".join(SHELLS))


def add_names_arguments(parser: argparse.ArgumentParser) -> None:
    """KIND"""
    parser.add_argument("kind", choices=KINDS, metavar="KIND", help=", ".join(KINDS))


def run_script(arguments: argparse.Namespace) -> int:
    """Prints the script."""
    print({"bash": render_bash, "zsh": render_zsh, "fish": render_fish}[arguments.shell](), end="")
    return 0


def run_names(arguments: argparse.Namespace) -> int:
    """One name a line; silence where nothing can be had: a shell asks in the middle of a line."""
    try:
        for name in _names(arguments.kind):
            print(name)
    except (RktdError, OSError):
        return 0
    return 0


def _names(kind: str) -> list[str]:
    if kind == "images":
        from rktd_units.cli.images import ask_root
        from rktd_units.images.store import Store

        if os.geteuid() != 0:
            return sorted({record["reference"] for record in ask_root()})
        return sorted({record.reference for record in Store(Layout()).list_images()})
    if kind == "keys":
        from rktd_units.trust import admin

        return sorted({found.key.fingerprint for found in admin.list_keys(Layout()) if found.key})
    if kind == "volumes":
        from rktd_units.volumes import list_volumes

        return list_volumes(Layout())
    from rktd_units.cli.pods import Host

    host = Host()
    names = host.names()
    if kind == "apps":
        return [f"{r['name']}/{a['name']}" for r in host.describe(names, ask=False) for a in r["apps"]] + names
    return names


def list_options(words: tuple[str, ...]) -> list[tuple[str, str, list[str] | None]]:
    """(option, help, choices) of a verb; choices are None for an option without a value."""
    verb = dict(list_verbs())[words]
    found = []
    for action in build_parser(words, verb)._actions:  # argparse has no other list of them
        if action.help != argparse.SUPPRESS:
            choices = None if action.nargs == 0 else [str(choice) for choice in action.choices or ()]
            found += [(option, action.help or "", choices) for option in action.option_strings]
    return found


def render_bash() -> str:
    """For bash-completion, or to be sourced."""
    cases = []
    for words, verb in list_verbs():
        known = list_options(words)
        options = " ".join(option for option, _, _ in known)
        valued = " ".join(option for option, _, choices in known if choices is not None)
        values = " ".join(f"{option}={choice}" for option, _, choices in known for choice in choices or ())
        cases.append(f"        '{' '.join(words)}') options='{options}' valued='{valued}' values='{values}' kind='{verb.operands}' ;;")
    groups = "|".join(name for name, entry in VERBS.items() if isinstance(entry, Group))
    inner = [f"        {name}) words='{' '.join(entry.verbs)}' ;;" for name, entry in VERBS.items() if isinstance(entry, Group)]
    return _BASH.format(verbs=" ".join(VERBS), groups=groups, inner="\n".join(inner), cases="\n".join(cases))


def render_zsh() -> str:
    """Bash's, by zsh's own emulation."""
    return "#compdef podctl\nautoload -U +X bashcompinit && bashcompinit\n" + render_bash()


def render_fish() -> str:
    """One `complete` a verb and option."""
    lines = ["complete -c podctl -f"]
    groups = " ".join(name for name, entry in VERBS.items() if isinstance(entry, Group))
    for name, entry in VERBS.items():
        lines.append(f"complete -c podctl -n __fish_use_subcommand -a {name} -d {_quote(entry.help)}")
    for words, verb in list_verbs():
        # `list` is seen in `image list`, too.
        condition = " ; and ".join(f"__fish_seen_subcommand_from {word}" for word in words)
        condition += f" ; and not __fish_seen_subcommand_from {groups}" if len(words) == 1 else ""
        if len(words) == 2:
            lines.append(f"complete -c podctl -n '__fish_seen_subcommand_from {words[0]}' -a {words[1]} -d {_quote(verb.help)}")
        if verb.operands == "files":
            lines.append(f"complete -c podctl -n '{condition}' -F")
        elif verb.operands:
            lines.append(f"complete -c podctl -n '{condition}' -a '(podctl complete {verb.operands})'")
        for option, text, choices in list_options(words):
            form = f"-l {option[2:]}" if option.startswith("--") else f"-s {option[1:]}"
            values = f" -x -a {_quote(' '.join(choices))}" if choices else ""
            lines.append(f"complete -c podctl -n '{condition}' {form} -d {_quote(text)}{values}")
    return "\n".join(lines) + "\n"


def _quote(text: str) -> str:
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"


_BASH = """\
# Made by `podctl completion` from its table of verbs.
_podctl() {{
    local cur previous verb='' options='' valued='' values='' kind='' words='{verbs}' word last i
    local -a given
    if [[ -n ${{ZSH_VERSION-}} ]]; then
        given=("${{COMP_WORDS[@]}}") last=$COMP_CWORD
    else # bash's words end at colons, too
        word=${{COMP_LINE:0:COMP_POINT}}
        read -ra given <<<"$word"
        [[ $word == *[[:space:]] ]] && given+=('')
        last=$((${{#given[@]}} - 1))
    fi
    cur=${{given[last]}} previous=${{given[last - 1]}}
    for ((i = 1; i < last; i++)); do
        word=${{given[i]}}
        [[ $word == -* ]] && continue
        [[ -z $verb ]] && {{ verb=$word; continue; }}
        [[ $verb =~ ^({groups})$ ]] && {{ verb+=" $word"; break; }}
        break
    done
    if [[ -n $verb && $verb != *' '* ]]; then
        words=''
        case $verb in
{inner}
        esac
    elif [[ -n $verb ]]; then
        words=''
    fi
    case $verb in
{cases}
    esac
    # Not mapfile: zsh has none. Nothing here has blanks in it; files are the shell's own affair.
    if [[ $cur == --*=* ]]; then
        COMPREPLY=($(compgen -W "$values" -- "$cur"))
    elif [[ " $valued " == *" $previous "* ]]; then
        COMPREPLY=($(compgen -W "$values" -- "$previous=$cur"))
        COMPREPLY=("${{COMPREPLY[@]#"$previous="}}")
    elif [[ $cur == -* ]]; then
        COMPREPLY=($(compgen -W "$options" -- "$cur"))
    elif [[ -n $words ]]; then
        COMPREPLY=($(compgen -W "$words" -- "$cur"))
    elif [[ -n $kind && $kind != files ]]; then
        COMPREPLY=($(compgen -W "$(podctl complete "$kind" 2>/dev/null)" -- "$cur"))
    fi
    if [[ -z ${{ZSH_VERSION-}} && $cur == *[$COMP_WORDBREAKS]* ]]; then # bash replaces what follows the last of them
        word=${{cur%"${{cur##*[$COMP_WORDBREAKS]}}"}}
        COMPREPLY=("${{COMPREPLY[@]#"$word"}}")
    fi
}}
complete -o bashdefault -o default -F _podctl podctl
"""
