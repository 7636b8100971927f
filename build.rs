//! Gives the cargo-built shared library its name. It is for tests: the library that is installed, with versioned
//! symbols, is linked by meson from the static one.

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    if std::env::var("CARGO_CFG_TARGET_OS").as_deref() == Ok("linux") {
        println!("cargo::rustc-cdylib-link-arg=-Wl,-soname,libavhdx.so.1");
    }
}
