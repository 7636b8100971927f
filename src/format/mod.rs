//! Pure codec: bytes to checked values and back. No I/O, no clock, no randomness.
