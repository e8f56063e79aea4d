//! Elections as client-go holds them, without a link.

use serde_json::json;

use super::*;
use crate::wire::TypeMeta;
use crate::wire::proto::Writer;

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

fn renew(leases: &OfflineLeases, body: &Bytes) -> Result<Answer, LeaseError> {
    leases.renew(&me(), ("shop", "leader"), JSON, body)
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
    let renewed = leases.renew(&me(), ("shop", "leader"), PROTOBUF, &renewal);
    assert_eq!(renewed.unwrap(), answer(PROTOBUF, &renewal));
    // The annotation has been taken off.
    let renewed = leases.renew(&me(), ("shop", "leader"), PROTOBUF, &protobuf("web-0_a", 8, "false"));
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
    assert!(leases.renew(&other, ("shop", "leader"), JSON, &lease("web-0_a", 10, true)).is_err());
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
        leases.renew(&me(), ("shop", "leader"), "application/merge-patch+json", &body)
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
