//! `/api` and `/apis`: what there is, as one document (aggregated discovery, KEP-3352) with an ETag, for those who take
//! it, or as a list of names.

use std::collections::BTreeMap;
use std::hash::{DefaultHasher, Hash, Hasher};

use bytes::Bytes;
use http::{HeaderMap, Response, StatusCode};
use http_body_util::{BodyExt, Full};
use serde_json::{Value, json};

use super::answer::Body;
use super::kinds::Kinds;

/// Kinds by version by group.
type Groups = BTreeMap<String, BTreeMap<String, Vec<Value>>>;

const VERSIONS: [&str; 2] = ["v2", "v2beta1"];

/// The answer, if the path is one of the two.
pub(super) fn answer(kinds: &Kinds, path: &str, headers: &HeaderMap) -> Option<Response<Body>> {
    let groups = match path {
        "/api" => groups(kinds, true),
        "/apis" => groups(kinds, false),
        _ => return None,
    };
    let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let accept = text("accept");
    let takes = |version: &&str| {
        let whole = format!("g=apidiscovery.k8s.io;v={version};as=APIGroupDiscoveryList");
        accept.split(',').any(|clause| clause.contains(&whole))
    };
    let Some(version) = VERSIONS.into_iter().find(takes) else {
        return Some(response(StatusCode::OK, "application/json", None, names(&groups, path).to_string()));
    };
    let content_type = format!("application/json;g=apidiscovery.k8s.io;v={version};as=APIGroupDiscoveryList");
    let document = aggregated(&groups, version).to_string();
    let mut hasher = DefaultHasher::new();
    document.hash(&mut hasher);
    let etag = format!("\"{:X}\"", hasher.finish());
    Some(if text("if-none-match") == etag {
        response(StatusCode::NOT_MODIFIED, &content_type, Some(&etag), String::new())
    } else {
        response(StatusCode::OK, &content_type, Some(&etag), document)
    })
}

fn response(code: StatusCode, content_type: &str, etag: Option<&str>, body: String) -> Response<Body> {
    let mut response = Response::new(Full::new(Bytes::from(body)).boxed_unsync());
    *response.status_mut() = code;
    response.headers_mut().insert("content-type", content_type.parse().unwrap());
    if let Some(etag) = etag {
        response.headers_mut().insert("etag", etag.parse().unwrap());
        response.headers_mut().insert("vary", "Accept".parse().unwrap());
    }
    response
}

fn groups(kinds: &Kinds, core: bool) -> Groups {
    let mut groups = Groups::new();
    for (resource, kind) in kinds.all() {
        let of_core = resource.prefix.strip_prefix("/api/").map(|version| ("", version));
        let of_group = || resource.prefix.strip_prefix("/apis/")?.split_once('/');
        let Some((group, version)) = of_core.or_else(of_group) else { continue };
        if group.is_empty() == core {
            let kind = json!({"group": group, "version": version, "kind": kind.name});
            let entry =
                json!({"resource": resource.plural, "responseKind": kind, "verbs": ["get", "list", "watch"]});
            groups.entry(group.to_owned()).or_default().entry(version.to_owned()).or_default().push(entry);
        }
    }
    groups
}

fn aggregated(groups: &Groups, version: &str) -> Value {
    let of_version = |(version, resources): (&String, &Vec<Value>)| {
        let mut resources = resources.clone();
        resources.sort_by_key(|entry| entry["resource"].to_string());
        json!({"version": version, "resources": resources, "freshness": "Current"})
    };
    let items = groups.iter().map(|(group, versions)| {
        json!({"metadata": {"name": group}, "versions": versions.iter().map(of_version).collect::<Vec<_>>()})
    });
    json!({"kind": "APIGroupDiscoveryList", "apiVersion": format!("apidiscovery.k8s.io/{version}"),
        "metadata": {}, "items": items.collect::<Vec<_>>()})
}

fn names(groups: &Groups, path: &str) -> Value {
    if path == "/api" {
        let versions: Vec<_> = groups.values().flat_map(BTreeMap::keys).collect();
        return json!({"kind": "APIVersions", "versions": versions});
    }
    let all = groups.iter().map(|(group, versions)| {
        let one =
            |version: &String| json!({"groupVersion": format!("{group}/{version}"), "version": version});
        json!({"name": group, "versions": versions.keys().map(one).collect::<Vec<_>>()})
    });
    json!({"kind": "APIGroupList", "apiVersion": "v1", "groups": all.collect::<Vec<_>>()})
}
