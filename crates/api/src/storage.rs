//! Words by which those who bind volumes, schedule pods and make volumes understand each other: annotations,
//! finalizers and names. They are Kubernetes', so that people and tools find what they know.

/// On a bound claim: the binding was completed and is never undone.
pub const BIND_COMPLETED: &str = "pv.kubernetes.io/bind-completed";
/// On a claim or a volume: the other side was chosen by the controller, not by a person.
pub const BOUND_BY_CONTROLLER: &str = "pv.kubernetes.io/bound-by-controller";
/// On a volume: who made it.
pub const PROVISIONED_BY: &str = "pv.kubernetes.io/provisioned-by";
/// On a claim: the node that its first pod was given.
pub const SELECTED_NODE: &str = "volume.kubernetes.io/selected-node";
/// On a claim: who is to make a volume for it.
pub const PROVISIONER: &str = "volume.kubernetes.io/storage-provisioner";
/// The same, for tools that know the older word.
pub const PROVISIONER_BETA: &str = "volume.beta.kubernetes.io/storage-provisioner";
/// On a claim or a volume: its class, before there was a field for it.
pub const CLASS_BETA: &str = "volume.beta.kubernetes.io/storage-class";
/// On a class: claims that name none get it.
pub const DEFAULT_CLASS: &str = "storageclass.kubernetes.io/is-default-class";
/// Holds a claim while pods use it.
pub const CLAIM_PROTECTION: &str = "kubernetes.io/pvc-protection";
/// Holds a volume while a claim has it.
pub const VOLUME_PROTECTION: &str = "kubernetes.io/pv-protection";
/// Holds a volume until its maker has removed what is behind it.
pub const PROVISIONER_FINALIZER: &str = "external-provisioner.volume.kubernetes.io/finalizer";
/// The provisioner of classes whose volumes an administrator makes by hand.
pub const NO_PROVISIONER: &str = "kubernetes.io/no-provisioner";
/// The provisioner that is this cloud's node.
pub const LOCAL_PROVISIONER: &str = "cumulet.dev/local";

/// The name of the volume that is made for a claim: the same however often it is tried.
pub fn volume_name(claim_uid: &str) -> String {
    format!("pvc-{claim_uid}")
}

/// The name of the claim of a pod's ephemeral volume.
pub fn ephemeral_claim(pod: &str, volume: &str) -> String {
    format!("{pod}-{volume}")
}
