#!/bin/sh
# After installation: dpkg gives "configure", rpm the number of versions. A running
# daemon is put into the new program's hands, without losing a packet. A new one is
# left to the operator, who has etcd's address.
set -e
[ -d /run/systemd/system ] || exit 0
systemctl daemon-reload
if systemctl --quiet is-active uvxland.service; then
	systemctl reload uvxland.service || echo "uvxland runs on as the old version: systemctl restart uvxland.service" >&2
fi
