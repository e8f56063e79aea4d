//! Elections as client-go holds them, without a link.

use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};
use yurt_api::names::ANNOTATION_OFFLINE_LEASE;

use super::*;
use crate::wire::TypeMeta;
use crate::wire::proto::{self, Writer};

const JSON: &str = "application/json";
const PROTOBUF: &str = "application/vnd.kubernetes.protobuf";

fn me() -> Identity {
    Identity::new("system:serviceaccount:shop:operator")
}

fn lease(holder: &str, version: u64, opted: bool) -> Bytes {
    let mut lease = json!({
        "kind": "Lease", "apiVersion": "coordination.k8s.io/v1",
        "metadata": {"namespace": "shop", "name": "leader", "uid": "u-1", "resourceVersion": version.to_string(),
            "annotations": {ANNOTATION_OFFLINE_LEASE: "true"}},
        "spec": {"holderIdentity": holder, "leaseDurationSeconds": 15, "renewTime": "2026-01-01T00:00:00.000000Z"},
    });
    if !opted {
        lease["metadata"]["annotations"].take();
    }
    Bytes::from(lease.to_string())
}

fn protobuf(holder: &str, version: u64, value: &str) -> Bytes {
    let text = |fields: &[(u32, &str)]| {
        let mut out = Writer::default();
        fields.iter().for_each(|(number, text)| out.bytes(*number, text.as_bytes()));
        out
    };
    let version = version.to_string();
    let mut metadata = text(&[(1, "leader"), (3, "shop"), (5, "u-1"), (6, &version)]);
    metadata.bytes(12, &text(&[(1, "other"), (2, "true")]).finish());
    metadata.bytes(12, &text(&[(1, ANNOTATION_OFFLINE_LEASE), (2, value)]).finish());
    let mut spec = text(&[(1, holder)]);
    spec.varint(2, 15);
    let mut lease = Writer::default();
    lease.bytes(1, &metadata.finish());
    lease.bytes(2, &spec.finish());
    proto::envelope(&TypeMeta::new("coordination.k8s.io/v1", "Lease"), &lease.finish())
}

fn answer(content_type: &str, body: &Bytes) -> Answer {
    Answer::new(StatusCode::OK, content_type, body.clone())
}

/// One that this node's operator holds.
fn held() -> OfflineLeases {
    let leases = OfflineLeases::default();
    leases.seen(&me(), true, answer(JSON, &lease("web-0_a", 7, true)));
    leases
}

fn whole(
    leases: &OfflineLeases,
    identity: &Identity,
    content_type: &str,
    body: &Bytes,
) -> Result<Answer, LeaseError> {
    leases.renew(identity, ("shop", "leader"), Renewal::Whole { content_type }, body, |_| true)
}

fn renew(leases: &OfflineLeases, body: &Bytes) -> Result<Answer, LeaseError> {
    whole(leases, &me(), JSON, body)
}

#[tokio::test(start_paused = true)]
async fn its_holder_renews_it_in_either_encoding_and_reads_what_it_wrote() {
    let leases = held();
    assert!(leases.may_renew(&me(), "shop", "leader"));
    for _ in 0..3 {
        let renewal = lease("web-0_a", 7, true);
        assert_eq!(renew(&leases, &renewal).unwrap(), answer(JSON, &renewal));
        assert_eq!(leases.get(&me(), "shop", "leader"), Some(answer(JSON, &renewal)));
    }
    leases.seen(&me(), true, answer(PROTOBUF, &protobuf("web-0_a", 8, "true")));
    let renewal = protobuf("web-0_a", 8, "true");
    let renewed = whole(&leases, &me(), PROTOBUF, &renewal);
    assert_eq!(renewed.unwrap(), answer(PROTOBUF, &renewal));
    // The annotation has been taken off.
    let renewed = whole(&leases, &me(), PROTOBUF, &protobuf("web-0_a", 8, "false"));
    assert!(matches!(renewed, Err(LeaseError::NotHere(_))));
}

#[tokio::test(start_paused = true)]
async fn what_was_not_asked_for_or_is_held_elsewhere_is_not_answered() {
    let not_here =
        |leases: &OfflineLeases, body: &Bytes| matches!(renew(leases, body), Err(LeaseError::NotHere(_)));
    let renewal = lease("web-0_a", 7, true);
    assert!(not_here(&OfflineLeases::default(), &renewal), "never seen");
    let leases = OfflineLeases::default();
    leases.seen(&me(), true, answer(JSON, &lease("web-0_a", 7, false)));
    assert!(not_here(&leases, &renewal), "no annotation");
    leases.seen(&me(), false, answer(JSON, &renewal));
    assert!(not_here(&leases, &renewal), "read, and not written from here");
    assert_eq!(leases.get(&me(), "shop", "leader"), None);

    let leases = held();
    leases.seen(&me(), false, answer(JSON, &lease("web-0_a", 8, true)));
    assert!(leases.may_renew(&me(), "shop", "leader"), "the same holder: somebody has set a label");
    leases.seen(&me(), false, answer(JSON, &lease("cloud-3_b", 9, true)));
    assert!(not_here(&leases, &lease("web-0_a", 9, true)), "the cloud has elected another");
    leases.seen(&me(), true, answer(JSON, &lease("web-0_a", 10, true)));
    assert!(renew(&leases, &lease("web-0_a", 10, true)).is_ok());
    leases.seen(&me(), false, answer(JSON, &lease("cloud-3_b", 9, true)));
    assert!(renew(&leases, &lease("web-0_a", 10, true)).is_ok(), "an answer that comes late");
    let other = Identity::new("system:serviceaccount:shop:other");
    assert!(whole(&leases, &other, JSON, &lease("web-0_a", 10, true)).is_err());
    assert_eq!(leases.get(&other, "shop", "leader"), None);
    let metadata_alone = json!({"kind": "PartialObjectMetadata", "apiVersion": "meta.k8s.io/v1", "metadata":
        {"namespace": "shop", "name": "leader", "uid": "u-1", "resourceVersion": "11"}});
    leases.seen(&other, false, answer(JSON, &Bytes::from(metadata_alone.to_string())));
    leases.forget(&other, "shop", "leader");
    assert!(leases.may_renew(&me(), "shop", "leader"), "nobody else's refusal counts");
    leases.forget(&me(), "shop", "leader");
    assert!(not_here(&leases, &lease("web-0_a", 10, true)));
}

#[tokio::test(start_paused = true)]
async fn another_candidate_on_the_node_waits_until_the_lease_ends() {
    let leases = held();
    let (mine, theirs) = (lease("web-0_a", 7, true), lease("web-0_b", 7, true));
    let conflict = |body: &Bytes| matches!(renew(&leases, body), Err(LeaseError::Conflict(_)));
    assert!(conflict(&theirs));
    tokio::time::advance(Duration::from_secs(14)).await;
    renew(&leases, &mine).unwrap();
    tokio::time::advance(Duration::from_secs(14)).await;
    assert!(conflict(&theirs), "it was renewed");
    tokio::time::advance(Duration::from_secs(1)).await;
    renew(&leases, &theirs).unwrap();
    assert!(conflict(&mine), "it has changed hands");
    // Given up on the way out.
    renew(&leases, &lease("", 7, true)).unwrap();
    renew(&leases, &mine).unwrap();
    assert!(conflict(&lease("web-0_a", 6, true)), "an old one");
}

#[tokio::test(start_paused = true)]
async fn a_patch_may_change_the_spec_and_nothing_else() {
    let leases = held();
    let patch = |body: &Value| {
        let body = Bytes::from(body.to_string());
        leases.renew(&me(), ("shop", "leader"), Renewal::Patch(PatchType::Merge), &body, |_| true)
    };
    let renewed = patch(&json!({"spec": {"renewTime": "2026-01-01T00:00:10.000000Z"}})).unwrap();
    let lease: Value = serde_json::from_slice(&renewed.body).unwrap();
    assert_eq!(lease["spec"]["renewTime"], "2026-01-01T00:00:10.000000Z");
    assert_eq!(
        (&lease["spec"]["holderIdentity"], &lease["metadata"]["uid"]),
        (&json!("web-0_a"), &json!("u-1"))
    );
    for bad in [
        json!({"metadata": {"labels": {"a": "b"}}}),
        json!({"metadata": {"resourceVersion": "6"}}),
        json!({"spec": {"holderIdentity": "web-0_b"}}),
    ] {
        assert!(patch(&bad).is_err(), "{bad}");
    }
    assert_eq!(leases.get(&me(), "shop", "leader"), Some(renewed));
}

#[tokio::test(start_paused = true)]
async fn what_is_known_has_a_bound() {
    let leases = held();
    for number in 0..200 {
        let mut other: Value = serde_json::from_slice(&lease("x", 7, true)).unwrap();
        other["metadata"]["name"] = json!(format!("lease-{number}"));
        tokio::time::advance(Duration::from_millis(1)).await;
        leases.seen(&me(), true, answer(JSON, &Bytes::from(other.to_string())));
    }
    assert_eq!(leases.lock().len(), MAX_LEASES);
    assert!(!leases.may_renew(&me(), "shop", "leader") && leases.may_renew(&me(), "shop", "lease-199"));
    let large = Bytes::from(vec![b' '; MAX_LEASE + 1]);
    assert_eq!(Lease::of(JSON, &large), None);
}

/// Leases as Go writes them: before a renewal, and after it.
fn vectors() -> [(Value, Bytes); 2] {
    let vectors: Value = serde_json::from_str(include_str!("vectors.json")).unwrap();
    [0, 1].map(|number| {
        let vector = &vectors["leases"][number];
        let protobuf = STANDARD.decode(vector["protobuf"].as_str().unwrap()).unwrap();
        (vector["json"].clone(), protobuf.into())
    })
}

#[test]
fn a_lease_in_protobuf_is_read_as_what_it_is_in_json_and_written_as_go_writes_it() {
    let [(json, protobuf), (renewed, renewed_protobuf)] = vectors();
    let document = protobuf::document(&protobuf).unwrap();
    for field in ["kind", "apiVersion", "spec"] {
        assert_eq!(document[field], json[field], "{field}");
    }
    for field in ["name", "namespace", "uid", "resourceVersion", "labels", "annotations"] {
        assert_eq!(document["metadata"][field], json["metadata"][field], "{field}");
    }
    for number in [0, 1] {
        let owner = |lease: &Value| lease["metadata"]["managedFields"][number].clone();
        for field in ["manager", "operation", "fieldsV1"] {
            assert_eq!(owner(&document)[field], owner(&json)[field], "{field}");
        }
    }
    assert_eq!(protobuf::with_spec(&protobuf, &json["spec"]).unwrap(), protobuf);
    assert_eq!(protobuf::with_spec(&protobuf, &renewed["spec"]).unwrap(), renewed_protobuf);
    assert_eq!(protobuf::with_spec(&renewed_protobuf, &json["spec"]).unwrap(), protobuf);
    for bad in [
        json!({"renewTime": "yesterday"}),
        json!({"leaseDurationSeconds": "15"}),
        json!({"leaseDurationSeconds": 1_u64 << 40}),
        json!({"unknown": 1}),
        json!([]),
    ] {
        assert_eq!(protobuf::with_spec(&protobuf, &bad), None, "{bad}");
    }
}

/// The vectors' Lease, in either encoding, as it is known of its holder.
fn known_in(content_type: &str) -> OfflineLeases {
    let [(json, protobuf), _] = vectors();
    let body = if content_type == JSON { Bytes::from(json.to_string()) } else { protobuf };
    let leases = OfflineLeases::default();
    leases.seen(&me(), true, answer(content_type, &body));
    leases
}

fn document(answer: &Answer) -> Value {
    if answer.content_type == JSON {
        serde_json::from_slice(&answer.body).unwrap()
    } else {
        protobuf::document(&answer.body).unwrap()
    }
}

#[test]
fn a_lease_is_patched_in_the_encoding_in_which_it_is_known() {
    for content_type in [JSON, PROTOBUF] {
        let leases = known_in(content_type);
        let patch = |patch, body: Value| {
            let body = Bytes::from(body.to_string());
            leases.renew(&me(), ("shop", "leader"), Renewal::Patch(patch), &body, |_| true)
        };
        let [_, (renewed, _)] = vectors();
        let time = "2026-01-01T00:00:15.000001Z";
        let merge = json!({"metadata": {"resourceVersion": "4711", "annotations": {"other": "x"}}, "spec": {
            "renewTime": time, "strategy": "OldestEmulationVersion", "preferredHolder": ""}});
        let answered = patch(PatchType::Merge, merge).unwrap();
        assert_eq!(answered.content_type, content_type);
        assert_eq!(document(&answered)["spec"], renewed["spec"]);
        if content_type == PROTOBUF {
            assert_eq!(answered.body, vectors()[1].1, "as Go writes it");
        }
        let holds = json!([{"op": "test", "path": "/spec/holderIdentity", "value": "web-0_a"},
            {"op": "replace", "path": "/spec/renewTime", "value": "2026-01-01T00:00:25.000000Z"},
            {"op": "remove", "path": "/spec/strategy"}]);
        let answered = patch(PatchType::Json, holds).unwrap();
        assert_eq!(document(&answered)["spec"]["renewTime"], "2026-01-01T00:00:25.000000Z");
        assert_eq!(document(&answered)["spec"].get("strategy"), None);
        assert_eq!(leases.get(&me(), "shop", "leader"), Some(answered.clone()));
        for (bad, conflict) in [
            (json!({"metadata": {"resourceVersion": "4710"}, "spec": {"renewTime": time}}), true),
            (json!({"metadata": {"uid": "other"}, "spec": {"renewTime": time}}), true),
            (json!({"metadata": {"annotations": {"other": "y"}}, "spec": {"renewTime": time}}), false),
            (json!({"metadata": {"annotations": {"new": "y"}}, "spec": {"renewTime": time}}), false),
        ] {
            let refused = patch(PatchType::StrategicMerge, bad.clone()).unwrap_err();
            assert_eq!(matches!(refused, LeaseError::Conflict(_)), conflict, "{bad}: {refused}");
        }
        assert_eq!(leases.get(&me(), "shop", "leader"), Some(answered));
    }
}

#[test]
fn a_configuration_is_applied_if_its_manager_has_applied_the_same_fields_before() {
    let renewed = || {
        let spec = json!({"holderIdentity": "web-0_a", "leaseDurationSeconds": 15, "leaseTransitions": 2,
            "acquireTime": "2026-01-01T00:00:00.000000Z", "renewTime": "2026-01-01T00:00:15.000001Z"});
        json!({"kind": "Lease", "apiVersion": "coordination.k8s.io/v1", "metadata": {"name": "leader"}, "spec": spec})
    };
    for content_type in [JSON, PROTOBUF] {
        let leases = known_in(content_type);
        let apply = |manager, force, body: &Value| {
            let body = Bytes::from(body.to_string());
            leases.renew(&me(), ("shop", "leader"), Renewal::Apply { manager, force }, &body, |_| true)
        };
        for force in [false, true] {
            let answered = apply("operator", force, &renewed()).unwrap();
            assert_eq!((answered.code, &*answered.content_type), (StatusCode::OK, content_type));
            assert_eq!(document(&answered)["spec"], renewed()["spec"]);
            assert_eq!(document(&answered)["metadata"]["annotations"]["other"], "x");
        }
        type Change = fn(&mut Value);
        let others: [(&str, Change); 8] = [
            ("somebody", |_| {}),
            ("kubectl-annotate", |_| {}),
            ("operator", |lease| drop(lease["spec"].as_object_mut().unwrap().remove("leaseTransitions"))),
            ("operator", |lease| lease["spec"]["strategy"] = json!("OldestEmulationVersion")),
            ("operator", |lease| lease["metadata"]["annotations"] = json!({"other": "x"})),
            ("operator", |lease| lease["metadata"]["labels"] = json!({"app": "other"})),
            ("operator", |lease| lease["metadata"]["finalizers"] = json!(["a/b"])),
            ("operator", |lease| lease["kind"] = json!("ConfigMap")),
        ];
        for (number, (manager, change)) in others.into_iter().enumerate() {
            let mut lease = renewed();
            change(&mut lease);
            let refused = apply(manager, true, &lease).unwrap_err();
            assert!(matches!(refused, LeaseError::NotHere(_)), "{number}: {refused}");
        }
        let mut old = renewed();
        old["metadata"]["resourceVersion"] = json!("4710");
        assert!(matches!(apply("operator", true, &old), Err(LeaseError::Conflict(_))));
        let yaml = Bytes::from_static(b"kind: Lease\nspec: {}\n");
        let apply = Renewal::Apply { manager: "operator", force: true };
        assert!(leases.renew(&me(), ("shop", "leader"), apply, &yaml, |_| true).is_err());
    }
}

#[test]
fn what_another_manager_has_set_is_taken_by_force_alone() {
    let [(mut known, _), _] = vectors();
    let fields = json!({"f:spec": {"f:renewTime": {}}});
    known["metadata"]["managedFields"][1] =
        json!({"manager": "other", "operation": "Update", "fieldsType": "FieldsV1", "fieldsV1": fields});
    let leases = OfflineLeases::default();
    leases.seen(&me(), true, answer(JSON, &Bytes::from(known.to_string())));
    let apply = |force, time: &str| {
        let mut lease = json!({"kind": "Lease", "metadata": {}, "spec": known["spec"]});
        lease["spec"]["renewTime"] = json!(time);
        let (apply, body) = (Renewal::Apply { manager: "operator", force }, Bytes::from(lease.to_string()));
        leases.renew(&me(), ("shop", "leader"), apply, &body, |_| true)
    };
    let (same, new) = (known["spec"]["renewTime"].as_str().unwrap(), "2026-01-01T00:00:15.000001Z");
    assert!(apply(false, same).is_ok());
    assert!(matches!(apply(false, new), Err(LeaseError::Conflict(_))));
    assert!(apply(true, new).is_ok());
}

#[test]
fn a_client_that_does_not_take_the_encoding_is_not_answered_and_nothing_has_changed() {
    let leases = known_in(PROTOBUF);
    let before = leases.get(&me(), "shop", "leader");
    let patch = Bytes::from_static(br#"{"spec":{"leaseTransitions":3}}"#);
    let merge = Renewal::Patch(PatchType::Merge);
    let renewed = leases.renew(&me(), ("shop", "leader"), merge, &patch, |content_type| content_type == JSON);
    assert!(matches!(renewed, Err(LeaseError::NotHere(_))));
    assert_eq!(leases.get(&me(), "shop", "leader"), before);
}
