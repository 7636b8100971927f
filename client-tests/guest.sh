#!/usr/bin/env bash
# A Linux guest in QEMU on a chain: checkpoints and merges while it writes, a power cut in the middle of a merge, a server
# that is killed under it. Then, without us and without a server: e2fsck, and the checksum of every file the guest wrote.
. "$(dirname "$0")/lib.sh"
. "$source/client-tests/guests.sh"
needs qemu-system-x86_64 nbdinfo busybox modprobe mkfs.ext4 e2fsck debugfs

version=${modules##*/}
mkdir -p root/{bin,dev,proc,sys,disk,modules}
cp "$(command -v busybox)" root/bin/busybox
cp "$source/client-tests/guest-init" root/init
chmod +x root/init
for module in virtio_pci virtio_blk ext4; do
    modprobe -d "$unpacked" -S "$version" --show-depends "$module" | sed -n 's/^insmod \(.*[^ ]\) *$/\1/p'
done | awk '!seen[$0]++' | while read -r module; do
    cp "$module" root/modules/
    echo "${module##*/}" >>root/modules/order
done
(cd root && find . | busybox cpio -o -H newc 2>/dev/null) | gzip -1 >initramfs

mkdir -p tree/base
for size in 0 1 4095 65537 1000000 9000000; do head -c "$size" /dev/urandom >"tree/base/$size bytes"; done
cp "$source"/docs/*.md tree/base
(cd tree/base && sha256sum -- * >../sums && mv ../sums .)
mkfs.ext4 -q -d tree disk.raw 192M
"$avhdx" create base.vhdx --size 192M --block-size 1M
"$avhdx" write base.vhdx <disk.raw
"$avhdx" checkpoint base.vhdx "leaf, 1.avhdx" --block-size 2M >/dev/null

# The guest's files as it told of them, and how often it did.
declare -A files
count=0 marks=0

# boot [PROPERTY]: a guest whose lines come on descriptor 8, and which reads from 7.
boot() {
    rm -f to-guest from-guest
    mkfifo to-guest from-guest
    exec 7<>to-guest 8<>from-guest
    part=
    qemu-system-x86_64 -M q35 -accel tcg -m 256 -nodefaults -display none -no-reboot \
        -kernel "$kernel" -initrd initramfs -append 'console=ttyS0 quiet panic=-1' \
        -blockdev "driver=nbd,node-name=disk,server.type=unix,server.path=${socket//,/,,},discard=unmap,reconnect-delay=60" \
        -device "virtio-blk-pci,drive=disk$1" -serial file:console -serial stdio <to-guest >from-guest 2>qemu.log 7>&- 8>&- &
    guest=$!
    check "the guest comes up" hear "up 201326592"
}

# hear WORDS: reads the guest's lines until one begins so.
hear() {
    local line end=$((SECONDS + 120))
    while [ "$SECONDS" -lt "$end" ]; do
        if ! IFS= read -r -t 2 -u 8 line; then
            part+=$line
            kill -0 "$guest" && continue
            break
        fi
        line=$part$line part=
        case $line in
        "file "*) line=${line#file } files[${line% *}]=${line#* } count=$((count + 1)) line="file $line" ;;
        "gone "*) unset "files[${line#gone }]" ;;
        esac
        [[ $line != "$1"* ]] || return 0
    done
    echo "the guest did not say \"$1\""
    tail -n 20 console qemu.log nbdkit.log
    return 1
}

# now: what is heard from here on happened after this.
now() {
    marks=$((marks + 1))
    echo "mark $marks" >&7
    hear "mark $marks"
}

# writes N: the guest writes N more files.
writes() {
    local more
    now || return
    for more in $(seq "$1"); do hear "file " || return; done
}

known() { for name in "${!files[@]}"; do echo "$name ${files[$name]}"; done | sort; }

# merge_live NAME ARGUMENT...: slow enough for the guest to write meanwhile.
merge_live() {
    local name=$1 before job
    shift
    now
    before=$count
    "$avhdx" control control merge "$@" --rate 4M >merge.log 2>&1 &
    job=$!
    while kill -0 "$job" 2>/dev/null; do hear "file " || break; done
    check "$name" wait "$job"
    [ -s merge.log ] && cat merge.log
    check "$name: the guest wrote meanwhile" test $((count - before)) -ge 3
}

layers() { "$avhdx" control control info | grep -c '"filename"'; }

# A first life: checkpoints and merges below the running guest.
serve "$plugin" "leaf, 1.avhdx" control=control
boot ""
echo base >&7
check "the files of the base" hear "base good"
echo write >&7
for number in 2 3 4; do
    check "writes before checkpoint $number" writes 8
    check "checkpoint $number" "$avhdx" control control checkpoint "leaf, $number.avhdx" --block-size $((number / 2))M
done
check "writes to the new leaf" writes 8
check "five layers" test "$(layers)" = 5
merge_live "merge below the leaf" 1
check "four layers" test "$(layers)" = 4
merge_live "merge of the leaf"
check "three layers" test "$(layers)" = 3
check "the leaf is gone" test ! -e "leaf, 4.avhdx"
echo end >&7
check "the writer ends" hear ended
known >before
echo list >&7
check "the guest reads all" hear listed
check "what it reads is what it wrote" diff -u before <(known)

# The power fails in the middle of a merge, the server too.
check "checkpoint 5" "$avhdx" control control checkpoint "leaf, 5.avhdx" --block-size 1M
echo write >&7
check "writes before the cut" writes 5
"$avhdx" control control merge 1 --rate 64K >merge.log 2>&1 &
merge=$!
check "writes within the merge" writes 5
check "the merge is under way" kill -0 "$merge"
kill -9 "$guest" "$server"
wait "$guest" "$server" 2>/dev/null
refused "the merge was cut off" "" wait "$merge"
# What it said last may still be in the pipe.
while IFS= read -r -t 0.2 -u 8 line; do
    case $line in
    "file "*) line=${line#file } files[${line% *}]=${line#* } ;;
    "gone "*) unset "files[${line#gone }]" ;;
    esac
done
known >before

# A second life. The disk has no write cache, so that a server which dies loses nothing.
serve "$plugin" "leaf, 5.avhdx" control=control
boot ,write-cache=off
echo base >&7
check "the files of the base, after the cut" hear "base good"
echo list >&7
check "the guest reads all, after the cut" hear listed
check "all is there that was on stable media" test -z "$(comm -23 before <(known))"
check "the merge cut off is finished" "$avhdx" control control merge 1
echo write >&7
for round in 1 2 3; do
    check "writes before kill $round" writes 5
    kill -9 "$server"
    wait "$server" 2>/dev/null
    serve "$plugin" "leaf, 5.avhdx" control=control
    check "writes after kill $round" writes 5
done
echo end >&7
check "the writer ends again" hear ended
data() { nbdinfo --map --totals "$uri" | awk '/data$/ { print $1 }'; }
echo big >&7
check "a large file" hear "file big"
with=$(data)
echo trim >&7
check "trim" hear trimmed
without=$(data)
check "trim gives space back: $with, then $without" test $((with - without)) -gt $((16 << 20))
known >before
echo list >&7
check "the guest reads all at last" hear listed
check "what it reads is what it wrote, at last" diff -u before <(known)
echo off >&7
check "power off" wait "$guest"
stop

check "merge of all" "$avhdx" merge "leaf, 5.avhdx" --into base.vhdx --verify
check "one file is left" test "$(echo *vhdx)" = base.vhdx
check "the disk" "$avhdx" check base.vhdx
"$avhdx" convert base.vhdx merged.raw
check "the file system" e2fsck -fn merged.raw
mkdir merged
debugfs -R 'rdump /base /written merged' merged.raw 2>/dev/null
(cd merged/written && sha256sum -- *) | sed 's/\([^ ]*\)  \(.*\)/\2 \1/' | sort >found
check "many files" test "$(wc -l <before)" -ge 25
check "the files the guest wrote, and no others" diff -u before found
check "the files of the base, merged" bash -c 'cd merged/base && sha256sum -c sums'
echo "${#files[@]} files, written $count times"
report
