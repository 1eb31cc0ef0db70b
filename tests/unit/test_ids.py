# SPDX-License-Identifier: Apache-2.0
import os
from pathlib import Path

import pytest

from rktd_units.errors import StateError
from rktd_units.ids import COUNT, claim_range, release_range
from rktd_units.settings import IdRange, Settings

AREA = IdRange(0x10000000, 8 * COUNT)


def claim(directory: Path, name: str, area: IdRange = AREA, subordinate: tuple[str, ...] = ()) -> int:
    return claim_range(str(directory / "ids"), name, area, subordinate)


def test_ranges_are_disjoint_and_in_the_area(tmp_path: Path) -> None:
    bases = sorted(claim(tmp_path, f"p{i}") for i in range(8))
    assert bases == [AREA.base + i * COUNT for i in range(8)]


def test_the_same_pod_gets_the_same(tmp_path: Path) -> None:
    first = claim(tmp_path, "web")
    assert claim(tmp_path, "web") == first
    release_range(str(tmp_path / "ids"), "web")
    assert claim(tmp_path, "web") == first
    assert claim(tmp_path / "another-host", "web") == first


def test_exhausted(tmp_path: Path) -> None:
    for index in range(8):
        claim(tmp_path, f"p{index}")
    with pytest.raises(StateError, match=f"all 8 id ranges from {AREA.base} on are taken") as caught:
        claim(tmp_path, "one-more")
    assert "idRange.size" in caught.value.hint
    release_range(str(tmp_path / "ids"), "p3")
    release_range(str(tmp_path / "ids"), "none")
    claim(tmp_path, "one-more")


def test_release_leaves_the_others(tmp_path: Path) -> None:
    claims = {name: claim(tmp_path, name) for name in ("a", "b")}
    release_range(str(tmp_path / "ids"), "a")
    assert os.listdir(tmp_path / "ids") == [str(claims["b"])]
    release_range(str(tmp_path / "nowhere"), "a")


def test_subordinate_ids_are_avoided(tmp_path: Path) -> None:
    free = AREA.base + 5 * COUNT
    subuid, subgid = tmp_path / "subuid", tmp_path / "subgid"
    subuid.write_text(f"# x\nbroken\na:b:c\nuser:{AREA.base - 10}:{5 * COUNT + 10}\n")
    subgid.write_text(f"user:{free + COUNT}:1\nlast:{AREA.base + 8 * COUNT - 1}:1000000\n")
    files = (str(subuid), str(subgid), str(tmp_path / "none"))
    assert claim(tmp_path, "web", subordinate=files) == free
    with pytest.raises(StateError, match="are taken"):
        claim(tmp_path, "db", subordinate=files)


def test_a_claim_of_another_kind_of_file_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "ids").mkdir()
    for index in range(7):
        (tmp_path / "ids" / str(AREA.base + index * COUNT)).write_text("")
    (tmp_path / "ids" / ".web.1").write_text("web")
    assert claim(tmp_path, "web") == AREA.base + 7 * COUNT


def test_default_area_is_clear_of_systemds_own() -> None:
    """systemd's UIDS-GIDS.md: nspawn picks from 524288 to 1879048191, the foreign range begins at 2147352576."""
    area = Settings().id_range
    assert area.base % COUNT == 0
    assert area.base > 1879048191
    assert area.base + area.size <= 2147352576
