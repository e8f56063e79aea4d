use yurt_api::names::LABEL_KUBELET_PORT;

use super::*;

const STRATEGIC: &str = "application/strategic-merge-patch+json";

fn node(given: Option<&str>, port: u16) -> Value {
    let mut node = json!({"metadata": {"name": "edge", "uid": "u-1", "labels": {}},
        "status": {"daemonEndpoints": endpoints(port)}});
    if let Some(given) = given {
        node["metadata"]["labels"][LABEL_KUBELET_PORT] = given.into();
    }
    node
}

fn own() -> OwnNode {
    OwnNode::of(&Permit::of_node("system:node:edge"))
}

fn seen(own: &OwnNode, node: &Value) -> Option<u64> {
    let seen = own.seen(Encoding::Json, node.to_string().as_bytes(), true, false)?;
    serde_json::from_slice::<Value>(&seen).unwrap()["status"]["daemonEndpoints"]["kubeletEndpoint"]["Port"]
        .as_u64()
}

fn with_port() -> OwnNode {
    let own = own();
    own.known(node(Some("40000"), 40_000).to_string().as_bytes());
    own
}

fn sent(content_type: &str, body: &Value, is_kubelet: bool) -> Option<Value> {
    let body = Bytes::from(body.to_string());
    let sent = with_port().sent_as(content_type, &body, is_kubelet)?;
    Some(serde_json::from_slice(&sent).unwrap())
}

#[test]
fn kubelet_sees_its_own_port_only_where_status_and_label_say_the_same() {
    let own = own();
    own.listens_at("127.0.0.1:10350");
    assert_eq!(seen(&own, &node(Some("40000"), 40_000)), Some(10350));
    // Not published yet; taken back: then it has to see what the API server has, and puts it right.
    assert_eq!(seen(&own, &node(Some("40000"), 10350)), None);
    assert_eq!(seen(&own, &node(None, 40_000)), None);
    assert_eq!(seen(&own, &node(Some("40001"), 40_000)), None);
    let mut other = node(Some("40000"), 40_000);
    other["metadata"]["name"] = "other".into();
    assert_eq!(seen(&own, &other), None);
}

#[test]
fn what_kubelet_says_of_its_status_carries_the_port() {
    let expected = endpoints(40_000);
    for body in [
        json!({"status": {"daemonEndpoints": endpoints(10250)}}),
        json!({"status": {"conditions": []}}),
        json!({"status": {"daemonEndpoints": null}}),
        json!({"metadata": {"annotations": {"a": "b"}}}),
    ] {
        for content_type in [STRATEGIC, "application/merge-patch+json; charset=utf-8", "application/json"] {
            let sent = sent(content_type, &body, true).unwrap();
            assert_eq!(sent["status"]["daemonEndpoints"], expected, "{content_type} {body}");
            assert_eq!(sent["metadata"], body["metadata"]);
        }
    }
    let steps = json!([{"op": "replace", "path": "/status/phase", "value": "x"}]);
    let sent = sent("application/json-patch+json", &steps, true).unwrap();
    let mut patched = node(Some("40000"), 10250);
    patched["status"]["phase"] = "y".into();
    json_patch::patch(&mut patched, &serde_json::from_value::<json_patch::Patch>(sent).unwrap()).unwrap();
    assert_eq!(
        (&patched["status"]["daemonEndpoints"], &patched["status"]["phase"]),
        (&expected, &json!("x"))
    );
}

#[test]
fn of_others_only_what_names_the_port_is_changed() {
    let names = json!({"status": {"daemonEndpoints": endpoints(10250)}});
    for content_type in [STRATEGIC, "application/json", "application/apply-patch+yaml"] {
        let sent = sent(content_type, &names, false).unwrap();
        assert_eq!(sent["status"]["daemonEndpoints"], endpoints(40_000));
    }
    assert_eq!(sent(STRATEGIC, &json!({"status": {"conditions": []}}), false), None);
    let step = |path: &str| json!([{"op": "remove", "path": path}]);
    assert_eq!(sent("application/json-patch+json", &step("/status/phase"), false), None);
    assert!(sent("application/json-patch+json", &step("/status/daemonEndpoints"), false).is_some());
    assert_eq!(sent("text/plain", &names, true), None);
    assert_eq!(own().sent_as(STRATEGIC, &Bytes::from(names.to_string()), true), None, "nothing was given");
}

#[test]
fn a_status_in_protobuf_carries_it_too() {
    let kind = crate::wire::TypeMeta::new("v1", "Node");
    let (own, content_type) = (with_port(), "application/vnd.kubernetes.protobuf");
    let plain = node::with_port(Encoding::Protobuf, b"", 10250).unwrap();
    for (raw, is_kubelet) in [(&plain[..], true), (&plain[..], false), (b"", true)] {
        let sent = own.sent_as(content_type, &proto::envelope(&kind, raw), is_kubelet).unwrap();
        let (sent_kind, raw) = proto::open_envelope(&sent).unwrap();
        assert_eq!(node::read(Encoding::Protobuf, &raw).unwrap().published, Some(40_000));
        assert_eq!(sent_kind, kind);
    }
    assert_eq!(own.sent_as(content_type, &proto::envelope(&kind, b""), false), None);
}
