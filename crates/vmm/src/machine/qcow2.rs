//! What must be known of a qcow2 image before QEMU opens it.
//!
//! Images are other people's. A backing file that an image names is overridden where the disk is made; an external
//! data file could not be, and would have QEMU open any path that its user may read. So such images are refused.

use crate::Error;
use std::fs::File;
use std::os::unix::fs::FileExt;

pub(crate) const MAGIC: &[u8; 4] = b"QFI\xfb";
/// Incompatible feature: the data are in another file.
const EXTERNAL_DATA: u64 = 1 << 2;

/// Refuses what is no qcow2 image, or one whose data are elsewhere; the size of its disk in bytes.
pub(crate) fn check(file: &File) -> Result<u64, Error> {
    let mut header = [0; 80];
    file.read_exact_at(&mut header, 0).map_err(|e| Error::Spec(format!("no qcow2 image: {e}")))?;
    check_header(&header)
}

fn check_header(header: &[u8; 80]) -> Result<u64, Error> {
    let refuse = |why: &str| Err(Error::Spec(format!("qcow2 image: {why}")));
    if &header[..4] != MAGIC {
        return refuse("wrong magic number");
    }
    let mut version = [0; 4];
    version.copy_from_slice(&header[4..8]);
    let mut size = [0; 8];
    size.copy_from_slice(&header[24..32]);
    let size = u64::from_be_bytes(size);
    match u32::from_be_bytes(version) {
        2 => Ok(size),
        3 => {
            let mut features = [0; 8];
            features.copy_from_slice(&header[72..80]);
            if u64::from_be_bytes(features) & EXTERNAL_DATA != 0 {
                return refuse("its data are in another file");
            }
            Ok(size)
        }
        _ => refuse("unknown version"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers() {
        let header = |version: u8, features: u8| {
            let mut h = [0; 80];
            h[..4].copy_from_slice(MAGIC);
            h[7] = version;
            h[79] = features;
            h
        };
        for (name, header, good) in [
            ("version 2", header(2, 0), true),
            ("version 2 has no features", header(2, 4), true),
            ("version 3", header(3, 1), true),
            ("external data", header(3, 4), false),
            ("version 9", header(9, 0), false),
            ("zeroes", [0; 80], false),
        ] {
            assert_eq!(check_header(&header).is_ok(), good, "{name}");
        }
    }
}
