# For the tests that boot machines, after lib.sh: $kernel and its $modules, from AVHDX_GUEST_KERNEL, which is a directory
# with the boot/ and lib/ of a kernel. scripts/clients.sh makes it.
PATH=$PATH:/usr/sbin:/sbin
unpacked=${AVHDX_GUEST_KERNEL:-${CARGO_TARGET_DIR:-$source/target}/guest/kernel}
kernel=$(compgen -G "$unpacked/boot/vmlinuz-*" | head -1)
modules=$unpacked/lib/modules/${kernel##*/vmlinuz-}
[ -f "$kernel" ] && [ -f "$modules/modules.dep" ] || skip "no kernel for guests in $unpacked: scripts/test --clients unpacks one"
# What guestfish boots, without hardware virtualisation, which machines that run tests seldom have in working order.
export SUPERMIN_KERNEL=$kernel SUPERMIN_MODULES=$modules LIBGUESTFS_BACKEND=direct LIBGUESTFS_BACKEND_SETTINGS=force_tcg

# patient COMMAND...: tries until it succeeds, for two minutes.
patient() {
    local end=$((SECONDS + 120))
    until "$@" >/dev/null 2>&1; do
        [ "$SECONDS" -lt "$end" ] || { "$@"; return; }
        sleep 0.2
    done
}
