#!/usr/bin/env bash
# Merges on a file system that is nearly full: ext4 on a loop device, or tmpfs. Needs the right to mount.
. "$(dirname "$0")/lib.sh"
needs
trap 'umount -q "$work/full" 2>/dev/null; finish' EXIT
mkdir full

# volume MIB: an empty file system of that size on full/.
volume() {
    umount -q full 2>/dev/null
    rm -f volume
    truncate -s "$1M" volume
    if mkfs.ext4 -q -m 0 -F volume && mount -o loop volume full; then
        kind=ext4
    elif mount -t tmpfs -o "size=$1M" tmpfs full; then
        kind=tmpfs
    else
        return 1
    fi 2>/dev/null
}

volume 64 || skip "not allowed to mount"

free() { stat -f -c '%a * %S / 1024' full | { read -r sum; echo $((sum)); }; }

# leave MIB: takes all but so much of what is free.
leave() {
    sync full
    fallocate -l $(($(free) - $1 * 1024))K full/filler
    sync full
    check "$(($(free) / 1024)) MiB free of $1" test $(($(free) / 1024)) -le "$1"
}

# round SIZE FREE MODE BASE: MiB, MiB, mode, how much of the base holds data.
round() {
    local size=$1 left=$2 mode=$3 name="$1 MiB child, $2 MiB free, --mode $3, $4 MiB in the base"
    volume $((size + $4 + left + 128))
    "$avhdx" create full/base.vhdx --size "${size}M"
    [ "$4" = 0 ] || head -c "$4M" /dev/urandom | "$avhdx" write full/base.vhdx --offset 0
    "$avhdx" checkpoint full/base.vhdx full/child.avhdx
    head -c "${size}M" /dev/urandom | tee >(sha256sum >before) | "$avhdx" write full/child.avhdx --offset 0
    leave "$left"
    check "$name ($kind)" "$avhdx" merge full/child.avhdx --mode "$mode"
    check "child gone: $name" test ! -e full/child.avhdx
    check "check: $name" "$avhdx" check full/base.vhdx
    sum full/base.vhdx >after
    check "content: $name" cmp before after
}

round 1024 64 consume 0
round 256 8 auto 0
round 256 8 auto 256
round 64 5 consume 0

# Too little even for that.
volume 128
"$avhdx" create full/base.vhdx --size 32M
"$avhdx" checkpoint full/base.vhdx full/child.avhdx
head -c 32M /dev/urandom | tee >(sha256sum >before) | "$avhdx" write full/child.avhdx --offset 0
leave 1
cp full/child.avhdx full/base.vhdx .
for mode in auto consume; do
    refused "no room, $mode" "are free" "$avhdx" merge full/child.avhdx --mode "$mode"
    check "nothing changed" cmp full/child.avhdx child.avhdx
    check "nothing changed" cmp full/base.vhdx base.vhdx
done

# Full to the last block: what needs room is refused, nothing is lost or left behind, and with room it works.
volume 64
"$avhdx" create full/base.vhdx --size 1G --block-size 1M
head -c 8M /dev/urandom | "$avhdx" write full/base.vhdx --offset 0
"$avhdx" checkpoint full/base.vhdx full/child.avhdx --block-size 1M
"$avhdx" write full/child.avhdx --offset 1M --length 64K --pattern 0x11
sum full/child.avhdx >before
cat /dev/zero >full/filler 2>/dev/null
sync full
ls full >names
refused "a write" "No space left" "$avhdx" write full/child.avhdx --offset 128M --length 8M --pattern 0x33
refused "a checkpoint" "No space left" "$avhdx" checkpoint full/child.avhdx full/new.avhdx
refused "a new disk" "No space left" "$avhdx" create full/other.vhdx --size 64M
refused "a fixed disk" "" "$avhdx" create full/fixed.vhdx --size 64M --type fixed
refused "a conversion" "" "$avhdx" convert full/child.avhdx full/out.vhdx
refused "a merge" "are free" "$avhdx" merge full/child.avhdx --mode copy
check "nothing is left behind" diff names <(ls full)
for file in base.vhdx child.avhdx; do check "check: $file, full" "$avhdx" check "full/$file"; done
rm full/filler
"$avhdx" zero full/child.avhdx --offset 128M --length 8M
sum full/child.avhdx >after
check "what was there" cmp before after
"$avhdx" write full/child.avhdx --offset 128M --length 8M --pattern 0x33
check "with room" "$avhdx" checkpoint full/child.avhdx full/new.avhdx
check "check: with room" "$avhdx" check full/child.avhdx
report
