//! `image build` as people run it: packages of Debian's, commands in the sandbox, layers that are reused, mistakes,
//! and a build that is killed. Needs root and a mirror of Debian's that apt can reach. Indexes and packages are shared by all runs, in `CUMULET_CACHE` or `~/.cache/cumulet-build`.
//!
//! A program of its own instead of the usual harness, because it is also the sandbox that builds run programs in.
//! Arguments are substrings of the names of the cases to run; options of the usual harness are passed over.

#![expect(clippy::unwrap_used, reason = "a test program fails by panicking")]

use clap::Parser;
use cumulet_cli::{Args, StateDir, build_sandbox};
use cumulet_images::ImageStore;
use std::io::{BufRead, BufReader};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Output, Stdio};
use std::time::{Duration, Instant};

type Case = (&'static str, fn(&Kit));

const CASES: [Case; 7] = [
    ("packages_are_installed_once_and_reproducibly", packages),
    ("commands_change_what_they_should", commands),
    ("images_are_merged", require),
    ("an_edit_concerns_one_layer", edits),
    ("packages_without_a_base_are_unpacked", unpacked),
    ("mistakes_are_explained", mistakes),
    ("a_killed_build_leaves_nothing", killed),
];

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().collect();
    match args.get(1).map(String::as_str) {
        Some(build_sandbox::COMMAND) => return build_sandbox::main(),
        Some("image") => return image(),
        _ => {}
    }
    if !nix::unistd::geteuid().is_root() {
        eprintln!("FAILED: this needs root");
        return ExitCode::FAILURE;
    }
    let kit = Kit::new();
    if !kit.mirror() {
        eprintln!("FAILED: apt cannot reach a mirror of Debian's");
        return ExitCode::FAILURE;
    }
    let wanted = wanted(&args[1..]);
    let mut failed = 0;
    for (name, case) in CASES {
        if !wanted.is_empty() && !wanted.iter().any(|word| name.contains(word.as_str())) {
            continue;
        }
        let start = Instant::now();
        let good = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| case(&kit))).is_ok();
        println!(
            "{} {name} ({:.1} s)",
            if good { "ok    " } else { "FAILED" },
            start.elapsed().as_secs_f64()
        );
        failed += u32::from(!good);
    }
    if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// The names among the arguments. `cargo test` hands all programs the options of the usual harness, and the number of
/// `--test-threads 2` is no name.
fn wanted(args: &[String]) -> Vec<&String> {
    let mut names = Vec::new();
    let mut args = args.iter();
    while let Some(arg) = args.next() {
        match arg.as_str() {
            "--test-threads" | "--skip" | "--format" | "--color" => drop(args.next()),
            option if option.starts_with('-') => {}
            _ => names.push(arg),
        }
    }
    names
}

/// What `cumulet image ...` does.
fn image() -> ExitCode {
    let args = Args::parse();
    let result = StateDir::new(&args.state_dir).and_then(|state| cumulet_cli::run(&state, args.command));
    match result {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            eprintln!("cumulet: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// A state directory and the shared cache.
struct Kit {
    state: tempfile::TempDir,
    cache: PathBuf,
}

impl Kit {
    fn new() -> Self {
        let home = || PathBuf::from(std::env::var_os("HOME").unwrap_or_else(|| "/root".into()));
        let cache = std::env::var_os("CUMULET_CACHE")
            .map_or_else(|| home().join(".cache/cumulet-build"), PathBuf::from);
        Self { state: tempfile::tempdir().unwrap(), cache: cache.join("apt") }
    }

    fn command(&self, state: &Path, dir: &Path) -> Command {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args(["image", "build"]).arg(dir).arg("--state-dir").arg(state);
        command.env("CUMULET_APT_CACHE", &self.cache).env_remove("SOURCE_DATE_EPOCH");
        command
    }

    fn mirror(&self) -> bool {
        let dir = project("name: probe\nversion: 1\nbase: debian:bookworm\n", &[]);
        let output = self.command(self.state.path(), dir.path()).output().unwrap();
        if !output.status.success() {
            eprintln!("{}", String::from_utf8_lossy(&output.stderr));
        }
        output.status.success()
    }

    /// Builds, and gives the digest and what was said.
    fn build(&self, dir: &Path) -> (String, String) {
        built(self.command(self.state.path(), dir).output().unwrap())
    }

    fn fails(&self, dir: &Path) -> String {
        let output = self.command(self.state.path(), dir).output().unwrap();
        assert!(!output.status.success(), "it should fail");
        String::from_utf8_lossy(&output.stderr).into_owned()
    }

    fn store(&self) -> ImageStore {
        ImageStore::open(&self.state.path().join("images")).unwrap()
    }
}

fn built(output: Output) -> (String, String) {
    let told = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{told}");
    (String::from_utf8_lossy(&output.stdout).trim().to_owned(), told)
}

/// A directory with a description and some files.
fn project(description: &str, files: &[(&str, &str)]) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("cumulet.yaml"), description).unwrap();
    for (name, text) in files {
        let path = dir.path().join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
    }
    dir
}

fn packages(kit: &Kit) {
    let text = "name: greeter\nversion: 1\nbase: debian:bookworm\npackages: [hello, libcap2-bin]\n";
    let dir = project(text, &[]);
    let (first, told) = kit.build(dir.path());
    assert!(told.contains("base debian:bookworm: reused"), "{told}");
    let store = kit.store();
    let image = store.resolve("greeter:1").unwrap();
    let [base, added] = &image.layers[..] else { panic!("{:?}", image.layers) };
    assert!(added.join("usr/bin/hello").is_file() && base.join("usr/bin/dpkg").is_file());
    assert!(base.join("bin").is_symlink(), "merged directories");
    for gone in ["usr/share/man/man1/hello.1.gz", "var/log/dpkg.log", "run/packages", "usr/sbin/policy-rc.d"]
    {
        assert!(!added.join(gone).exists() && !base.join(gone).exists(), "{gone}");
    }
    assert!(added.join("usr/share/doc/hello/copyright").is_file(), "licences stay");
    // The same set in an image of another name costs nothing.
    let other = project(&text.replace("greeter", "other"), &[]);
    let (_, told) = kit.build(other.path());
    assert!(told.contains("2 of 2 layers reused"), "{told}");
    // Elsewhere and later, the same comes out.
    let elsewhere = tempfile::tempdir().unwrap();
    let (second, told) = built(kit.command(elsewhere.path(), dir.path()).output().unwrap());
    assert!(told.contains("0 of 2 layers reused"), "{told}");
    assert_eq!(first, second);
    assert_eq!(store.verify().unwrap(), Vec::<String>::new());
}

fn commands(kit: &Kit) {
    let text = "name: made\nversion: 1\nbase: debian:bookworm\nbuild_packages: [hello]\nenv: {GREETING: hi}\nbuild:\n\
        - mkdir /out && hello -g \"$GREETING\" > /out/greeting && cp input /out/ && touch junk\n\
        - rm /etc/issue && cat /proc/net/dev > /out/interfaces\n\
        - \"true\"\n";
    let dir = project(text, &[("input", "from the directory")]);
    let (first, told) = kit.build(dir.path());
    assert!(told.contains("build true: changed nothing"), "{told}");
    let image = kit.store().resolve("made:1").unwrap();
    let [_, made, removed] = &image.layers[..] else { panic!("{:?}", image.layers) };
    let read = |path: PathBuf| std::fs::read_to_string(path).unwrap();
    assert_eq!(read(made.join("out/greeting")), "hi\n");
    assert_eq!(read(made.join("out/input")), "from the directory");
    assert!(!made.join("src").exists() && !made.join("usr/bin/hello").exists());
    assert!(std::fs::symlink_metadata(removed.join("etc/issue")).unwrap().rdev() == 0, "a whiteout");
    let interfaces = read(removed.join("out/interfaces"));
    assert!(interfaces.lines().count() == 3 && interfaces.contains("lo:"), "{interfaces}");
    let (again, told) = kit.build(dir.path());
    assert!(told.contains("4 of 4 layers reused"), "{told}");
    assert_eq!(first, again);
    // A command sees its sources, so it runs again when they change; the base stays.
    std::fs::write(dir.path().join("input"), "changed").unwrap();
    let (_, told) = kit.build(dir.path());
    assert!(told.contains("2 of 4 layers reused"), "{told}");
    let image = kit.store().resolve("made:1").unwrap();
    assert_eq!(read(image.layers[1].join("out/input")), "changed");
}

fn require(kit: &Kit) {
    let part = |name: &str| {
        let text = format!(
            "name: {name}\nversion: 1\nbase: debian:bookworm\nfiles: {{f: /{name}}}\nenv: {{{name}: x, X: {name}}}\n"
        );
        kit.build(project(&text, &[("f", name)]).path());
    };
    part("one");
    part("two");
    let text =
        "name: both\nversion: 1\nbase: debian:bookworm\nrequire: ['one:1', 'two:1']\nfiles: {g: /own}\n";
    kit.build(project(text, &[("g", "g")]).path());
    let image = kit.store().resolve("both:1").unwrap();
    assert_eq!(image.layers.len(), 4, "the base once, two parts, own files");
    assert!(image.layers[1].join("one").exists() && image.layers[2].join("two").exists());
    for entry in ["one=x", "two=x", "X=one"] {
        assert!(image.config.env.iter().any(|found| found == entry), "{entry}: {:?}", image.config.env);
    }
}

fn edits(kit: &Kit) {
    let dir = project("name: large\nversion: 1\nfiles: {data: /data}\n", &[]);
    for i in 0..60_u8 {
        let path = dir.path().join(format!("data/part{}/file{i}", i % 12));
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, vec![i; 1 << 20]).unwrap();
    }
    let (first, _) = kit.build(dir.path());
    let layers = kit.store().resolve("large:1").unwrap().layers;
    assert!((2..=16).contains(&layers.len()), "{} layers", layers.len());
    std::fs::write(dir.path().join("data/part3/file3"), vec![0xff; 1 << 20]).unwrap();
    let (second, told) = kit.build(dir.path());
    assert_ne!(first, second);
    assert!(told.contains(&format!("files: 1 of {} layers made", layers.len())), "{told}");
    let image = kit.store().resolve("large:1").unwrap();
    let kept = image.layers.iter().filter(|layer| layers.contains(layer)).count();
    assert_eq!(kept, layers.len() - 1);
    // What was changed back is what it was, whatever its times.
    std::fs::write(dir.path().join("data/part3/file3"), vec![3; 1 << 20]).unwrap();
    assert_eq!(kit.build(dir.path()).0, first);
    assert_eq!(kit.store().verify().unwrap(), Vec::<String>::new());
}

fn unpacked(kit: &Kit) {
    kit.build(project("name: tiny\nversion: 1\npackages: [busybox-static]\n", &[]).path());
    let image = kit.store().resolve("tiny:1").unwrap();
    let [layer] = &image.layers[..] else { panic!("{:?}", image.layers) };
    assert!(layer.join("bin/busybox").is_file() && !layer.join("var/lib/dpkg").exists());
    assert!(image.size_bytes < 3_000_000, "{}", image.size_bytes);
}

fn mistakes(kit: &Kit) {
    let check = |rest: &str, expected: &str| {
        let dir = project(&format!("name: wrong\nversion: 1\n{rest}\n"), &[("app.py", "")]);
        let told = kit.fails(dir.path());
        assert!(told.contains(expected), "{rest}\n got: {told}\nwant: {expected}");
        assert!(kit.store().resolve("wrong:1").is_err());
    };
    check(
        "base: debian:bookwrm",
        "cumulet.yaml:3:7: base: Debian has no release \"bookwrm\": did you mean \"debian:bookworm\"?",
    );
    check(
        "base: debian:bookworm\npackages:\n- helo",
        "cumulet.yaml:5:3: packages: there is no package \"helo\": did you mean",
    );
    check(
        "base: debian:bookworm\nbuild:\n- \"true\"\n- exit 7",
        "cumulet.yaml:6:3: build: `exit 7` failed with exit code 7",
    );
    check("base: debian:bookworm\nbuild: [nonsense x]", "build: `nonsense x` failed with exit code 127");
    check("build: [\"true\"]", "could not be run");
    check(
        "files: {./ap.py: /app}",
        "cumulet.yaml:3:18: files: ./ap.py: No such file or directory: did you mean \"app.py\"?",
    );
    check("pakages: [a]", "cumulet.yaml:3:1: unknown key \"pakages\": did you mean \"packages\"?");
    check("base: debian:bookworm\nsources: [missing]\nbuild: [\"true\"]", "sources: missing: No such file");
}

fn killed(kit: &Kit) {
    let text =
        "name: killed\nversion: 1\nbase: debian:bookworm\nbuild: [\"touch /x; echo running; sleep 61342\"]\n";
    let dir = project(text, &[]);
    let mut child = kit.command(kit.state.path(), dir.path()).stderr(Stdio::piped()).spawn().unwrap();
    let lines = BufReader::new(child.stderr.take().unwrap()).lines();
    assert!(lines.map_while(Result::ok).any(|line| line.contains("| running")));
    child.kill().unwrap();
    child.wait().unwrap();
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
    assert!(!mounts.contains(&*kit.state.path().to_string_lossy()), "a mount is left");
    // The next build takes the place of the killed one, whose last process may be dying still.
    let end = Instant::now() + Duration::from_secs(10);
    while sleeping() {
        assert!(Instant::now() < end, "the command goes on running");
        std::thread::yield_now();
    }
    let store = kit.store();
    assert!(store.resolve("killed:1").is_err());
    assert_eq!(store.verify().unwrap(), Vec::<String>::new());
    std::fs::write(dir.path().join("cumulet.yaml"), text.replace("sleep 61342", "true")).unwrap();
    kit.build(dir.path());
    let left: Vec<_> = std::fs::read_dir(kit.state.path().join("images/tmp")).unwrap().collect();
    assert!(left.is_empty(), "{left:?}");
}

/// Whether the killed build's command runs.
fn sleeping() -> bool {
    let commands = std::fs::read_dir("/proc").unwrap().filter_map(|entry| {
        let path = entry.ok()?.path().join("cmdline");
        std::fs::read(path).ok()
    });
    commands.into_iter().any(|line| line == b"sleep\x0061342\x00")
}
