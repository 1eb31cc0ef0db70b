# SPDX-License-Identifier: Apache-2.0
"""What unitfile.py quotes is what the real systemd reads: words, commands, specifiers, in environments and command lines."""

import json

from rktd_units.unitfile import UnitFile, escape_specifiers, quote_command, quote_word
from tests.integration.bed import Bed

WORDS = (
    "plain",
    "",
    " ",
    "a b",
    " lead and trail ",
    "'",
    '"',
    'it\'s "quoted"',
    "100%",
    "%n %% %i %H",
    "$HOME ${HOME} $$ $(HOME) `id`",
    "back\\slash \\n \\x41 \\",
    "line\nbreak\n",
    "tab\tand\rreturn",
    "\x01\x1b[31m\x7f",
    ";",
    "; #",
    "#",
    "@-:+!|",
    "-",
    "a=b",
    "caf\u00e9 \u65e5\u672c \U0001f600",
    "x" * 5000,
)
# Puts down what it got, and ends.
REPORT = "import json, os, sys; json.dump([sys.argv[1:], dict(os.environ), os.getcwd()], open('/run/quoting.json', 'w'))"


def test_systemd_reads_what_was_meant(bed: Bed) -> None:
    unit = UnitFile('a comment \\\nof "two" lines')
    unit.add("Service", "Type", "oneshot")
    directory = "/run/quoting 100% $x 'y'"
    bed.run("mkdir", "-p", directory)
    unit.add("Service", "WorkingDirectory", escape_specifiers(directory))
    unit.add("Service", "ExecStart", quote_command("/usr/bin/python3", ("argv zero", "-c", REPORT, *WORDS)))
    for index, word in enumerate(WORDS):
        unit.add("Service", "Environment", quote_word(f"W{index}={word}"))
    bed.write("/run/systemd/system/quoting.service", unit.render())
    said = bed.run("systemd-analyze", "verify", "--man=no", "/run/systemd/system/quoting.service", check=False)
    assert said.stdout + said.stderr == ""
    bed.run("systemctl", "start", "quoting.service")
    argv, environment, working_directory = json.loads(bed.read("/run/quoting.json"))
    assert argv == list(WORDS)
    assert {k: v for k, v in environment.items() if k.startswith("W") and k[1:].isdigit()} == {f"W{i}": w for i, w in enumerate(WORDS)}
    assert working_directory == directory


def test_a_program_whose_name_needs_quotes(bed: Bed) -> None:
    program = "/run/my prog ; 100%n $x {} caf\u00e9"
    bed.write(program, '#!/bin/sh\nprintf "%s" "$1" >/run/quoting.out\n', 0o755)
    unit = UnitFile()
    unit.add_all("Service", (("Type", "oneshot"), ("ExecStart", quote_command(program, (program, "one two")))))
    bed.write("/run/systemd/system/quoting2.service", unit.render())
    bed.run("systemctl", "start", "quoting2.service")
    assert bed.read("/run/quoting.out") == "one two"
