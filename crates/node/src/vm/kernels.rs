//! Kernels that pods ask for by name (annotation `vm.cumulet.dev/kernel`): packages or unpacked packages that whoever
//! runs the node has put into the state directory's `kernels/`. Each is installed when the first pod wants it since the
//! node's start.
//!
//! A name is one component of a path, and what it leads to is below that directory: a pod chooses among what is there,
//! and names no file of the host.

use super::text;
use cumulet_vmm::{Kernel, initramfs};
use k8s_openapi::api::core::v1::Pod;
use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use tokio::sync::OnceCell;

/// The annotation of a pod.
const ANNOTATION: &str = "vm.cumulet.dev/kernel";
/// Longest name, in bytes.
const MAX_NAME: usize = 128;

/// A kernel, and the agent for it.
#[derive(Clone, Debug)]
pub(crate) struct Chosen {
    pub(crate) image: PathBuf,
    /// As [`name`] gives it.
    pub(crate) name: String,
    pub(crate) initramfs: PathBuf,
}

/// The kernels of a node.
pub(super) struct Kernels {
    /// Where they come from.
    offered: PathBuf,
    /// Where they are installed, each in a directory of its own.
    installed: PathBuf,
    guest: PathBuf,
    found: Mutex<HashMap<String, Arc<OnceCell<Chosen>>>>,
}

/// The kernel that a pod asks for.
///
/// # Errors
/// Its name is none.
pub(crate) fn wanted(pod: &Pod) -> Result<Option<&str>, String> {
    let annotations = pod.metadata.annotations.as_ref();
    let Some(name) = annotations.and_then(|a| a.get(ANNOTATION)).filter(|name| !name.is_empty()) else {
        return Ok(None);
    };
    let letter = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-' | '+');
    if name.len() > MAX_NAME || name.starts_with('.') || !name.chars().all(letter) {
        return Err(format!(
            "{ANNOTATION}: {name:?} is no name of a kernel: letters, digits, '.', '_', '-', '+'"
        ));
    }
    Ok(Some(name))
}

/// A kernel's release and the beginning of its digest.
pub(super) fn name(kernel: &Kernel) -> String {
    format!("{} {}", kernel.release(), kernel.digest().get(..12).unwrap_or_default())
}

impl Kernels {
    pub(super) fn new(state_dir: &Path, guest: PathBuf) -> Self {
        Self {
            offered: state_dir.join("kernels"),
            installed: state_dir.join("kernel/by-name"),
            guest,
            found: Mutex::default(),
        }
    }

    /// The kernel with a name that [`wanted`] has given.
    ///
    /// # Errors
    /// A message that says what is missing and what to do.
    pub(super) async fn get(&self, name: &str) -> Result<Chosen, String> {
        let cell = {
            let mut found = self.found.lock().unwrap_or_else(PoisonError::into_inner);
            found.entry(name.to_owned()).or_default().clone()
        };
        let install = || async {
            let source = self.source(name)?;
            let (into, guest) = (self.installed.join(name), self.guest.clone());
            let task = move || -> Result<Chosen, String> {
                let kernel = Kernel::install(&source, &into).map_err(|e| text(&e))?;
                let initramfs = initramfs::build(&kernel, &guest, &into).map_err(|e| text(&e))?;
                Ok(Chosen { image: kernel.image(), name: self::name(&kernel), initramfs })
            };
            tokio::task::spawn_blocking(task).await.unwrap_or_else(|e| Err(e.to_string()))
        };
        cell.get_or_try_init(install).await.cloned()
    }

    /// The package of this name.
    fn source(&self, name: &str) -> Result<PathBuf, String> {
        let missing = || {
            format!(
                "{ANNOTATION}: there is no kernel {name:?} on this node: put the package linux-image-…-cloud-amd64, or \
                 what is in it, into {} under this name",
                self.offered.display()
            )
        };
        let named = [name.to_owned(), format!("{name}.deb")].map(|file| self.offered.join(file));
        let found = named.iter().find_map(|path| fs::canonicalize(path).ok()).ok_or_else(missing)?;
        let offered = fs::canonicalize(&self.offered).map_err(|_| missing())?;
        if !found.starts_with(&offered) {
            return Err(format!("{ANNOTATION}: {name:?} leads out of {}", self.offered.display()));
        }
        Ok(found)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn names() {
        let check = |value: &str, expected: Result<Option<&str>, &str>| {
            let pod = json!({"metadata": {"annotations": {ANNOTATION: value}}});
            let pod: Pod = serde_json::from_value(pod).unwrap();
            match (wanted(&pod), expected) {
                (Ok(got), Ok(expected)) => assert_eq!(got, expected),
                (Err(message), Err(words)) => assert!(message.contains(words), "{message}"),
                (got, _) => panic!("{value}: {got:?}"),
            }
        };
        check("", Ok(None));
        check("6.1.0-35-cloud-amd64", Ok(Some("6.1.0-35-cloud-amd64")));
        for bad in ["..", ".", "../etc", "/boot/vmlinuz", "a/b", "a\0b", "über"] {
            check(bad, Err("no name"));
        }
        check(&"k".repeat(129), Err("no name"));
        assert_eq!(wanted(&Pod::default()), Ok(None));
    }

    #[tokio::test]
    async fn only_what_is_offered_can_be_had() {
        let dir = tempfile::tempdir().unwrap();
        let kernels = Kernels::new(dir.path(), "/nonexistent".into());
        assert!(kernels.get("new").await.unwrap_err().contains("there is no kernel"));
        let offered = dir.path().join("kernels");
        fs::create_dir_all(offered.join("new")).unwrap();
        std::os::unix::fs::symlink("/boot", offered.join("out")).unwrap();
        assert_eq!(kernels.source("new").unwrap(), fs::canonicalize(offered.join("new")).unwrap());
        assert!(kernels.source("out").unwrap_err().contains("leads out"));
        // One that could not be installed is looked at again.
        assert!(kernels.get("new").await.unwrap_err().contains("boot"));
        assert!(kernels.get("new").await.is_err());
        fs::write(offered.join("packed.deb"), "").unwrap();
        assert!(kernels.source("packed").unwrap().ends_with("packed.deb"));
    }
}
