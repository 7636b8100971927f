#!/bin/sh
# The shared library has its soname and exports exactly the names of the version script, in its version.
set -eu
library=$1 map=$2
readelf -d "$library" | grep -q 'SONAME.*\[libavhdx.so.1\]'
exported=$(nm -D --defined-only --with-symbol-versions "$library" | awk '$2 == "T" { print $3 }' | sort)
wanted=$(sed -n 's/^ *\(avhdx_[a-z0-9_]*\);.*/\1@@AVHDX_1.0/p' "$map" | sort)
test "$exported" = "$wanted" || { echo "exported:"; echo "$exported"; echo "wanted:"; echo "$wanted"; exit 1; }
