#!/bin/sh
# What "meson install" puts into a DESTDIR is enough to build and run a C program with pkg-config.
set -eu
build=$1 source=$2
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
DESTDIR=$work/root meson install -C "$build" --quiet --no-rebuild
pc=$(find "$work/root" -name avhdx.pc)
export PKG_CONFIG_PATH="$(dirname "$pc")" PKG_CONFIG_SYSROOT_DIR="$work/root"
lib=$work/root$(PKG_CONFIG_SYSROOT_DIR= pkg-config --variable=libdir avhdx)
cc -std=c11 -Wall -Wextra -Werror "$source" -o "$work/shared" $(pkg-config --cflags --libs avhdx)
cd "$work"
LD_LIBRARY_PATH=$lib "$work/shared"
cc -std=c11 "$OLDPWD/$source" -o "$work/static" $(pkg-config --cflags avhdx) "$lib/libavhdx.a" -lm -ldl -lpthread 2>/dev/null ||
    cc -std=c11 "$source" -o "$work/static" $(pkg-config --cflags avhdx) "$lib/libavhdx.a" -lm -ldl -lpthread
"$work/static"
