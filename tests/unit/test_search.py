# SPDX-License-Identifier: Apache-2.0
import os
from pathlib import Path

import pytest

from rktd_units.errors import ConfigError
from rktd_units.podfile.search import PodEntry, find_pods, locate_pod, stamp_sources


@pytest.fixture
def directories(tmp_path: Path) -> tuple[str, ...]:
    for name in ("etc", "lib"):
        (tmp_path / name).mkdir()
    return str(tmp_path / "etc"), str(tmp_path / "lib"), str(tmp_path / "none")


def put(directory: str, name: str, text: str = "x") -> str:
    path = Path(directory, name)
    path.parent.mkdir(exist_ok=True)
    path.write_text(text)
    return str(path)


def test_first_directory_wins(directories: tuple[str, ...]) -> None:
    etc, lib, _ = directories
    first, _, other = put(etc, "web.yaml"), put(lib, "web.yaml"), put(lib, "db.yaml")
    for name in (".web.yaml", "web.yaml~", "#web.yaml#", "web.yaml.dpkg-old", "README"):
        put(etc, name)
    found = find_pods(directories)
    assert found.entries == (PodEntry("db", other), PodEntry("web", first))
    assert found.diagnostics == ()
    assert locate_pod("web", directories) == (found.entries[1], ())


def test_drop_ins_come_from_all_directories(directories: tuple[str, ...]) -> None:
    etc, lib, _ = directories
    put(lib, "web.yaml")
    b, a = put(etc, "web.yaml.d/20.yaml"), put(lib, "web.yaml.d/10.yaml")
    put(lib, "web.yaml.d/20.yaml")
    put(etc, "web.yaml.d/30.yaml", "")
    put(lib, "web.yaml.d/30.yaml")
    assert find_pods(directories).entries[0].drop_ins == (a, b)
    assert locate_pod("web", directories)[0].drop_ins == (a, b)


@pytest.mark.parametrize("link", [False, True], ids=["empty", "null"])
def test_mask(directories: tuple[str, ...], link: bool) -> None:
    etc, lib, _ = directories
    put(lib, "web.yaml")
    os.symlink("/dev/null", f"{etc}/web.yaml") if link else put(etc, "web.yaml", "")
    found = find_pods(directories)
    assert found.entries == ()
    assert found.masked == (("web", f"{etc}/web.yaml"),)
    with pytest.raises(ConfigError, match="pod web is masked by"):
        locate_pod("web", directories)


def test_diagnostics(directories: tuple[str, ...]) -> None:
    etc, *_ = directories
    put(etc, "web.yml")
    put(etc, "Web_1.yaml")
    put(etc, "gone.yaml.d/a.yaml")
    assert [str(d).replace(etc, "") for d in find_pods(directories).diagnostics] == [
        "/Web_1.yaml: 'Web_1' is not a pod name\n  hint: lower case letters, digits, dashes and dots, 63 characters at most",
        "/gone.yaml.d/a.yaml: warning: has no effect: there is no gone.yaml that it could change",
        "/web.yml: is not read: the suffix must be .yaml\n  hint: rename it to web.yaml",
    ]
    with pytest.raises(ConfigError, match=r"there is no web\.yaml in .*etc, ") as caught:
        locate_pod("web", directories)
    assert caught.value.hint == "rename it to web.yaml"
    with pytest.raises(ConfigError, match=r"'\.\./x' is not a pod name"):
        locate_pod("../x", directories)


def test_a_directory_that_is_none_is_told(directories: tuple[str, ...]) -> None:
    path = put(directories[0], "file")
    (fault,) = find_pods((path, directories[1])).diagnostics
    assert fault.message == "cannot be read: not a directory"


def test_stamps_change_with_what_they_cover(directories: tuple[str, ...]) -> None:
    etc = directories[0]
    web, drop_in = put(etc, "web.yaml"), put(etc, "web.yaml.d/a.yaml")
    before = stamp_sources(directories)
    assert before == stamp_sources(directories)
    assert {stamp[0] for stamp in before} == {*directories, web, f"{etc}/web.yaml.d", drop_in}
    for change in (lambda: put(etc, "web.yaml.d/a.yaml", "longer"), lambda: put(etc, "web.yaml", "yz!"), lambda: os.unlink(drop_in)):
        change()
        after = stamp_sources(directories)
        assert after != before
        before = after
