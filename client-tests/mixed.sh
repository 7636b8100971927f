#!/usr/bin/env bash
# Random mixed I/O on four connections against a model, then the same while the chain is checkpointed and merged beneath.
# Then layers that are read meanwhile, and clients of the control socket that do nothing.
. "$(dirname "$0")/lib.sh"
mixed=$1
needs nbdcopy nbdinfo qemu-io perl

"$avhdx" create base.vhdx --size 96M --block-size 1M
head -c 50000000 /dev/urandom | "$avhdx" write base.vhdx --offset 1M
"$avhdx" checkpoint base.vhdx a.avhdx --block-size 2M

serve "$plugin" a.avhdx
check "mixed I/O" "$mixed" "$uri" 4000 1 model.raw
cat .out
stop
"$avhdx" convert a.avhdx after.raw
check "the chain holds what the model says" cmp after.raw model.raw
for file in a.avhdx base.vhdx; do check "$file" "$avhdx" check "$file"; done
rm after.raw

serve "$plugin" a.avhdx control=control
hold
"$mixed" "$uri" 20000 2 model.raw >mixed.out 2>&1 &
job=$!
rounds=0
while kill -0 "$job" 2>/dev/null && [ "$rounds" -lt 40 ]; do
    rounds=$((rounds + 1))
    check "checkpoint $rounds" "$avhdx" control control checkpoint "live-$rounds.avhdx" --block-size 1M
    if [ $((rounds % 3)) = 0 ]; then
        check "merge below the leaf, $rounds" "$avhdx" control control merge 1 --into 3
        check "merge of the leaf, $rounds" "$avhdx" control control merge --mode copy
    fi
done
check "mixed I/O meanwhile" wait "$job"
cat mixed.out
[ "$rounds" -gt 3 ] || { echo "only $rounds checkpoints in that time"; failed=$((failed + 1)); }
echo "$rounds checkpoints"
leaf=$("$avhdx" control control info | sed -n 's/.*"filename": "\(.*\)",/\1/p' | head -1)
check "consume, live" "$avhdx" control control merge --into base.vhdx --mode consume
check "one file is left" test "$(echo *vhdx)" = base.vhdx
refused "no such layer" "of a chain of 1" "$avhdx" control control merge
refused "a bad option" "power of two" "$avhdx" control control checkpoint x.avhdx --block-size 3M
refused "a file that is there" "never replaced" "$avhdx" control control checkpoint base.vhdx
refused "a missing export" 'no export "x"' "$avhdx" control --export x control info
release
stop
[ -n "$leaf" ] && [ ! -e "$leaf" ] || { echo "the leaf was not merged away: $leaf"; failed=$((failed + 1)); }
check "the result" "$avhdx" check base.vhdx
"$avhdx" convert base.vhdx after.raw
check "the merged disk holds what the model says" cmp after.raw model.raw

# A layer that is read is not merged, and no second layer is read by its name.
soon() { for _ in $(seq 150); do "$@" && return; sleep 0.1; done; return 1; }
layer() { nbdinfo --size "nbd+unix:///base.vhdx@$1?socket=${socket// /%20}"; }
serve "$plugin" base.vhdx control=control
hold
check "a checkpoint" "$avhdx" control control checkpoint one.avhdx
mkfifo reading
qemu-io -r -f raw "nbd+unix:///base.vhdx@1?socket=${socket// /%20}" <reading >/dev/null 2>&1 9>&- &
reader=$!
exec 8>reading
check "the layer is read" layer 1
refused "a merge into what is read" "another program uses the file" "$avhdx" control control merge
check "another checkpoint" "$avhdx" control control checkpoint $'two \xe9.avhdx'
refused "a number that means another layer now" "" layer 1
check "why" grep -qF 'base.vhdx@1 was' nbdkit.log
check "that layer by its new number" layer 2
refused "a merge of what is read" "another program uses the file" "$avhdx" control control merge 1 --into 2
exec 8>&-
wait "$reader"
check "the number when nobody reads" soon layer 1
check "a merge when nobody reads" "$avhdx" control control merge --into base.vhdx
release
stop

# A client that stopped does not keep a merge, or the server, from its end; those that are silent are hung up on.
"$avhdx" create other.vhdx --size 128M
"$avhdx" checkpoint other.vhdx leaf.avhdx
head -c 8M /dev/urandom | "$avhdx" write leaf.avhdx
serve "$plugin" leaf.avhdx control=control
# A line of progress for each.
check "many small extents" bash -c 'for i in $(seq 1000); do echo "write $((i * 64 + 8192))k 512"; done | qemu-io -f raw "$1"' - "$uri"
"$avhdx" control control merge --rate 4M &
client=$!
sleep 1
kill -STOP "$client"
check "a merge whose client stopped" soon test ! -e leaf.avhdx
check "the server ends" timeout 20 bash -c 'kill "$1"; while kill -0 "$1"; do sleep 0.1; done' - "$server"
{ kill -KILL "$client" "$server"; wait "$client" "$server"; } 2>/dev/null
check "what was merged" "$avhdx" check other.vhdx
serve "$plugin" other.vhdx control=control
perl -MIO::Socket::UNIX -e '@clients = map { IO::Socket::UNIX->new("control") } 1 .. 16; mkdir "connected"; sleep 60' &
silent=$!
soon test -d connected
refused "one client too many" "too many control connections" "$avhdx" control control info
sleep 12
check "room again" "$avhdx" control control info
kill "$silent"
stop
report
