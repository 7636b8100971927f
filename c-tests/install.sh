#!/bin/sh
# What is installed can be used: a program is built against a DESTDIR with pkg-config and runs, with the shared and with
# the static library: BUILD_DIR PROGRAM.c
set -eu
build=$1 program=$2
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
failed=0 passed=0

DESTDIR=$work/root meson install -C "$build" --no-rebuild --quiet >/dev/null
pc=$(find "$work/root" -name avhdx.pc)
libdir=$(dirname "$(find "$work/root" -name 'libavhdx.so.1')")
export PKG_CONFIG_PATH="${pc%/*}" PKG_CONFIG_SYSROOT_DIR="$work/root"
# A prefix of /usr is otherwise taken for where the compiler looks anyway.
export PKG_CONFIG_ALLOW_SYSTEM_CFLAGS=1 PKG_CONFIG_ALLOW_SYSTEM_LIBS=1

try() {
    if "$@"; then passed=$((passed + 1)); else echo "failed: $*"; failed=$((failed + 1)); fi
}

# shellcheck disable=SC2046 # words are what is wanted
try ${CC:-cc} -o "$work/shared" "$program" $(pkg-config --cflags --libs avhdx)
try env LD_LIBRARY_PATH="$libdir" "$work/shared"
try sh -c "readelf -d '$work/shared' | grep -q 'NEEDED.*libavhdx\.so\.1'"

# shellcheck disable=SC2046
try ${CC:-cc} -o "$work/static" "$program" $(pkg-config --cflags avhdx) \
    -Wl,-Bstatic $(pkg-config --libs avhdx) -Wl,-Bdynamic $(pkg-config --static --libs-only-l avhdx | sed 's/-lavhdx//g') -pthread
try "$work/static"
try sh -c "! readelf -d '$work/static' | grep -q libavhdx"
try [ "$(pkg-config --modversion avhdx)" = "$(sed -n 's/^version = "\(.*\)"/\1/p' "$(dirname "$program")/../Cargo.toml" | head -1)" ]
try [ -f "$libdir/libavhdx.a" ]

echo "$passed passed, $failed failed"
[ $failed -eq 0 ]
