//! Which view: the identity's side is in the registry, this is the collection's.

use serde::{Deserialize, Serialize};

use crate::wire::{Encoding, Resource};

/// A collection as some client lists and watches it. Selectors are canonical, so that two spellings of one
/// selector are one view and two selectors never are.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct ViewSpec {
    resource: Resource,
    namespace: Option<String>,
    label_selector: String,
    field_selector: String,
    encoding: Encoding,
}

impl ViewSpec {
    /// Takes selectors as a client writes them.
    pub(crate) fn new(
        resource: Resource,
        namespace: Option<&str>,
        label_selector: &str,
        field_selector: &str,
        encoding: Encoding,
    ) -> Self {
        Self {
            resource,
            namespace: namespace.filter(|namespace| !namespace.is_empty()).map(str::to_owned),
            label_selector: canonical(label_selector),
            field_selector: canonical(field_selector),
            encoding,
        }
    }

    /// The collection.
    pub(crate) fn resource(&self) -> &Resource {
        &self.resource
    }

    /// One namespace, or all.
    pub(crate) fn namespace(&self) -> Option<&str> {
        self.namespace.as_deref()
    }

    /// Canonical label selector; empty for all.
    pub(crate) fn label_selector(&self) -> &str {
        &self.label_selector
    }

    /// Canonical field selector; empty for all.
    pub(crate) fn field_selector(&self) -> &str {
        &self.field_selector
    }

    /// How objects are written.
    pub(crate) fn encoding(&self) -> Encoding {
        self.encoding
    }

    /// Whether everything in this view is in `wide` as well, in the same bytes, whatever there is.
    pub(crate) fn is_within(&self, wide: &Self) -> bool {
        let requires = |all: &str, some: &str| {
            let all = requirements(all);
            requirements(some).iter().all(|one| all.contains(one))
        };
        self.resource == wide.resource
            && self.encoding == wide.encoding
            && (wide.namespace.is_none() || wide.namespace == self.namespace)
            && requires(&self.label_selector, &wide.label_selector)
            && requires(&self.field_selector, &wide.field_selector)
    }

    /// The whole collection of this resource.
    pub(crate) fn of_all(&self) -> Self {
        Self::new(self.resource.clone(), None, "", "", self.encoding)
    }

    /// Whether the view, when complete, has every object of the resource with this name: then its silence about
    /// one proves that there is none.
    pub(crate) fn covers(&self, namespace: Option<&str>, name: &str) -> bool {
        let right_namespace = self.namespace.is_none() || self.namespace.as_deref() == namespace;
        let selected = self.field_selector.is_empty()
            || self.field_selector.split(',').all(|requirement| match requirement.split_once('=') {
                Some(("metadata.name", value)) => value == name,
                Some(("metadata.namespace", value)) => Some(value) == namespace,
                _ => false,
            });
        right_namespace && self.label_selector.is_empty() && selected
    }
}

/// Requirements trimmed, sorted and without repetitions; `==` is `=`.
fn canonical(selector: &str) -> String {
    let mut requirements: Vec<_> = requirements(selector).into_iter().map(canonical_requirement).collect();
    requirements.retain(|requirement| !requirement.is_empty());
    requirements.sort();
    requirements.dedup();
    requirements.join(",")
}

/// The requirements of a selector; none of an empty one. Commas in parentheses separate values.
pub(super) fn requirements(selector: &str) -> Vec<&str> {
    let mut requirements = Vec::new();
    let (mut depth, mut start) = (0_usize, 0);
    for (at, character) in selector.char_indices() {
        match character {
            '(' => depth += 1,
            ')' => depth = depth.saturating_sub(1),
            ',' if depth == 0 => {
                requirements.push(&selector[start..at]);
                start = at + 1;
            }
            _ => {}
        }
    }
    requirements.push(&selector[start..]);
    requirements.retain(|requirement| !requirement.is_empty());
    requirements
}

fn canonical_requirement(text: &str) -> String {
    let words: Vec<&str> = text.split_whitespace().collect();
    let text = words.join(" ");
    if let Some((head, values)) = text.split_once('(') {
        let mut values: Vec<&str> = values.trim_end_matches(')').split(',').map(str::trim).collect();
        values.sort_unstable();
        values.dedup();
        return format!("{} ({})", head.trim(), values.join(","));
    }
    // Neither keys nor values of label selectors hold spaces; those of field selectors escape nothing but `\`, `,`, `=`.
    match text.split_once("==") {
        Some((key, value)) if !key.contains(['=', '!']) => format!("{}={}", key.trim(), value.trim()),
        _ => match text.split_once("!=") {
            Some((key, value)) => format!("{}!={}", key.trim(), value.trim()),
            None => match text.split_once('=') {
                Some((key, value)) => format!("{}={}", key.trim(), value.trim()),
                None => text,
            },
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(label: &str, field: &str) -> ViewSpec {
        ViewSpec::new(Resource::new("", "v1", "pods"), None, label, field, Encoding::Json)
    }

    #[test]
    fn two_spellings_of_a_selector_are_one_view() {
        assert_eq!(spec("b=1,a in (y, x)", ""), spec(" a in (x,y,x) ,b == 1", ""));
        assert_eq!(spec("!b,a", ""), spec("a,!b,a", ""));
        assert_eq!(
            spec("", "spec.nodeName=n,metadata.name!=x"),
            spec("", "metadata.name!=x,spec.nodeName==n")
        );
    }

    #[test]
    fn two_selectors_are_two_views() {
        let all = ["", "a", "!a", "a=1", "a!=1", "a in (1)", "a in (1,2)", "a notin (1)", "a=1,b"];
        for (at, one) in all.iter().enumerate() {
            for other in &all[at + 1..] {
                assert_ne!(spec(one, ""), spec(other, ""));
                assert_ne!(spec("", one), spec("", other));
            }
        }
        assert_ne!(spec("a", ""), spec("", "a"));
    }

    #[test]
    fn a_view_covers_what_its_selectors_cannot_hide() {
        assert!(spec("", "").covers(Some("default"), "x"));
        assert!(spec("", "metadata.name=x").covers(Some("default"), "x"));
        assert!(!spec("", "metadata.name=y").covers(Some("default"), "x"));
        assert!(!spec("", "metadata.name!=x").covers(Some("default"), "x"));
        assert!(!spec("", "spec.nodeName=n").covers(Some("default"), "x"));
        assert!(!spec("a", "").covers(Some("default"), "x"));
        let narrow = ViewSpec::new(Resource::new("", "v1", "pods"), Some("a"), "", "", Encoding::Json);
        assert!(narrow.covers(Some("a"), "x"));
        assert!(!narrow.covers(Some("b"), "x"));
    }
}
