//! Packages made up here: their kernels do not start, all else is real.

use super::*;

/// A package's tree with all required modules.
fn tree(root: &Path, release: &str) {
    let modules = root.join("lib/modules").join(release).join("kernel");
    fs::create_dir_all(&modules).unwrap();
    fs::create_dir_all(root.join("boot")).unwrap();
    fs::write(root.join("boot").join(format!("vmlinuz-{release}")), vec![7; 2048]).unwrap();
    for name in modules::REQUIRED {
        fs::write(modules.join(format!("{name}.ko")), modules::tests::module("")).unwrap();
    }
}

fn package(dir: &Path, release: &str) -> PathBuf {
    let root = dir.join(format!("package-{release}"));
    tree(&root, release);
    fs::create_dir_all(root.join("DEBIAN")).unwrap();
    let control = format!(
        "Package: linux-image-{release}\nVersion: 1\nArchitecture: amd64\nMaintainer: Nobody <n@example.org>\n\
         Description: none\n"
    );
    fs::write(root.join("DEBIAN/control"), control).unwrap();
    let file = dir.join(format!("{release}.deb"));
    let built = Command::new("dpkg-deb").args(["-Znone", "-b"]).args([&root, &file]).output().unwrap();
    assert!(built.status.success(), "{}", String::from_utf8_lossy(&built.stderr));
    file
}

#[test]
fn a_package_is_installed_once_and_the_last_one_counts() {
    let dir = tempfile::tempdir().unwrap();
    let target = dir.path().join("kernel");
    assert!(Kernel::open(&target).unwrap_err().to_string().contains("no kernel is installed"));
    let first = Kernel::install(&package(dir.path(), "6.1.0-1-cloud-amd64"), &target).unwrap();
    assert_eq!(first.release(), "6.1.0-1-cloud-amd64");
    first.verify().unwrap();
    // Nobody knows how that one is packed, so it is started as it is.
    assert!(first.slow_because().is_some() && first.image().ends_with("vmlinuz"));
    let names: Vec<&str> = first.modules().map(|(name, _)| name).collect();
    assert_eq!(names, modules::REQUIRED);
    let second = Kernel::install(&package(dir.path(), "6.12.5+deb13-cloud-amd64"), &target).unwrap();
    assert_ne!(first.digest(), second.digest());
    assert_eq!(Kernel::open(&target).unwrap().digest(), second.digest());
    // The first one is still there for who has it by its own directory.
    let own = Kernel::open(&target.join("6.1.0-1-cloud-amd64")).unwrap();
    assert_eq!(own.digest(), first.digest());
    let left: Vec<_> = fs::read_dir(&target).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert_eq!(left.len(), 3, "{left:?}");
}

#[test]
fn what_changed_on_the_disk_is_found_and_repaired() {
    let dir = tempfile::tempdir().unwrap();
    let target = dir.path().join("kernel");
    tree(&dir.path().join("tree"), "1");
    let kernel = Kernel::install(&dir.path().join("tree"), &target).unwrap();
    let module = kernel.modules().last().unwrap().1;
    fs::write(&module, b"something else").unwrap();
    assert!(kernel.verify().unwrap_err().to_string().contains("has changed"));
    let again = Kernel::install(&dir.path().join("tree"), &target).unwrap();
    again.verify().unwrap();
    fs::remove_file(&module).unwrap();
    assert!(Kernel::open(&target).unwrap_err().to_string().contains("is missing"));
}

#[test]
fn what_is_no_kernel_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let target = dir.path().join("kernel");
    let no_package = dir.path().join("no.deb");
    fs::write(&no_package, b"no archive").unwrap();
    let no_modules = dir.path().join("no-modules");
    tree(&no_modules, "1");
    fs::remove_dir_all(no_modules.join("lib")).unwrap();
    let one_missing = dir.path().join("one-missing");
    tree(&one_missing, "1");
    fs::remove_file(one_missing.join("lib/modules/1/kernel/erofs.ko")).unwrap();
    for (source, expected) in [
        (&no_package, "dpkg-deb failed"),
        (&no_modules, "no modules for 1"),
        (&one_missing, "erofs"),
        (&dir.path().join("nowhere"), "dpkg-deb"),
    ] {
        let error = Kernel::install(source, &target).unwrap_err().to_string();
        assert!(error.contains(expected), "{}: {error}", source.display());
    }
    assert_eq!(fs::read_dir(&target).unwrap().count(), 0, "something was left behind");
}
