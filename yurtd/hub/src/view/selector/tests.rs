use super::*;
use crate::wire::Resource;

fn services(namespace: Option<&str>, labels: &str, fields: &str) -> ViewSpec {
    ViewSpec::new(Resource::new("", "v1", "services"), namespace, labels, fields, Encoding::Json)
}

fn fits(labels: &str, fields: &str, object: &str) -> Option<bool> {
    let selector = Selector::of(&services(None, labels, fields))?;
    Some(selector.fits(Encoding::Json, "shop", object.as_bytes()).unwrap())
}

/// `k8s.io/apimachinery/pkg/labels` (`Requirement.Matches`, the grammar above `Parse`) as a table.
#[test]
fn labels_select_as_in_kubernetes() {
    let object = r#"{"metadata":{"name":"web","namespace":"shop","labels":{"app":"web","empty":"","example.com/tier":"front"}}}"#;
    for (selector, expected) in [
        ("", true),
        ("app", true),
        ("empty", true),
        ("none", false),
        ("!app", false),
        ("!none", true),
        ("! none", true),
        ("app=web", true),
        ("app==web", true),
        (" app = web ", true),
        ("app=db", false),
        ("none=web", false),
        ("none=", false),
        ("empty=", true),
        ("app=", false),
        ("app!=web", false),
        ("app!=db", true),
        // Without the label it is something else.
        ("none!=db", true),
        ("none!=", true),
        ("empty!=", false),
        ("app in (web,db)", true),
        ("app in (db, cache)", false),
        ("app in(web)", true),
        ("none in (web)", false),
        ("none in ()", false),
        ("empty in ()", true),
        ("empty in (,x)", true),
        ("app notin (web,db)", false),
        ("app notin (db)", true),
        ("none notin (web)", true),
        ("empty notin ()", false),
        ("example.com/tier=front,app,!none", true),
        ("example.com/tier=front,app,none", false),
        ("!service.kubernetes.io/headless,!service.kubernetes.io/service-proxy-name", true),
    ] {
        assert_eq!(fits(selector, "", object), Some(expected), "{selector:?}");
    }
}

#[test]
fn what_the_api_server_refuses_or_orders_is_not_evaluated() {
    let long = format!("a={}", "x".repeat(64));
    let labels = [
        "a>1",
        "a<1",
        "a b",
        "-a=1",
        "a=-1",
        "a=b=c",
        "a=>1",
        "/a",
        "a/b/c",
        "A.B/c",
        "x..y/c",
        "in (a)",
        "in",
        "a in b",
        "a like (b)",
        "=b",
        "!",
        "!=b",
        "a=b c",
        "a in (b c)",
        &long,
    ];
    for selector in labels {
        assert_eq!(fits(selector, "", "{}"), None, "{selector:?}");
    }
    for selector in
        ["metadata.labels.a=b", "spec.nodeName=n", "metadata.name", r"metadata.name=a\,b", "a=b=c"]
    {
        assert_eq!(fits("", selector, "{}"), None, "{selector:?}");
    }
    let of = |plural: &str, fields: &str, encoding| {
        let resource =
            Resource::new(if plural == "services" { "" } else { "discovery.k8s.io" }, "v1", plural);
        Selector::of(&ViewSpec::new(resource, None, "", fields, encoding)).is_some()
    };
    assert!(of("services", "spec.clusterIP!=None", Encoding::Protobuf));
    assert!(!of("endpointslices", "spec.clusterIP!=None", Encoding::Protobuf));
    assert!(!of("services", "spec.clusterIP!=None", Encoding::PartialProtobuf), "it is not there");
}

#[test]
fn fields_that_are_not_there_are_empty() {
    let service = |spec: &str| format!(r#"{{"metadata":{{"name":"web","namespace":"shop"}},"spec":{spec}}}"#);
    let (headless, plain) = (service(r#"{"clusterIP":"None"}"#), service(r#"{"clusterIP":"10.96.0.7"}"#));
    let external = service(r#"{"type":"ExternalName"}"#);
    for (selector, object, expected) in [
        ("spec.clusterIP!=None", &headless, false),
        ("spec.clusterIP!=None", &plain, true),
        ("spec.clusterIP!=None", &external, true),
        ("spec.clusterIP=", &external, true),
        ("spec.clusterIP=10.96.0.7", &plain, true),
        ("spec.type=ExternalName", &external, true),
        ("spec.type==ExternalName", &plain, false),
        ("metadata.name=web,metadata.namespace=shop", &plain, true),
        ("metadata.name=web,metadata.namespace!=shop", &plain, false),
        ("metadata.name!=web", &plain, false),
    ] {
        assert_eq!(fits("", selector, object), Some(expected), "{selector} {object}");
    }
}

#[test]
fn nearly_everything_is_what_only_leaves_out() {
    for (namespace, labels, fields, expected) in [
        (None, "", "", true),
        (None, "!a,b!=1,c notin (2)", "spec.clusterIP!=None", true),
        (None, "a", "", false),
        (None, "a=1", "", false),
        (None, "!a", "metadata.name=x", false),
        (Some("shop"), "!a", "", false),
    ] {
        let selector = Selector::of(&services(namespace, labels, fields)).unwrap();
        assert_eq!(selector.only_leaves_out(), expected, "{namespace:?} {labels} {fields}");
    }
}

#[test]
fn a_namespaces_view_has_its_own_objects() {
    let selector = Selector::of(&services(Some("shop"), "", "")).unwrap();
    let object = br#"{"metadata":{"name":"web","namespace":"shop"}}"#;
    assert!(selector.fits(Encoding::Json, "shop", object).unwrap());
    assert!(!selector.fits(Encoding::Json, "other", object).unwrap());
}

#[test]
fn a_view_is_within_another_that_requires_less() {
    let node = services(None, "", "spec.clusterIP!=None");
    let proxy = services(None, "!p", "spec.clusterIP!=None");
    let (all, shop) = (services(None, "", ""), services(Some("shop"), "!p", ""));
    let json = |spec: &ViewSpec, wide: &ViewSpec| spec.is_within(wide);
    for (narrow, wide, within) in [
        (&node, &all, true),
        (&proxy, &node, true),
        (&proxy, &all, true),
        (&shop, &all, true),
        (&all, &all, true),
        (&all, &node, false),
        (&node, &proxy, false),
        (&shop, &node, false),
        (&shop, &proxy, false),
        (&all, &shop, false),
    ] {
        assert_eq!(json(narrow, wide), within, "{narrow:?} in {wide:?}");
    }
    let protobuf = ViewSpec::new(node.resource().clone(), None, "", "", Encoding::Protobuf);
    assert!(!node.is_within(&protobuf), "never across encodings");
    let pods = ViewSpec::new(Resource::new("", "v1", "pods"), None, "", "", Encoding::Json);
    assert!(!node.is_within(&pods));
}
