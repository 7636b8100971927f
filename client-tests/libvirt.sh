#!/usr/bin/env bash
# A libvirt domain on a chain, with the <disk> that `avhdx serve` prints: valid, started by an unprivileged libvirtd, read
# and written through libvirt, while the chain is checkpointed and merged beneath.
. "$(dirname "$0")/lib.sh"
. "$source/client-tests/guests.sh"
needs nbdinfo libvirtd virsh virt-xml-validate qemu-system-x86_64

# libvirtd and its QEMU are another user's where they can be. That user must be allowed to reach the socket.
me=(env)
export HOME=$work/home XDG_RUNTIME_DIR=$work/run XDG_CONFIG_HOME=$work/config XDG_CACHE_HOME=$work/home
mkdir "$HOME" "$XDG_RUNTIME_DIR" "$XDG_CONFIG_HOME"
if [ "$(id -u)" = 0 ]; then
    me=(setpriv --reuid nobody --regid "$(id -g nobody)" --clear-groups)
    chown nobody: "$HOME" "$XDG_RUNTIME_DIR" "$XDG_CONFIG_HOME"
    chmod 711 "$work"
fi
domains="qemu+unix:///session?socket=${XDG_RUNTIME_DIR// /%20}/libvirt/libvirt-sock"
virsh() { "${me[@]}" virsh --quiet --connect "$domains" "$@"; }
# A machine outlives its libvirtd.
trap 'virsh destroy vm >/dev/null 2>&1; finish' EXIT

# A name that has to be escaped in XML and for a shell.
socket="$work/it's <a> & b.sock"
listens() { nbdinfo "$(sed -n 's/^uri: *//p' printed)"; }
# serve_printed OPTION...: with what it prints in $printed, and a domain with that disk in vm.xml.
serve_printed() {
    "$avhdx" serve new.avhdx --socket "$socket" --plugin "$plugin" "$@" >printed 2>>nbdkit.log &
    server=$!
    check "the server listens" patient listens
    chmod 666 "$socket"
    cat >vm.xml <<END
<domain type='qemu'>
  <name>vm</name>
  <memory unit='MiB'>64</memory>
  <os><type arch='x86_64' machine='q35'>hvm</type></os>
  <features><acpi/></features>
  <devices>$(sed -n 's/^libvirt: *//p' printed)</devices>
</domain>
END
    check "a disk is printed" grep -q "<disk type='network'" vm.xml
    check "it is valid" virt-xml-validate vm.xml domain
}

# says REGEX COMMAND...: what it prints has a line like that.
says() { "${@:2}" | tee /dev/stderr | grep -E "$1" >/dev/null; }
# written COMMAND: by qemu-io in the machine's QEMU, which says nothing here unless it fails.
written() { test -z "$(virsh qemu-monitor-command vm --hmp "qemu-io -d /machine/peripheral/virtio-disk0/virtio-backend \"$1\"" | tee /dev/stderr)"; }

"$avhdx" create base.vhdx --size 48M --block-size 1M
head -c 5000000 /dev/urandom | "$avhdx" write base.vhdx --offset 512
"$avhdx" checkpoint base.vhdx new.avhdx >/dev/null
"${me[@]}" libvirtd >libvirtd.log 2>&1 &
libvirtd=$!
check "libvirtd is up" patient virsh list

serve_printed
check "define" virsh define /dev/stdin <vm.xml
check "start" virsh start vm
check "running" says running virsh domstate vm
check "the disk is listed" says '^ *vda ' virsh domblklist vm
check "its capacity" says '^Capacity: *50331648$' virsh domblkinfo vm vda
check "the firmware reads it" patient says ' rd_bytes [1-9]' virsh domblkstat vm vda
check "a write" written "write -P 90 1M 64k"
check "checkpoint" "$avhdx" control "$socket.control" checkpoint newest.avhdx
check "a write after it" written "write -P 91 2M 64k"
check "merge" "$avhdx" control "$socket.control" merge
check "a write after that" written "write -P 92 3M 64k"
check "libvirt copies the disk" virsh blockcopy vm vda --dest "$HOME/copy.raw" --format raw --transient-job --wait --finish
check "destroy" virsh destroy vm
check "undefine" virsh undefine vm
stop

check "what was copied" bash -c '"$1" convert new.avhdx disk.raw && cmp "$HOME/copy.raw" disk.raw' - "$avhdx"
for at in "1 90" "2 91" "3 92"; do
    check "what was written at ${at% *} MiB" cmp \
        <("$avhdx" read new.avhdx --offset "${at% *}M" --length 64K) \
        <(head -c 65536 /dev/zero | tr '\0' "\\$(printf %o "${at#* }")")
done

serve_printed --read-only
check "it is read-only" grep -q '<readonly/>' vm.xml
check "create" virsh create /dev/stdin <vm.xml
check "its capacity, read-only" says '^Capacity: *50331648$' virsh domblkinfo vm vda
check "the firmware reads it, read-only" patient says ' rd_bytes [1-9]' virsh domblkstat vm vda
check "destroy, read-only" virsh destroy vm
check "no domain is left" test -z "$(virsh list --all --name)"
stop
kill "$libvirtd" && wait "$libvirtd"

check "two files are left" test "$(echo *vhdx)" = "base.vhdx new.avhdx"
for file in base.vhdx new.avhdx; do check "$file" "$avhdx" check "$file"; done
[ "$failed" = 0 ] || tail -n 20 libvirtd.log nbdkit.log
report
