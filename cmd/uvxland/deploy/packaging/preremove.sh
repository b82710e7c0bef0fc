#!/bin/sh
# Before removal, not before an upgrade: dpkg gives "remove", rpm 0. Interface, routes
# and rules go too, since nothing is left afterwards that could remove them.
set -e
case $1 in remove | 0) ;; *) exit 0 ;; esac
[ -d /run/systemd/system ] || exit 0
systemctl --quiet disable --now uvxland.service
/usr/bin/uvxlan cleanup || echo "uvxlan: the above is left on this host" >&2
