#!/bin/sh
# Before removal, not before an upgrade: dpkg gives "remove", rpm 0. What a stopped
# daemon leaves, such as firewall rules, goes too: afterwards no program is there to remove it.
set -e
case $1 in remove | 0) ;; *) exit 0 ;; esac
[ -d /run/systemd/system ] || exit 0
systemctl --quiet disable --now uvxland.service
/usr/bin/uvxlan cleanup || echo "uvxlan: the above is left on this host" >&2
