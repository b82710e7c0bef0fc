#!/bin/sh
# After removal: dpkg gives "remove" and then, if asked to, "purge"; rpm 0.
set -e
case $1 in
purge | 0) rm -rf /var/lib/uvxlan /run/uvxlan ;;
remove) ;;
*) exit 0 ;;
esac
[ ! -d /run/systemd/system ] || systemctl daemon-reload
