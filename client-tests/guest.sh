#!/usr/bin/env bash
# A Linux guest in QEMU on a chain: checkpoints and merges while it writes, a power cut in the middle of a merge, a server
# that is killed under it. Then, without us and without a server: e2fsck, and the checksum of every file the guest wrote.
. "$(dirname "$0")/lib.sh"
. "$source/client-tests/guests.sh"
needs qemu-system-x86_64 nbdinfo nbdcopy busybox modprobe mkfs.ext4 e2fsck debugfs

version=${modules##*/}
mkdir -p root/{bin,dev,proc,sys,disk,modules}
cp "$(command -v busybox)" root/bin/busybox
cp "$source/client-tests/guest-init" root/init
chmod +x root/init
for module in virtio_pci virtio_blk ext4; do
    modprobe -d "$unpacked" -S "$version" --show-depends "$module" | sed -n 's/^insmod \(.*[^ ]\) *$/\1/p'
done | awk '!seen[$0]++' | while read -r module; do
    name=${module##*/} name=${name%.xz}
    case $module in *.xz) xz -dc "$module" ;; *) cat "$module" ;; esac >"root/modules/$name"
    echo "$name" >>root/modules/order
done
(cd root && find . | busybox cpio -o -H newc 2>/dev/null) | gzip -1 >initramfs

mkdir -p tree/base
for size in 0 1 4095 65537 1000000 9000000; do head -c "$size" /dev/urandom >"tree/base/$size bytes"; done
cp "$source"/docs/*.md tree/base
(cd tree/base && sha256sum -- * >../sums && mv ../sums .)
mkfs.ext4 -q -d tree disk.raw 192M 2>&1 | grep -v '^Creating'
"$avhdx" create base.vhdx --size 192M --block-size 1M
serve "$plugin" base.vhdx
check "the file system" nbdcopy --destination-is-zero --flush disk.raw "$uri"
stop
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
        -kernel "$kernel" -initrd initramfs -append 'console=ttyS0 quiet panic=-1 no_timer_check tsc=reliable' \
        -blockdev "driver=nbd,node-name=disk,server.type=unix,server.path=${socket//,/,,},discard=unmap,reconnect-delay=60" \
        -device "virtio-blk-pci,drive=disk$1" -chardev file,id=console,path=console,append=on -serial chardev:console \
        -serial stdio <to-guest >from-guest 2>qemu.log 7>&- 8>&- &
    guest=$! lost=
    check "the guest comes up" hear "up 201326592"
}

# note LINE: what it says of files.
note() {
    local said=${1#* }
    case $1 in
    "file "*) files[${said% *}]=${said#* } count=$((count + 1)) ;;
    "gone "*) unset "files[$said]" ;;
    esac
}

# hear WORDS: reads the guest's lines until one begins so. Of a guest that was silent once nothing more is expected.
hear() {
    local line end=$((SECONDS + 120))
    while [ -z "$lost" ] && [ "$SECONDS" -lt "$end" ]; do
        if ! IFS= read -r -t 2 -u 8 line; then
            part+=$line
            kill -0 "$guest" && continue
            break
        fi
        line=$part$line part=
        note "$line"
        case $line in
        "$1"*) return ;;
        "bad: "*) echo "$line" && return 1 ;;
        esac
    done
    lost=lost
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

# reads_all NAME: the guest reads its files anew; before is what it told of them, after what it finds.
reads_all() {
    known >before
    files=()
    echo list >&7
    check "$1" hear listed
    known >after
}

ended() { wait "$job" || { cat merge.log && return 1; }; }

# merge_live NAME ARGUMENT...: slow enough for the guest to write meanwhile.
merge_live() {
    local name=$1 before job
    shift
    now
    before=$count
    "$avhdx" control control merge "$@" --rate 4M >merge.log 2>&1 &
    job=$!
    while kill -0 "$job" 2>/dev/null; do hear "file " || break; done
    check "$name" ended
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
reads_all "the guest reads all"
check "what it reads is what it wrote" diff -u before after

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
    note "$part$line"
    part=
done

# A second life. The disk has no write cache, so that a server which dies loses nothing.
serve "$plugin" "leaf, 5.avhdx" control=control
boot ,write-cache=off
echo base >&7
check "the files of the base, after the cut" hear "base good"
reads_all "the guest reads all, after the cut"
check "all is there that was on stable media" test -z "$(comm -23 before after)"
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
reads_all "the guest reads all at last"
check "what it reads is what it wrote, at last" diff -u before after
echo off >&7
check "power off" hear off
[ -z "$lost" ] || kill -9 "$guest"
check "the guest is off" wait "$guest"
check "the guest met no errors" bash -c '! grep -aE "I/O error|EXT4-fs error" console'
stop

check "merge of all" "$avhdx" merge "leaf, 5.avhdx" --into base.vhdx --verify
check "one file is left" test "$(echo *vhdx)" = base.vhdx
check "the disk" "$avhdx" check base.vhdx
"$avhdx" convert base.vhdx merged.raw
check "the file system, merged" e2fsck -fn merged.raw
mkdir merged
debugfs -R 'rdump /base /written merged' merged.raw 2>/dev/null
(cd merged/written && sha256sum -- *) | sed 's/\([^ ]*\)  \(.*\)/\2 \1/' | sort >found
check "many files" test "$(wc -l <before)" -ge 25
check "the files the guest wrote, and no others" diff -u before found
check "the files of the base, merged" bash -c 'cd merged/base && sha256sum -c sums'
echo "${#files[@]} files, written $count times"
report
