//! The order of a directory: a stable hash of each name.

use xxhash_rust::xxh3::xxh3_64;

/// The longest name of a directory entry in bytes, as on any Linux filesystem.
pub const NAME_BYTES_MAX: usize = 255;

/// The lowest value of [`name_hash`]; smaller ones are the positions of the start, `.` and `..`.
pub const NAME_HASH_MIN: u64 = 3;

/// The position of `name` in its directory: 3..=2^63 - 1, the same in every version and layer.
///
/// It doubles as the telldir cookie. 63 bits, because the kernel hands cookies out as a signed
/// `off_t`; names that collide are told apart by comparing them.
pub fn name_hash(name: &[u8]) -> u64 {
    (xxh3_64(name) & (u64::MAX >> 1)).max(NAME_HASH_MIN)
}

/// Whether `name` can be a directory entry: 1..=255 bytes, no slash or NUL, not `.` or `..`.
pub fn name_is_valid(name: &[u8]) -> bool {
    (1..=NAME_BYTES_MAX).contains(&name.len())
        && !name.iter().any(|&byte| byte == b'/' || byte == 0)
        && name != b"."
        && name != b".."
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_pinned() {
        // Published test vectors of XXH3, then names that every cluster has.
        assert_eq!(name_hash(b""), 0x2d06_8005_38d3_94c2);
        assert_eq!(name_hash(b"a"), 0x66c6_32b6_1e96_4e1f);
        assert_eq!(name_hash(b"abc"), 0x78af_5f94_892f_3950);
        assert_eq!(name_hash(b"PG_VERSION"), 0x2604_7f9f_244b_f774);
        assert_eq!(name_hash(b"base"), 0x0362_9ab8_5e09_2fcd);
    }

    #[test]
    fn values_fit_a_cookie() {
        for n in 0..10_000u32 {
            let hash = name_hash(&n.to_le_bytes());
            assert!((NAME_HASH_MIN..=i64::MAX as u64).contains(&hash));
        }
    }

    #[test]
    fn names_that_no_directory_can_hold_are_refused() {
        for bad in [&b""[..], b".", b"..", b"a/b", b"a\0b", &[b'x'; 256]] {
            assert!(!name_is_valid(bad), "{bad:?}");
        }
        for good in [&b"..."[..], b"-rf", b"a\nb", b"\xff", &[b'x'; 255]] {
            assert!(name_is_valid(good), "{good:?}");
        }
    }
}
