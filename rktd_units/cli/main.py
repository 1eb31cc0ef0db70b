# SPDX-License-Identifier: Apache-2.0
"""podctl's entry: one table of verbs, the parser of the verb that is asked for, and the only `except` that ends a run.

The table names modules; only that of the verb at hand is imported. Help, completion and the manual are made from, or checked against, it.
"""

import argparse
import os
import sys
from collections.abc import Mapping
from importlib import import_module
from types import ModuleType
from typing import NamedTuple, NoReturn

from rktd_units.errors import EX_NOPERM, EX_SOFTWARE, EX_USAGE, ConfigError, RktdError, UsageError, clean_text

EX_INTERRUPTED = 130  # 128 + SIGINT, as shells have it
EX_BROKEN_PIPE = 141  # 128 + SIGPIPE


class Verb(NamedTuple):
    """One verb. `module` is one of cli/. `function` "" stands for its `run` and `add_arguments`, "x" for `run_x` and `add_x_arguments`.

    `run` takes the parsed arguments and gives the exit code. `operands` is what completion offers: pods, apps, images, files, keys,
    volumes or nothing. After the operands of a verb with `command` comes a command line, in which no option is ours.
    """

    help: str
    module: str
    function: str = ""
    operands: str = ""
    command: bool = False

    def load(self) -> ModuleType:
        """Imports the verb's module."""
        return import_module(f"rktd_units.cli.{self.module}")

    def run(self, arguments: argparse.Namespace) -> int:
        """Does the work; gives the exit code."""
        return int(getattr(self.load(), f"run_{self.function}" if self.function else "run")(arguments))

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Fills its parser; a verb without arguments of its own needs no such function."""
        add = getattr(self.load(), f"add_{self.function}_arguments" if self.function else "add_arguments", None)
        if add:
            add(parser)


class Group(NamedTuple):
    """Verbs under a noun: `podctl NOUN VERB`. A noun alone is its first verb, if `default`."""

    help: str
    verbs: dict[str, Verb]
    default: bool = False


Table = Mapping[str, Verb | Group]
VERBS: dict[str, Verb | Group] = {
    "list": Verb("list all pods, and how they are", "list", operands="pods"),
    "status": Verb("show a pod, its apps and its last log lines", "status", operands="pods"),
    "show": Verb("print all that is known of pods", "show", operands="pods"),
    "cat": Verb("print the files and units that pods are made of", "cat", operands="pods"),
    "start": Verb("start pods", "lifecycle", "start", operands="pods"),
    "stop": Verb("stop pods", "lifecycle", "stop", operands="pods"),
    "restart": Verb("stop and start pods", "lifecycle", "restart", operands="pods"),
    "enable": Verb("have pods start at boot", "lifecycle", "enable", operands="pods"),
    "disable": Verb("have pods start at boot no more", "lifecycle", "disable", operands="pods"),
    "reload": Verb("have systemd read all pod files again", "lifecycle", "reload"),
    "wait": Verb("wait until pods are ready, stopped or deleted", "wait", operands="pods"),
    "logs": Verb("print what pods and apps have logged", "logs", operands="apps"),
    "exec": Verb("run a command as an app of a pod would", "exec", operands="apps", command=True),
    "attach": Verb("follow an app's output until it ends", "attach", operands="apps"),
    "cp": Verb("copy files between the host and an app", "cp", operands="apps"),
    "run": Verb("run an image as an ad-hoc pod", "run", operands="images", command=True),
    "events": Verb("show what became of pods", "events", operands="pods"),
    "top": Verb("list the processes of pods", "use", "top", operands="pods"),
    "stats": Verb("show processor, memory and disk use of apps", "use", "stats", operands="pods"),
    "port": Verb("list the ports of pods", "use", "port", operands="pods"),
    "generate": Verb("print the units of pod files as the generator would write them", "generate", operands="files"),
    "check": Verb("read pod files and tell all that is wrong with them", "check", operands="files"),
    "convert": Verb("make pod files of Quadlet, Compose and rkt files", "convert", operands="files"),
    "fetch": Verb("fetch images, verify and convert them", "fetch", operands="images"),
    "images": Verb("list the images that are here", "images", "list"),
    "image": Group(
        "what is done with images",
        {
            "list": Verb("list the images that are here", "images", "list"),
            "rm": Verb("remove images, and what of them no other image has", "images", "rm", operands="images"),
            "verify": Verb("hash images in full, and repair what is damaged", "images", "verify", operands="images"),
            "export": Verb("write an image to a file or directory", "images", "export", operands="images"),
            "cat-manifest": Verb("print an image's manifest, byte for byte", "images", "cat_manifest", operands="images"),
            "import": Verb("take over what members of the group rktd fetched", "incoming"),
            "pin": Verb("keep images from being collected", "images", "pin", operands="images"),
            "unpin": Verb("let images be collected again", "images", "unpin", operands="images"),
        },
        default=True,
    ),
    "update": Verb("restart pods whose images have moved, or go back", "update", operands="pods"),
    "volume": Group(
        "what persistentVolumeClaims hold",
        {
            "list": Verb("list the volumes that are here", "volume", "list", operands="volumes"),
            "rm": Verb("remove volumes with all that is in them", "volume", "rm", operands="volumes"),
            "export": Verb("write a volume to a tar", "volume", "export", operands="volumes"),
            "import": Verb("make a volume from a tar", "volume", "import"),
        },
        default=True,
    ),
    "gc": Verb("remove images and leftovers of pods that nobody needs", "gc"),
    "trust": Group(
        "keys whose signatures count, and for which images",
        {
            "add": Verb("trust keys for images below a prefix", "trust", "add", operands="files"),
            "list": Verb("show the trusted keys", "trust", "list"),
            "remove": Verb("trust a key no more", "trust", "remove", operands="keys"),
        },
    ),
    "info": Verb("print versions, places and counts", "info"),
    "completion": Verb("print the completion script of a shell", "completion", "script"),
    "complete": Verb("print names, for completion scripts", "completion", "names"),
    "version": Verb("print the version", "version"),
}
# What podman, kubectl and machinectl call the same thing, and what they do that is done otherwise here.
OTHER_NAMES = {
    "ps": "list",
    "ls": "list",
    "pull": "fetch",
    "inspect": "show",
    "describe": "status",
    "rmi": "image rm",
    "image ls": "image list",
    "image pull": "fetch",
    "volume ls": "volume list",
    "trust ls": "trust list",
}
_ELSEWHERE = {
    "get": "podctl list; podctl show NAME",
    "apply": "copy the pod file to /etc/pods, and start it",
    "create": "copy the pod file to /etc/pods, and start it",
    "play": "copy the pod file to /etc/pods, and start it",
    "up": "podctl convert makes pod files of a Compose file",
    "compose": "podctl convert makes pod files of a Compose file",
    "delete": "podctl stop NAME, and remove its file from /etc/pods",
    "rm": "podctl stop NAME, and remove its file from /etc/pods",
    "kill": "systemctl kill pod@NAME",
    "shell": "podctl exec -it NAME -- sh",
    "login": "podctl exec -it NAME -- sh",
    "edit": "edit the pod file: it is read at the next start",
    "daemon-reload": "podctl reload",
    "build": "buildah and others make images; podctl runs them",
    "push": "skopeo copies images to registries",
}
_VALUED = ("--output", "-o")  # options that may stand before the verb, and take a word


class _Formatter(argparse.HelpFormatter):
    """As wide as $COLUMNS says; to find that out argparse imports `shutil` in every run (5 ms)."""

    def __init__(self, prog: str) -> None:
        columns = os.environ.get("COLUMNS", "")
        super().__init__(prog, width=int(columns) - 2 if columns.isdigit() and int(columns) > 20 else 100)


class Parser(argparse.ArgumentParser):
    """Ends with sysexits' 64 where argparse has 2."""

    def error(self, message: str) -> NoReturn:
        self.print_usage(sys.stderr)
        self.exit(EX_USAGE, f"{self.prog}: {message}\n")


def build_parser(words: tuple[str, ...], verb: Verb) -> Parser:
    """The parser of one verb; `words` are how it is called: ("image", "list")."""
    description = f"{verb.help[:1].upper()}{verb.help[1:]}."
    parser = Parser(prog=" ".join(("podctl", *words)), description=description, allow_abbrev=False, formatter_class=_Formatter)
    verb.add_arguments(parser)
    return parser


def find_verb(argv: list[str]) -> tuple[tuple[str, ...], Verb, list[str]]:
    """How the verb is called, the verb, and its arguments. Raises UsageError with the nearest names; SystemExit when help is asked for."""
    if argv[:1] == ["help"]:
        argv = [*argv[1:], "--help"]
    before, rest = _split_leading(argv)
    if any(option in ("-h", "--help") for option in before):
        print(render_help(), end="")
        raise SystemExit(0)
    if "--version" in before:
        rest, before = ["version"], []
    if not rest:
        raise UsageError("a verb is missing", hint="podctl --help lists them")
    rest = _translate(rest)
    entry = VERBS.get(rest[0])
    if isinstance(entry, Group):
        return _find_in_group(rest[0], entry, rest[1:], before)
    if entry is None:
        hint = _ELSEWHERE.get(rest[0]) or _suggest(rest[0], VERBS) or "podctl --help lists them"
        raise UsageError(f"there is no verb '{rest[0]}'", hint=hint)
    return (rest[0],), entry, before + rest[1:]


def _translate(words: list[str]) -> list[str]:
    """OTHER_NAMES at the beginning are ours then."""
    for count in (2, 1):
        name = OTHER_NAMES.get(" ".join(words[:count]))
        if name:
            return [*name.split(), *words[count:]]
    return words


def _find_in_group(noun: str, group: Group, rest: list[str], before: list[str]) -> tuple[tuple[str, ...], Verb, list[str]]:
    inner, rest = _split_leading(rest)
    if not rest and group.default and not {"-h", "--help"} & set(inner):
        rest = [next(iter(group.verbs))]
    if not rest:
        print(render_help((noun,), group.verbs), end="")
        raise SystemExit(0 if {"-h", "--help"} & set(inner) else EX_USAGE)
    verb = group.verbs.get(rest[0])
    if verb is None:
        hint = _suggest(rest[0], group.verbs) or f"podctl {noun} --help lists them"
        raise UsageError(f"there is no verb '{noun} {rest[0]}'", hint=hint)
    return (noun, rest[0]), verb, before + inner + rest[1:]


def _split_leading(argv: list[str]) -> tuple[list[str], list[str]]:
    """Options before the first word, and the rest: `podctl --no-pager list` is `podctl list --no-pager`."""
    count = 0
    while count < len(argv) and argv[count].startswith("-") and argv[count] != "--":
        count += 2 if argv[count] in _VALUED else 1
    return argv[:count], argv[count:]


def _suggest(word: str, known: Table) -> str:
    from rktd_units.fields import suggest

    return suggest(word, known)


def list_verbs(table: Table = VERBS, before: tuple[str, ...] = ()) -> list[tuple[tuple[str, ...], Verb]]:
    """Every verb with the words that call it, groups taken apart, in the table's order."""
    found: list[tuple[tuple[str, ...], Verb]] = []
    for name, entry in table.items():
        found += list_verbs(entry.verbs, (*before, name)) if isinstance(entry, Group) else [((*before, name), entry)]
    return found


def render_help(before: tuple[str, ...] = (), table: Table = VERBS) -> str:
    """What `podctl --help`, and `podctl NOUN --help`, print."""
    called = " ".join(("podctl", *before))
    rows = [(" ".join(words), verb.help) for words, verb in list_verbs(table)]
    width = max(len(words) for words, _ in rows)
    lines = [f"  {words:<{width}}  {text}" for words, text in rows]
    title = "" if before else "\nPods as units of systemd: what there is beside systemctl and journalctl.\n"
    return f"usage: {called} VERB ...\n{title}\nverbs:\n" + "\n".join(lines) + f"\n\n{called} VERB --help tells the rest; man podctl.\n"


def parse(argv: list[str]) -> tuple[Verb, argparse.Namespace]:
    """The verb and its arguments; options and operands may be mixed."""
    words, verb, rest = find_verb(argv)
    parser = build_parser(words, verb)
    return verb, parser.parse_args(rest) if verb.command else parser.parse_intermixed_args(rest)


def main(argv: list[str] | None = None) -> int:
    """Runs one verb; gives its exit code (docs/podctl.md). `argv` is without the program's name."""
    try:
        verb, arguments = parse(sys.argv[1:] if argv is None else argv)
        code = verb.run(arguments)
        sys.stdout.flush()
    except RktdError as error:
        sys.stdout.flush()
        details = "".join(f"{diagnostic}\n" for diagnostic in error.diagnostics) if isinstance(error, ConfigError) else ""
        hint = f"\n  hint: {error.hint}" if error.hint else ""
        print(f"{details}podctl: {error}{hint}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        return EX_INTERRUPTED
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # the reader has gone; Python writes out what is left at its end
        return EX_BROKEN_PIPE
    except OSError as error:
        print(f"podctl: {clean_text(error.filename or 'system')}: {(error.strerror or str(error)).lower()}", file=sys.stderr)
        return EX_NOPERM if isinstance(error, PermissionError) else EX_SOFTWARE
    return code
