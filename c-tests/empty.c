/* The shared library is all Rust; a library needs one object of its own. */
typedef int avhdx_nothing_here;
