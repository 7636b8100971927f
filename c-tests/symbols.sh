#!/bin/sh
# The shared library exports exactly what the version map lists, under the version it lists it, and has its name:
# LIBRARY MAP.
set -eu
library=$1 map=$2
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

awk '/^AVHDX_/ { version = $1; print version } /^ *avhdx_/ { sub(/;/, ""); print $1 "@@" version }' "$map" |
    LC_ALL=C sort >"$work/wanted"
nm -D --defined-only "$library" | awk '{ print $3 }' | LC_ALL=C sort >"$work/found"

failed=0
diff -u "$work/wanted" "$work/found" || failed=1
readelf -d "$library" | grep -q 'SONAME.*\[libavhdx\.so\.1\]' || { echo "the soname is not libavhdx.so.1"; failed=1; }
if readelf -d "$library" | grep -q TEXTREL; then echo "text relocations"; failed=1; fi
echo "$(wc -l <"$work/found") symbols"
echo "$((1 - failed)) passed, $failed failed"
exit $failed
