//! Sector bitmaps (MS-VHDX 2.5.2): bit i of a chunk is bit i % 64, from the least significant, of little-endian word
//! i / 64. All of it works a word at a time.

/// The value of `bit` and how many bits from it on, before `end`, have the same. `load` gives word n. `bit < end`.
pub fn run_length<E>(mut load: impl FnMut(u64) -> Result<u64, E>, bit: u64, end: u64) -> Result<(bool, u64), E> {
    let mut at = bit;
    let mut value = None;
    while at < end {
        let word = load(at / 64)?;
        let shift = at % 64;
        let rest = word.wrapping_shr(u32::try_from(shift).unwrap_or_default());
        let wanted = *value.get_or_insert(rest & 1 != 0);
        // Count from `shift` up: bits shifted in at the top must end a run of ones and not a run of zeros.
        let same = if wanted {
            rest.trailing_ones()
        } else {
            rest.trailing_zeros()
        };
        let left = 64u64.saturating_sub(shift);
        let run = u64::from(same).min(left);
        at = at.saturating_add(run);
        if run < left {
            break;
        }
    }
    Ok((value.unwrap_or_default(), at.min(end).saturating_sub(bit)))
}

/// Calls `visit(word, mask)` for each word with bits of `[first, first + count)`; `mask` has those bits.
pub fn for_each_word(first: u64, count: u64, mut visit: impl FnMut(u64, u64)) {
    let end = first.saturating_add(count);
    let mut at = first;
    while at < end {
        let word = at / 64;
        let next = word.saturating_add(1).saturating_mul(64).min(end);
        let bits = u32::try_from(next.saturating_sub(at)).unwrap_or(64);
        let ones = u64::MAX.checked_shr(64u32.saturating_sub(bits)).unwrap_or_default();
        visit(word, ones.wrapping_shl(u32::try_from(at % 64).unwrap_or_default()));
        at = next;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn runs_and_masks_agree_with_single_bits(
            words in proptest::collection::vec(prop_oneof![Just(0), Just(u64::MAX), any::<u64>()], 1..6),
            a in 0u64..384,
            b in 0u64..384,
        ) {
            let bits = words.len() as u64 * 64;
            let (first, end) = (a.min(b) % bits, (a.max(b) % bits) + 1);
            prop_assume!(first < end);
            let get = |i: u64| words[(i / 64) as usize] >> (i % 64) & 1 != 0;
            let expected = (first..end).take_while(|&i| get(i) == get(first)).count() as u64;
            let found = run_length(|w| Ok::<_, ()>(words[w as usize]), first, end).unwrap();
            prop_assert_eq!(found, (get(first), expected));
            let mut seen = vec![0u64; words.len()];
            for_each_word(first, end - first, |w, mask| seen[w as usize] |= mask);
            for i in 0..bits {
                prop_assert_eq!(seen[(i / 64) as usize] >> (i % 64) & 1 != 0, (first..end).contains(&i));
            }
        }
    }
}
