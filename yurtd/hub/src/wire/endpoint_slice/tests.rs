use serde_json::json;

use super::*;

/// Two endpoints: pod `u-1` at 10.0.0.1, and one of another node without conditions.
fn protobuf() -> Vec<u8> {
    let message = |build: &dyn Fn(&mut Writer)| {
        let mut out = Writer::default();
        build(&mut out);
        out.finish()
    };
    let label = message(&|out| {
        out.bytes(1, SERVICE_NAME.as_bytes());
        out.bytes(2, b"web");
    });
    let meta = message(&|out| {
        out.bytes(1, b"web-x");
        out.bytes(3, b"shop");
        out.bytes(11, &label);
    });
    let target = |uid: &[u8]| {
        message(&|out| {
            out.bytes(1, b"Pod");
            out.bytes(2, b"shop");
            out.bytes(3, b"web-0");
            out.bytes(4, uid);
        })
    };
    let conditions = message(&|out| {
        out.varint(1, 1);
        out.varint(2, 1);
        out.varint(3, 0);
        out.bytes(99, b"a condition of tomorrow");
    });
    message(&|out| {
        out.bytes(1, &meta);
        out.bytes(
            2,
            &message(&|out| {
                out.bytes(1, b"10.0.0.1");
                out.bytes(2, &conditions);
                out.bytes(4, &target(b"u-1"));
                out.bytes(6, b"edge");
                out.bytes(99, b"a field of tomorrow");
            }),
        );
        out.bytes(
            2,
            &message(&|out| {
                out.bytes(1, b"10.0.0.2");
                out.bytes(4, &target(b"u-2"));
            }),
        );
        out.bytes(3, b"ports");
        out.bytes(4, b"IPv4");
    })
}

fn json() -> Vec<u8> {
    json!({
        "metadata": {"name": "web-x", "namespace": "shop", "labels": {SERVICE_NAME: "web"}},
        "addressType": "IPv4",
        "endpoints": [
            {"addresses": ["10.0.0.1"], "nodeName": "edge", "tomorrow": {"a": 1.50},
             "conditions": {"ready": true, "serving": true, "terminating": false, "tomorrow": 1},
             "targetRef": {"kind": "Pod", "namespace": "shop", "name": "web-0", "uid": "u-1"}},
            {"addresses": ["10.0.0.2"],
             "targetRef": {"kind": "Pod", "namespace": "shop", "name": "web-0", "uid": "u-2"}},
        ],
        "ports": [{"port": 80}],
    })
    .to_string()
    .into_bytes()
}

fn both() -> [(Encoding, Vec<u8>); 2] {
    [(Encoding::Protobuf, protobuf()), (Encoding::Json, json())]
}

fn show(address: &str, ready: bool) -> Edit {
    Edit::Show { addresses: vec![address.to_owned()], ready, serving: ready }
}

fn only(uid: &'static str, then: Edit) -> impl Fn(&Slice<'_>, &Endpoint<'_>) -> Edit {
    move |_, endpoint| if endpoint.target.uid == uid { then.clone() } else { Edit::Keep }
}

/// What a slice says, by uid.
fn read(encoding: Encoding, stored: &[u8]) -> Vec<(String, Vec<String>, Conditions)> {
    let seen = std::cell::RefCell::new(Vec::new());
    edit(encoding, stored, |_, endpoint| {
        let addresses = endpoint.addresses.iter().map(ToString::to_string).collect();
        seen.borrow_mut().push((endpoint.target.uid.to_string(), addresses, endpoint.conditions));
        Edit::Keep
    })
    .unwrap();
    seen.into_inner()
}

#[test]
fn what_decides_is_told_what_the_slice_is() {
    for (encoding, stored) in both() {
        let edited = edit(encoding, &stored, |slice, endpoint| {
            assert_eq!((&*slice.namespace, &*slice.service, &*slice.address_type), ("shop", "web", "IPv4"));
            assert_eq!((&*endpoint.target.kind, &*endpoint.target.name), ("Pod", "web-0"));
            Edit::Keep
        });
        assert_eq!(edited, Ok(None));
    }
}

#[test]
fn one_endpoint_changes_and_nothing_else() {
    for (encoding, stored) in both() {
        let edited = edit(encoding, &stored, only("u-1", show("10.0.0.9", false))).unwrap().unwrap();
        let (before, after) = (read(encoding, &stored), read(encoding, &edited));
        let conditions = Conditions { ready: Some(false), serving: Some(false), terminating: Some(false) };
        assert_eq!(after[0], ("u-1".to_owned(), vec!["10.0.0.9".to_owned()], conditions));
        assert_eq!(after[1], before[1]);
        // Back again, it is what it was.
        let back = edit(encoding, &edited, only("u-1", show("10.0.0.1", true))).unwrap().unwrap();
        match encoding {
            Encoding::Protobuf => assert_eq!(back, stored),
            _ => assert_eq!(
                serde_json::from_slice::<serde_json::Value>(&back).unwrap(),
                serde_json::from_slice::<serde_json::Value>(&stored).unwrap()
            ),
        }
    }
}

#[test]
fn what_is_not_said_is_said_afterwards() {
    for (encoding, stored) in both() {
        let edited = edit(encoding, &stored, only("u-2", show("10.0.0.2", true))).unwrap().unwrap();
        let conditions = Conditions { ready: Some(true), serving: Some(true), terminating: None };
        assert_eq!(read(encoding, &edited)[1].2, conditions);
    }
}

#[test]
fn an_endpoint_goes_and_the_others_stay() {
    for (encoding, stored) in both() {
        let edited = edit(encoding, &stored, only("u-1", Edit::Remove)).unwrap().unwrap();
        assert_eq!(read(encoding, &edited), read(encoding, &stored)[1..]);
        let empty = edit(encoding, &stored, |_, _| Edit::Remove).unwrap().unwrap();
        assert_eq!(read(encoding, &empty), []);
    }
}

#[test]
fn an_edit_that_changes_nothing_is_none() {
    for (encoding, stored) in both() {
        assert_eq!(edit(encoding, &stored, only("u-1", show("10.0.0.1", true))), Ok(None));
    }
}

#[test]
fn services_say_whether_they_publish_what_is_not_ready() {
    let mut spec = Writer::default();
    spec.varint(13, 1);
    let mut service = Writer::default();
    service.bytes(2, &spec.finish());
    assert_eq!(publishes_not_ready(Encoding::Protobuf, &service.finish()), Ok(true));
    assert_eq!(publishes_not_ready(Encoding::Protobuf, b""), Ok(false));
    let json = json!({"spec": {"publishNotReadyAddresses": true}}).to_string();
    assert_eq!(publishes_not_ready(Encoding::Json, json.as_bytes()), Ok(true));
    assert_eq!(publishes_not_ready(Encoding::Json, br#"{"spec":{}}"#), Ok(false));
    assert!(publishes_not_ready(Encoding::Json, b"7").is_err());
}

#[test]
fn a_slice_cut_anywhere_is_an_error_or_shorter() {
    for (encoding, stored) in both() {
        for cut in 0..stored.len() {
            let edited = edit(encoding, &stored[..cut], |_, _| show("10.0.0.9", true));
            assert!(edited.is_err() || !matches!(encoding, Encoding::Json), "{cut}");
        }
    }
}
