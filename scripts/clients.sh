# For scripts/test: what the tests that boot machines need. Sourced by bash after lib.sh.

apt_update() { as_root apt-get -qq -o DPkg::Lock::Timeout=120 update >/dev/null; }

# apt_install ARGUMENT...: like need(), with options of apt-get.
apt_install() {
    local try
    for try in 1 2 3; do
        as_root env DEBIAN_FRONTEND=noninteractive apt-get -qq -y -o DPkg::Lock::Timeout=120 \
            install --no-install-recommends "$@" >/dev/null && return
        sleep $((try * 5))
        apt_update
    done
    echo "apt-get could not install: $*" >&2
    exit 1
}

# missing_of PACKAGE...: those that are not installed.
missing_of() {
    comm -23 <(printf '%s\n' "$@" | sort) \
        <(dpkg-query -W -f '${db:Status-Status} ${Package}\n' "$@" 2>/dev/null | sed -n 's/^installed //p' | sort)
}

# All parts of QEMU are of one version. Where qemu-utils came from backports, QEMU itself must too, and apt may no longer
# know backports: then it learns of them, from the mirror that it has.
need_qemu() {
    local release uri key=/usr/share/keyrings/debian-archive-keyring.gpg
    if [[ $(dpkg-query -W -f '${Version}' qemu-utils 2>/dev/null) != *~bpo* ]]; then
        apt_install qemu-system-x86
        return
    fi
    release=$(. /etc/os-release && echo "$VERSION_CODENAME")
    if ! apt-get indextargets --format '$(RELEASE)' | grep -qx "$release-backports"; then
        uri=$(apt-get indextargets --format '$(RELEASE) $(COMPONENT) $(REPO_URI)' | sed -n "s/^$release main //p" | head -1)
        [ -n "$uri" ] || { echo "apt has no mirror of $release" >&2; exit 1; }
        if [ -f "$key" ]; then key="[signed-by=$key] "; else key=; fi
        echo "deb $key$uri $release-backports main" |
            as_root tee "/etc/apt/sources.list.d/$release-backports.list" >/dev/null
        apt_update
    fi
    apt_install -t "$release-backports" --no-remove qemu-system-x86
}

# A kernel with its modules, unpacked beside what is built: nothing of the system boots it.
need_kernel() {
    local directory=$target/guest package try
    compgen -G "$directory/kernel/lib/modules/*/modules.dep" >/dev/null && return
    say "unpacking a kernel"
    rm -rf "$directory"
    mkdir -p "$directory"
    for try in 1 2 3; do
        package=$(apt-cache depends linux-image-cloud-amd64 2>/dev/null |
            sed -n 's/^ *Depends: \(linux-image-.*-cloud-amd64\)$/\1/p' | head -1)
        [ -n "$package" ] && (cd "$directory" && apt-get -qq -o APT::Sandbox::User=root download "$package" >/dev/null) &&
            dpkg-deb -x "$directory/$package"_*.deb "$directory/kernel" && rm "$directory/$package"_*.deb &&
            PATH=$PATH:/usr/sbin:/sbin depmod -b "$directory/kernel" "$(ls "$directory/kernel/lib/modules")" && return
        sleep $((try * 5))
        apt_update
    done
    echo "apt-get has no linux-image-cloud-amd64 to boot guests with" >&2
    exit 1
}

# need_clients: QEMU, guestfish, libvirt, and what else the tests in client-tests/ use.
need_clients() {
    local packages missing
    packages=(nbdkit nbdkit-plugin-dev libnbd-bin libnbd-dev qemu-utils fio nbd-client guestfish libguestfs-xfs
        libvirt-daemon libvirt-clients libvirt-daemon-driver-qemu libxml2-utils xfsprogs ntfs-3g e2fsprogs
        busybox-static bzip2 kmod)
    if ! command -v apt-get >/dev/null 2>&1 || { [ "$(id -u)" != 0 ] && ! command -v sudo >/dev/null 2>&1; }; then
        echo "For the client tests please install: ${packages[*]} qemu-system-x86" >&2
        exit 1
    fi
    : "${target:=${CARGO_TARGET_DIR:-$PWD/target}}"
    mapfile -t missing < <(missing_of "${packages[@]}" qemu-system-x86)
    if [ ${#missing[@]} != 0 ]; then
        say "installing ${missing[*]}"
        apt_update
        # First, since guestfish would bring a QEMU of apt's choice.
        [[ " ${missing[*]} " != *" qemu-system-x86 "* ]] || need_qemu
        apt_install --no-remove "${packages[@]}"
    fi
    # guestfish's supermin looks for kernels there even when it is told of one.
    [ -d /lib/modules ] || as_root mkdir -p /lib/modules
    need_kernel
}
