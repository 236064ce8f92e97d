#!/bin/sh
# A systemd that is process 1 of namespaces of its own, and runs what is in FOLDER/units and nothing else
# of this machine. Started by systemd.test.ts:
#
#   unshare --fork --kill-child --pid --mount --cgroup --uts --ipc --propagation private systemd-machine.sh FOLDER
#
# It has its own /run, /var/cache, /var/lib, /mnt and cgroups (its caller is in a cgroup made for it), the users and
# folders that systemd/*.conf make, and may not change the kernel's settings.
set -eu
folder=$1
mount -t proc proc /proc
mount --bind /proc/sys /proc/sys
mount -o remount,bind,ro /proc/sys
mount -t cgroup2 cgroup2 /sys/fs/cgroup
mount -t tmpfs -o mode=755 tmpfs /run
for path in /var/cache /var/lib /mnt; do mount -t tmpfs -o mode=755 tmpfs "$path"; done
# As udev makes it: a container's may be root's alone.
mknod -m 666 /run/fuse c 10 229
mount --bind /run/fuse /dev/fuse
for file in passwd group; do mount --bind "$folder/root/etc/$file" "/etc/$file"; done
systemd-tmpfiles --create "$folder/units/bobbin.tmpfiles.conf"
exec env -i container=bobbin-test PATH="$PATH" SYSTEMD_UNIT_PATH="$folder/units" SYSTEMD_GENERATOR_PATH="$folder" \
  "$(readlink -f "$(command -v systemd || echo /lib/systemd/systemd)")" --system --unit=bobbin.service \
  --log-target=console --log-color=no --show-status=no
