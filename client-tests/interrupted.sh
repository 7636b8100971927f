#!/usr/bin/env bash
# Reads and writes that the kernel does by halves, and calls that signals interrupt: everything is done all the same.
. "$(dirname "$0")/lib.sh"
flaky=$1
needs

# disks: what is done, in the current directory.
disks() {
    "$@" "$avhdx" create base.vhdx --size 64M --block-size 1M &&
        "$@" "$avhdx" write base.vhdx --offset 1M <../noise &&
        "$@" "$avhdx" checkpoint base.vhdx a.avhdx --block-size 1M &&
        "$@" "$avhdx" write a.avhdx --offset 3000K --length 2000001 --pattern 0x5a &&
        "$@" "$avhdx" zero a.avhdx --offset 6M --length 1500K &&
        "$@" "$avhdx" checkpoint a.avhdx b.avhdx --block-size 2M &&
        "$@" "$avhdx" write b.avhdx --offset 20M <../noise &&
        "$@" "$avhdx" merge b.avhdx --mode consume &&
        "$@" "$avhdx" merge a.avhdx --mode auto &&
        "$@" "$avhdx" resize base.vhdx 96M &&
        "$@" "$avhdx" compact base.vhdx &&
        "$@" "$avhdx" check base.vhdx &&
        "$@" "$avhdx" convert base.vhdx whole.raw
}

head -c 5000001 /dev/urandom >noise
mkdir calm rough
# A path without spaces, which would end it.
cp "$flaky" flaky.so
check "undisturbed" eval '(cd calm && disks env)'
check "disturbed" eval '(cd rough && disks env FLAKY_LOG="$work/log" LD_PRELOAD=../flaky.so)'
check "the same" cmp calm/whole.raw rough/whole.raw
check "good without it" "$avhdx" check rough/base.vhdx
read -r halves interruptions < <(awk '{ h += $1; i += $2 } END { print h + 0, i + 0 }' log)
check "$halves halves, $interruptions interruptions" test "$halves" -gt 500 -a "$interruptions" -gt 500
report
