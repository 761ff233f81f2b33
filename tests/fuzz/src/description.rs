//! What people write to build images: `cumulet.yaml` and names of images.

use crate::scratch::{SECRET, Scratch, walk};
use cumulet_images::{BuildOptions, Reference};
use std::cell::RefCell;
use std::fs;
use std::os::unix::fs::symlink;

thread_local! {
    static SCRATCH: RefCell<Scratch> = RefCell::new(Scratch::new("cumulet-fuzz-build", |dir| {
        let context = dir.join("context");
        fs::create_dir_all(context.join("sub")).expect("a directory");
        fs::write(context.join("sub/file"), "content").expect("a file");
        symlink("../outside/secret", context.join("link")).expect("a link");
        symlink("../outside", context.join("dir")).expect("a link");
        fs::write(context.join("cumulet.yaml"), "").expect("a file");
    }));
}

/// A `cumulet.yaml` in a directory with two links that lead outside. Whatever it says, nothing from there gets in.
pub(crate) fn description(data: &[u8]) {
    SCRATCH.with_borrow_mut(|scratch| {
        let context = scratch.dir.join("context");
        fs::write(context.join("cumulet.yaml"), data).expect("a file");
        let built = scratch.store.build(&context, &BuildOptions::default());
        match built {
            Err(error) => {
                let _ = error.to_string();
                scratch.check_empty();
            }
            Ok(built) => {
                assert!(
                    scratch.store.list().is_ok_and(|rows| rows.iter().any(|row| row.digest == built.digest))
                );
                walk(&scratch.dir.join("store/layers"), &mut |path, meta| {
                    let leaked = meta.is_file() && fs::read(path).is_ok_and(|content| content == SECRET);
                    assert!(!leaked, "{} comes from outside", path.display());
                });
                scratch.reset();
            }
        }
    });
}

/// The name of an image. What is printed reads as the same.
pub(crate) fn reference(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    if let Ok(reference) = Reference::parse(text) {
        let printed = reference.to_string();
        assert_eq!(Reference::parse(&printed).as_ref().ok(), Some(&reference), "{printed:?}");
        let short = reference.short();
        assert_eq!(Reference::parse(&short).as_ref().ok(), Some(&reference), "{short:?}");
    }
}
