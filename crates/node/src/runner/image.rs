//! A container's image: looked for, pulled when the policy says so, told to the pod's task.

use super::effects::record;
use super::task::{PodContext, container};
use crate::env::Objects;
use crate::images::{self, ImageError, ResolvedImage};
use cumulet_images::Keyring;
use cumulet_podlife::{Event, EventType};
use k8s_openapi::api::core::v1::{Pod, Secret};
use std::sync::Arc;

/// The types of secrets that hold registry credentials, and the key with the file in each.
const PULL_SECRETS: [(&str, &str); 2] =
    [("kubernetes.io/dockerconfigjson", ".dockerconfigjson"), ("kubernetes.io/dockercfg", ".dockercfg")];

/// Gets the image of a container and reports what came of it.
pub(super) async fn ensure(context: Arc<PodContext>, name: String) {
    // Noted before the store is looked at, so that what arrives meanwhile is not missed.
    context.live().missing.insert(name.clone());
    let event = match find(&context, &name).await {
        Ok((image, pulled)) => {
            let image_id = image.id.clone();
            let mut live = context.live();
            live.missing.remove(&name);
            live.images.insert(name.clone(), image);
            drop(live);
            context.news.notify_waiters();
            Event::ImageResolved { container: name, image_id, pulled }
        }
        Err(error) => {
            Event::ImageFailed { container: name, reason: error.reason.to_owned(), message: error.message }
        }
    };
    context.report(event);
}

async fn find(context: &Arc<PodContext>, name: &str) -> Result<(ResolvedImage, Option<String>), ImageError> {
    let pod = context.pod();
    let wanted = container(&pod, name);
    let image = wanted.and_then(|c| c.image.clone()).unwrap_or_default();
    let policy = wanted.and_then(|c| c.image_pull_policy.clone());
    let images = context.shared.images.clone();
    let (asked, how) = (image.clone(), policy.clone());
    let must_pull = on_disk(move || images.must_pull(&asked, how.as_deref())).await?;
    let mut pulled = None;
    let mut failed = None;
    if must_pull {
        record(
            context,
            Some(name.to_owned()),
            EventType::Normal,
            "Pulling",
            &format!("Pulling image \"{image}\""),
        );
        match context.shared.images.pull(&image, &keyring(context, &pod).await).await {
            Ok(message) => pulled = Some(message),
            // It may have been brought in another way while the registry did not answer.
            Err(error) if policy.as_deref() != Some("Always") => failed = Some(error),
            Err(error) => return Err(error),
        }
    }
    let images = context.shared.images.clone();
    let found = on_disk(move || images.present(&image, policy.as_deref())).await;
    match (found, failed) {
        (Ok(image), _) => Ok((image, pulled)),
        (Err(_), Some(error)) | (Err(error), None) => Err(error),
    }
}

/// Works on the image store, away from the runtime's own threads.
pub(super) async fn on_disk<T: Send + 'static>(
    task: impl FnOnce() -> Result<T, ImageError> + Send + 'static,
) -> Result<T, ImageError> {
    let done = tokio::task::spawn_blocking(task).await;
    done.unwrap_or_else(|error| Err(ImageError::pull(&error)))
}

/// The credentials that the pod's secrets hold. A secret that cannot be used is told of and passed over, as others
/// may do, and many images need none.
async fn keyring(context: &Arc<PodContext>, pod: &Pod) -> Keyring {
    let objects = context.shared.inputs.collect(pod).await;
    let names = pod.spec.iter().flat_map(|spec| spec.image_pull_secrets.iter().flatten());
    let mut found = Vec::new();
    for reference in names {
        match objects.secret(&reference.name).as_deref().and_then(credentials) {
            Some(bytes) => found.push((reference.name.clone(), bytes)),
            None => {
                let message = format!(
                    "Unable to retrieve some image pull secrets ({}); attempting to pull the image may not succeed.",
                    reference.name
                );
                record(context, None, EventType::Warning, "FailedToRetrieveImagePullSecret", &message);
            }
        }
    }
    let read = move || images::keyring(found.iter().map(|(name, bytes)| (name.as_str(), bytes.as_slice())));
    let Ok((keyring, problems)) = tokio::task::spawn_blocking(read).await else { return Keyring::default() };
    for problem in problems {
        record(context, None, EventType::Warning, "FailedToRetrieveImagePullSecret", &problem);
    }
    keyring
}

fn credentials(secret: &Secret) -> Option<Vec<u8>> {
    let kind = secret.type_.as_deref()?;
    let (_, key) = PULL_SECRETS.iter().find(|(known, _)| *known == kind)?;
    secret.data.as_ref()?.get(*key).map(|bytes| bytes.0.clone())
}
