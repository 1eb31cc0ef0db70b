# SPDX-License-Identifier: Apache-2.0
"""What podctl is to people who are not root and to their shells: polkit's rules, completion in the shells themselves.

Its testbed has three packages more than the others: with polkitd systemd answers in another way than without.
"""

from collections.abc import Iterator

import pytest

from tests.integration.bed import Bed, own_name
from tests.integration.pods import Done, Pods
from tests.integration.test_podctl_run import STAY

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def equipped(require_root: None) -> Iterator[Pods]:
    bed = Bed(own_name("users"))
    bed.boot()
    bed.add_packages("fish", "polkitd", "zsh")
    yield Pods(bed)
    bed.stop()


@pytest.fixture
def people(equipped: Pods) -> Iterator[Pods]:
    """A pod."""
    equipped.clean()
    equipped.write("web", {"containers": [equipped.app(STAY, "server")]})
    yield equipped
    equipped.clean()


RULES = """
polkit.addRule(function(action, subject) {
    var names = ["manage-units", "manage-unit-files", "reload-daemon"];
    if (names.indexOf(action.id.replace("org.freedesktop.systemd1.", "")) < 0 || !subject.isInGroup("podops"))
        return polkit.Result.NOT_HANDLED;
    var unit = action.lookup("unit");
    return !unit || unit.indexOf("pod@") == 0 ? polkit.Result.YES : polkit.Result.NOT_HANDLED;
});
"""


def test_polkit(people: Pods) -> None:
    """A rule gives a group the pods, and nothing else of systemd; who has no rule is refused in words."""
    bed = people.bed
    bed.write("/etc/polkit-1/rules.d/50-pods.rules", RULES)
    bed.sh("groupadd -f podops; for u in alice bob; do id $u >/dev/null 2>&1 || useradd $u; done; usermod -aG podops alice")
    bed.sh("systemctl restart polkit; systemctl is-active polkit")

    def ask(user: str, *argv: str) -> Done:
        return bed.run("setpriv", f"--reuid={user}", f"--regid={user}", "--init-groups", *argv, check=False)

    for verb in ("start", "start --wait", "restart", "enable", "reload", "disable", "stop"):
        argv = ("podctl", *verb.split(), *(() if verb == "reload" else ("web",)))
        done = ask("bob", *argv)
        assert (done.returncode, "polkit does not let you" in done.stderr) == (77, True), (verb, done.stderr)
        before = people.show("web", "InvocationID")["InvocationID"]
        done = ask("alice", *argv)
        assert done.returncode == 0, (verb, done.stderr)
        changes = people.show("web", "InvocationID")["InvocationID"] != before
        assert changes == (verb in ("start", "restart", "stop")), verb  # a stopped unit has none
        links = bed.sh("ls /etc/systemd/system/pods.target.wants", check=False).stdout
        assert ("pod@web.service" in links) == (verb in ("enable", "reload")), verb
    assert people.show("web", "ActiveState")["ActiveState"] == "inactive"
    # nothing else: neither another unit, nor what only root may do
    assert ask("alice", "systemctl", "--no-ask-password", "stop", "dbus.socket").returncode != 0
    for verb in ("exec web -- true", f"run {people.image} true"):
        done = ask("alice", "podctl", *verb.split())
        assert (done.returncode, "only root may" in done.stderr) == (77, True), done.stderr


ASK = r"""
import os, pty, re, select, sys, time
SHELLS = {
    "zsh": (["zsh", "-f", "-i"], [
        "autoload -U compinit && compinit -u -D; show() { print -rn -- \"<$BUFFER>\" }; zle -N show; bindkey '^T' show",
        "setopt no_auto_menu no_list_ambiguous no_menu_complete",
    ]),
    "bash": (["bash", "--norc", "-i"], [
        "source /usr/share/bash-completion/completions/podctl; bind 'set enable-bracketed-paste off'",
        "show() { printf '<%s>' \"$READLINE_LINE\"; }; bind -x '\"\\C-t\": show'",
    ]),
}
argv, start = SHELLS[sys.argv[1]]
child, master = pty.fork()
if child == 0:
    os.execvpe(argv[0], argv, {**os.environ, "TERM": "dumb", "PS1": "", "PS2": "", "COLUMNS": "2000"})
got = b""
def until(mark):
    global got
    end = time.time() + 60
    while mark not in got:
        assert select.select([master], [], [], max(end - time.time(), 0))[0], (mark, got)
        got += os.read(master, 4096)
    found, got = got, b""
    return found
def say(text):
    os.write(master, text.encode())
for line in start:
    say(line + "\n")
say("echo rea''dy\n")
until(b"ready")
for line in sys.argv[2:]:
    say("\x15" + line + "\t\x14")
    print(re.findall(rb"<(.*)>", until(b">"), re.S)[-1].decode())
"""


def add_key(bed: Bed) -> str:
    """Has a new key trusted; its fingerprint."""
    bed.sh(
        "rm -rf /root/keys; mkdir -m 700 /root/keys; export GNUPGHOME=/root/keys; "
        "gpg --batch --quiet --passphrase '' --quick-generate-key 'Release <release@example.org>' ed25519 sign never; "
        "gpg --batch --armor --export >/root/keys/key.asc; podctl trust add --yes --prefix registry.example.org /root/keys/key.asc; "
        "gpgconf --kill all"
    )
    return bed.run("podctl", "complete", "keys").stdout.strip()


def test_shells(people: Pods) -> None:
    """Asked themselves, with what the package has installed for them."""
    bed = people.bed
    fingerprint = add_key(bed)
    bed.sh("tar -C /etc -c hostname | podctl volume import data -")
    cases = {
        "podctl conv": "podctl convert",
        "podctl status we": "podctl status web",
        "podctl logs web/": "podctl logs web/server",
        "podctl image cat-": "podctl image cat-manifest",
        "podctl list --no-l": "podctl list --no-legend",
        "podctl list --output=y": "podctl list --output=yaml",
        "podctl list -o y": "podctl list -o yaml",
        "podctl fetch oci:/srv/im": f"podctl fetch {people.image}",
        f"podctl image rm {people.image[:-60]}": f"podctl image rm {people.image}",
        "podctl volume export da": "podctl volume export data",
        "podctl volume rm da": "podctl volume rm data",
        f"podctl trust remove {fingerprint[:6]}": f"podctl trust remove {fingerprint}",
    }
    bed.run("podctl", "fetch", people.image)
    bed.write("/root/ask.py", ASK)
    for shell in ("zsh", "bash"):
        completed = bed.run("python3", "/root/ask.py", shell, *cases, timeout=120).stdout.splitlines()
        assert [line.rstrip() for line in completed] == list(cases.values()), shell
    for line, expected in cases.items():
        offered = bed.run("fish", "--command", 'complete --do-complete "$argv[1]"', line).stdout.splitlines()
        assert [text.partition("\t")[0] for text in offered] == [expected.rpartition(" ")[2]], line
    verbs = bed.run("fish", "--command", "complete --do-complete 'podctl image '").stdout
    assert {"list", "rm", "verify"} <= {text.partition("\t")[0] for text in verbs.splitlines()}
