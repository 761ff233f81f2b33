//! The grammar of the command line.

use clap::{Args as ClapArgs, Parser, Subcommand, ValueEnum};
use std::net::SocketAddr;
use std::path::PathBuf;

/// A mini cloud in one program: pods, Services and Deployments on this machine, for kubectl.
#[derive(Debug, Parser)]
#[command(name = "cumulet", version, propagate_version = true)]
pub struct Args {
    /// Where the cloud keeps everything; several clouds live side by side in different directories.
    #[arg(
        long,
        env = "CUMULET_STATE_DIR",
        default_value = "/var/lib/cumulet",
        global = true,
        value_name = "DIR"
    )]
    pub state_dir: PathBuf,
    /// Say more on stderr.
    #[arg(long, short, global = true)]
    pub verbose: bool,
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// The commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run the cloud.
    Up(Up),
    /// Stop every pod and remove everything from the machine; objects and images stay on disk.
    Down(Down),
    /// Say whether the cloud runs, and how it is.
    Status(Output),
    /// Say what this machine can and cannot do, and the command that fixes it.
    Doctor(Output),
    /// Build, pull, push, load, save and list images.
    #[command(subcommand)]
    Image(Image),
    /// List virtual machines, and attach to their consoles.
    #[command(subcommand)]
    Vm(Vm),
    /// List, check, remove, push and pull templates that virtual machines start from.
    #[command(subcommand)]
    Snapshot(Snapshot),
    /// Commands of the built-in client.
    #[command(flatten)]
    Client(Client),
}

/// Options of `up`.
#[derive(Clone, Debug, ClapArgs)]
pub struct Up {
    /// Return when the cloud is ready, and leave it running.
    #[arg(long)]
    pub detach: bool,
    /// Where the API listens; port 0 takes a free one.
    #[arg(long, env = "CUMULET_API_LISTEN", default_value = "127.0.0.1:6443", value_name = "ADDRESS:PORT")]
    pub api_listen: SocketAddr,
    /// Addresses of pods. A free network is taken when this one is in use by another cloud and the flag is absent.
    #[arg(long, value_name = "CIDR")]
    pub pod_cidr: Option<String>,
    /// Addresses of Services.
    #[arg(long, value_name = "CIDR")]
    pub service_cidr: Option<String>,
    /// Where the registry listens: 127.0.0.1:5000, or another port there when that one is in use.
    #[arg(long, env = "CUMULET_REGISTRY_LISTEN", value_name = "ADDRESS:PORT")]
    pub registry_listen: Option<SocketAddr>,
    /// Who may use the registry: a file with name:password lines. Needed when it does not listen on loopback.
    #[arg(long, value_name = "FILE")]
    pub registry_users: Option<PathBuf>,
    /// Name of the node; the host name when absent.
    #[arg(long, value_name = "NAME")]
    pub node_name: Option<String>,
    /// What memory snapshots may take up on the disk; those not used for the longest time go.
    #[arg(long, env = "CUMULET_SNAPSHOT_BUDGET", default_value = "10Gi", value_name = "SIZE", value_parser = size)]
    pub snapshot_budget: u64,
    /// Kernel of virtual machines: a package linux-image-…-cloud-amd64 or what is in it. Pods can ask for those in the
    /// state directory's kernels/ with the annotation vm.cumulet.dev/kernel.
    #[arg(long, value_name = "PACKAGE")]
    pub vm_kernel: Option<PathBuf>,
}

/// A size in Kubernetes' notation, such as `10Gi`, in bytes.
fn size(text: &str) -> Result<u64, String> {
    let quantity = cumulet_api::Quantity::parse(text).map_err(|e| e.to_string())?;
    u64::try_from(quantity.units()).map_err(|_| "a size cannot be negative".to_owned())
}

/// Options of `down`.
#[derive(Clone, Debug, ClapArgs)]
pub struct Down {
    /// Remove the objects and images on disk too.
    #[arg(long)]
    pub purge: bool,
    /// Give pods at most this many seconds to stop.
    #[arg(long, default_value_t = 10, value_name = "SECONDS")]
    pub timeout: u64,
}

/// Choice of output.
#[derive(Clone, Debug, ClapArgs)]
pub struct Output {
    /// Form of the output.
    #[arg(long = "output", short = 'o', default_value = "table", value_name = "FORMAT")]
    pub format: Format,
}

/// Forms of output.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// For people.
    Table,
    /// For programs.
    Json,
    /// For people and programs.
    Yaml,
    /// A table with more columns.
    Wide,
    /// Only `resource/name`, one a line.
    Name,
}

/// Options of `image build`.
#[derive(Clone, Debug, ClapArgs)]
pub struct ImageBuild {
    /// The directory.
    #[arg(default_value = ".")]
    pub dir: PathBuf,
    /// Make only what changed anew; this is what happens anyway.
    #[arg(long, conflicts_with = "no_cache")]
    pub update: bool,
    /// Make everything anew.
    #[arg(long)]
    pub no_cache: bool,
    /// Another tag than the version in cumulet.yaml, or another name.
    #[arg(long, short = 't', value_name = "TAG")]
    pub tag: Option<String>,
    /// Fetch the index of Debian's packages even if it is younger than a day.
    #[arg(long)]
    pub refresh: bool,
    /// Make the disk of a virtual machine of it: a bootable qcow2, in an image that holds nothing else.
    #[arg(long)]
    pub disk: bool,
    /// Write the disk to a file as well: qcow2, or raw when the name ends in .raw or .img.
    #[arg(long, short = 'o', requires = "disk", value_name = "FILE")]
    pub output: Option<PathBuf>,
}

/// Commands on images.
#[derive(Clone, Debug, Subcommand)]
pub enum Image {
    /// Build an image from a directory with a cumulet.yaml, in it or in its `image` directory.
    Build(ImageBuild),
    /// Import images from a docker-archive or OCI tar; `-` reads standard input.
    Load {
        /// The archive.
        file: PathBuf,
    },
    /// Write an image to an OCI tar that docker and skopeo can load; `-` writes to standard output.
    Save {
        /// The image.
        image: String,
        /// The archive.
        file: PathBuf,
    },
    /// List images.
    Ls(Output),
    /// Fetch images from their registries, with the credentials of `docker login`.
    Pull {
        /// The images, such as docker.io/library/nginx:1 or 127.0.0.1:5000/me/app.
        #[arg(required = true)]
        images: Vec<String>,
    },
    /// Send an image to the registry in its name, or under another name.
    Push {
        /// The image.
        image: String,
        /// The name to push it under, when not its own.
        target: Option<String>,
    },
    /// Give an image another name.
    Tag {
        /// The image.
        image: String,
        /// The new name.
        name: String,
    },
    /// Show everything known of images, as JSON.
    Inspect {
        /// The images.
        #[arg(required = true)]
        images: Vec<String>,
        /// json or yaml.
        #[arg(long = "output", short = 'o', value_name = "FORMAT")]
        format: Option<Format>,
    },
    /// Show how an image came to be, layer by layer.
    History {
        /// The image.
        image: String,
        #[command(flatten)]
        #[expect(missing_docs, reason = "described by its type")]
        output: Output,
    },
    /// Find images of this cloud, and so of its registry, by a part of their name.
    Search {
        /// A part of the name.
        term: String,
    },
    /// Forget a name; blobs go with the next prune.
    Rm {
        /// The images.
        #[arg(required = true)]
        images: Vec<String>,
    },
    /// Remove what no name and no pod uses.
    Prune,
    /// Prove that every blob and layer is what its digest says.
    Verify,
}

/// Commands on virtual machines.
#[derive(Clone, Debug, Subcommand)]
pub enum Vm {
    /// List the pods that are virtual machines.
    Ls(Output),
    /// Save a running pod of class vm-snapshot; pods with the annotation snapshot.cumulet.dev/restore-from go on from it.
    Checkpoint {
        /// The pod.
        pod: String,
        /// Name of the checkpoint in the pod's namespace; the pod's when not given. One of the same name is replaced.
        #[arg(long)]
        name: Option<String>,
        #[command(flatten)]
        #[expect(missing_docs, reason = "described by its type")]
        scope: Scope,
    },
    /// Attach to the serial console of a pod's machine; Ctrl-] leaves.
    Console {
        /// The pod.
        pod: String,
        #[command(flatten)]
        #[expect(missing_docs, reason = "described by its type")]
        scope: Scope,
    },
}

/// Commands on templates. A template is named by its key or the first digits of it.
#[derive(Clone, Debug, Subcommand)]
pub enum Snapshot {
    /// List templates, and say whether they fit this machine.
    Ls(Output),
    /// Show everything known of templates without reading their memory, as JSON.
    Inspect {
        /// The templates.
        #[arg(required = true, value_name = "KEY")]
        keys: Vec<String>,
        /// json or yaml.
        #[arg(long = "output", short = 'o', value_name = "FORMAT")]
        format: Option<Format>,
    },
    /// Remove templates. Pods that started from them go on.
    Rm {
        /// The templates.
        #[arg(required = true, value_name = "KEY")]
        keys: Vec<String>,
    },
    /// Remove what cannot be used: what broke off, what is damaged, what another version made. More with an option.
    Prune(SnapshotPrune),
    /// Read templates and prove that they are what their checksums say; all of them when none is named.
    Verify {
        /// The templates.
        #[arg(value_name = "KEY")]
        keys: Vec<String>,
    },
    /// Send a template to a registry, as an OCI artifact.
    Push {
        /// The template.
        key: String,
        /// The name to push it under, such as 127.0.0.1:5000/petclinic:warm.
        #[arg(value_name = "REF")]
        name: String,
    },
    /// Fetch a template from a registry, and say whether it fits this machine.
    Pull {
        /// The name, such as 127.0.0.1:5000/petclinic:warm.
        #[arg(value_name = "REF")]
        name: String,
    },
}

/// Options of `snapshot prune`.
#[derive(Clone, Debug, ClapArgs)]
pub struct SnapshotPrune {
    /// Remove all templates.
    #[arg(long, conflicts_with_all = ["older_than", "budget"])]
    pub all: bool,
    /// Remove templates that no pod started from for so long, such as 90m, 12h or 7d.
    #[arg(long, value_name = "DURATION")]
    pub older_than: Option<String>,
    /// Remove what was not used for the longest time, until the rest takes up no more than this, such as 10Gi.
    #[arg(long, value_name = "SIZE")]
    pub budget: Option<String>,
}

/// Which objects a client command works on.
#[derive(Clone, Debug, ClapArgs)]
pub struct Scope {
    /// Namespace.
    #[arg(long, short = 'n', default_value = "default")]
    pub namespace: String,
}

/// Commands of the built-in client.
#[derive(Clone, Debug, Subcommand)]
pub enum Client {
    /// Create or change objects as files say.
    Apply {
        /// Files or directories with YAML or JSON; `-` reads standard input.
        #[arg(long = "filename", short = 'f', required = true, value_name = "FILE")]
        files: Vec<PathBuf>,
        #[command(flatten)]
        #[expect(missing_docs, reason = "described by its type")]
        scope: Scope,
    },
    /// Show objects.
    Get {
        /// `pods`, `deploy/web`, `services web db`, ...
        #[arg(required = true)]
        what: Vec<String>,
        /// Of every namespace.
        #[arg(long, short = 'A')]
        all_namespaces: bool,
        /// Only objects with these labels.
        #[arg(long, short = 'l')]
        selector: Option<String>,
        #[command(flatten)]
        #[expect(missing_docs, reason = "described by its type")]
        output: Output,
        #[command(flatten)]
        #[expect(missing_docs, reason = "described by its type")]
        scope: Scope,
    },
    /// Show the log of a container.
    Logs {
        /// The pod.
        pod: String,
        /// The container, when the pod has several.
        #[arg(long, short = 'c')]
        container: Option<String>,
        /// Go on with new lines.
        #[arg(long, short = 'f')]
        follow: bool,
        /// The instance before this one.
        #[arg(long, short = 'p')]
        previous: bool,
        /// Only this many lines from the end.
        #[arg(long)]
        tail: Option<u64>,
        #[command(flatten)]
        #[expect(missing_docs, reason = "described by its type")]
        scope: Scope,
    },
    /// Run a command in a container.
    Exec {
        /// The pod.
        pod: String,
        /// The container, when the pod has several.
        #[arg(long, short = 'c')]
        container: Option<String>,
        /// Pass standard input on.
        #[arg(long, short = 'i')]
        stdin: bool,
        /// Run on a terminal.
        #[arg(long, short = 't')]
        tty: bool,
        /// Program and arguments.
        #[arg(last = true, required = true)]
        command: Vec<String>,
        #[command(flatten)]
        #[expect(missing_docs, reason = "described by its type")]
        scope: Scope,
    },
    /// Set the number of replicas.
    Scale {
        /// `deployment/web`.
        what: String,
        /// How many.
        #[arg(long)]
        replicas: u32,
        #[command(flatten)]
        #[expect(missing_docs, reason = "described by its type")]
        scope: Scope,
    },
    /// Delete objects.
    Delete {
        /// `pod/web-1`, `deployments web db`, ...
        what: Vec<String>,
        /// What these files name.
        #[arg(long = "filename", short = 'f', value_name = "FILE")]
        files: Vec<PathBuf>,
        /// Seconds that pods get to stop.
        #[arg(long)]
        grace_period: Option<i64>,
        #[command(flatten)]
        #[expect(missing_docs, reason = "described by its type")]
        scope: Scope,
    },
}
