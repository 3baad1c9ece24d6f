//! A hash that is the same in every build.

/// FNV-1a: the same in every build of podgate, which the standard library's hashes are not.
pub(super) fn stable_hash(text: &str) -> u32 {
    let step = |hash: u32, byte: u8| (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193);
    text.bytes().fold(0x811c_9dc5, step)
}
