//! Content negotiation: what of a request's `Accept` a view can give, and in which encoding errors are written.

use http::HeaderMap;
use http::header::ACCEPT;

use crate::wire::Encoding;

const PROTOBUF: &str = "application/vnd.kubernetes.protobuf";
const JSON: &str = "application/json";

/// What one clause of `Accept` asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Clause {
    View(Encoding),
    /// The API server may be able to answer it, a view is not: `Table`, YAML, PartialObjectMetadata v1beta1.
    UpstreamOnly,
    /// Declined by negotiation: CBOR, which kubelet and client-go always offer with an alternative.
    Declined,
}

/// A parsed `Accept` header.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Accept {
    clauses: Vec<Clause>,
}

impl Accept {
    /// Reads the header; without one, everything is accepted.
    pub(crate) fn from_headers(headers: &HeaderMap) -> Self {
        let text: Vec<_> = headers.get_all(ACCEPT).iter().filter_map(|value| value.to_str().ok()).collect();
        Self::parse(&text.join(","))
    }

    fn parse(text: &str) -> Self {
        if text.trim().is_empty() {
            return Self { clauses: vec![Clause::View(Encoding::Json)] };
        }
        let mut clauses: Vec<(u32, Clause)> = text.split(',').filter_map(parse_clause).collect();
        // The sort is stable: equal weights keep the order of the header.
        clauses.sort_by_key(|(weight, _)| std::cmp::Reverse(*weight));
        Self { clauses: clauses.into_iter().map(|(_, clause)| clause).collect() }
    }

    /// The encodings a view may answer in, best first. Empty when the caller would rather have something that only
    /// the API server can make, even if it would make do with less.
    pub(crate) fn view_encodings(&self) -> Vec<Encoding> {
        let mut encodings = Vec::new();
        for clause in &self.clauses {
            match clause {
                Clause::View(encoding) if !encodings.contains(encoding) => encodings.push(*encoding),
                Clause::UpstreamOnly => break,
                Clause::View(_) | Clause::Declined => {}
            }
        }
        encodings
    }

    /// The same without what only the API server can make: what the caller would make do with.
    pub(crate) fn without_api_server(&self) -> Self {
        let clauses = self.clauses.iter().copied().filter(|clause| *clause != Clause::UpstreamOnly);
        Self { clauses: clauses.collect() }
    }

    /// Whether an answer with this content type would be accepted.
    pub(crate) fn accepts(&self, content_type: &str) -> bool {
        match parse_clause(content_type) {
            Some((_, clause @ Clause::View(_))) => self.clauses.contains(&clause),
            _ => false,
        }
    }

    /// The encoding for errors: protobuf for those who ask for it first, JSON for everybody else.
    pub(crate) fn status_encoding(&self) -> Encoding {
        match self.clauses.iter().find(|clause| !matches!(clause, Clause::Declined)) {
            Some(Clause::View(Encoding::Protobuf | Encoding::PartialProtobuf)) => Encoding::Protobuf,
            _ => Encoding::Json,
        }
    }
}

/// What an answer may be, of what `Accept` says, best first: the media type with what it is converted to, as
/// [`media_type`] writes it.
pub(crate) fn media_types(accept: &str) -> Vec<String> {
    let weighted = accept.split(',').filter_map(|clause| {
        let weight =
            clause.split(';').skip(1).filter_map(|parameter| parameter.trim().strip_prefix("q=")).next();
        let weight = weight.map_or(Some(1000), |weight| parse_weight(weight.trim()))?;
        (weight > 0 && !clause.trim().is_empty()).then(|| (weight, media_type(clause)))
    });
    let mut weighted: Vec<_> = weighted.collect();
    if weighted.is_empty() {
        return vec![JSON.to_owned()];
    }
    weighted.sort_by_key(|(weight, _)| std::cmp::Reverse(*weight));
    weighted.into_iter().map(|(_, media_type)| media_type).collect()
}

/// A media type and the object that it is converted to (`g`, `v`, `as`, in this order), without anything else: equal
/// for the `Content-Type` of an answer and the clause of `Accept` that asks for it.
pub(crate) fn media_type(text: &str) -> String {
    let mut parts = text.split(';').map(str::trim);
    let kind = parts.next().unwrap_or_default().to_ascii_lowercase();
    let mut text = if matches!(kind.as_str(), "*/*" | "application/*") { JSON.to_owned() } else { kind };
    let parameters: Vec<_> = parts.filter_map(|parameter| parameter.split_once('=')).collect();
    for wanted in ["g", "v", "as"] {
        if let Some((_, value)) = parameters.iter().find(|(name, _)| name.trim() == wanted) {
            text.push_str(&format!(";{wanted}={}", value.trim().trim_matches('"')));
        }
    }
    text
}

/// One clause and its weight in thousandths; `None` for what is refused (`q=0`) or not understood.
fn parse_clause(text: &str) -> Option<(u32, Clause)> {
    let mut parts = text.split(';').map(str::trim);
    let media_type = parts.next()?.to_ascii_lowercase();
    let (mut weight, mut convert, mut group, mut version) = (1000, None, None, None);
    for parameter in parts {
        let Some((key, value)) = parameter.split_once('=') else { continue };
        let value = value.trim().trim_matches('"');
        match key.trim() {
            "q" => weight = parse_weight(value)?,
            "as" => convert = Some(value.to_owned()),
            "g" => group = Some(value.to_owned()),
            "v" => version = Some(value.to_owned()),
            _ => {}
        }
    }
    if weight == 0 {
        return None;
    }
    let protobuf = match media_type.as_str() {
        PROTOBUF => true,
        "application/json" | "application/*" | "*/*" => false,
        "application/cbor" | "application/cbor-seq" => return Some((weight, Clause::Declined)),
        "application/yaml" => return Some((weight, Clause::UpstreamOnly)),
        _ => return Some((weight, Clause::Declined)),
    };
    let metadata_v1 = group.as_deref() == Some("meta.k8s.io") && version.as_deref() == Some("v1");
    let clause = match convert.as_deref() {
        None => Clause::View(if protobuf { Encoding::Protobuf } else { Encoding::Json }),
        Some("PartialObjectMetadata" | "PartialObjectMetadataList") if metadata_v1 => {
            Clause::View(if protobuf { Encoding::PartialProtobuf } else { Encoding::PartialJson })
        }
        Some(_) => Clause::UpstreamOnly,
    };
    Some((weight, clause))
}

fn parse_weight(text: &str) -> Option<u32> {
    let weight: f32 = text.parse().ok()?;
    (0.0..=1.0).contains(&weight).then_some((weight * 1000.0) as u32)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn encodings(accept: &str) -> Vec<Encoding> {
        Accept::parse(accept).view_encodings()
    }

    #[test]
    fn what_the_components_of_a_node_send() {
        let kubelet = "application/vnd.kubernetes.protobuf,application/json";
        assert_eq!(encodings(kubelet), [Encoding::Protobuf, Encoding::Json]);
        let kube_proxy = "application/vnd.kubernetes.protobuf, */*";
        assert_eq!(encodings(kube_proxy), [Encoding::Protobuf, Encoding::Json]);
        assert_eq!(encodings("application/json, */*"), [Encoding::Json]);
        assert_eq!(encodings(""), [Encoding::Json]);
        let watch = "application/vnd.kubernetes.protobuf;stream=watch,application/json;stream=watch";
        assert_eq!(encodings(watch), [Encoding::Protobuf, Encoding::Json]);
    }

    #[test]
    fn metadata_clients_get_their_own_encoding() {
        let accept = "application/vnd.kubernetes.protobuf;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1,\
                      application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1,application/json";
        assert_eq!(encodings(accept), [Encoding::PartialProtobuf, Encoding::PartialJson, Encoding::Json]);
        let old = "application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1beta1";
        assert_eq!(encodings(old), []);
    }

    #[test]
    fn tables_and_yaml_are_for_the_api_server() {
        let kubectl = "application/json;as=Table;v=v1;g=meta.k8s.io,application/json;as=Table;v=v1beta1;g=meta.k8s.io,application/json";
        assert_eq!(encodings(kubectl), []);
        assert_eq!(encodings("application/yaml"), []);
    }

    #[test]
    fn cbor_is_declined_by_negotiation() {
        assert_eq!(
            encodings("application/cbor,application/vnd.kubernetes.protobuf;q=0.9,application/json;q=0.8"),
            [Encoding::Protobuf, Encoding::Json]
        );
        assert_eq!(encodings("application/cbor"), []);
    }

    #[test]
    fn weights_order_and_zero_refuses() {
        assert_eq!(
            encodings("application/vnd.kubernetes.protobuf;q=0.5, application/json"),
            [Encoding::Json, Encoding::Protobuf]
        );
        assert_eq!(
            encodings("application/json;q=0, application/vnd.kubernetes.protobuf"),
            [Encoding::Protobuf]
        );
    }

    #[test]
    fn errors_follow_the_first_choice() {
        let status = |accept: &str| Accept::parse(accept).status_encoding();
        assert_eq!(status("application/vnd.kubernetes.protobuf,application/json"), Encoding::Protobuf);
        assert_eq!(status("application/json"), Encoding::Json);
        assert_eq!(status("text/plain"), Encoding::Json);
    }

    #[test]
    fn what_is_asked_for_and_what_is_answered_have_one_name() {
        let kubectl = "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList,\
                       application/json;as=APIGroupDiscoveryList;v=v2beta1;g=apidiscovery.k8s.io;q=0.9,application/json;q=0.8";
        let [v2, v2beta1, plain] = media_types(kubectl).try_into().unwrap();
        assert_eq!(v2, media_type("application/json; v=v2; g=apidiscovery.k8s.io; as=APIGroupDiscoveryList"));
        assert_eq!(v2beta1, "application/json;g=apidiscovery.k8s.io;v=v2beta1;as=APIGroupDiscoveryList");
        assert_eq!(plain, media_type("application/json; charset=utf-8"));
        for nothing_said in ["", "*/*", "application/yaml;q=0, application/*"] {
            assert_eq!(media_types(nothing_said), ["application/json"], "{nothing_said}");
        }
    }

    #[test]
    fn a_stored_answer_must_be_acceptable() {
        let accept = Accept::parse("application/vnd.kubernetes.protobuf");
        assert!(accept.accepts("application/vnd.kubernetes.protobuf"));
        assert!(!accept.accepts("application/json"));
        assert!(Accept::parse("*/*").accepts("application/json"));
    }
}
