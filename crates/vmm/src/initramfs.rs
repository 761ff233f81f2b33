//! The guest's first root: its agent as `/init`, and the modules with their order.
//!
//! One file per (kernel, agent), named by a digest of both, made once and shared by all machines. It is not packed:
//! unpacking in emulation costs more than reading.

use crate::Error;
use crate::cpio::{Archive, Entry};
use crate::error::file;
use crate::files::{Aside, sha256};
use crate::kernel::Kernel;
use std::fs::{self, File, Permissions};
use std::io::{self, BufWriter};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

/// Raised when the layout changes, so that no old file is taken for a new one.
const LAYOUT: &str = "1";
/// No agent is larger.
const AGENT_LIMIT: u64 = 64 << 20;

/// Makes the initramfs for this kernel with this agent, or finds it; its path. The agent must be linked statically.
///
/// # Errors
/// The agent or a module cannot be read, or the file cannot be written.
pub fn build(kernel: &Kernel, agent: &Path, dir: &Path) -> Result<PathBuf, Error> {
    let size = fs::metadata(agent).map_err(file("look at", agent))?.len();
    if size > AGENT_LIMIT {
        return Err(Error::File {
            action: "take as the guest's agent",
            path: agent.to_owned(),
            source: io::ErrorKind::FileTooLarge.into(),
        });
    }
    let agent_bytes = fs::read(agent).map_err(file("read", agent))?;
    let key = sha256(format!("{LAYOUT} {} {}", kernel.digest(), sha256(&agent_bytes)).as_bytes());
    let target = dir.join(format!("initramfs-{}.cpio", &key[..32]));
    if target.is_file() {
        return Ok(target);
    }
    fs::create_dir_all(dir).map_err(file("make", dir))?;
    let aside = Aside::name(dir);
    let modules: Result<Vec<(&str, Vec<u8>)>, Error> = kernel
        .modules()
        .map(|(name, path)| Ok((name, fs::read(&path).map_err(file("read", path))?)))
        .collect();
    let modules = modules?;
    let written = File::create(aside.path()).and_then(|out| {
        let out = fill(BufWriter::new(out), &agent_bytes, &modules)?;
        let out = out.into_inner().map_err(io::IntoInnerError::into_error)?;
        // Whoever QEMU runs as must be able to read it; there is nothing secret in it.
        out.set_permissions(Permissions::from_mode(0o644))?;
        out.sync_all()
    });
    written.map_err(file("write", aside.path()))?;
    aside.publish(&target)?;
    Ok(target)
}

fn fill<W: io::Write>(out: W, agent: &[u8], modules: &[(&str, Vec<u8>)]) -> io::Result<W> {
    let mut archive = Archive::new(out);
    // The kernel opens it for /init's standard streams before anything is mounted.
    archive.add("dev", Entry::Dir)?;
    archive.add("dev/console", Entry::Device { major: 5, minor: 1 })?;
    archive.add("modules", Entry::Dir)?;
    let mut order = String::new();
    for (name, contents) in modules {
        let path = format!("modules/{name}.ko");
        archive.add(&path, Entry::File { contents, executable: false })?;
        order.push_str(&format!("/{path}\n"));
    }
    archive.add("modules/order", Entry::File { contents: order.as_bytes(), executable: false })?;
    archive.add("init", Entry::File { contents: agent, executable: true })?;
    archive.finish()
}
