#!/usr/bin/env bash
# NBD's own tools and QEMU's: information, extents, copies in both directions, reads and writes of any kind.
. "$(dirname "$0")/lib.sh"
needs nbdinfo nbdcopy qemu-img qemu-io

head -c 5242880 /dev/urandom >noise
"$avhdx" create base.vhdx --size 64M --block-size 1M
"$avhdx" write base.vhdx --offset 3M <noise
"$avhdx" checkpoint base.vhdx "a leaf.avhdx" --block-size 1M
"$avhdx" write "a leaf.avhdx" --offset 6M --length 1M --pattern 0x5a
"$avhdx" zero "a leaf.avhdx" --offset 4M --length 1M
"$avhdx" convert "a leaf.avhdx" expected.raw

serve "$plugin" "a leaf.avhdx"
nbdinfo --json "$uri" >info.json
check "size" test "$(nbdinfo --size "$uri")" = 67108864
for flag in can_fua can_flush can_multi_conn can_trim can_zero can_fast_zero can_cache can_df; do
    check "$flag" grep -q "\"$flag\": true" info.json
done
check "writable" grep -q '"is_read_only": false' info.json
check "block size" grep -q '"block_size_preferred": 4096' info.json
check "description" grep -q 'a leaf.avhdx: differencing, 67108864 bytes, 2 layers' info.json
nbdinfo --list "$uri" >list
check "the leaf is listed" grep -qF 'export="a leaf.avhdx":' list
check "its parent is listed" grep -qF 'export="a leaf.avhdx@1":' list
nbdinfo --map "$uri" >map
printf '%s\n' '0 3145728 3 hole,zero' '3145728 1048576 0 data' '4194304 1048576 3 hole,zero' \
    '5242880 3145728 0 data' '8388608 58720256 3 hole,zero' >wanted-map
check "extents" diff -u wanted-map <(awk '{ $1 = $1 } 1' map)

check "nbdcopy out" nbdcopy --connections=4 "$uri" out.raw
check "content" cmp out.raw expected.raw
check "qemu-img info" bash -c 'qemu-img info --output=json "$1" | grep -q "\"virtual-size\": 67108864"' - "$uri"
check "qemu-img compare" qemu-img compare -f raw -F raw "$uri" expected.raw
qemu-img map -f raw --output=json "$uri" >map.json
check "qemu-img map" test "$(grep -c '"data": true' map.json)" = 2
check "qemu-img convert" qemu-img convert -f raw -O raw "$uri" convert.raw
check "convert's content" qemu-img compare -f raw -F raw convert.raw expected.raw

# In: over everything, with holes.
head -c 9437184 /dev/urandom >new.raw
truncate -s 64M new.raw
check "nbdcopy in" nbdcopy --connections=4 --flush --destination-is-zero new.raw "nbd+unix:///a%20leaf.avhdx?socket=${socket// /%20}"
check "qemu-img convert in" qemu-img convert -n -f raw -O raw new.raw "$uri"
check "what came in" qemu-img compare -f raw -F raw "$uri" new.raw

io() { qemu-io -f raw "$@" "$uri"; }
check "write, misaligned" io -c 'write -P 0x11 1000001 4099' -c 'read -P 0x11 1000001 4099'
check "write across blocks" io -c 'write -P 0x12 3145700 1048700' -c 'read -P 0x12 3145700 1048700'
check "write with FUA" io -c 'write -f -P 0x13 20M 64k' -c 'read -P 0x13 20M 64k'
check "zero" io -c 'write -z 20M 32k' -c 'read -P 0 20M 32k' -c 'read -P 0x13 20512k 32k'
check "zero with unmap" io -c 'write -z -u 20M 1M' -c 'read -P 0 20M 1M'
check "zero, misaligned" io -c 'write -P 0x14 30M 3M' -c 'write -z -u 31457281 2097151' -c 'read -P 0x14 30M 1' \
    -c 'read -P 0 31457281 2097151' -c 'read -P 0x14 32M 1M'
check "discard" io -c 'write -P 0x15 40M 2M' -c 'discard 40M 1M' -c 'read -P 0 40M 1M' -c 'read -P 0x15 41M 1M'
check "the last byte" io -c 'write -P 0x16 67108863 1' -c 'read -P 0x16 67108863 1' -c flush
refused "beyond the end" "" io -c 'read 67108864 1'
check "the cache request" io -c 'aio_read 0 1M' -c aio_flush

# The same file read by two servers, the parent as a disk of its own, while the leaf is served writable.
check "a layer while the leaf is written" \
    nbdcopy "nbd+unix:///a%20leaf.avhdx@1?socket=${socket// /%20}" parent.raw
"$avhdx" convert base.vhdx base.raw
check "the layer's content" cmp parent.raw base.raw
refused "writing to a layer" "" qemu-io -f raw -c 'write 0 512' "nbd+unix:///a%20leaf.avhdx@1?socket=${socket// /%20}"
refused "a layer that is not" "" nbdinfo "nbd+unix:///a%20leaf.avhdx@2?socket=${socket// /%20}"
refused "an export that is not" "" nbdinfo "nbd+unix:///..%2Fbase.vhdx?socket=${socket// /%20}"
hold
echo 'write -P 1 0 512' >&9
sleep 0.5
refused "a second writer" "another program uses the file" "$avhdx" write "a leaf.avhdx" --length 512 --pattern 1
release
nbdcopy "$uri" served.raw
stop
check "the leaf is clean" "$avhdx" check "a leaf.avhdx"
check "the base is clean" "$avhdx" check base.vhdx
"$avhdx" convert "a leaf.avhdx" after.raw
check "the files hold what was served" cmp served.raw after.raw

# Filters of nbdkit that verify.
serve --filter=checkwrite "$plugin" "a leaf.avhdx"
check "checkwrite: nbdcopy writes what is there" nbdcopy after.raw "$uri"
refused "checkwrite can fail" "" qemu-io -f raw -c 'write -P 0x77 0 64k' "$uri"
stop
serve --filter=blocksize-policy "$plugin" "a leaf.avhdx" blocksize-error-policy=error blocksize-minimum=1
check "requests as large as 32 bits allow" io -c 'write -z -u 0 64M' -c 'read -P 0 0 64M'
stop

# Read-only service leaves every file alone, also one with a log to replay.
before=$(sha256sum *.vhdx *.avhdx)
serve --readonly "$plugin" "a leaf.avhdx"
refused "a write to a read-only server" "" qemu-io -f raw -c 'write 0 512' "$uri"
check "a read from it" io -r -c 'read -P 0 0 64M'
stop
serve "$plugin" "a leaf.avhdx" read-only=on
check "read-only=on" bash -c 'nbdinfo --json "$1" | grep -q "\"is_read_only\": true"' - "$uri"
stop
check "no file was touched" test "$before" = "$(sha256sum *.vhdx *.avhdx)"
dirty=${AVHDX_IMAGES:-$source/../shared/images}/iotest-dirtylog-10G-4M.vhdx.bz2
if [ -f "$dirty" ]; then
    bzip2 -dc "$dirty" >dirty.vhdx
    before=$(sha256sum dirty.vhdx)
    serve --readonly "$plugin" dirty.vhdx
    check "replayed data is served" qemu-io -r -f raw -c 'read -P 0xa5 0 18M' -c 'read -P 0 18M 32M' "$uri"
    stop
    check "the dirty file is as it was" test "$before" = "$(sha256sum dirty.vhdx)"
    rm dirty.vhdx
else
    echo "SKIPPED: no real images"
    [ -z "${CI:-}" ] || failed=$((failed + 1))
fi

# What is wrong is said at the start.
run() { nbdkit -U - "$plugin" "$@" --run true; }
refused "a missing file" "No such file" run nothing.vhdx
refused "an unknown key" "the nearest is 'search'" run "a leaf.avhdx" serch=/
refused "a key of another operation" "no option of opening" run "a leaf.avhdx" mode=copy
refused "a bad value" "lock" run "a leaf.avhdx" lock=maybe
refused "a missing layer" "it has the layers 0 to 1" run "a leaf.avhdx" layer=2
refused "nothing to serve" "file=LEAF or dir=DIRECTORY" run
refused "both" "file=LEAF or dir=DIRECTORY" run "a leaf.avhdx" dir=.
refused "what is no disk" "VHDX" run expected.raw
mkdir elsewhere
mv base.vhdx elsewhere/renamed.vhdx
refused "a missing parent" "search=DIR" run "a leaf.avhdx"
check "a parent elsewhere, relative" run "a leaf.avhdx" search=elsewhere
serve "$plugin" "a leaf.avhdx" search=nowhere:elsewhere
check "relative directories survive the server's chdir" io -c 'read -P 0 0 64M'
stop
mv elsewhere/renamed.vhdx base.vhdx

serve "$plugin" "a leaf.avhdx" layer=1
check "layer=1 is the parent" bash -c 'nbdcopy "$1" layer.raw && cmp layer.raw base.raw' - "$uri"
stop

# What is printed for libvirt is one line, whatever the socket is called.
"$avhdx" serve "a leaf.avhdx" --socket $'tab\t\'<&>\n.sock' --plugin "$plugin" --read-only >printed &
server=$!
for _ in $(seq 50); do [ -s printed ] || sleep 0.1; done
check "a path in XML" grep -qF 'tab&#9;&apos;&lt;&amp;>&#10;.sock' printed
stop

# A directory: one export per leaf, and nothing else.
"$avhdx" create other.vhdx --size 8M
serve "$plugin" dir=.
nbdinfo --list --json "$uri" >list.json
check "leaves are exports" grep -q '"export-name": "a leaf.avhdx"' list.json
check "all of them" grep -q '"export-name": "other.vhdx"' list.json
refused "a parent is none" "" grep -q '"export-name": "base.vhdx"' list.json
check "an export by name" test "$(nbdinfo --size "nbd+unix:///other.vhdx?socket=${socket// /%20}")" = 8388608
refused "the client has to choose" "" nbdinfo "$uri"
"$avhdx" create later.vhdx --size 16M
check "a disk made later" test "$(nbdinfo --size "nbd+unix:///later.vhdx?socket=${socket// /%20}")" = 16777216
stop
serve "$plugin" other.vhdx
serve_base() { nbdkit -U - "$plugin" base.vhdx --run 'nbdinfo "$uri"'; }
refused "a parent is not served for writing" "has a child in its directory" serve_base
stop
# Nor by another name, or when only a merge that was cut short says that it has a child.
mkdir links
ln -s ../base.vhdx links
in_links() { nbdkit -U - "$plugin" dir=links --run 'nbdinfo "$uri"'; }
refused "nor through a link" "has a child in its directory" in_links
mv base.vhdx base.img
in_image() { nbdkit -U - "$plugin" base.img --run 'nbdinfo "$uri"'; }
refused "nor with another extension" "has a child in its directory" in_image
mv base.img base.vhdx
head -c 30000000 /dev/urandom | "$avhdx" write "a leaf.avhdx"
"$avhdx" merge "a leaf.avhdx" --rate 1M &
merge=$!
sleep 2
{ kill -KILL "$merge" && wait "$merge"; } 2>/dev/null
check "the merge was cut short" test -e "a leaf.avhdx"
refused "nor in the middle of a merge" "has a child in its directory" serve_base
serve "$plugin" dir=.
refused "nor listed" "" bash -c 'nbdinfo --list --no-content "$1" | grep "export=\"base.vhdx\""' - "$uri"
stop
check "the merge goes on" "$avhdx" merge "a leaf.avhdx"

# A name in a directory follows its disk, and is nobody else's afterwards.
mkdir dir
"$avhdx" create dir/vm.vhdx --size 8M
serve "$plugin" dir=dir control=control
hold
exports() { nbdinfo --list --no-content "$uri" | sed -n 's/^export="\(.*\)":/\1/p' | sort | tr '\n' ' '; }
check "a checkpoint" "$avhdx" control control checkpoint dir/new.avhdx
check "it is no other disk" test "$(exports)" = "vm.vhdx vm.vhdx@1 "
check "a merge" "$avhdx" control control merge
"$avhdx" create dir/new.avhdx --size 16M
check "a new disk by the name of the checkpoint" \
    test "$(nbdinfo --size "nbd+unix:///new.avhdx?socket=${socket// /%20}")" = 16777216
check "and the first" test "$(nbdinfo --size "nbd+unix:///vm.vhdx?socket=${socket// /%20}")" = 8388608
release
stop
report
