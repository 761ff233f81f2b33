//! Tests of the allocator of Service addresses and node ports.

use super::*;
use proptest::prelude::*;
use std::collections::BTreeSet;

fn allocator() -> ServiceAllocator {
    ServiceAllocator::new("10.97.0.0/16".parse().unwrap(), std::iter::empty::<Value>())
}

fn service(spec: Value) -> Value {
    let mut service = json!({"metadata": {"name": "s"}, "spec": spec});
    crate::row::Strategy::default(crate::kinds::service::ROW.strategy, &mut service);
    service
}

fn cluster_ip(spec: Value, a: &ServiceAllocator) -> Value {
    let mut s = service(spec);
    a.reserve(&mut s, None).unwrap().commit();
    s
}

#[test]
fn a_service_gets_an_address_from_the_upper_band() {
    let a = allocator();
    let s = cluster_ip(json!({"ports": [{"port": 80}]}), &a);
    assert_eq!(s["spec"]["clusterIP"], "10.97.1.1");
    assert_eq!(s["spec"]["clusterIPs"], json!(["10.97.1.1"]));
    assert_eq!(s["spec"]["ipFamilies"], json!(["IPv4"]));
    assert_eq!(s["spec"]["ipFamilyPolicy"], "SingleStack");
    assert_eq!(s["spec"]["ports"][0].get("nodePort"), None);
    assert_eq!(cluster_ip(json!({"ports": [{"port": 80}]}), &a)["spec"]["clusterIP"], "10.97.1.2");
    assert_eq!(a.api_address().to_string(), "10.97.0.1");
}

#[test]
fn wishes_are_granted_or_refused_in_kubernetes_words() {
    let a = allocator();
    let taken = cluster_ip(
        json!({"clusterIP": "10.97.0.10", "type": "NodePort", "ports": [
        {"port": 53, "protocol": "UDP", "nodePort": 30053}, {"port": 53, "nodePort": 30053}]}),
        &a,
    );
    assert_eq!(taken["spec"]["clusterIPs"], json!(["10.97.0.10"]));
    for (spec, message) in [
        (
            json!({"clusterIP": "10.97.0.10"}),
            "spec.clusterIPs: Invalid value: [\"10.97.0.10\"]: failed to allocate IP 10.97.0.10: provided IP is \
             already allocated",
        ),
        (
            json!({"clusterIP": "10.99.0.10"}),
            "spec.clusterIPs: Invalid value: [\"10.99.0.10\"]: failed to allocate IP 10.99.0.10: the provided network \
             does not match the current range",
        ),
        (
            json!({"type": "NodePort", "ports": [{"port": 80, "nodePort": 30053}]}),
            "spec.ports[0].nodePort: Invalid value: 30053: provided port is already allocated",
        ),
        (
            json!({"type": "NodePort", "ports": [{"port": 80, "nodePort": 80}]}),
            "spec.ports[0].nodePort: Invalid value: 80: provided port is not in the valid range. The range of valid \
             ports is 30000-32767",
        ),
        (
            json!({"ipFamilyPolicy": "RequireDualStack"}),
            "spec.ipFamilyPolicy: Invalid value: \"RequireDualStack\": this cluster is not configured for dual-stack \
             services",
        ),
        (
            json!({"ipFamilies": ["IPv6"]}),
            "spec.ipFamilies[0]: Invalid value: \"IPv6\": not configured on this cluster",
        ),
    ] {
        let error = a.reserve(&mut service(spec), None).err().unwrap();
        assert_eq!(error.to_string(), message);
    }
    // A refusal holds nothing: the address that was chosen before the port failed is free again.
    let free = cluster_ip(json!({"clusterIP": "10.97.1.1"}), &a);
    assert_eq!(free["spec"]["clusterIP"], "10.97.1.1");
}

#[test]
fn headless_and_external_services_hold_nothing() {
    let a = allocator();
    for spec in [
        json!({"clusterIP": "None", "ports": [{"port": 80}]}),
        json!({"type": "ExternalName", "externalName": "a.example"}),
    ] {
        let mut s = service(spec);
        let r = a.reserve(&mut s, None).unwrap();
        assert!(r.taken.ips.is_empty() && r.taken.ports.is_empty());
    }
}

#[test]
fn types_may_change_and_what_is_not_needed_is_freed() {
    let a = allocator();
    let strategy = crate::kinds::service::ROW.strategy;
    let step = |old: &Value, change: &dyn Fn(&mut Value)| {
        let mut new = old.clone();
        change(&mut new);
        strategy.default(&mut new);
        strategy.prepare_update(old, &mut new);
        a.reserve(&mut new, Some(old)).unwrap().commit();
        assert_eq!(strategy.validate(&new), []);
        assert_eq!(strategy.validate_update(old, &new), []);
        new
    };
    let plain = cluster_ip(json!({"ports": [{"port": 80}]}), &a);
    let node = step(&plain, &|s| s["spec"]["type"] = json!("NodePort"));
    assert_eq!(node["spec"]["clusterIP"], plain["spec"]["clusterIP"]);
    let number = int(&node["spec"]["ports"][0], "nodePort").unwrap();
    assert!((30_086..=32_767).contains(&number), "{number} is of the band that is only given on request");
    assert_eq!(node["spec"]["externalTrafficPolicy"], "Cluster");
    // A client that knows nothing of the allocated values replaces the object.
    let replaced = step(&node, &|s| s["spec"] = json!({"type": "NodePort", "ports": [{"port": 80}]}));
    assert_eq!(replaced["spec"], node["spec"]);
    let back = step(&node, &|s| s["spec"]["type"] = json!("ClusterIP"));
    assert_eq!(back["spec"]["ports"][0].get("nodePort"), None);
    assert_eq!(back["spec"].get("externalTrafficPolicy"), None);
    assert!(lock(&a.pools).ports.used.is_empty());
    let external = step(&back, &|s| {
        s["spec"]["type"] = json!("ExternalName");
        s["spec"]["externalName"] = json!("a.example");
    });
    assert_eq!(external["spec"].get("clusterIP"), None);
    assert!(lock(&a.pools).ips.used.is_empty());
    let again = step(&external, &|s| s["spec"]["type"] = json!("ClusterIP"));
    assert_eq!(again["spec"]["clusterIP"], "10.97.1.2");
    let balanced = step(&again, &|s| {
        s["spec"]["type"] = json!("LoadBalancer");
        s["spec"]["externalTrafficPolicy"] = json!("Local");
    });
    let numbers = BTreeSet::from([
        int(&balanced, "spec.healthCheckNodePort").unwrap(),
        int(&balanced["spec"]["ports"][0], "nodePort").unwrap(),
        number,
    ]);
    assert_eq!(numbers.len(), 3, "a freed port is not given again at once: {numbers:?}");
    a.release(&balanced);
    assert!(lock(&a.pools).ports.used.is_empty() && lock(&a.pools).ips.used.is_empty());
}

#[test]
fn small_ranges_run_full() {
    let a = ServiceAllocator::new("10.0.0.0/29".parse().unwrap(), std::iter::empty::<Value>());
    let all: Vec<String> =
        (0..5).map(|_| cluster_ip(json!({}), &a)["spec"]["clusterIP"].as_str().unwrap().to_owned()).collect();
    assert_eq!(all, ["10.0.0.2", "10.0.0.3", "10.0.0.4", "10.0.0.5", "10.0.0.6"]);
    let error = a.reserve(&mut service(json!({})), None).err().unwrap();
    assert_eq!(
        error.to_string(),
        "spec.clusterIPs: Invalid value: null: failed to allocate a serviceIP: range is full"
    );
}

proptest! {
    /// Any history of creations, aborted creations and removals leaves exactly the living Services' holdings held.
    #[test]
    fn nothing_leaks_and_nothing_is_shared(ops in prop::collection::vec((0u8..4, any::<prop::sample::Index>()), 0..60)) {
        let a = ServiceAllocator::new("10.0.0.0/27".parse().unwrap(), std::iter::empty::<Value>());
        let mut living: Vec<Value> = Vec::new();
        for (op, index) in ops {
            match op {
                0 | 1 => {
                    let mut s = service(json!({"type": "NodePort", "ports": [{"port": 80}]}));
                    let reservation = a.reserve(&mut s, None);
                    if let (0, Ok(reservation)) = (op, reservation) {
                        reservation.commit();
                        living.push(s);
                    }
                }
                2 if !living.is_empty() => a.release(&living.swap_remove(index.index(living.len()))),
                _ => {
                    let a2 = ServiceAllocator::new("10.0.0.0/27".parse().unwrap(), living.iter());
                    prop_assert_eq!(&lock(&a2.pools).ips.used, &lock(&a.pools).ips.used);
                }
            }
            prop_assert_eq!(lock(&a.pools).ips.used.len(), living.len());
            prop_assert_eq!(lock(&a.pools).ports.used.len(), living.len());
        }
    }
}
