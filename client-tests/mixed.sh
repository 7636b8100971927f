#!/usr/bin/env bash
# Random mixed I/O on four connections against a model, then the same while the chain is checkpointed and merged beneath.
. "$(dirname "$0")/lib.sh"
mixed=$1
needs nbdcopy

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
report
