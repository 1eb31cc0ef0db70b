# SPDX-License-Identifier: Apache-2.0
"""The only module that starts other programs: argv lists, never a shell, no standard input, a small environment."""

import errno
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import NamedTuple, NoReturn

from rktd_units.errors import CommandError, TemporaryError, quote_argument

PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_KEPT = ("SYSTEMD_LOG_LEVEL", "TMPDIR", "SOURCE_DATE_EPOCH")


class Completed(NamedTuple):
    """A program that has ended: negative `returncode` is a signal; output as bytes, and `stderr` as text to show."""

    argv: tuple[str, ...]
    returncode: int
    stdout: bytes
    stderr: str


def run(
    argv: Sequence[str],
    *,
    check: bool = True,
    input: bytes | None = None,  # noqa: A002 - as subprocess calls it
    stdin: int | None = None,
    env: Mapping[str, str] | None = None,
    timeout: float | None = None,
) -> Completed:
    """Run to the end. `input`, or what the descriptor `stdin` gives, is its standard input; without either it has none.

    `env` is added to the kept few variables; a `timeout` (seconds) kills and raises TemporaryError.

    Raises CommandError if `check` and the exit status is not 0, and, like a shell, with 127 or 126 if it cannot be executed.
    """
    argv = tuple(argv)
    environment = {"PATH": PATH, "LANG": "C.UTF-8", "LC_ALL": "C.UTF-8"}
    environment.update((k, os.environ[k]) for k in _KEPT if k in os.environ)
    environment.update(env or {})
    if input is None and stdin is None:  # subprocess makes the pipe for `input` itself
        stdin = subprocess.DEVNULL
    try:
        done = subprocess.run(argv, check=False, capture_output=True, stdin=stdin, input=input, env=environment, timeout=timeout)
    except FileNotFoundError:
        raise CommandError(argv, 127, "not found") from None
    except PermissionError as error:
        raise CommandError(argv, 126, str(error.strerror)) from None
    except subprocess.TimeoutExpired:
        command = " ".join(quote_argument(a) for a in argv)
        raise TemporaryError(f"`{command}` did not end within {timeout:g} s") from None
    completed = Completed(argv, done.returncode, done.stdout, done.stderr.decode("utf-8", "replace"))
    if check and completed.returncode:
        raise CommandError(argv, completed.returncode, completed.stderr)
    return completed


def page(argv: Sequence[str], text: str) -> bool:
    """Show a text in a pager, which has the terminal, until its end. False if there is no such program."""
    environment = {**os.environ, "LESS": os.environ.get("SYSTEMD_LESS", "FRSXMK"), "LESSCHARSET": "utf-8", "LESSSECURE": "1"}
    if os.environ.get("SYSTEMD_PAGERSECURE", "").lower() in ("0", "no", "false", "off"):
        del environment["LESSSECURE"]
    try:
        pager = subprocess.Popen(tuple(argv), stdin=subprocess.PIPE, env=environment)
    except OSError:
        return False
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the pager's
    try:
        with suppress(BrokenPipeError):
            pager.communicate(text.encode("utf-8", "surrogateescape"))
    finally:
        pager.wait()
        signal.signal(signal.SIGINT, before)
    return True


def start(argv: Sequence[str]) -> "subprocess.Popen[bytes]":
    """Start a program whose standard output is read by the caller while it runs, who ends it, too; standard error is ours."""
    try:
        return subprocess.Popen(tuple(argv), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, env={**os.environ, "PATH": PATH})
    except OSError as error:
        raise CommandError(tuple(argv), 127, str(error.strerror)) from None


def become(argv: Sequence[str], environment: Mapping[str, str] | None = None) -> NoReturn:
    """Replace this process, which keeps terminal and descriptors (flush them before). The environment is ours, `environment` over it."""
    try:
        os.execvpe(argv[0], list(argv), {**os.environ, "PATH": PATH, **(environment or {})})
    except OSError as error:
        raise CommandError(tuple(argv), 127 if error.errno == errno.ENOENT else 126, str(error.strerror)) from None


def become_module(module: str, order: str) -> NoReturn:
    """Replace this process by `rktd_units.MODULE.main(FD)`, where FD has the text `order`. The environment goes, all else stays.

    The command that it becomes is hostile: mounts.execute_apart. The code comes from where ours came from.
    """
    from rktd_units import mounts

    package = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    descriptor = os.memfd_create("order", 0)
    os.write(descriptor, order.encode("ascii"))
    os.lseek(descriptor, 0, os.SEEK_SET)
    code = f"import sys; sys.path.insert(0, {package!r}); from rktd_units.{module} import main; sys.exit(main({descriptor}))"
    environment = {"PATH": PATH, "LANG": "C.UTF-8"}
    mounts.execute_apart(os.path.realpath(sys.executable), [sys.executable, "-IS", "-c", code], environment)


def fork_for_later(action: Callable[[], None]) -> int:
    """A descriptor that stays open over execve(2). When nobody has it any more, a child of ours does `action`; then it ends.

    It has none of our streams, and does not mind signals that end us.
    """
    read, write = os.pipe()
    if os.fork() == 0:
        try:
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2, signal.SIGTSTP):
                signal.signal(number, signal.SIG_IGN)
            os.close(write)
            nothing = os.open("/dev/null", os.O_RDWR)
            for descriptor in range(3):
                os.dup2(nothing, descriptor)
            os.read(read, 1)
            action()
        finally:
            os._exit(0)
    os.close(read)
    os.set_inheritable(write, True)
    return write
