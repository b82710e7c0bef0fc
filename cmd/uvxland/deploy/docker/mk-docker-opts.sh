#!/bin/sh
# flannel's command of this name: uvxlan docker-opts does the work.

uvxlan=$(dirname -- "$(readlink -f -- "$0")")/uvxlan
[ -x "$uvxlan" ] || uvxlan=uvxlan

# getopts takes -ic and -f/path too, which uvxlan does not. Values stay in variables
# until eval reads them, so that it never reads their text as a command.
options=
while getopts f:d:icmk:h option; do
	case $option in
	f) file=$OPTARG options="$options -f \"\$file\"" ;;
	d) output=$OPTARG options="$options -d \"\$output\"" ;;
	k) key=$OPTARG options="$options -k \"\$key\"" ;;
	i | c | m) options="$options -$option" ;;
	*)
		"$uvxlan" docker-opts -help >&2
		exit 1
		;;
	esac
done
eval "exec \"\$uvxlan\" docker-opts $options"
