//! `hostPath` volumes: the checks and creations that their type asks for.

use k8s_openapi::api::core::v1::HostPathVolumeSource;
use nix::mount::{MsFlags, mount};
use std::fs::{self, DirBuilder, FileType, OpenOptions};
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// Checks the path, creates it where the type says so, and returns it.
pub(crate) fn prepare(source: &HostPathVolumeSource) -> Result<PathBuf, String> {
    let path = PathBuf::from(&source.path);
    if !path.is_absolute() || path.components().any(|c| c == std::path::Component::ParentDir) {
        return Err(format!("hostPath {:?} is not an absolute path without \"..\"", source.path));
    }
    let failed = |what: &str| format!("hostPath type check failed: {} is not {what}", source.path);
    let is = |test: fn(&FileType) -> bool| fs::metadata(&path).is_ok_and(|m| test(&m.file_type()));
    match source.type_.as_deref().unwrap_or_default() {
        // Without a type nothing is checked; a missing directory is made, as container runtimes do.
        "" if path.exists() => Ok(()),
        "" | "DirectoryOrCreate" => make_dir(&path),
        "Directory" if is(FileType::is_dir) => Ok(()),
        "Directory" => Err(failed("a directory")),
        "FileOrCreate" => make_file(&path),
        "File" if is(FileType::is_file) => Ok(()),
        "File" => Err(failed("a file")),
        "Socket" if is(FileType::is_socket) => Ok(()),
        "Socket" => Err(failed("a socket file")),
        "CharDevice" if is(FileType::is_char_device) => Ok(()),
        "CharDevice" => Err(failed("a character device")),
        "BlockDevice" if is(FileType::is_block_device) => Ok(()),
        "BlockDevice" => Err(failed("a block device")),
        other => Err(format!("hostPath type {other:?} is not known")),
    }?;
    Ok(path)
}

/// Makes a directory in which there is nothing but the file, and gives the file's name there: what a virtual machine
/// gets by virtiofs is a directory, and it is to see nothing beside the file.
pub(crate) fn alone(file: &Path, dir: &Path) -> Result<String, String> {
    let failed = |e: std::io::Error| format!("cannot show {} to a virtual machine: {e}", file.display());
    let kind = fs::metadata(file).map_err(failed)?.file_type();
    if !kind.is_file() {
        return Err(format!("hostPath {} is neither a directory nor a file", file.display()));
    }
    let name = file.file_name().and_then(|name| name.to_str());
    let name = name.ok_or_else(|| format!("hostPath {} has no name that is text", file.display()))?;
    crate::dirs::private_dir(dir).map_err(failed)?;
    let place = dir.join(name);
    if !super::mounts_below(dir).map_err(failed)?.contains(&place) {
        fs::write(&place, "").map_err(failed)?;
        mount(Some(file), &place, None::<&str>, MsFlags::MS_BIND, None::<&str>)
            .map_err(|e| failed(e.into()))?;
    }
    Ok(name.to_owned())
}

fn make_dir(path: &Path) -> Result<(), String> {
    let made = DirBuilder::new().recursive(true).mode(0o755).create(path);
    made.map_err(|e| format!("cannot create hostPath directory {}: {e}", path.display()))
}

fn make_file(path: &Path) -> Result<(), String> {
    if path.is_dir() {
        return Err(format!("hostPath type check failed: {} is not a file", path.display()));
    }
    let opened = OpenOptions::new().append(true).create(true).mode(0o644).open(path);
    opened.map(drop).map_err(|e| format!("cannot create hostPath file {}: {e}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn types() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
        fs::write(at("file"), "").unwrap();
        for (name, kind, fine) in [
            ("file", "File", true),
            ("file", "Directory", false),
            ("new", "Directory", false),
            ("new", "DirectoryOrCreate", true),
            ("new", "Directory", true),
            ("newfile", "FileOrCreate", true),
            ("newfile", "File", true),
            ("new", "FileOrCreate", false),
            ("untyped/deep", "", true),
            ("file", "Socket", false),
            ("file", "Nonsense", false),
        ] {
            let source = HostPathVolumeSource { path: at(name), type_: Some(kind.to_owned()) };
            assert_eq!(prepare(&source).is_ok(), fine, "{name} {kind}");
        }
        let up = HostPathVolumeSource { path: "/tmp/../etc".into(), type_: None };
        assert!(prepare(&up).is_err());
    }
}
