//! `--disk`: the composed layers as the disk of a virtual machine, in an image of its own.
//!
//! ```text
//!   layers ─► one tree of hard links ─► mke2fs -d ─► disk.raw ─► MBR and GRUB ─► qemu-img ─► /disk/NAME.qcow2
//! ```
//!
//! The disk has one partition, an ext4 root in which the kernel lies too, so that a system can update its own kernel.
//! Firmware of the BIOS kind starts it. The tools are Debian's, unpacked into a layer of their own that is kept for the
//! next disk, and run in the build sandbox: nothing is mounted, and the machine needs none of them. The same layers give
//! the same disk as long as the record knows them; made anew, it differs in the times that files were linked.

mod boot;
mod root;
mod unit;

use super::description::{Description, Word};
use super::layer::{Content, Member, Members, Packing};
use super::record::{KeyMaker, Layer};
use super::sandbox::SandboxJob;
use super::steps::{Builder, Stack};
use super::tree::Tree;
use crate::ImageError;
use crate::error::io;
use boot::{Identity, PARTITION_START};
use std::fs;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

/// Smallest disk, and largest that a table of partitions of this kind can name, in bytes.
pub(super) const MIN_BYTES: u64 = 16 << 20;
pub(super) const MAX_BYTES: u64 = 2 << 40;
/// What makes disks, as Debian packages.
const TOOLS: [&str; 3] = ["e2fsprogs", "grub-pc-bin", "qemu-utils"];
/// Size of a disk that does not say. Little of it is there until it is written.
const DEFAULT_BYTES: u64 = 8 << 30;
/// Whom the file belongs to: KubeVirt runs its machines as this user.
const OWNER: u32 = 107;

/// What the disk's bytes are made from.
struct Plan {
    size_bytes: u64,
    parameters: String,
    unit: Option<String>,
}

impl Builder<'_> {
    /// The stack of an image that holds what `stack` is, as a disk. Tells whether it was known.
    pub(super) fn disk(
        &self,
        stack: &Stack,
        description: &Description,
        name: &str,
    ) -> Result<(Vec<Layer>, usize), ImageError> {
        let disk = description.disk();
        let plan = Plan {
            size_bytes: disk.size_bytes(&self.path)?.unwrap_or(DEFAULT_BYTES),
            parameters: disk.parameters(),
            unit: description.runs(&stack.config.config).then(|| unit::service(name, &stack.config.config)),
        };
        let words: Vec<Word> = TOOLS.map(|tool| Word { text: tool.to_owned(), at: None }).to_vec();
        let (tools, _) = self.debian_unpacked("disk tools", &words)?;
        let key = KeyMaker::new("disk 1")
            .with_all(stack.diff_ids())
            .with(tools.diff_id.to_string())
            .with(plan.size_bytes.to_le_bytes())
            .with_all([name, &plan.parameters, plan.unit.as_deref().unwrap_or_default()])
            .with(self.options.source_date_epoch.to_le_bytes())
            .finish();
        if let Some(known) = self.record.layers(&key) {
            let count = known.len();
            return Ok((self.ready(known)?, count));
        }
        let tools = self.ready(vec![tools])?;
        let bench: Vec<PathBuf> = tools.iter().map(|layer| self.store.layer(&layer.diff_id)).collect();
        let file = self.make_disk(stack, &plan, &bench, &Identity::of(key.text()))?;
        let mut members = Members::new();
        members.insert(b"disk".to_vec(), Member::of_root(Content::Directory, 0o755));
        let mut member = Member::of_root(Content::File(file.clone()), 0o644);
        (member.uid, member.gid) = (OWNER, OWNER);
        members.insert(format!("disk/{name}.qcow2").into_bytes(), member);
        let layer = self.publish("disk", &members, Packing::Plain)?;
        let _ = fs::remove_file(file);
        self.record.put(&key, &[&layer]);
        Ok((vec![layer], 0))
    }

    /// Makes the qcow2 file; its path in the work directory.
    fn make_disk(
        &self,
        stack: &Stack,
        plan: &Plan,
        tools: &[PathBuf],
        identity: &Identity,
    ) -> Result<PathBuf, ImageError> {
        let mut tree = Tree::default();
        for layer in stack.dirs(self.store) {
            tree.apply(Tree::read(&layer)?);
        }
        let members = tree.members;
        let start = boot::Start::find(&members).map_err(|message| self.wrong(None, message))?;
        let root = self.work.fresh();
        root::link(&members, &root, self.options.source_date_epoch)?;
        root::add(&root, &start, plan.unit.as_deref(), &start.configuration(identity, &plan.parameters))?;
        let core = self.tool(tools, boot::grub_mkimage(), &[])?.join(&boot::CORE[1..]);
        let core = fs::read(&core).map_err(io("read", &core))?;
        let filesystem_bytes = plan.size_bytes - PARTITION_START;
        let made = self.tool(
            tools,
            boot::mke2fs(identity, filesystem_bytes),
            &[(root.clone(), boot::TREE.to_owned())],
        )?;
        let raw = made.join(&boot::RAW[1..]);
        let grub = tools.iter().map(|dir| dir.join(boot::BOOT_SECTOR)).find(|path| path.is_file());
        let grub = grub.ok_or_else(|| self.wrong(None, "disk: GRUB's boot sector is missing".to_owned()))?;
        let sector = fs::read(&grub).map_err(io("read", &grub))?;
        let head = boot::head(&sector, &core, identity, plan.size_bytes)
            .map_err(|message| self.wrong(None, message))?;
        let file = fs::File::options().write(true).open(&raw).map_err(io("open", &raw))?;
        file.set_len(plan.size_bytes).map_err(io("size", &raw))?;
        file.write_all_at(&head, 0).map_err(io("write", &raw))?;
        drop(file);
        let converted = self.tool(tools, boot::qemu_img(), &[(raw.clone(), boot::RAW.to_owned())])?;
        for left in [root, made] {
            fs::remove_dir_all(&left).map_err(io("remove", &left))?;
        }
        Ok(converted.join(&boot::QCOW2[1..]))
    }

    /// Runs one of the tools; the directory with what it wrote.
    fn tool(
        &self,
        tools: &[PathBuf],
        args: Vec<String>,
        shown: &[(PathBuf, String)],
    ) -> Result<PathBuf, ImageError> {
        let writable = self.work.fresh();
        fs::create_dir(&writable).map_err(io("make", &writable))?;
        let said = std::sync::Mutex::new(String::new());
        let output = |line: &str| {
            let mut said = said.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
            if !line.trim().is_empty() {
                *said = line.trim().to_owned();
            }
        };
        let job = SandboxJob {
            layers: tools.to_vec(),
            writable: writable.clone(),
            env: vec![
                "PATH=/usr/sbin:/usr/bin:/sbin:/bin".to_owned(),
                "LC_ALL=C".to_owned(),
                format!("SOURCE_DATE_EPOCH={}", self.options.source_date_epoch),
            ],
            args: args.clone(),
            cwd: "/".to_owned(),
            network: false,
            shown: shown.to_vec(),
            output: &output,
        };
        let program = &args[0];
        let ended = self.sandbox(None)?.run(&job);
        let ended =
            ended.map_err(|error| self.wrong(None, format!("disk: {program} could not be run: {error}")))?;
        if ended.exit_code != 0 {
            let said = said.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner);
            let message = format!("disk: {program} failed (is disk.size too small?): {said}");
            return Err(self.wrong(None, message));
        }
        Ok(writable.join("upper"))
    }
}

/// The disk in an image that was built as one.
pub(super) fn in_layer(layer: &Path, name: &str) -> PathBuf {
    layer.join("disk").join(format!("{name}.qcow2"))
}
