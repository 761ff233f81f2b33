//! The registry endpoint and pulling: what others push can be run, and what others have is fetched.

use crate::{wait_field, wait_ready};
use cumulet_e2e::{Cloud, Registry, succeed, wait_for};
use std::process::Command;

fn pod(name: &str, image: &str, policy: &str, secret: Option<&str>) -> String {
    let secrets = secret.map(|name| format!("  imagePullSecrets: [{{name: {name}}}]\n")).unwrap_or_default();
    format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}}}\nspec:\n  terminationGracePeriodSeconds: 0\n{secrets}  \
         containers:\n  - {{name: main, image: \"{image}\", imagePullPolicy: {policy}}}\n---\n"
    )
}

fn skopeo(args: &[&str]) -> anyhow::Result<String> {
    let mut copy = Command::new("skopeo");
    copy.args(["--insecure-policy", "copy", "--quiet", "--src-tls-verify=false", "--dest-tls-verify=false"]);
    succeed(copy.args(args))
}

const WAITING: &str = ".status.containerStatuses[0].state.waiting.reason";

#[test]
fn what_skopeo_pushes_runs_and_comes_back() -> anyhow::Result<()> {
    let cloud = Cloud::with_hello()?;
    let registry = cloud.registry()?;
    let work = tempfile::tempdir()?;
    let archive = work.path().join("hello.tar");
    cloud.cumulet(&["image", "save", "hello:1", &archive.to_string_lossy()])?;
    let name = format!("{registry}/team/hello:1");
    skopeo(&[&format!("oci-archive:{}", archive.display()), &format!("docker://{name}")])?;

    // Nobody else has it, and it is run from the store whatever the policy is.
    for policy in ["IfNotPresent", "Always", "Never"] {
        let pod_name = policy.to_lowercase();
        cloud.kubectl_with(&["apply", "-f", "-"], &pod(&pod_name, &name, policy, None))?;
        wait_ready(&cloud, &pod_name)?;
    }
    let digest = cloud.field("pod/always", ".status.containerStatuses[0].imageID")?;
    let listed = cloud.cumulet(&["image", "search", "team/hello"])?;
    assert!(listed.contains(&name), "{listed}");

    let dir = work.path().join("back");
    skopeo(&[&format!("docker://{name}"), &format!("dir:{}", dir.display())])?;
    let manifest = std::fs::read(dir.join("manifest.json"))?;
    let back = succeed(Command::new("sha256sum").arg(dir.join("manifest.json")))?;
    assert!(
        !manifest.is_empty() && digest.ends_with(back.split_whitespace().next().unwrap_or("?")),
        "{digest} {back}"
    );

    let missing = format!("{registry}/team/missing:1");
    cloud.kubectl_with(&["apply", "-f", "-"], &pod("missing", &missing, "IfNotPresent", None))?;
    wait_field(&cloud, "pod/missing", WAITING, "ImagePullBackOff")?;
    skopeo(&[&format!("oci-archive:{}", archive.display()), &format!("docker://{missing}")])?;
    // At once, not when the back-off is over.
    wait_ready(&cloud, "missing")?;
    assert_eq!(cloud.cumulet(&["image", "verify"])?.trim(), "every blob and layer is what its digest says");
    cloud.finish()
}

#[test]
fn pods_pull_from_other_registries() -> anyhow::Result<()> {
    let other = Registry::start("me", "secret")?;
    other.cloud.build_hello()?;
    let name = format!("{}/private/hello:1", other.address);
    let config = other.docker_config()?;
    let push = |target: &str| {
        succeed(
            Command::new(cumulet_e2e::program())
                .env("DOCKER_CONFIG", config.path())
                .arg("--state-dir")
                .arg(other.cloud.dir())
                .args(["image", "push", "hello:1", target]),
        )
    };
    push(&name)?;

    let cloud = Cloud::start()?;
    cloud.kubectl_with(&["apply", "-f", "-"], &pod("stranger", &name, "IfNotPresent", None))?;
    wait_field(&cloud, "pod/stranger", WAITING, "ImagePullBackOff")?;
    let told = cloud.kubectl(&["describe", "pod", "stranger"])?;
    for words in ["Pulling image", "unauthorized", "authentication required", "Back-off pulling image"] {
        assert!(told.contains(words), "{words:?} is missing: {told}");
    }
    assert!(!told.contains("secret"), "{told}");

    let server = format!("--docker-server={}", other.address);
    let user = ["--docker-username=me", "--docker-password=secret"];
    cloud.kubectl(&["create", "secret", "docker-registry", "pull", &server, user[0], user[1]])?;
    let pods = pod("friend", &name, "Always", Some("pull"))
        + &pod("never", &name.replace(":1", ":2"), "Never", None)
        + &pod("typo", "Not/An/Image", "IfNotPresent", None);
    cloud.kubectl_with(&["apply", "-f", "-"], &pods)?;
    wait_ready(&cloud, "friend")?;
    wait_field(&cloud, "pod/never", WAITING, "ErrImageNeverPull")?;
    wait_field(&cloud, "pod/typo", WAITING, "InvalidImageName")?;
    let told = cloud.kubectl(&["describe", "pod", "friend"])?;
    assert!(told.contains("Successfully pulled image"), "{told}");
    let account = "{\"imagePullSecrets\": [{\"name\": \"pull\"}]}";
    cloud.kubectl(&["patch", "serviceaccount", "default", "-p", account])?;
    cloud.kubectl_with(&["apply", "-f", "-"], &pod("heir", &name, "Always", None))?;
    assert_eq!(cloud.field("pod/heir", ".spec.imagePullSecrets[0].name")?, "pull");
    wait_ready(&cloud, "heir")?;
    // The other one's image is there now, and the store tells.
    wait_ready(&cloud, "stranger")?;

    // With Always a pulled image is asked for again, so the pod waits for a registry that is gone.
    other.cloud.finish()?;
    cloud.kubectl_with(&["apply", "-f", "-"], &pod("late", &name, "Always", Some("pull")))?;
    wait_for("the pull to fail", || {
        let reason = cloud.field("pod/late", WAITING).ok()?;
        ["ErrImagePull", "ImagePullBackOff"].contains(&reason.as_str()).then_some(())
    })?;
    cloud.kubectl_with(&["apply", "-f", "-"], &pod("present", &name, "IfNotPresent", None))?;
    wait_ready(&cloud, "present")?;
    cloud.finish()
}
