# SPDX-License-Identifier: Apache-2.0
"""Stage0's entry: readies one pod for its stage1 (prepare.py), takes away what it left (release.py), reloads systemd (reload.py).

Runs as a oneshot unit of systemd, never as a daemon. Each verb imports its own part only: they are in every start and stop.
"""

import sys
from contextlib import suppress

from rktd_units.errors import PASSING, ConfigError, Diagnostic, RktdError, StateError, TemporaryError
from rktd_units.paths import Layout
from rktd_units.runfiles import write_text


def main(argv: list[str]) -> int:
    """`stage0 prepare NAME | release NAME | reload | recheck | network`. Errors go to stderr (the journal); the exit code is theirs."""
    layout = Layout()
    try:
        match argv[1:]:
            case ["prepare", name]:
                from rktd_units.prepare import prepare

                prepare(name, layout)
            case ["release", name]:
                from rktd_units.release import release

                release(name, layout)
            case ["reload"]:
                from rktd_units.reload import reload_units

                reload_units(layout)
            case ["recheck"]:
                from rktd_units.reload import recheck_units

                recheck_units(layout)
            case ["network"]:
                from rktd_units.network.attach import restore
                from rktd_units.network.passed import restore_guard

                restore_guard(layout)
                restore(layout)
            case _:
                raise ConfigError("usage: stage0 prepare NAME | release NAME | reload | recheck | network")
    except RktdError as error:
        text, code, event = render_error(error), error.exit_code, error.event
    except OSError as error:
        place = f"{error.filename}: " if error.filename else ""
        kind = TemporaryError if error.errno in PASSING else StateError
        text, code, event = f"<3>{place}{error.strerror}\n", kind.exit_code, kind.event
    else:
        return 0
    if argv[1] != "prepare":
        sys.stderr.write(text)
        return code
    _tell(text, event, argv[2])
    with suppress(OSError):
        write_text(layout.error(argv[2]), text)
    return code


def _tell(text: str, event: str, pod: str) -> None:
    """With what makes `journalctl -x` explain it, where standard error is the journal's."""
    from rktd_units import events

    if not (events.is_to_journal() and events.log(text, event, pod)):
        sys.stderr.write(text)


def render_error(error: RktdError) -> str:
    """With syslog levels (sd-daemon(3)), one line each: the diagnostics of a ConfigError are its message."""
    diagnostics: tuple[Diagnostic, ...] = getattr(error, "diagnostics", ())
    lines = [line for d in diagnostics for line in str(d).split("\n")]
    if not any(d.severity == "error" for d in diagnostics):
        lines += str(error).split("\n")
        lines += [f"  hint: {error.hint}"] if error.hint else []
    return "".join(f"<3>{line}\n" for line in lines)
