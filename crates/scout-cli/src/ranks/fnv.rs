//! A number that stands for a text, the same in every version of this program.

/// FNV-1a. Two versions of this program must meet in order to find out that they differ, so the standard library's hash,
/// which may change, will not do.
pub fn fnv(text: &str) -> u64 {
    text.bytes().fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3))
}
