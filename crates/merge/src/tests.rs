//! Tables of patches and their results, and properties.

use crate::{MergeError, json_patch, merge_diff, merge_patch, strategic};
use cumulet_api::schema::{Type, schema};
use proptest::prelude::*;
use serde_json::{Value, json};

fn ty(name: &str) -> &'static Type {
    schema().named(name).unwrap_or_else(|| panic!("no type {name}"))
}

fn check(name: &str, object: Value, patch: Value, expected: Value) {
    let found = strategic(ty(name), &object, &patch).unwrap_or_else(|e| panic!("{object} + {patch}: {e}"));
    assert_eq!(found, expected, "{object} + {patch}");
}

fn check_error(name: &str, object: Value, patch: Value, expected: &str) {
    let error = strategic(ty(name), &object, &patch).expect_err("must fail");
    assert!(error.to_string().contains(expected), "{error} should contain {expected:?}");
    assert_eq!(error.to_status().code, 400);
}

#[test]
fn maps_and_scalars() {
    let t = "core.v1.Pod";
    check(t, json!({}), json!({}), json!({}));
    check(
        t,
        json!({"spec": {"nodeName": "a"}}),
        json!({"spec": {"nodeName": "b"}}),
        json!({"spec": {"nodeName": "b"}}),
    );
    check(t, json!({"spec": {"nodeName": "a"}}), json!({"spec": {"nodeName": null}}), json!({"spec": {}}));
    check(t, json!({"spec": {"nodeName": "a"}}), json!({"spec": null}), json!({}));
    check(
        t,
        json!({"metadata": {"labels": {"a": "1", "b": "2"}}}),
        json!({"metadata": {"labels": {"a": null, "c": "3"}}}),
        json!({"metadata": {"labels": {"b": "2", "c": "3"}}}),
    );
    // Nulls of what is not there vanish, at every depth.
    check(t, json!({}), json!({"metadata": {"labels": {"a": null}}}), json!({"metadata": {"labels": {}}}));
    // Another type of value replaces.
    check(
        t,
        json!({"spec": {"x": {"a": 1}}}),
        json!({"spec": {"x": [1, {"b": null}]}}),
        json!({"spec": {"x": [1, {}]}}),
    );
    // Fields that the type does not know: maps merge, lists are replaced.
    check(
        t,
        json!({"x": {"a": 1, "l": [1]}}),
        json!({"x": {"b": 2, "l": [2]}}),
        json!({"x": {"a": 1, "b": 2, "l": [2]}}),
    );
}

#[test]
fn map_directives() {
    let t = "core.v1.Pod";
    let pod = json!({"spec": {"securityContext": {"runAsUser": 1, "runAsGroup": 2}}});
    check(
        t,
        pod.clone(),
        json!({"spec": {"securityContext": {"$patch": "replace", "fsGroup": 3}}}),
        json!({"spec": {"securityContext": {"fsGroup": 3}}}),
    );
    check(
        t,
        pod.clone(),
        json!({"spec": {"securityContext": {"$patch": "delete"}}}),
        json!({"spec": {"securityContext": {}}}),
    );
    check(
        t,
        json!({}),
        json!({"spec": {"$patch": "delete", "a": 1}, "x": {"y": {"$patch": "replace"}}}),
        json!({"x": {}}),
    );
    check_error(
        t,
        pod.clone(),
        json!({"spec": {"securityContext": {"$patch": "merge"}}}),
        "unknown patch type",
    );
    check_error(t, pod, json!({"spec": {"securityContext": {"$patch": 1}}}), "unknown patch type");
    check_error(t, json!([]), json!({}), "invalid JSON document");
}

#[test]
fn lists_of_maps() {
    let t = "core.v1.PodSpec";
    let two = json!({"containers": [{"name": "a", "image": "1"}, {"name": "b", "image": "2"}]});
    // An item merges by its key and keeps its place.
    check(
        t,
        two.clone(),
        json!({"containers": [{"name": "b", "image": "3"}]}),
        json!({"containers": [{"name": "a", "image": "1"}, {"name": "b", "image": "3"}]}),
    );
    // A new item of the patch goes before the server's items, unless these came before an item of the patch.
    check(
        t,
        two.clone(),
        json!({"containers": [{"name": "c", "image": "3"}]}),
        json!({"containers": [{"name": "c", "image": "3"}, {"name": "a", "image": "1"}, {"name": "b", "image": "2"}]}),
    );
    check(
        t,
        two.clone(),
        json!({"containers": [{"name": "b"}, {"name": "c", "image": "3"}]}),
        json!({"containers": [{"name": "a", "image": "1"}, {"name": "b", "image": "2"}, {"name": "c", "image": "3"}]}),
    );
    check(
        t,
        two.clone(),
        json!({"containers": [{"name": "a", "$patch": "delete"}]}),
        json!({"containers": [{"name": "b", "image": "2"}]}),
    );
    check(
        t,
        two.clone(),
        json!({"containers": [{"$patch": "replace"}, {"name": "z"}]}),
        json!({"containers": [{"name": "z"}]}),
    );
    check(
        t,
        json!({}),
        json!({"containers": [{"name": "a", "$patch": "delete"}, {"name": "b"}]}),
        json!({"containers": [{"name": "b"}]}),
    );
    // Lists without a strategy are replaced.
    check(
        t,
        json!({"containers": [{"name": "a", "args": ["x", "y"]}]}),
        json!({"containers": [{"name": "a", "args": ["z"]}]}),
        json!({"containers": [{"name": "a", "args": ["z"]}]}),
    );
    // The merge key of ports is the port alone, although server-side apply adds the protocol.
    check(
        "core.v1.Container",
        json!({"ports": [{"containerPort": 53, "protocol": "UDP"}, {"containerPort": 53, "protocol": "TCP"}]}),
        json!({"ports": [{"containerPort": 53, "name": "dns"}]}),
        json!({"ports": [{"containerPort": 53, "protocol": "UDP", "name": "dns"}, {"containerPort": 53, "protocol": "TCP"}]}),
    );
    check_error(
        t,
        two.clone(),
        json!({"containers": [{"image": "x"}]}),
        "does not contain declared merge key: name",
    );
    check_error(t, two.clone(), json!({"containers": ["a"]}), "list element types are not identical");
    check_error(
        t,
        two.clone(),
        json!({"containers": [{"$patch": "delete"}]}),
        "does not contain declared merge key",
    );
    check_error(
        t,
        two,
        json!({"containers": [{"name": "a", "$patch": "merge"}]}),
        "merging lists cannot yet",
    );
}

#[test]
fn lists_of_scalars() {
    let t = "meta.v1.ObjectMeta";
    let meta = json!({"finalizers": ["a", "b"]});
    check(t, meta.clone(), json!({"finalizers": ["c", "a"]}), json!({"finalizers": ["c", "a", "b"]}));
    check(
        t,
        meta.clone(),
        json!({"$deleteFromPrimitiveList/finalizers": ["a"]}),
        json!({"finalizers": ["b"]}),
    );
    check(
        t,
        meta.clone(),
        json!({"$deleteFromPrimitiveList/finalizers": ["a"], "finalizers": ["c"]}),
        json!({"finalizers": ["c", "b"]}),
    );
    check(t, json!({}), json!({"$deleteFromPrimitiveList/finalizers": ["a"]}), json!({}));
    check(t, meta.clone(), json!({"finalizers": null}), json!({}));
    check_error(
        t,
        meta.clone(),
        json!({"$deleteFromPrimitiveList": ["a"]}),
        "invalid patch format of primitive list",
    );
    check_error(t, meta, json!({"$deleteFromPrimitiveList/finalizers": [{}]}), "not identical");
}

#[test]
fn element_order() {
    let t = "core.v1.PodSpec";
    let names =
        |names: &[&str]| json!({"containers": names.iter().map(|n| json!({"name": n})).collect::<Vec<_>>()});
    let order = |new: &[&str], order: &[&str]| {
        let mut patch = names(new);
        patch["$setElementOrder/containers"] = names(order)["containers"].clone();
        patch
    };
    for (server, new, set, expected) in [
        (&["a", "b", "c"][..], &[][..], &["c", "b", "a"][..], &["c", "b", "a"][..]),
        (&["a", "b", "c"], &["d"], &["c", "d", "a"], &["b", "c", "d", "a"]),
        (&["a"], &["b"], &["a", "b"], &["a", "b"]),
        (&["a"], &["b"], &["b", "a"], &["b", "a"]),
        (&["x", "a", "y"], &["b"], &["b", "a"], &["b", "x", "a", "y"]),
        (&[], &["b"], &["b"], &["b"]),
    ] {
        check(t, names(server), order(new, set), names(expected));
    }
    // What rollout restart and set image send.
    check(
        t,
        json!({"containers": [{"name": "a", "image": "1"}, {"name": "side", "image": "s"}]}),
        json!({"$setElementOrder/containers": [{"name": "a"}], "containers": [{"name": "a", "image": "2"}]}),
        json!({"containers": [{"name": "a", "image": "2"}, {"name": "side", "image": "s"}]}),
    );
    check(
        "meta.v1.ObjectMeta",
        json!({"finalizers": ["a", "b"]}),
        json!({"$setElementOrder/finalizers": ["b", "c", "a"], "finalizers": ["c"]}),
        json!({"finalizers": ["b", "c", "a"]}),
    );
    // A deleted item need not be named.
    check(
        t,
        names(&["a", "b"]),
        json!({"$setElementOrder/containers": [{"name": "b"}], "containers": [{"name": "a", "$patch": "delete"}]}),
        names(&["b"]),
    );
    check_error(t, names(&["a"]), order(&["b"], &["a"]), "doesn't match $setElementOrder list");
    check_error(t, names(&["a"]), order(&["b", "a"], &["a", "b"]), "doesn't match $setElementOrder list");
    check_error(
        t,
        names(&["a"]),
        json!({"$setElementOrder": []}),
        "invalid patch format of setElementOrder list",
    );
    check_error(
        t,
        names(&["a"]),
        json!({"$setElementOrder/containers": 1}),
        "invalid patch format of setElementOrder list",
    );
}

#[test]
fn retained_keys() {
    let t = "apps.v1.DeploymentSpec";
    let rolling = json!({"strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 1}}});
    check(
        t,
        rolling.clone(),
        json!({"strategy": {"$retainKeys": ["type"], "type": "Recreate"}}),
        json!({"strategy": {"type": "Recreate"}}),
    );
    check_error(
        t,
        rolling.clone(),
        json!({"strategy": {"$retainKeys": ["type"], "rollingUpdate": {}}}),
        "invalid patch format of retainKeys",
    );
    check_error(
        t,
        rolling,
        json!({"strategy": {"$retainKeys": "type"}}),
        "invalid patch format of retainKeys",
    );
    check(
        "core.v1.PodSpec",
        json!({"volumes": [{"name": "v", "emptyDir": {}}]}),
        json!({"volumes": [{"name": "v", "$retainKeys": ["name", "configMap"], "configMap": {"name": "c"}}]}),
        json!({"volumes": [{"name": "v", "configMap": {"name": "c"}}]}),
    );
}

#[test]
fn json_patches() {
    let object = json!({"a": {"b": [1, 2]}, "c": 3});
    for (patch, expected) in [
        (json!([]), object.clone()),
        (json!([{"op": "add", "path": "/a/b/-", "value": 3}]), json!({"a": {"b": [1, 2, 3]}, "c": 3})),
        (json!([{"op": "remove", "path": "/a/b/0"}]), json!({"a": {"b": [2]}, "c": 3})),
        (json!([{"op": "replace", "path": "/c", "value": null}]), json!({"a": {"b": [1, 2]}, "c": null})),
        (json!([{"op": "move", "from": "/c", "path": "/d"}]), json!({"a": {"b": [1, 2]}, "d": 3})),
        (
            json!([{"op": "copy", "from": "/c", "path": "/a/x~1y"}]),
            json!({"a": {"b": [1, 2], "x/y": 3}, "c": 3}),
        ),
        (json!([{"op": "test", "path": "/c", "value": 3}]), object.clone()),
    ] {
        assert_eq!(json_patch(&object, patch.to_string().as_bytes()), Ok(expected), "{patch}");
    }
    for (patch, code) in [
        (json!({}), 400),
        (json!([{"op": "jump", "path": "/c"}]), 400),
        (json!([{"op": "test", "path": "/c", "value": 4}]), 422),
        (json!([{"op": "remove", "path": "/x"}]), 422),
        (json!([{"op": "replace", "path": "/x", "value": 1}]), 422),
        (json!([{"op": "add", "path": "/x/y", "value": 1}]), 422),
        (json!([{"op": "add", "path": "/a/b/9", "value": 1}]), 422),
        (json!([{"op": "remove", "path": "/c"}, {"op": "remove", "path": "/c"}]), 422),
        (Value::Array(vec![json!({"op": "test", "path": "/c", "value": 3}); 10_001]), 413),
    ] {
        let error = json_patch(&object, patch.to_string().as_bytes()).expect_err("must fail");
        assert_eq!(error.to_status().code, code, "{patch}: {error}");
    }
}

#[test]
fn json_patch_bombs() {
    // Each copy doubles the object.
    let copies = Value::Array(vec![json!({"op": "copy", "from": "/a", "path": "/a/-"}); 60]);
    let found = json_patch(&json!({"a": ["x".repeat(1000)]}), copies.to_string().as_bytes());
    assert!(matches!(found, Err(MergeError::TooLarge(_))), "{found:?}");
    // Each move or copy nests deeper.
    let mut patch = Vec::new();
    let mut path = "/a".to_owned();
    for _ in 0..200 {
        path.push_str("/a");
        patch.push(json!({"op": "add", "path": path, "value": {}}));
    }
    let found = json_patch(&json!({"a": {}}), Value::from(patch).to_string().as_bytes());
    assert!(matches!(found, Err(MergeError::TooLarge(_))), "{found:?}");
}

fn any_json() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![Just(json!(1)), Just(json!("x")), Just(json!(true)), Just(json!(null))];
    leaf.prop_recursive(4, 24, 4, |inner| {
        prop_oneof![
            proptest::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            proptest::collection::btree_map("[a-d]", inner, 0..4)
                .prop_map(|m| Value::Object(m.into_iter().collect())),
        ]
    })
}

fn without_nulls(value: &Value) -> Value {
    match value {
        Value::Object(map) => {
            map.iter().filter(|(_, v)| !v.is_null()).map(|(k, v)| (k.clone(), without_nulls(v))).collect()
        }
        other => other.clone(),
    }
}

/// Pod specs with few names, so that patches meet what is there.
fn any_spec() -> impl Strategy<Value = Value> {
    let container = ("[a-c]", proptest::option::of("[12]"), proptest::collection::vec("[xy]", 0..3))
        .prop_map(|(name, image, args)| {
            let mut c = json!({"name": name, "args": args});
            if let Some(image) = image {
                c["image"] = json!(image);
            }
            c
        });
    let containers = proptest::collection::vec(container, 0..4).prop_map(|mut all| {
        let mut seen = std::collections::HashSet::new();
        all.retain(|c| seen.insert(c["name"].to_string()));
        all
    });
    (containers, proptest::collection::btree_map("[k-m]", "[12]", 0..3))
        .prop_map(|(containers, selector)| json!({"containers": containers, "nodeSelector": selector}))
}

proptest! {
    #[test]
    fn a_merge_patch_applies_once(object in any_json(), patch in any_json()) {
        let once = merge_patch(&object, &patch);
        prop_assert_eq!(&merge_patch(&once, &patch), &once);
    }

    #[test]
    fn a_diff_leads_to_its_target(from in any_json(), to in any_json()) {
        let to = without_nulls(&to);
        let from = without_nulls(&from);
        prop_assert_eq!(merge_patch(&from, &merge_diff(&from, &to)), to);
    }

    #[test]
    fn a_strategic_patch_applies_once(object in any_spec(), patch in any_spec()) {
        let once = strategic(ty("core.v1.PodSpec"), &object, &patch).expect("applies");
        let twice = strategic(ty("core.v1.PodSpec"), &once, &patch).expect("applies");
        prop_assert_eq!(twice, once);
    }

    #[test]
    fn an_object_patched_with_itself_stays(object in any_spec()) {
        prop_assert_eq!(strategic(ty("core.v1.PodSpec"), &object, &object).expect("applies"), object);
    }

    #[test]
    fn every_item_of_the_patch_arrives_and_none_is_lost(object in any_spec(), patch in any_spec()) {
        let merged = strategic(ty("core.v1.PodSpec"), &object, &patch).expect("applies");
        let names = |v: &Value| -> Vec<String> {
            v["containers"].as_array().into_iter().flatten().map(|c| c["name"].to_string()).collect()
        };
        let mut expected: Vec<String> = names(&object).into_iter().chain(names(&patch)).collect();
        expected.sort();
        expected.dedup();
        let found = names(&merged);
        let mut sorted = found.clone();
        sorted.sort();
        prop_assert_eq!(sorted, expected);
        // The patch's own order holds.
        let ours = names(&patch);
        prop_assert_eq!(found.into_iter().filter(|n| ours.contains(n)).collect::<Vec<_>>(), ours);
    }

    #[test]
    fn anything_is_answered(object in any_json(), patch in any_json()) {
        let _ = strategic(ty("core.v1.PodSpec"), &json!({"containers": object}), &json!({"containers": patch}));
        let _ = strategic(ty("core.v1.Pod"), &object, &patch);
    }
}
