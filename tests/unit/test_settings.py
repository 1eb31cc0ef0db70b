# SPDX-License-Identifier: Apache-2.0
import re
from pathlib import Path

import pytest

from rktd_units import settingsfile
from rktd_units.errors import ConfigError
from rktd_units.settings import AddressPool, IdRange, Settings, load_settings
from rktd_units.strictyaml import parse_yaml


def load(tmp_path: Path, text: str) -> Settings:
    path = tmp_path / "rktd.yaml"
    path.write_text(text)
    return load_settings(str(path))


def test_defaults(tmp_path: Path) -> None:
    assert load_settings(str(tmp_path / "none")) == Settings()
    assert load(tmp_path, "# nothing\n") == Settings()
    assert IdRange() == (1879048192, 268304384)


def test_the_file_that_is_installed(tmp_path: Path) -> None:
    """It sets nothing; without the marks before them its lines are valid, and all settings are among them."""
    text = (Path(__file__).parents[2] / "units/rktd.yaml").read_text()
    assert load(tmp_path, text) == Settings()
    assert parse_yaml(text.encode(), "x") == ((), ())
    settings = re.sub(r"^#(?=\w)", "", text, flags=re.MULTILINE)
    assert load(tmp_path, settings) != Settings()
    assert set(re.findall(r"^(\w+):", settings, re.MULTILINE)) == set(settingsfile._SETTINGS)


def test_all_settings(tmp_path: Path) -> None:
    text = (
        "insecure: ['127.0.0.1:5000', ex.org/a, 'aci:https://ex.org:8443/a']\n"
        "idRange: {base: 524288, size: 655360}\nmaxImageBytes: 1Gi\nstallTimeout: 9\n"
        "network: {ipv4: 172.20.0.0/16, size: 24, ipv6: 'fd00:1:2::/48', mtu: 1400}\n"
    )
    insecure = ("127.0.0.1:5000", "ex.org/a", "aci:https://ex.org:8443/a")
    assert load(tmp_path, text) == Settings(
        insecure,
        IdRange(524288, 655360),
        1 << 30,
        stall_timeout=9,
        network=AddressPool(0xAC140000, 16, 24, 0xFD00_0001_0002 << 80, 1400),
    )
    assert load(tmp_path, "network: {ipv4: 192.168.4.0/24}").network == AddressPool(0xC0A80400, 24, 24)  # one network is all of it


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("insecur: []", "did you mean 'insecure'"),
        ("insecure: x", "insecure: must be a list, got 'x'"),
        ("insecure: ['/']", "a component is empty"),
        ("insecure: ['oci:relative']", "the path must be absolute"),
        ("insecure: ['ex.org/a:tag']", "a tag is not part of it"),
        ("insecure: ['aci:ex.org/a:1']", "without version and labels"),
        ("insecure: ['aci:ex.org//a']", "without version and labels"),
        ("insecure: ['*']", "no scheme, digest, wildcard or space"),
        ("idRange: {base: 65537, size: 65536}", "idRange.base: must be a multiple of 65536, got 65537"),
        ("idRange: {base: 2147287040, size: 131072}", "must end before the id 2147352576"),
        ("idRange: {base: 65536}", "idRange.size: is required"),
        ("network: {ipv4: 8.8.8.0/24}", "network.ipv4: must be a private IPv4 network of /8 to /28, got '8.8.8.0/24'"),
        ("network: {ipv6: 'fd00::/64'}", "network.ipv6: must be a private IPv6 network of /48, got 'fd00::/64'"),
        ("network: {ipv4: 10.0.0.0/16, size: 12}", "network.size: must be a prefix length from 16 on, that of the pool, got 12"),
        ("network: {mtu: 1000}", "network.mtu: must be between 1280 and 65535, got 1000"),
        ("maxImageBytes: 0", "must be a quantity of more than 0 bytes, got '0'"),
        ("stallTimeout: 0", "stallTimeout: must be between 1 and 100, got 0"),
        ("maxImageBytes: lots", "must be a quantity, got 'lots'"),
        ("a: [", "is not YAML"),
        ("--- {}\n--- {}", "must be one document"),
    ],
    ids=lambda value: value[:24],
)
def test_refused(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)) as caught:
        load(tmp_path, text)
    assert caught.value.diagnostics
    assert caught.value.exit_code == 78


@pytest.mark.parametrize(
    ("prefix", "reference", "expected"),
    [
        ("ex.org/a", "ex.org/a:1", True),
        ("ex.org/a", "ex.org/a/b@sha256:00", True),
        ("ex.org/a", "ex.org/a-evil", False),
        ("ex.org", "ex.org/a", True),
        ("ex.org/", "ex.org/a", True),
        ("ex.org", "ex.org.evil/a", False),
        ("127.0.0.1:5000", "127.0.0.1:5000/a:1", True),
        ("127.0.0.1:5000", "127.0.0.1:5001/a", False),
        ("evil:5000", "evil:5000", False),
        ("evil:5000", "evil:5000/x", True),
        ("busybox", "busybox:1", True),
        ("busybox", "docker.io/library/busybox:1", True),
        ("docker.io/library", "busybox", True),
        ("ex.org", "busybox", False),
        ("oci:/srv", "oci:/srv/images/a:latest", True),
        ("oci:/srv/im", "oci:/srv/images/a", False),
        ("oci:/srv", "docker-archive:/srv/a.tar", False),
        ("docker-archive:/srv/a.tar", "docker-archive:/srv/a.tar", True),
        ("oci:/", "oci:/anything", True),
        ("dir:/srv", "dir:/srv/a", True),
        ("oci-archive:/srv", "oci-archive:/srv/a.tar:x", True),
        ("aci:/srv", "aci:/srv/a.aci", True),
        ("aci:ex.org/a", "aci:ex.org/a/b:1,os=linux", True),
        ("aci:ex.org/a", "aci:ex.org/a,os=linux", True),
        ("aci:ex.org/a", "aci:ex.org/a-evil", False),
        ("aci:ex.org", "aci:https://ex.org/a.aci", False),
        ("aci:ex.org/a", "aci:/ex.org/a", False),
        ("aci:https://ex.org:8443", "aci:https://ex.org:8443/a.aci", True),
        ("aci:https://ex.org/a", "aci:http://ex.org/a/b.aci", False),
        ("aci:https://ex.org/a", "aci:https://ex.org/a/b.aci", True),
        ("ex.org/a", "aci:ex.org/a", False),
    ],
)
def test_is_insecure(prefix: str, reference: str, expected: bool) -> None:
    assert Settings(insecure=(prefix,)).is_insecure(reference) is expected


@pytest.mark.parametrize(
    ("reference", "insecure", "required"),
    [
        ("ex.org/a:1", False, True),
        ("ex.org/a/dev:1", True, False),
        ("ex.org/a/dev/prod@sha256:00", False, True),
        ("ex.org/a-evil", True, False),
        ("docker.io/library/x", False, True),
        ("oci:/srv/x", False, True),
        ("aci:ex.org/etcd", False, True),
    ],
)
def test_the_longest_prefix_counts(reference: str, insecure: bool, required: bool) -> None:
    settings = Settings(insecure=("ex.org", "ex.org/a/dev"), require_signature=("*", "ex.org/a", "ex.org/a/dev/prod"))
    assert (settings.is_insecure(reference), settings.requires_signature(reference)) == (insecure, required)


def test_required_signatures(tmp_path: Path) -> None:
    assert load(tmp_path, "requireSignature: ['*', ex.org/a, 'aci:ex.org']\n").require_signature == ("*", "ex.org/a", "aci:ex.org")
    for text, message in (
        ("requireSignature: ['oci:/srv']", "'oci:/srv' can have no signature\n  hint: pin those images"),
        ("{insecure: [busybox], requireSignature: [docker.io/library/busybox]}", "is listed under both insecure and requireSignature"),
        ("requireSignature: [ex.org/a:1]", "a tag is not part of it"),
    ):
        with pytest.raises(ConfigError, match=re.escape(message)):
            load(tmp_path, text)
