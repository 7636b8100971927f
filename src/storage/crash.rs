//! Crash enumeration.
