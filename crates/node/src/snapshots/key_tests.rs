//! What makes pods share a template, and what must not.

use super::*;
use std::path::PathBuf;

/// A namespace with one ConfigMap and one Secret.
#[derive(Clone, Default)]
struct Fixed {
    config: &'static str,
    secret: &'static str,
    services: bool,
}

impl Objects for Fixed {
    fn config_map(&self, _: &str) -> Option<Arc<ConfigMap>> {
        let data = [("key".to_owned(), self.config.to_owned())].into();
        Some(Arc::new(ConfigMap { data: Some(data), ..ConfigMap::default() }))
    }

    fn secret(&self, _: &str) -> Option<Arc<Secret>> {
        let data = [("key".to_owned(), k8s_openapi::ByteString(self.secret.as_bytes().to_vec()))].into();
        Some(Arc::new(Secret { data: Some(data), ..Secret::default() }))
    }

    fn services(&self) -> Vec<Arc<Service>> {
        let service =
            json!({"metadata": {"name": "s"}, "spec": {"clusterIP": "10.0.0.1", "ports": [{"port": 1}]}});
        self.services.then(|| Arc::new(serde_json::from_value(service).unwrap())).into_iter().collect()
    }
}

/// All that a key is made from.
#[derive(Clone)]
struct Given {
    pod: Value,
    vm: VmSpec,
    images: HashMap<String, ResolvedImage>,
    facts: PodFacts,
    objects: Fixed,
}

impl Given {
    fn new() -> Self {
        let pod = json!({
            "metadata": {"name": "web-1", "namespace": "shop", "uid": "u-1", "labels": {"app": "web"},
                "annotations": {"note": "x"}},
            "spec": {
                "initContainers": [{"name": "init", "image": "init:1", "command": ["prepare"]}],
                "containers": [{"name": "web", "image": "web:1", "args": ["serve"],
                    "env": [{"name": "MODE", "value": "fast"},
                        {"name": "NAME", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}},
                        {"name": "IP", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}},
                        {"name": "KEY", "valueFrom": {"configMapKeyRef": {"name": "c", "key": "key"}}}],
                    "ports": [{"containerPort": 80}],
                    "volumeMounts": [{"name": "secret", "mountPath": "/s"}]}],
                "volumes": [{"name": "secret", "secret": {"secretName": "s"}}, {"name": "tmp", "emptyDir": {}},
                    {"name": "info", "downwardAPI": {"items": [
                        {"path": "name", "fieldRef": {"fieldPath": "metadata.name"}},
                        {"path": "uid", "fieldRef": {"fieldPath": "metadata.uid"}}]}}],
            },
        });
        let image = |id: &str| ResolvedImage { id: id.to_owned(), ..ResolvedImage::default() };
        let facts =
            PodFacts { pod_ips: vec!["10.1.0.5".into()], hostname: "web-1".into(), ..PodFacts::default() };
        Self {
            pod,
            vm: machine(),
            images: [("init".to_owned(), image("sha256:1")), ("web".to_owned(), image("sha256:2"))].into(),
            facts,
            objects: Fixed { config: "c", secret: "s", services: false },
        }
    }

    fn pod(&self) -> Pod {
        serde_json::from_value(self.pod.clone()).unwrap()
    }

    fn parts(&self) -> Vec<(String, Vec<u8>)> {
        parts(&self.pod(), &self.vm, &self.images, &self.facts, &self.objects).unwrap()
    }

    fn set(&mut self, pointer: &str, value: Value) {
        let (object, name) = pointer.rsplit_once('/').unwrap();
        self.pod.pointer_mut(object).unwrap().as_object_mut().unwrap().insert(name.to_owned(), value);
    }
}

fn machine() -> VmSpec {
    let version = json!({"major": 8, "minor": 2, "micro": 2});
    let qemu = json!({"program": "/usr/bin/qemu", "version": version, "qboot": null, "tsc_khz": null});
    let qemu = serde_json::from_value(qemu).unwrap();
    VmSpec {
        qemu,
        vcpus: 1,
        memory_bytes: 128 << 20,
        kvm: false,
        user: (100_001, 100),
        kernel: "/k/vmlinuz".into(),
        initramfs: "/k/abc.cpio".into(),
        images: Vec::new(),
        scratch_bytes: None,
        mac: [2, 0, 0, 0, 0, 1],
        etc: PathBuf::from("/pods/1/etc"),
        volumes: BTreeMap::new(),
        memory: crate::supervisor::proto::VmMemory::Own,
        share_process_namespace: false,
        limits: cumulet_container::Resources::default(),
        disk: None,
    }
}

#[test]
fn replicas_have_one_key() {
    let first = Given::new().parts();
    let check = |what: &str, change: fn(&mut Given)| {
        let mut given = Given::new();
        change(&mut given);
        assert_eq!(given.parts(), first, "{what} changes the key");
    };
    check("the name", |g| g.set("/metadata/name", json!("web-2")));
    check("the uid", |g| g.set("/metadata/uid", json!("u-2")));
    check("the address", |g| g.facts.pod_ips = vec!["10.1.0.6".into()]);
    check("the host name", |g| g.facts.hostname = "web-2".into());
    check("a host name of the spec", |g| g.set("/spec/hostname", json!("other")));
    check("a toleration", |g| g.set("/spec/tolerations", json!([{"key": "a", "operator": "Exists"}])));
    check("the grace period", |g| g.set("/spec/terminationGracePeriodSeconds", json!(5)));
    check("a node", |g| g.set("/spec/nodeName", json!("here")));
    check("an annotation of somebody else", |g| g.set("/metadata/annotations/note", json!("y")));
    check("the number of standbys", |g| {
        let annotations = g.pod.pointer_mut("/metadata/annotations").unwrap().as_object_mut().unwrap();
        annotations.insert(format!("{ANNOTATIONS}standby"), json!("3"));
    });
    check("the name of an image", |g| g.pod["spec"]["containers"][0]["image"] = json!("web:latest"));
    check("a Service", |g| g.objects.services = true);
    check("the machine's address and user", |g| (g.vm.mac, g.vm.user) = ([2, 0, 0, 0, 0, 2], (100_002, 100)));
}

#[test]
fn what_reaches_the_guest_changes_the_key() {
    let first = Given::new().parts();
    let check = |what: &str, change: fn(&mut Given)| {
        let mut given = Given::new();
        change(&mut given);
        assert_ne!(given.parts(), first, "{what} does not change the key");
    };
    check("the namespace", |g| g.set("/metadata/namespace", json!("bank")));
    check("an image", |g| g.images.get_mut("web").unwrap().id = "sha256:3".into());
    check("an init container's image", |g| g.images.get_mut("init").unwrap().id = "sha256:3".into());
    check("an image's user", |g| g.images.get_mut("web").unwrap().user = "7".into());
    check("an image's variables", |g| g.images.get_mut("web").unwrap().env = vec!["A=b".into()]);
    check("an image's command", |g| g.images.get_mut("web").unwrap().cmd = vec!["x".into()]);
    check("arguments", |g| g.pod["spec"]["containers"][0]["args"] = json!(["other"]));
    check("a variable", |g| g.pod["spec"]["containers"][0]["env"][0]["value"] = json!("slow"));
    check("a variable from a ConfigMap", |g| g.objects.config = "d");
    check("a file from a Secret", |g| g.objects.secret = "t");
    check("a mount", |g| g.pod["spec"]["containers"][0]["volumeMounts"][0]["mountPath"] = json!("/t"));
    check("an init container", |g| g.pod["spec"]["initContainers"][0]["command"] = json!(["other"]));
    check("a security context", |g| g.set("/spec/securityContext", json!({"runAsUser": 5})));
    check("a sysctl", |g| g.set("/spec/securityContext", json!({"sysctls": [{"name": "a", "value": "1"}]})));
    check("a warm-up", |g| {
        let annotations = g.pod.pointer_mut("/metadata/annotations").unwrap().as_object_mut().unwrap();
        annotations.insert(format!("{ANNOTATIONS}warmup-path"), json!("/"));
    });
    check("a label that a file shows", |g| {
        g.pod["spec"]["volumes"][2]["downwardAPI"]["items"][0]["fieldRef"]["fieldPath"] =
            json!("metadata.labels");
    });
    check("memory", |g| g.vm.memory_bytes *= 2);
    check("processors", |g| g.vm.vcpus = 2);
    check("QEMU", |g| g.vm.qemu.version.minor = 3);
    check("virtualization", |g| g.vm.kvm = true);
    check("firmware", |g| g.vm.qemu.qboot = Some("/qboot".into()));
    check("kernel and agent", |g| g.vm.initramfs = "/k/def.cpio".into());
}

#[test]
fn own_variables_are_those_that_differ() {
    let given = Given::new();
    let own = own_env(&given.pod(), &given.images, &given.facts, &given.objects);
    assert!(own.contains(&"NAME=web-1".to_owned()) && own.contains(&"IP=10.1.0.5".to_owned()), "{own:?}");
    assert!(!own.iter().any(|line| line.starts_with("MODE=") || line.starts_with("KEY=")), "{own:?}");
}

#[test]
fn volumes_outside_the_machine_are_refused() {
    let check = |volume: Value, suits: bool| {
        let mut given = Given::new();
        given.set("/spec/volumes", json!([volume]));
        assert_eq!(unsuitable(&given.pod()).is_none(), suits);
    };
    check(json!({"name": "v", "emptyDir": {}}), true);
    check(json!({"name": "v", "configMap": {"name": "c"}}), true);
    check(json!({"name": "v", "hostPath": {"path": "/srv"}}), false);
    check(json!({"name": "v", "persistentVolumeClaim": {"claimName": "c"}}), false);
}
