//! Where objects are: paths of the API, taken apart.

use serde_json::Value;

/// A collection of the API.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Resource {
    /// `/api/v1`, `/apis/apps/v1`
    pub prefix: String,
    /// `pods`
    pub plural: String,
}

impl Resource {
    pub fn new(prefix: &str, plural: &str) -> Self {
        Self { prefix: prefix.to_owned(), plural: plural.to_owned() }
    }

    /// Of the core group.
    pub fn core(plural: &str) -> Self {
        Self::new("/api/v1", plural)
    }

    /// `v1`, `apps/v1`
    pub fn api_version(&self) -> &str {
        self.prefix.strip_prefix("/apis/").unwrap_or_else(|| self.prefix.trim_start_matches("/api/"))
    }

    /// Path of the collection.
    pub fn path(&self, namespace: Option<&str>) -> String {
        match namespace {
            Some(namespace) => format!("{}/namespaces/{namespace}/{}", self.prefix, self.plural),
            None => format!("{}/{}", self.prefix, self.plural),
        }
    }

    /// One of its objects.
    pub fn key(&self, namespace: Option<&str>, name: &str) -> Key {
        let at = namespace.map_or_else(|| name.to_owned(), |namespace| format!("{namespace}/{name}"));
        Key { resource: self.clone(), at }
    }
}

/// An object. Ordered as the API server lists.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Key {
    pub resource: Resource,
    /// `namespace/name` or `name`.
    at: String,
}

impl Key {
    /// The object at a path.
    pub fn of(path: &str) -> Self {
        Target::parse(path).and_then(|target| target.key()).unwrap_or_else(|| panic!("no object: {path}"))
    }

    pub fn plural(&self) -> &str {
        &self.resource.plural
    }

    pub fn namespace(&self) -> Option<&str> {
        self.at.rsplit_once('/').map(|(namespace, _)| namespace)
    }

    pub fn name(&self) -> &str {
        self.at.rsplit_once('/').map_or(&self.at, |(_, name)| name)
    }

    pub fn path(&self) -> String {
        format!("{}/{}", self.resource.path(self.namespace()), self.name())
    }
}

/// What a path is about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Target {
    pub(super) resource: Resource,
    pub(super) namespace: Option<String>,
    pub(super) name: Option<String>,
    pub(super) sub: Option<String>,
}

impl Target {
    pub(super) fn parse(path: &str) -> Option<Self> {
        let parts: Vec<&str> = path.trim_matches('/').split('/').collect();
        let (prefix, rest) = match parts[..] {
            ["api", version, ref rest @ ..] => (format!("/api/{version}"), rest),
            ["apis", group, version, ref rest @ ..] => (format!("/apis/{group}/{version}"), rest),
            _ => return None,
        };
        let (namespace, plural, rest) = match rest {
            // Subresources of the namespace itself.
            ["namespaces", _, "status" | "finalize"] | ["namespaces"] => (None, "namespaces", &rest[1..]),
            ["namespaces", namespace, plural, rest @ ..] => (Some((*namespace).to_owned()), *plural, rest),
            [plural, rest @ ..] => (None, *plural, rest),
            [] => return None,
        };
        Some(Self {
            resource: Resource { prefix, plural: plural.to_owned() },
            namespace,
            name: rest.first().map(|name| (*name).to_owned()),
            sub: (rest.len() > 1).then(|| rest[1..].join("/")),
        })
    }

    pub(super) fn key(&self) -> Option<Key> {
        Some(self.named(self.name.as_deref()?))
    }

    pub(super) fn named(&self, name: &str) -> Key {
        self.resource.key(self.namespace.as_deref(), name)
    }

    /// Whether an object belongs to the collection.
    pub(super) fn covers(&self, key: &Key) -> bool {
        self.resource == key.resource
            && (self.namespace.is_none() || self.namespace.as_deref() == key.namespace())
    }
}

/// Which objects of a collection.
#[derive(Debug, Clone, Default)]
pub(super) struct Selector {
    labels: Vec<Requirement>,
    fields: Vec<Requirement>,
}

#[derive(Debug, Clone)]
enum Requirement {
    Is(String, String),
    IsNot(String, String),
    In(String, Vec<String>),
    NotIn(String, Vec<String>),
    Exists(String),
    Absent(String),
}

impl Selector {
    pub(super) fn new(labels: &str, fields: &str) -> Self {
        Self { labels: requirements(labels), fields: requirements(fields) }
    }

    pub(super) fn fits(&self, object: &Value) -> bool {
        let label = |name: &str| object["metadata"]["labels"][name].as_str();
        let field = |name: &str| {
            // A field that is not there is empty.
            let found = object.pointer(&format!("/{}", name.replace('.', "/")));
            Some(found.and_then(Value::as_str).unwrap_or_default())
        };
        self.labels.iter().all(|one| one.fits(label)) && self.fields.iter().all(|one| one.fits(field))
    }
}

impl Requirement {
    fn fits<'o>(&self, value: impl Fn(&str) -> Option<&'o str>) -> bool {
        match self {
            Self::Is(name, wanted) => value(name) == Some(wanted),
            Self::IsNot(name, wanted) => value(name) != Some(wanted),
            Self::In(name, all) => value(name).is_some_and(|found| all.iter().any(|one| one == found)),
            Self::NotIn(name, all) => !value(name).is_some_and(|found| all.iter().any(|one| one == found)),
            Self::Exists(name) => value(name).is_some(),
            Self::Absent(name) => value(name).is_none(),
        }
    }
}

/// `a=b,c!=d,e in (f,g),h notin (i),j,!k`
fn requirements(text: &str) -> Vec<Requirement> {
    let mut all = Vec::new();
    let mut rest = text.trim();
    while !rest.is_empty() {
        // Commas inside parentheses belong to the value.
        let mut depth = 0;
        let end = rest.find(|character| {
            depth += i32::from(character == '(') - i32::from(character == ')');
            character == ',' && depth == 0
        });
        let (one, next) = rest.split_at(end.unwrap_or(rest.len()));
        all.push(requirement(one.trim()));
        rest = next.trim_start_matches(',').trim_start();
    }
    all
}

fn requirement(text: &str) -> Requirement {
    let pair = |separator: &str| {
        let (name, value) = text.split_once(separator)?;
        Some((name.trim().to_owned(), value.trim().to_owned()))
    };
    let set = |value: &str| {
        value.trim_matches(['(', ')']).split(',').map(|value| value.trim().to_owned()).collect()
    };
    if let Some((name, value)) = pair(" notin ") {
        Requirement::NotIn(name, set(&value))
    } else if let Some((name, value)) = pair(" in ") {
        Requirement::In(name, set(&value))
    } else if let Some((name, value)) = pair("!=") {
        Requirement::IsNot(name, value)
    } else if let Some((name, value)) = pair("==").or_else(|| pair("=")) {
        Requirement::Is(name, value)
    } else if let Some(name) = text.strip_prefix('!') {
        Requirement::Absent(name.to_owned())
    } else {
        Requirement::Exists(text.to_owned())
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn paths_are_taken_apart_and_put_together() {
        for path in ["/api/v1/nodes/a", "/api/v1/namespaces/x", "/apis/apps/v1/namespaces/x/deployments/y"] {
            assert_eq!(Key::of(path).path(), path);
        }
        let status = Target::parse("/api/v1/namespaces/x/pods/y/status").unwrap();
        assert_eq!(
            (status.sub.as_deref(), status.key()),
            (Some("status"), Some(Key::of("/api/v1/namespaces/x/pods/y")))
        );
        assert_eq!(Target::parse("/api/v1/namespaces/x/pods").unwrap().name, None);
        assert_eq!(Target::parse("/version"), None);
    }

    #[test]
    fn selectors_select() {
        let object = json!({"metadata": {"name": "n", "labels": {"a": "1"}}, "spec": {"nodeName": "edge"}});
        for (labels, fields, fits) in [
            ("a=1,!b", "spec.nodeName=edge", true),
            ("a in (0,1),a!=2", "metadata.name==n,status.phase!=Failed", true),
            ("a notin (1)", "", false),
            ("b", "", false),
            ("", "spec.nodeName=", false),
        ] {
            assert_eq!(Selector::new(labels, fields).fits(&object), fits, "{labels} {fields}");
        }
    }
}
