//! Installs what building, running and testing need, and nothing that is there already.
//!
//! Debian packages come through the machine's own apt, with its signatures checked. Packages that are only unpacked
//! (a current kubectl, busybox for the example images) are kept in the cache outside the checkout.

use crate::shell::{self, cache_dir, command, exists, output, run_command};
use anyhow::{Context, bail};
use std::fs;
use std::path::{Path, PathBuf};

/// Packages that are installed on the machine: libseccomp and the C compiler to build, libnftables to run, QEMU and the
/// tools for filesystems to run virtual machines.
const PACKAGES: &[&str] = &[
    "gcc",
    "libc6-dev",
    "pkg-config",
    "libseccomp-dev",
    "libnftables1",
    "qemu-system-x86",
    "qemu-utils",
    "erofs-utils",
    "e2fsprogs",
];

/// The package whose dependency is the current kernel for virtual machines.
const KERNEL_PACKAGE: &str = "linux-image-cloud-amd64";

/// Oldest minor version of kubectl that works with server-side printing and OpenAPI v3 alone.
const OLDEST_KUBECTL_MINOR: u32 = 27;

/// The release whose kubectl is fetched when the machine has none, or only an old one.
const KUBECTL_RELEASE: &str = "trixie";

/// The release whose kubectl stands for old clients in the tests.
const OLD_KUBECTL_RELEASE: &str = "bookworm";

/// Installs everything. Quick when nothing is missing.
pub(crate) fn run() -> anyhow::Result<()> {
    fs::create_dir_all(cache_dir().join("bin"))?;
    install_packages()?;
    kubectl()?;
    old_kubectl()?;
    busybox()?;
    guest_kernel()?;
    Ok(())
}

fn install_packages() -> anyhow::Result<()> {
    let missing: Vec<&str> = PACKAGES.iter().copied().filter(|name| !installed(name)).collect();
    if missing.is_empty() { Ok(()) } else { install(&missing) }
}

/// Installs packages on the machine.
pub(crate) fn install(packages: &[&str]) -> anyhow::Result<()> {
    eprintln!("setup: installing {}", packages.join(" "));
    let sudo: &[&str] = if is_root() { &[] } else { &["sudo"] };
    let apt = |args: &[&str]| {
        let words: Vec<&str> =
            sudo.iter().copied().chain(["apt-get", "-q", "-y"]).chain(args.iter().copied()).collect();
        run_command(command(words[0]).args(&words[1..]).env("DEBIAN_FRONTEND", "noninteractive"))
    };
    let mut task = vec!["install", "--no-install-recommends"];
    task.extend(packages);
    // The package lists of a fresh machine are empty or old: update and try again when the first try fails.
    if apt(&task).is_err() {
        apt(&["update"])?;
        apt(&task).context("install the packages above by hand, then run this again")?;
    }
    Ok(())
}

fn installed(package: &str) -> bool {
    output("dpkg-query", &["-W", "-f", "${Status}", package])
        .is_ok_and(|s| s.contains("install ok installed"))
}

fn is_root() -> bool {
    output("id", &["-u"]).is_ok_and(|id| id.trim() == "0")
}

/// Makes sure that there is a kubectl that is new enough, on the path or in the cache.
fn kubectl() -> anyhow::Result<()> {
    if exists("kubectl") {
        let version = output("kubectl", &["version", "--client", "-o", "json"]).unwrap_or_default();
        let minor = serde_json::from_str::<serde_json::Value>(&version)
            .ok()
            .and_then(|v| v["clientVersion"]["minor"].as_str()?.trim_end_matches('+').parse::<u32>().ok());
        if minor.is_some_and(|minor| minor >= OLDEST_KUBECTL_MINOR) {
            return Ok(());
        }
    }
    eprintln!("setup: fetching kubectl from Debian {KUBECTL_RELEASE}");
    let tree = fetch_package(KUBECTL_RELEASE, "kubectl")?;
    let program = tree.join("usr/bin/kubectl");
    link(&program, &cache_dir().join("bin/kubectl"))
}

/// An old kubectl beside the current one: what worked with it must go on working.
fn old_kubectl() -> anyhow::Result<()> {
    let at = old_kubectl_path();
    if at.is_file() {
        return Ok(());
    }
    eprintln!("setup: fetching the kubectl of Debian {OLD_KUBECTL_RELEASE}");
    let tree = fetch_package(OLD_KUBECTL_RELEASE, "kubernetes-client")?;
    link(&tree.join("usr/bin/kubectl"), &at)
}

/// Where [`run`] puts the old kubectl.
pub(crate) fn old_kubectl_path() -> PathBuf {
    cache_dir().join("bin/kubectl-old")
}

/// A busybox of this machine's release: the shell and the tools inside the example images.
fn busybox() -> anyhow::Result<()> {
    own_busybox("busybox", &cache_dir().join("bin/busybox"))
}

/// The program of one of the packages that are a busybox.
fn own_busybox(package: &str, at: &Path) -> anyhow::Result<()> {
    if at.is_file() {
        return Ok(());
    }
    let tree = own_package(package)?;
    let program = ["bin/busybox", "usr/bin/busybox"].iter().map(|p| tree.join(p)).find(|p| p.is_file());
    link(&program.with_context(|| format!("the package {package} has no busybox in it"))?, at)
}

/// What the tests of the registry use: a client that others wrote.
pub(crate) fn test_tools() -> anyhow::Result<()> {
    if exists("skopeo") { Ok(()) } else { install(&["skopeo"]) }
}

/// Another registry, to test the client with and to compare with. Its package would start a service on the machine, so
/// it is only unpacked.
pub(crate) fn docker_registry() -> anyhow::Result<()> {
    let at = docker_registry_path();
    if at.is_file() {
        return Ok(());
    }
    link(&own_package("docker-registry")?.join("usr/bin/docker-registry"), &at)
}

/// The one program of the images that the agent is tested with.
pub(crate) fn static_busybox() -> anyhow::Result<()> {
    own_busybox("busybox-static", &static_busybox_path())
}

/// Where [`static_busybox`] puts the program.
pub(crate) fn static_busybox_path() -> PathBuf {
    cache_dir().join("bin/busybox-static")
}

/// Where [`docker_registry`] puts the program.
pub(crate) fn docker_registry_path() -> PathBuf {
    cache_dir().join("bin/docker-registry")
}

/// Downloads a package of this machine's release and unpacks it in the cache, without installing it.
fn own_package(package: &str) -> anyhow::Result<PathBuf> {
    let dir = cache_dir().join("packages").join(package);
    if dir.join("tree").is_dir() {
        return Ok(dir.join("tree"));
    }
    eprintln!("setup: fetching {package}");
    fs::create_dir_all(&dir)?;
    let download = || run_command(command("apt-get").args(["-q", "download", package]).current_dir(&dir));
    if download().is_err() {
        shell::run("apt-get", &["-q", "update"])?;
        download()?;
    }
    unpack(&dir)?;
    Ok(dir.join("tree"))
}

/// The kernel that virtual machines start: unpacked in the cache, not installed as this machine's.
fn guest_kernel() -> anyhow::Result<()> {
    let at = cache_dir().join("guest-kernel");
    if at.join("boot").is_dir() {
        return Ok(());
    }
    eprintln!("setup: fetching the kernel for virtual machines");
    let depends = || output("apt-cache", &["depends", KERNEL_PACKAGE]);
    let current = |text: String| {
        let mut words =
            text.lines().filter_map(|line| line.trim().strip_prefix("Depends: ").map(str::to_owned));
        words.find(|name| name.starts_with("linux-image-"))
    };
    let package = match depends().ok().and_then(current) {
        Some(package) => package,
        None => {
            run_command(command("apt-get").args(["-q", "update"]))?;
            current(depends()?).with_context(|| format!("{KERNEL_PACKAGE} names no kernel"))?
        }
    };
    let tree = own_package(&package)?;
    let _ = fs::remove_file(&at);
    std::os::unix::fs::symlink(tree, &at).with_context(|| format!("cannot link {}", at.display()))
}

/// Downloads one package of another Debian release and unpacks it in the cache, without installing it. The mirror
/// and the signing keys are the machine's own.
fn fetch_package(release: &str, package: &str) -> anyhow::Result<PathBuf> {
    let dir = cache_dir().join("packages").join(format!("{package}-{release}"));
    if dir.join("tree").is_dir() {
        return Ok(dir.join("tree"));
    }
    let sites =
        output("apt-get", &["indextargets", "--format", "$(SITE) $(RELEASE)", "Created-By: Packages"])?;
    let site = sites
        .lines()
        .find_map(|line| {
            line.split_once(' ').filter(|(_, r)| r.starts_with("bookworm") || r.starts_with("trixie"))
        })
        .map(|(site, _)| site.to_owned())
        .context("no Debian mirror in apt's sources: install kubectl by hand")?;
    for sub in ["lists/partial", "cache/archives/partial"] {
        fs::create_dir_all(dir.join(sub))?;
    }
    let keyring = "/usr/share/keyrings/debian-archive-keyring.gpg";
    fs::write(dir.join("sources.list"), format!("deb [signed-by={keyring}] {site} {release} main\n"))?;
    let options = [
        format!("Dir::Etc::sourcelist={}", dir.join("sources.list").display()),
        "Dir::Etc::sourceparts=/dev/null".to_owned(),
        format!("Dir::State::lists={}", dir.join("lists").display()),
        format!("Dir::Cache={}", dir.join("cache").display()),
    ];
    for task in [&["update"][..], &["download", package]] {
        let mut apt = command("apt-get");
        apt.current_dir(&dir).arg("-q");
        options.iter().for_each(|o| {
            apt.args(["-o", o]);
        });
        run_command(apt.args(task))?;
    }
    unpack(&dir)?;
    Ok(dir.join("tree"))
}

/// Unpacks the one package file of a directory into its `tree`.
fn unpack(dir: &Path) -> anyhow::Result<()> {
    let package = fs::read_dir(dir)?
        .filter_map(Result::ok)
        .map(|e| e.path())
        .find(|p| p.extension().is_some_and(|e| e == "deb"))
        .with_context(|| format!("no package was downloaded to {}", dir.display()))?;
    let aside = dir.join("tree.partial");
    let _ = fs::remove_dir_all(&aside);
    shell::run("dpkg-deb", &["-x", &package.to_string_lossy(), &aside.to_string_lossy()])?;
    fs::rename(&aside, dir.join("tree"))?;
    Ok(())
}

fn link(program: &Path, at: &Path) -> anyhow::Result<()> {
    if !program.is_file() {
        bail!("{} is missing after unpacking", program.display());
    }
    let _ = fs::remove_file(at);
    std::os::unix::fs::symlink(program, at).with_context(|| format!("cannot link {}", at.display()))
}
