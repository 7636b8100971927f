#!/usr/bin/env bash
# What docs/integration.md and README.md say to type, typed: recipes.sh quick|guests BUILD_DIR. In a directory with a space,
# with relative paths, and with what `meson install` installs.
. "$(dirname "$0")/lib.sh"
which=$1 build=$2
needs nbdinfo nbdcopy qemu-img qemu-io meson
if [ "$which" = guests ]; then
    needs qemu-system-x86_64 guestfish virt-xml-validate mkfs.ext4
    . "$source/client-tests/guests.sh"
fi

check "install" env DESTDIR="$work/root" meson install -C "$build" --no-rebuild
bin=$(dirname "$(find "$work/root" -path '*/bin/avhdx')")
export PATH=$bin:$PATH
LD_LIBRARY_PATH=$(dirname "$(find "$work/root" -name libavhdx.so.1)")
export LD_LIBRARY_PATH
# QEMU boots from a disk without a system on it and waits; stopped after some seconds, that is as it should be.
mkdir bin
cat >bin/qemu-system-x86_64 <<'END'
#!/bin/sh
PATH=${PATH#*:} timeout 20 qemu-system-x86_64 "$@" </dev/null
[ $? = 124 ]
END
chmod +x bin/qemu-system-x86_64
PATH=$work/bin:$PATH

# blocks FILE: each tested recipe of a document as NAME<tab>NEEDS, and as a file recipe-NAME.
blocks() {
    awk '/^<!-- tested: / { sub(/^<!-- tested: /, ""); sub(/ -->$/, ""); name = $0; sub(/,.*/, "", name); needs = $0 ","; next }
        name && /^```/ { if (open) { close("recipe-" name); name = ""; open = 0 } else { open = 1; print name "\t" needs }; next }
        open { print >"recipe-" name }' "$1"
}

fresh() {
    cd "$work" || exit 99
    rm -rf "a disk"
    mkdir "a disk"
    cd "a disk" || exit 99
    avhdx create base.vhdx --size 32M --block-size 1M
    head -c 3000000 /dev/urandom | avhdx write base.vhdx --offset 1M
    avhdx checkpoint base.vhdx vm.avhdx
    avhdx write vm.avhdx --offset 2M --length 64K --pattern 0x33
}

start_server() {
    # exec: what is killed and waited for shall be the server, not a shell that has it as a child.
    bash -c "exec $(cat "$work/recipe-server")" >served 2>&1 &
    server=$!
    for _ in $(seq 100); do
        [ -S vm.sock ] && nbdinfo 'nbd+unix:///?socket=vm.sock' >/dev/null 2>&1 && return
        sleep 0.1
    done
    cat served
}

after_copy() {
    avhdx convert vm.avhdx expected.raw
    check "the copy" cmp vm.raw expected.raw
}
before_restore() { avhdx serve vm.avhdx --run 'qemu-img convert -O qcow2 "$uri" vm.qcow2' && avhdx write vm.avhdx --length 8M --pattern 9; }
after_restore() { check "the disk as it was" avhdx serve vm.avhdx --run 'qemu-img compare "$uri" vm.qcow2'; }
before_checkpoint() { avhdx convert vm.avhdx before.raw; }
after_checkpoint() {
    avhdx convert base.vhdx parent.raw
    check "the layer below the leaf" cmp frozen.raw before.raw
    check "one file less" test ! -e vm-2.avhdx
}
before_fuse() { needs nbdfuse fusermount3; }
after_fuse() {
    for _ in $(seq 50); do [ -e mnt/vm.raw ] && break; sleep 0.1; done
    avhdx serve --no-lock --read-only vm.avhdx --run 'nbdcopy "$uri" expected.raw'
    check "the file" cmp mnt/vm.raw expected.raw
    fusermount3 -u mnt
}
before_fio() { needs fio; }
after_qemu() { check "the firmware sees the disk" grep -qa 'Booting from Hard Disk' "$work/said"; }
before_guestfish() {
    mkfs.ext4 -q disk.raw 16M
    avhdx serve vm.avhdx --run 'nbdcopy disk.raw "$uri"'
}
after_guestfish() { check "the file system is found" grep -qx '/dev/sda: ext4' "$work/said"; }

run_recipe() {
    check "$1" bash -e "$work/recipe-$1"
    mv "$work/.out" "$work/said"
}

fresh
(cd "$work" && blocks "$source/docs/integration.md" >recipes)
while IFS=$'\t' read -r name needs; do
    case $needs in *" guests,"*) guests=guests ;; *) guests=quick ;; esac
    [ "$guests" = "$which" ] && [ "$name" != server ] || continue
    fresh
    if declare -F "before_$name" >/dev/null; then "before_$name"; fi
    case $needs in *" with server,"*) start_server ;; esac
    if [ "$name" = libvirt ]; then
        # The element is what `avhdx serve` prints, and valid in a domain.
        printed=$(sed -n 's/^libvirt: *//p' served)
        written=$(tr -d '\n' <"$work/recipe-libvirt" | sed 's/> *</></g')
        check "the element is the one printed" test "$written" = "${printed/$PWD\/vm.sock//srv/vm/vm.sock}"
        echo "<domain type='qemu'><name>vm</name><memory>524288</memory><os><type>hvm</type></os><devices>$printed</devices></domain>" >vm.xml
        check "libvirt" virt-xml-validate vm.xml domain
    else
        run_recipe "$name"
        if declare -F "after_$name" >/dev/null; then "after_$name"; fi
    fi
    case $needs in *" with server,"*) stop ;; esac
    check "the chain is clean after $name" bash -c 'for f in *vhdx; do avhdx check "$f" || exit; done'
done <"$work/recipes"

# README.md: commands that use the disk; then a machine on it, changed beneath from another terminal.
cd "$work" && fresh
awk '/^## / { on = /^## Use it from QEMU/; n = 0 } on && /^```/ { open = !open; n += open; next } on && open { print >"'"$work"'/readme-" n }' \
    "$source/README.md"
check "README: build" grep -q "meson install" "$work/readme-1"
if [ "$which" = quick ]; then
    check "README: copy" bash -e "$work/readme-2"
else
    bash -e "$work/readme-3" >machine 2>&1 &
    machine=$!
    for _ in $(seq 300); do grep -qa 'Booting from Hard Disk' machine && break; sleep 0.1; done
    check "README: control" bash -e "$work/readme-4"
    check "README: machine" wait "$machine"
    check "README: the firmware saw the disk" grep -qa 'Booting from Hard Disk' machine
fi
report
