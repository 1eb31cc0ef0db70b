#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# What xl runs for the disk and the interface of a guest: `add` and `remove`, `online` and `offline`, with XENBUS_TYPE, XENBUS_PATH and vif.
# Xen's own scripts do this in some seconds of bash and locks where the processor is emulated (docs/misc/block-scripts.txt of Xen).
set -eu

fail() {
    xenstore-write "$XENBUS_PATH/hotplug-error" "$1" "$XENBUS_PATH/hotplug-status" error
    echo "$1" >&2
    exit 1
}

case $XENBUS_TYPE.$1 in
    vbd.add)
        file=$(xenstore-read "$XENBUS_PATH/params")
        loop=$(losetup --find --show --read-only "$file") || fail "no loop device for $file"
        xenstore-write "$XENBUS_PATH/node" "$loop" "$XENBUS_PATH/physical-device" "$(stat -c %t:%T "$loop")" \
            "$XENBUS_PATH/physical-device-path" "$loop" "$XENBUS_PATH/hotplug-status" connected
        ;;
    vbd.remove)
        loop=$(xenstore-read "$XENBUS_PATH/node") && losetup --detach "$loop"
        ;;
    vif.online)
        # shellcheck disable=SC2154
        ip link set "$vif" name "$(xenstore-read "$XENBUS_PATH/vifname")" || fail "$vif cannot be renamed"
        xenstore-write "$XENBUS_PATH/hotplug-status" connected
        ;;
esac
