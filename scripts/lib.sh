# For the scripts here: finding and installing what they need. Sourced by bash.

say() { printf '\n== %s\n' "$*"; }

as_root() {
    if [ "$(id -u)" = 0 ]; then "$@"; else sudo "$@"; fi
}

# need COMMAND=PACKAGE...: installs the packages whose command is missing.
need() {
    local missing=() names=() pair
    for pair in "$@"; do
        command -v "${pair%%=*}" >/dev/null 2>&1 || { missing+=("${pair#*=}"); names+=("${pair%%=*}"); }
    done
    [ ${#missing[@]} = 0 ] && return
    if ! command -v apt-get >/dev/null 2>&1 || { [ "$(id -u)" != 0 ] && ! command -v sudo >/dev/null 2>&1; }; then
        echo "These programs are missing, please install them: ${names[*]}" >&2
        exit 1
    fi
    say "installing ${missing[*]}"
    local try
    for try in 1 2 3; do
        as_root apt-get -qq -o DPkg::Lock::Timeout=120 update >/dev/null &&
            as_root env DEBIAN_FRONTEND=noninteractive apt-get -qq -y -o DPkg::Lock::Timeout=120 \
                install --no-install-recommends "${missing[@]}" >/dev/null && return
        sleep $((try * 5))
    done
    echo "apt-get could not install: ${missing[*]}" >&2
    exit 1
}

# need_pkg MODULE=PACKAGE...: the same for what pkg-config knows.
need_pkg() {
    local pair
    for pair in "$@"; do
        pkg-config --exists "${pair%%=*}" 2>/dev/null || need "${pair%%=*}.pc=${pair#*=}"
    done
}

need_rust() {
    if [ -f "$HOME/.cargo/env" ]; then . "$HOME/.cargo/env"; fi
    command -v cargo >/dev/null 2>&1 && return
    need curl=curl
    say "installing Rust"
    curl --proto '=https' --tlsv1.2 -sSf https://sh.rustup.rs | sh -s -- -y --profile minimal -c rustfmt -c clippy
    . "$HOME/.cargo/env"
}

# need_cargo NAME: a program of cargo's, which PyPI has built; else it is built here.
need_cargo() {
    local tools=${CARGO_TARGET_DIR:-$PWD/target}/tools
    PATH=$PATH:$tools/bin
    command -v "cargo-$1" >/dev/null 2>&1 && return
    say "installing cargo-$1"
    need python3=python3-venv
    { python3 -m venv "$tools" && "$tools/bin/pip" install --quiet "astral-dev-toolchain-cargo-$1"; } ||
        cargo install --quiet --locked "cargo-$1"
}

# build_all DIRECTORY: configures, anew where programs or libraries came since, and builds.
build_all() {
    local again=()
    [ ! -f "$1/build.ninja" ] || again=(--reconfigure)
    meson setup "$1" "${again[@]}" >/dev/null &&
        { meson compile -C "$1" >"$1/compile.log" || { tail -40 "$1/compile.log" && false; }; }
}
