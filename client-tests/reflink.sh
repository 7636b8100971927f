#!/usr/bin/env bash
# Sharing extents on a file system that can, XFS on a loop device: converting, migrating, compacting, merging. Needs the right
# to mount.
. "$(dirname "$0")/lib.sh"
needs mkfs.xfs qemu-img
trap 'umount -q "$work/xfs" 2>/dev/null; finish' EXIT
mkdir xfs
truncate -s 1G volume
mkfs.xfs -q volume && mount -o loop volume xfs 2>/dev/null || skip "not allowed to mount, or no XFS"

free() { sync; stat -f -c '%a * %S / 1048576' xfs | { read -r sum; echo $((sum)); }; }
# costs MIB COMMAND...: the command succeeds and takes no more space than that.
costs() {
    local most=$1 before
    shift
    before=$(free)
    "$@" || return
    [ $((before - $(free))) -le "$most" ] || { echo "$((before - $(free))) MiB taken"; return 1; }
}
# shared MIB COMMAND...: the command says that it shared so much.
shared() {
    local least=$1 said
    shift
    said=$("$@" --json) || return
    said=$(sed -n 's/.*"reflinked": \([0-9]*\).*/\1/p' <<<"$said")
    [ "$said" -ge $(($least << 20)) ] || { echo "$said bytes shared"; return 1; }
}

"$avhdx" create xfs/base.vhdx --size 512M --block-size 2M
head -c 200M /dev/urandom | "$avhdx" write xfs/base.vhdx --offset 0
"$avhdx" checkpoint xfs/base.vhdx xfs/a.avhdx
head -c 10M /dev/urandom | "$avhdx" write xfs/a.avhdx --offset 100M
head -c 4K /dev/urandom | "$avhdx" write xfs/a.avhdx --offset 400000000
"$avhdx" convert xfs/a.avhdx copy.raw

check "to raw" costs 4 shared 200 "$avhdx" convert xfs/a.avhdx xfs/a.raw
check "content: raw" cmp xfs/a.raw copy.raw
check "to dynamic VHDX" costs 8 shared 200 "$avhdx" convert xfs/a.avhdx xfs/dynamic.vhdx --mode reflink --block-size 2M
check "content: VHDX" qemu-img compare -q xfs/dynamic.vhdx copy.raw
check "check: VHDX" "$avhdx" check xfs/dynamic.vhdx
check "to fixed VHD" costs 4 shared 200 "$avhdx" convert xfs/a.avhdx xfs/fixed.vhd --type fixed
check "content: fixed VHD" cmp -n $((512 << 20)) xfs/fixed.vhd copy.raw
check "to dynamic VHD" costs 4 shared 200 "$avhdx" convert xfs/a.avhdx xfs/dynamic.vhd
check "content: dynamic VHD" qemu-img compare -q -f vpc -F raw xfs/dynamic.vhd copy.raw
check "migrate" costs 8 "$avhdx" migrate xfs/dynamic.vhd xfs/back.vhdx --mode reflink
check "content: migrated" qemu-img compare -q xfs/back.vhdx copy.raw
check "copied, with threads" "$avhdx" convert xfs/back.vhdx back.raw --mode copy --threads 2
check "content: copied" cmp back.raw copy.raw
refused "another file system" "extents cannot be shared" "$avhdx" convert xfs/a.avhdx other.raw --mode reflink
check "nothing is left behind" test ! -e other.raw

# What is written to one of those that share does not show in the others.
"$avhdx" write xfs/dynamic.vhdx --offset 50M --length 4M --pattern 0x55
check "others are as they were" cmp xfs/a.raw copy.raw
"$avhdx" write xfs/dynamic.vhdx --offset 0 --length 60M --pattern 0x11
"$avhdx" discard xfs/dynamic.vhdx --offset 0 --length 60M
sum xfs/dynamic.vhdx >before
length=$(stat -c %s xfs/dynamic.vhdx)
check "compact" costs 4 "$avhdx" compact xfs/dynamic.vhdx
check "it is shorter" test "$(stat -c %s xfs/dynamic.vhdx)" -le $((length - (60 << 20)))
check "check: compacted" "$avhdx" check xfs/dynamic.vhdx
sum xfs/dynamic.vhdx >after
check "content: compacted" cmp before after
check "others are as they were" cmp xfs/a.raw copy.raw

check "merge" costs 4 "$avhdx" merge xfs/a.avhdx --mode reflink
check "content: merged" qemu-img compare -q xfs/base.vhdx copy.raw
report
