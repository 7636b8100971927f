#!/usr/bin/env bash
# guestfish partitions a chain's leaf, makes ext4, XFS and NTFS on it, and fills, changes and trims them while the chain is
# checkpointed and merged beneath. Then without a server each file system is checked, and guestfish finds every file.
. "$(dirname "$0")/lib.sh"
. "$source/client-tests/guests.sh"
needs guestfish supermin nbdinfo qemu-system-x86_64 sfdisk e2fsck xfs_repair ntfsfix

export LIBGUESTFS_BACKEND=direct LIBGUESTFS_BACKEND_SETTINGS=force_tcg
export SUPERMIN_KERNEL=$kernel SUPERMIN_MODULES=$modules
add="add-drive '' format:raw protocol:nbd \"server:'unix:$socket'\""

mkdir -p old/sub new/sub
for size in 0 1 4097 700001; do head -c "$size" /dev/urandom >"old/$size bytes"; done
cp "$source"/docs/*.md old/sub
head -c 25165824 /dev/urandom >old/big
# What becomes of it: one file changed, one new, the others as they were but for the large one.
cp -r old/. new
rm new/big new/sub/errors.md
head -c 900001 /dev/urandom >"new/700001 bytes"
head -c 3000001 /dev/urandom >new/sub/later
mkdir changes
cp "new/700001 bytes" changes

# A disk that had another life before: partitions and file systems replace what was there.
"$avhdx" create base.vhdx --size 640M --block-size 2M
head -c 33554432 /dev/urandom | "$avhdx" write base.vhdx --offset 100M
"$avhdx" checkpoint base.vhdx 1.avhdx --block-size 1M >/dev/null
serve "$plugin" 1.avhdx control=control
control="! \"$avhdx\" control control"
# The first of its commands that fails ends guestfish.
check "a guestfish at work" guestfish <<END
$add discard:enable
run
part-init /dev/sda gpt
part-add /dev/sda p 2048 264191
part-add /dev/sda p 264192 919551
part-add /dev/sda p 919552 1300479
mkfs ext4 /dev/sda1
mkfs xfs /dev/sda2
mkfs ntfs /dev/sda3
mkmountpoint /ext4
mkmountpoint /xfs
mkmountpoint /ntfs
mount /dev/sda1 /ext4
mount /dev/sda2 /xfs
mount /dev/sda3 /ntfs
copy-in old /ext4
copy-in old /xfs
copy-in old /ntfs
$control checkpoint 2.avhdx --block-size 2M
mv /ext4/old /ext4/new
mv /xfs/old /xfs/new
mv /ntfs/old /ntfs/new
copy-in "changes/700001 bytes" /ext4/new
copy-in "changes/700001 bytes" /xfs/new
copy-in "changes/700001 bytes" /ntfs/new
sync
$control checkpoint 3.avhdx --block-size 1M
$control merge 1
copy-in new/sub/later /ext4/new/sub
copy-in new/sub/later /xfs/new/sub
copy-in new/sub/later /ntfs/new/sub
sync
$control merge
! nbdinfo --map --totals "$uri" >with
rm /ext4/new/big
rm /xfs/new/big
rm /ntfs/new/big
rm /ext4/new/sub/errors.md
rm /xfs/new/sub/errors.md
rm /ntfs/new/sub/errors.md
sync
fstrim /ext4
fstrim /xfs
fstrim /ntfs
sync
! nbdinfo --map --totals "$uri" >without
umount-all
END
stop
data() { awk '/data$/ { n = $1 } END { print n + 0 }' "$1"; }
check "trim gives space back: $(data with), then $(data without)" test $(($(data with) - $(data without))) -gt $((60 << 20))
check "the merges are done" test "$(echo *vhdx)" = "1.avhdx base.vhdx"

# The leaf, and then the disk into which all was merged.
"$avhdx" convert 1.avhdx leaf.raw
check "merge" "$avhdx" merge 1.avhdx --mode consume
check "the disk" "$avhdx" check base.vhdx
"$avhdx" convert base.vhdx disk.raw
check "merging changed nothing" cmp leaf.raw disk.raw
# What is wrong with either copy of the table is a complaint.
check "partitions" test -z "$(sfdisk --verify disk.raw 2>&1 >/dev/null)"
# part NUMBER: the partition alone, as a file.
part() {
    local start size
    read -r start size < <(sfdisk -d disk.raw | sed -n "s/^disk.raw$1 : start= *\([0-9]*\), size= *\([0-9]*\),.*/\1 \2/p")
    dd if=disk.raw of="part-$1" bs=1M iflag=skip_bytes,count_bytes skip=$((start * 512)) count=$((size * 512)) conv=sparse status=none
}
for number in 1 2 3; do part "$number"; done
check "ext4" e2fsck -fn part-1
check "XFS" xfs_repair -n -f part-2
check "NTFS" ntfsfix -n part-3

serve --readonly "$plugin" base.vhdx
mkdir ext4 xfs ntfs
check "a guestfish that reads" guestfish <<END
$add readonly:true
run
mount-ro /dev/sda1 /
copy-out /new ext4
umount /
mount-ro /dev/sda2 /
copy-out /new xfs
umount /
mount-ro /dev/sda3 /
copy-out /new ntfs
END
stop
for system in ext4 xfs ntfs; do check "files on $system" diff -r new "$system/new"; done
report
