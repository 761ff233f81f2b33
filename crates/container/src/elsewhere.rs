//! Security settings for a container that another kernel runs: the same sets and the same profile as here, as data.

use crate::capabilities::Capabilities;
use crate::{Error, Security, seccomp};

/// The capabilities of a container (bit N is capability number N) and its seccomp program, an array of the kernel's
/// `struct sock_filter` in this machine's byte order for its architecture; empty where the container has none.
///
/// # Errors
/// [`Error::Invalid`] for a capability that does not exist.
pub fn guest_security(security: &Security) -> Result<(u64, Vec<u8>), Error> {
    if security.privileged {
        return Ok((Capabilities::ALL.0, Vec::new()));
    }
    let capabilities = Capabilities::of(&security.add_capabilities, &security.drop_capabilities)?;
    if security.seccomp_unconfined {
        return Ok((capabilities.0, Vec::new()));
    }
    let program = seccomp::compile(capabilities)?;
    let bytes = program.iter().flat_map(|i| {
        let [c0, c1] = i.code.to_ne_bytes();
        let [k0, k1, k2, k3] = i.k.to_ne_bytes();
        [c0, c1, i.jt, i.jf, k0, k1, k2, k3]
    });
    Ok((capabilities.0, bytes.collect()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_program_is_the_kernels_array() {
        let (capabilities, program) = guest_security(&Security::default()).unwrap();
        assert!(capabilities & 1 == 1 && capabilities >> 21 & 1 == 0, "CHOWN, not SYS_ADMIN");
        assert_eq!(program.len() % size_of::<libc::sock_filter>(), 0);
        // It begins with the load of the architecture.
        assert_eq!(program[..8], [0x20, 0, 0, 0, 4, 0, 0, 0]);
        let all = guest_security(&Security { privileged: true, ..Security::default() }).unwrap();
        assert_eq!(all, (u64::MAX, Vec::new()));
        assert!(
            guest_security(&Security { add_capabilities: vec!["FLY".into()], ..Security::default() })
                .is_err()
        );
    }
}
