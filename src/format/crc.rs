//! CRC-32C (Castagnoli), as every checksummed structure uses it.

/// The checksum of a structure whose own checksum field, the four bytes at offset 4, counts as zero.
pub fn crc32c_with_zeroed_checksum(bytes: &[u8]) -> u32 {
    match (bytes.get(..4), bytes.get(8..)) {
        (Some(head), Some(tail)) => {
            let crc = crc32c::crc32c_append(crc32c::crc32c(head), &[0; 4]);
            crc32c::crc32c_append(crc, tail)
        }
        _ => crc32c::crc32c(bytes),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_check_value_and_the_zeroed_field() {
        assert_eq!(crc32c::crc32c(b"123456789"), 0xE306_9283);
        let mut bytes = [7u8; 64];
        let crc = crc32c_with_zeroed_checksum(&bytes);
        bytes[4..8].copy_from_slice(&crc.to_le_bytes());
        assert_eq!(crc32c_with_zeroed_checksum(&bytes), crc);
        bytes[9] ^= 1;
        assert_ne!(crc32c_with_zeroed_checksum(&bytes), crc);
    }
}
