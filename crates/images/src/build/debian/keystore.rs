//! Java's store of trusted certificates, which the package `ca-certificates-java` writes with the time of its own
//! installation in every entry.
//!
//! ```text
//!   magic, version 2, count │ tag 2, alias, date in ms, type, certificate │ ... │ SHA-1 of a password and all before
//! ```
//!
//! Other formats, other kinds of entries and other passwords are left as they are.

use sha1::{Digest as _, Sha1};

const MAGIC: u32 = 0xFEED_FEED;
const VERSION: u32 = 2;
/// Tag of an entry with a trusted certificate.
const TRUSTED: u32 = 2;
/// The password that everybody uses for this file, since it keeps nothing secret.
const PASSWORD: &str = "changeit";
/// What the format mixes into the digest.
const SALT: &[u8] = b"Mighty Aphrodite";
const DIGEST_BYTES: usize = 20;

/// The store with all entries dated `epoch` (seconds); `None` when this is no such store.
pub(super) fn dated(store: &[u8], epoch: i64) -> Option<Vec<u8>> {
    let (body, digest) = store.split_at_checked(store.len().checked_sub(DIGEST_BYTES)?)?;
    if digest != digest_of(body) {
        return None;
    }
    let mut at = 0;
    let (magic, version, count) = (word(body, &mut at)?, word(body, &mut at)?, word(body, &mut at)?);
    if (magic, version) != (MAGIC, VERSION) {
        return None;
    }
    let date = epoch.checked_mul(1000)?.to_be_bytes();
    let mut changed = body.to_vec();
    for _ in 0..count {
        if word(body, &mut at)? != TRUSTED {
            return None;
        }
        skip_text(body, &mut at)?;
        changed.get_mut(at..at.checked_add(date.len())?)?.copy_from_slice(&date);
        at += date.len();
        skip_text(body, &mut at)?;
        let length = usize::try_from(word(body, &mut at)?).ok()?;
        at = at.checked_add(length).filter(|end| *end <= body.len())?;
    }
    let digest = digest_of(&changed);
    changed.extend_from_slice(&digest);
    Some(changed)
}

fn digest_of(body: &[u8]) -> [u8; DIGEST_BYTES] {
    let password: Vec<u8> = PASSWORD.encode_utf16().flat_map(u16::to_be_bytes).collect();
    Sha1::new().chain_update(password).chain_update(SALT).chain_update(body).finalize().into()
}

fn word(bytes: &[u8], at: &mut usize) -> Option<u32> {
    let end = at.checked_add(4)?;
    let value = bytes.get(*at..end)?.try_into().ok()?;
    *at = end;
    Some(u32::from_be_bytes(value))
}

fn skip_text(bytes: &[u8], at: &mut usize) -> Option<()> {
    let end = at.checked_add(2)?;
    let length = u16::from_be_bytes(bytes.get(*at..end)?.try_into().ok()?);
    *at = end.checked_add(length.into()).filter(|end| *end <= bytes.len())?;
    Some(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn store(date: u64, tag: u32) -> Vec<u8> {
        let mut body =
            [MAGIC, VERSION, 1, tag].iter().flat_map(|word| word.to_be_bytes()).collect::<Vec<u8>>();
        body.extend_from_slice(b"\0\x03abc");
        body.extend_from_slice(&date.to_be_bytes());
        body.extend_from_slice(b"\0\x05X.509\0\0\0\x02hi");
        let digest = digest_of(&body);
        body.extend_from_slice(&digest);
        body
    }

    #[test]
    fn dates_are_the_image_s() {
        assert_eq!(dated(&store(1_795_249_544_493, TRUSTED), 7), Some(store(7000, TRUSTED)));
        let good = store(1, TRUSTED);
        for length in 0..good.len() {
            assert_eq!(dated(&good[..length], 7), None, "{length} bytes");
        }
        assert_eq!(dated(&store(1, 1), 7), None, "a private key");
        let mut wrong = good.clone();
        wrong[20] ^= 1;
        assert_eq!(dated(&wrong, 7), None, "another password");
    }
}
