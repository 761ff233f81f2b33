//! The files of ConfigMap, Secret, downwardAPI and projected volumes, as data.

use crate::env::{Objects, PodFacts};
use crate::fields;
use k8s_openapi::api::core::v1::{
    ConfigMapVolumeSource, DownwardAPIVolumeFile, KeyToPath, Pod, ProjectedVolumeSource, SecretVolumeSource,
    Volume,
};
use std::collections::BTreeMap;

/// One file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct File {
    pub(crate) bytes: Vec<u8>,
    pub(crate) mode: u32,
}

/// Relative path → file.
pub(crate) type Payload = BTreeMap<String, File>;

/// Default permissions of a file in such a volume.
const MODE: i32 = 0o644;

/// Whether the volume is one of those made of files.
pub(crate) fn is_payload(volume: &Volume) -> bool {
    volume.config_map.is_some()
        || volume.secret.is_some()
        || volume.downward_api.is_some()
        || volume.projected.is_some()
}

/// The files of a volume, or why there are none yet.
pub(crate) fn payload(
    volume: &Volume,
    pod: &Pod,
    facts: &PodFacts,
    objects: &dyn Objects,
) -> Result<Payload, String> {
    if let Some(source) = &volume.config_map {
        return config_map(source, objects);
    }
    if let Some(source) = &volume.secret {
        return secret(source, objects);
    }
    if let Some(source) = &volume.downward_api {
        let mode = source.default_mode.unwrap_or(MODE);
        return downward(source.items.as_deref().unwrap_or_default(), mode, pod, facts);
    }
    match &volume.projected {
        Some(source) => projected(source, pod, facts, objects),
        None => Ok(Payload::new()),
    }
}

fn config_map(source: &ConfigMapVolumeSource, objects: &dyn Objects) -> Result<Payload, String> {
    let optional = source.optional.unwrap_or(false);
    let Some(map) = objects.config_map(&source.name) else {
        return missing(optional, || format!("configmap \"{}\" not found", source.name));
    };
    let mut data: BTreeMap<&str, &[u8]> = BTreeMap::new();
    data.extend(map.data.iter().flatten().map(|(k, v)| (k.as_str(), v.as_bytes())));
    data.extend(map.binary_data.iter().flatten().map(|(k, v)| (k.as_str(), v.0.as_slice())));
    let items = source.items.as_deref();
    select(&data, items, source.default_mode, optional)
        .map_err(|key| format!("configmap references non-existent config key: {key}"))
}

fn secret(source: &SecretVolumeSource, objects: &dyn Objects) -> Result<Payload, String> {
    let optional = source.optional.unwrap_or(false);
    let name = source.secret_name.as_deref().unwrap_or_default();
    let Some(secret) = objects.secret(name) else {
        return missing(optional, || format!("secret \"{name}\" not found"));
    };
    let data = secret.data.iter().flatten().map(|(k, v)| (k.as_str(), v.0.as_slice())).collect();
    select(&data, source.items.as_deref(), source.default_mode, optional)
        .map_err(|key| format!("references non-existent secret key: {key}"))
}

fn missing(optional: bool, message: impl Fn() -> String) -> Result<Payload, String> {
    if optional { Ok(Payload::new()) } else { Err(message()) }
}

/// All keys, or those of `items` under their paths. The error is a key that is not there.
fn select(
    data: &BTreeMap<&str, &[u8]>,
    items: Option<&[KeyToPath]>,
    default_mode: Option<i32>,
    optional: bool,
) -> Result<Payload, String> {
    let mode = default_mode.unwrap_or(MODE);
    let file = |bytes: &[u8], mode: i32| File { bytes: bytes.to_vec(), mode: permissions(mode) };
    let Some(items) = items.filter(|i| !i.is_empty()) else {
        return Ok(data.iter().map(|(key, bytes)| ((*key).to_owned(), file(bytes, mode))).collect());
    };
    let mut payload = Payload::new();
    for item in items {
        match data.get(item.key.as_str()) {
            Some(bytes) => {
                payload.insert(item.path.clone(), file(bytes, item.mode.unwrap_or(mode)));
            }
            None if optional => {}
            None => return Err(item.key.clone()),
        }
    }
    Ok(payload)
}

fn permissions(mode: i32) -> u32 {
    mode.unsigned_abs() & 0o777
}

fn downward(
    items: &[DownwardAPIVolumeFile],
    default_mode: i32,
    pod: &Pod,
    facts: &PodFacts,
) -> Result<Payload, String> {
    let mut payload = Payload::new();
    for item in items {
        let text = if let Some(field) = &item.field_ref {
            fields::field(pod, facts, &field.field_path).map_err(|e| e.to_string())?
        } else if let Some(resource) = &item.resource_field_ref {
            let name = resource.container_name.as_deref().unwrap_or_default();
            let spec = pod.spec.as_ref();
            let mut all =
                spec.into_iter().flat_map(|s| s.containers.iter().chain(s.init_containers.iter().flatten()));
            let container =
                all.find(|c| c.name == name).ok_or_else(|| format!("container {name} not found"))?;
            let divisor = resource.divisor.as_ref().map(|q| q.0.as_str());
            fields::resource(pod, container, facts, (&resource.resource, divisor))
                .map_err(|e| e.to_string())?
        } else {
            String::new()
        };
        let mode = permissions(item.mode.unwrap_or(default_mode));
        payload.insert(item.path.clone(), File { bytes: text.into_bytes(), mode });
    }
    Ok(payload)
}

fn projected(
    source: &ProjectedVolumeSource,
    pod: &Pod,
    facts: &PodFacts,
    objects: &dyn Objects,
) -> Result<Payload, String> {
    let default_mode = source.default_mode;
    let mut payload = Payload::new();
    for one in source.sources.iter().flatten() {
        if let Some(s) = &one.config_map {
            let source = ConfigMapVolumeSource {
                default_mode,
                items: s.items.clone(),
                name: s.name.clone(),
                optional: s.optional,
            };
            payload.extend(config_map(&source, objects)?);
        }
        if let Some(s) = &one.secret {
            let source = SecretVolumeSource {
                default_mode,
                items: s.items.clone(),
                secret_name: Some(s.name.clone()),
                optional: s.optional,
            };
            payload.extend(secret(&source, objects)?);
        }
        if let Some(s) = &one.downward_api {
            let items = s.items.as_deref().unwrap_or_default();
            payload.extend(downward(items, default_mode.unwrap_or(MODE), pod, facts)?);
        }
        if one.service_account_token.is_some() {
            return Err("service account tokens are not issued by this version".to_owned());
        }
        if one.cluster_trust_bundle.is_some() || one.pod_certificate.is_some() {
            return Err(
                "clusterTrustBundle and podCertificate sources are not supported by this version".to_owned()
            );
        }
    }
    Ok(payload)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::inputs::ObjectSet;
    use serde_json::{Value, json};
    use std::sync::Arc;

    fn run(volume: Value) -> Result<Vec<(String, String, u32)>, String> {
        let map = json!({"metadata": {"name": "cm"}, "data": {"a": "1"}, "binaryData": {"b": "Mg=="}});
        let secret = json!({"metadata": {"name": "s"}, "data": {"p": "c2VjcmV0"}});
        let objects = ObjectSet {
            config_maps: [("cm".to_owned(), Arc::new(serde_json::from_value(map).unwrap()))].into(),
            secrets: [("s".to_owned(), Arc::new(serde_json::from_value(secret).unwrap()))].into(),
            services: vec![],
            ..ObjectSet::default()
        };
        let pod: Pod =
            serde_json::from_value(json!({"metadata": {"name": "w", "labels": {"k": "v"}}})).unwrap();
        let volume: Volume = serde_json::from_value(volume).unwrap();
        let payload = payload(&volume, &pod, &PodFacts::default(), &objects)?;
        Ok(payload.into_iter().map(|(p, f)| (p, String::from_utf8(f.bytes).unwrap(), f.mode)).collect())
    }

    fn file(path: &str, text: &str, mode: u32) -> (String, String, u32) {
        (path.to_owned(), text.to_owned(), mode)
    }

    #[test]
    fn sources() {
        let all = run(json!({"name": "v", "configMap": {"name": "cm"}}));
        assert_eq!(all, Ok(vec![file("a", "1", 0o644), file("b", "2", 0o644)]));
        let items = run(json!({"name": "v", "secret": {"secretName": "s", "defaultMode": 256,
            "items": [{"key": "p", "path": "x/y"}]}}));
        assert_eq!(items, Ok(vec![file("x/y", "secret", 0o400)]));
        let mixed = run(json!({"name": "v", "projected": {"sources": [
            {"configMap": {"name": "cm", "items": [{"key": "a", "path": "c"}]}},
            {"downwardAPI": {"items": [{"path": "l", "fieldRef": {"fieldPath": "metadata.labels"}}]}}]}}));
        assert_eq!(mixed, Ok(vec![file("c", "1", 0o644), file("l", "k=\"v\"", 0o644)]));
    }

    #[test]
    fn missing() {
        let gone = json!({"name": "v", "configMap": {"name": "no"}});
        assert_eq!(run(gone), Err("configmap \"no\" not found".to_owned()));
        assert_eq!(run(json!({"name": "v", "configMap": {"name": "no", "optional": true}})), Ok(vec![]));
        let key = json!({"name": "v", "secret": {"secretName": "s", "items": [{"key": "no", "path": "x"}]}});
        assert_eq!(run(key), Err("references non-existent secret key: no".to_owned()));
    }
}
