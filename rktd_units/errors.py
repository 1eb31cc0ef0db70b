# SPDX-License-Identifier: Apache-2.0
"""The exception tree and `Diagnostic`; imports nothing of ours.

RktdError
+-- ConfigError      a pod file or configuration file is wrong (carries all its diagnostics)
+-- ImageError       an image cannot be had, or is not what it claims to be
|   +-- TrustError   an image is not verified, hence refused
+-- NotFoundError    nothing has the name that was asked for
+-- AmbiguousError   several things have the short name that was asked for
+-- StateError       something on disk is not as we left it
+-- UnavailableError what was asked of a pod or app cannot be done in the state that it is in
+-- FailedError      what was asked for was tried, and failed
+-- PrivilegeError   who asks may not
+-- UsageError       a command line that makes no sense
+-- TemporaryError   worth another try: the network, a busy lock, a full disk
|   +-- NoReplyError (a StateError too) systemd has not answered
+-- CommandError     another program failed
"""

import errno
from typing import NamedTuple

# What the kernel, or a daemon, says when the same may go well later: no space, no memory, no answer.
PASSING = frozenset(
    {errno.ENOSPC, errno.EDQUOT, errno.ENFILE, errno.EMFILE, errno.ENOMEM, errno.EAGAIN, errno.EIO}
    | {errno.ETIMEDOUT, errno.ECONNRESET, errno.ENOTCONN, errno.ENOBUFS}
)
_TEXT_MAX = 2000  # characters of a stranger's text that are shown
EX_FAILED = 1
EX_USAGE = 64
EX_DATAERR = 65
EX_NOINPUT = 66
EX_UNAVAILABLE = 69
EX_SOFTWARE = 70
EX_TEMPFAIL = 75
EX_NOPERM = 77
EX_CONFIG = 78


class Diagnostic(NamedTuple):
    """One fault or warning, with its place. `line` and `column` count from 1; 0 means the file as a whole."""

    file: str
    line: int
    column: int
    path: str  # key path such as spec.containers[0].image, or ""
    message: str
    hint: str = ""
    severity: str = "error"  # or "warning"

    def __str__(self) -> str:
        place = f"{self.file}:{self.line}:{self.column}" if self.line else self.file
        warning = "warning: " if self.severity == "warning" else ""
        path = f"{self.path}: " if self.path else ""
        hint = f"\n  hint: {self.hint}" if self.hint else ""
        return f"{place}: {warning}{path}{self.message}{hint}"


class RktdError(Exception):
    """Base of all our errors: `exit_code` is of sysexits(3), `hint` the remedy, `event` its name in the message catalog."""

    exit_code = EX_SOFTWARE
    event = "stage0-failed"

    def __init__(self, message: str, *, hint: str = "", event: str = "") -> None:
        super().__init__(message)
        self.hint = hint
        self.event = event or type(self).event


class ConfigError(RktdError):
    """A pod file or configuration file is wrong; a start fails for good (exit code 78)."""

    exit_code = EX_CONFIG
    event = "pod-file-invalid"

    def __init__(self, message: str, diagnostics: tuple[Diagnostic, ...] = (), *, hint: str = "", event: str = "") -> None:
        super().__init__(message, hint=hint, event=event)
        self.diagnostics = diagnostics


class ImageError(RktdError):
    """An image is not there, is malformed, or does not have the bytes that its digests promise."""

    exit_code = EX_CONFIG
    event = "image-unavailable"


class TooLargeError(ImageError):
    """An image has more bytes than it may have, or than there is space for."""


class TrustError(ImageError):
    """An image that nobody vouches for. The hint names the ways out."""

    exit_code = EX_CONFIG
    event = "image-not-verified"


class AmbiguousError(RktdError):
    """Several things have the short name that was asked for; the message has them."""

    exit_code = EX_DATAERR


class StateError(RktdError):
    """Something on disk is not as we left it."""

    exit_code = EX_SOFTWARE


class NotFoundError(RktdError):
    """A name that nothing has: pod, app, image, key. The hint has the nearest ones."""

    exit_code = EX_NOINPUT


class UnavailableError(RktdError):
    """A pod or app is not in a state in which this can be done: it does not run, it has ended."""

    exit_code = EX_UNAVAILABLE


class FailedError(RktdError):
    """What was asked for was tried, and failed: a job of systemd."""

    exit_code = EX_FAILED


class PrivilegeError(RktdError):
    """Only root, or a member of a group, may do that."""

    exit_code = EX_NOPERM


class UsageError(RktdError):
    """A command line that makes no sense."""

    exit_code = EX_USAGE


class TemporaryError(RktdError):
    """A failure that may pass: the network, a server's 5xx, a full disk. stage0 tries again (exit code 75)."""

    exit_code = EX_TEMPFAIL
    event = "stage0-again"


class NoReplyError(TemporaryError, StateError):
    """systemd has not answered in time, or the bus went. Who can do without that what was asked for takes it for a StateError."""


class CommandError(RktdError):
    """Another program failed; the message shows the copy-pastable command and the end of its standard error."""

    def __init__(self, argv: tuple[str, ...], returncode: int, stderr: str) -> None:
        command = " ".join(quote_argument(a) for a in argv)
        how = f"was killed by signal {-returncode}" if returncode < 0 else f"exited with {returncode}"
        tail = stderr.strip()[-2000:]
        super().__init__(f"`{command}` {how}" + (f": {tail}" if tail else ""))
        self.argv = argv
        self.returncode = returncode
        self.stderr = stderr


def quote_argument(text: str) -> str:
    """One argument as a shell would take it back (as shlex.quote, without its import)."""
    if text and all(c.isalnum() or c in "@%+=:,./-_" for c in text):
        return text
    return "'" + text.replace("'", "'\"'\"'") + "'"


def clean_text(text: object, limit: int = _TEXT_MAX) -> str:
    """A stranger's text, fit for a terminal and the journal: no control characters, one line, not too long."""
    return "".join(c if c.isprintable() else "?" for c in str(text)[:limit].replace("\n", " "))
