#!/bin/sh
# After installation: dpkg gives "configure", rpm the number of versions. A running
# daemon hands over to the new program, without losing a packet. The first start is
# left to the operator, who knows etcd's address.
set -e
[ -d /run/systemd/system ] || exit 0
systemctl daemon-reload
if systemctl --quiet is-active uvxland.service; then
	systemctl reload uvxland.service || echo "uvxland still runs the old version: systemctl restart uvxland.service" >&2
fi
