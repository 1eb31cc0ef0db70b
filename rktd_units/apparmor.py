# SPDX-License-Identifier: Apache-2.0
"""appArmorProfile of type Localhost: a profile of that name must be loaded on the host. (RuntimeDefault is none: we have no profile.)"""

import os

from rktd_units.cgroups import read_quietly
from rktd_units.errors import ConfigError

_ENABLED = "/sys/module/apparmor/parameters/enabled"
_LOADED = "/sys/kernel/security/apparmor/profiles"  # `NAME (MODE)` lines


def check_profile(app: str, name: str) -> None:
    """Raises ConfigError where the kernel would not hold the app to it, which must not pass in silence."""
    if read_quietly(_ENABLED).strip() != "Y":
        raise ConfigError(
            f"app {app}: AppArmor profile {name}: this machine has no AppArmor", hint="appArmorProfile: {type: RuntimeDefault}"
        )
    if os.path.exists(_LOADED) and not any(line.rpartition(" (")[0] == name for line in read_quietly(_LOADED).splitlines()):
        raise ConfigError(f"app {app}: AppArmor profile {name} is not loaded", hint="apparmor_parser -r FILE loads it")
