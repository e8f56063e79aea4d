//! Selectors, evaluated here as the API server evaluates them: which objects of a wider view are in a narrower one.
//!
//! What is not known to be evaluated exactly as there is not evaluated at all: such a view is asked for upstream.

use super::ViewSpec;
use super::spec::requirements;
use crate::wire::selectable::Selectable;
use crate::wire::{Encoding, WireError};

/// The longest name in a label's key, and the longest value.
const LONGEST: usize = 63;
/// The longest prefix of a label's key.
const LONGEST_PREFIX: usize = 253;

/// Which objects of a resource are in a view.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Selector {
    namespace: Option<String>,
    labels: Vec<Label>,
    fields: Vec<Field>,
}

/// A requirement on a label.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Label {
    Exists(String),
    Absent(String),
    In(String, Vec<String>),
    /// Objects without the label are selected, too.
    NotIn(String, Vec<String>),
}

/// A requirement on a field.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Field {
    name: FieldName,
    value: String,
    /// Whether it has to be this value, or any other.
    is: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum FieldName {
    Name,
    Namespace,
    ClusterIp,
    ServiceType,
}

impl Selector {
    /// That of a view; nothing if it cannot be evaluated here.
    pub(crate) fn of(spec: &ViewSpec) -> Option<Self> {
        if spec.encoding().is_partial() {
            return None;
        }
        let resource = spec.resource();
        let is_service = resource.group.is_empty() && resource.plural == "services";
        let labels = requirements(spec.label_selector()).into_iter().map(label).collect::<Option<_>>()?;
        let fields = requirements(spec.field_selector()).into_iter();
        let fields = fields.map(|text| field(text, is_service)).collect::<Option<_>>()?;
        Some(Self { namespace: spec.namespace().map(str::to_owned), labels, fields })
    }

    /// Whether it names what is not in the view, and nothing that is: as a rule that is nearly everything.
    pub(crate) fn only_leaves_out(&self) -> bool {
        let leaves_out = |label: &Label| matches!(label, Label::Absent(_) | Label::NotIn(..));
        self.namespace.is_none()
            && self.labels.iter().all(leaves_out)
            && self.fields.iter().all(|field| !field.is)
    }

    /// Whether an object in its stored form is in the view. `namespace` is its own, empty if it has none.
    ///
    /// # Errors
    ///
    /// [`WireError`] when it cannot be read.
    pub(crate) fn fits(&self, encoding: Encoding, namespace: &str, stored: &[u8]) -> Result<bool, WireError> {
        if self.namespace.as_deref().is_some_and(|own| own != namespace) {
            return Ok(false);
        }
        if self.labels.is_empty() && self.fields.is_empty() {
            return Ok(true);
        }
        let object = Selectable::read(encoding, stored)?;
        Ok(self.labels.iter().all(|label| label.fits(&object))
            && self.fields.iter().all(|field| field.fits(&object)))
    }
}

impl Label {
    fn fits(&self, object: &Selectable<'_>) -> bool {
        let among = |key: &str, values: &[String]| {
            object.label(key).map(|value| values.iter().any(|one| one == value))
        };
        match self {
            Self::Exists(key) => object.label(key).is_some(),
            Self::Absent(key) => object.label(key).is_none(),
            Self::In(key, values) => among(key, values) == Some(true),
            Self::NotIn(key, values) => among(key, values) != Some(true),
        }
    }
}

impl Field {
    fn fits(&self, object: &Selectable<'_>) -> bool {
        let found = match self.name {
            FieldName::Name => &object.name,
            FieldName::Namespace => &object.namespace,
            FieldName::ClusterIp => &object.cluster_ip,
            FieldName::ServiceType => &object.service_type,
        };
        (**found == *self.value) == self.is
    }
}

/// A requirement in the canonical form of [`ViewSpec`]; nothing if the API server would not take it, or orders values
/// (`>`, `<`).
fn label(text: &str) -> Option<Label> {
    if let Some((head, values)) = text.strip_suffix(')').and_then(|text| text.split_once(" (")) {
        let (key, operator) = head.split_once(' ')?;
        let (key, values) = (label_key(key)?, values.split(',').map(label_value).collect::<Option<_>>()?);
        return match operator {
            "in" => Some(Label::In(key, values)),
            "notin" => Some(Label::NotIn(key, values)),
            _ => None,
        };
    }
    if let Some(key) = text.strip_prefix('!') {
        return label_key(key.trim_start()).map(Label::Absent);
    }
    if let Some((key, value)) = text.split_once("!=") {
        return Some(Label::NotIn(label_key(key)?, vec![label_value(value)?]));
    }
    match text.split_once('=') {
        Some((key, value)) => Some(Label::In(label_key(key)?, vec![label_value(value)?])),
        None => label_key(text).map(Label::Exists),
    }
}

fn field(text: &str, is_service: bool) -> Option<Field> {
    // An escaped character.
    if text.contains('\\') {
        return None;
    }
    let (name, value, is) = match text.split_once("!=") {
        Some((name, value)) => (name, value, false),
        None => text.split_once('=').map(|(name, value)| (name, value, true))?,
    };
    let name = match name {
        "metadata.name" => FieldName::Name,
        "metadata.namespace" => FieldName::Namespace,
        "spec.clusterIP" if is_service => FieldName::ClusterIp,
        "spec.type" if is_service => FieldName::ServiceType,
        _ => return None,
    };
    let plain = !value.contains(['=', '!', ' ']);
    plain.then(|| Field { name, value: value.to_owned(), is })
}

fn label_key(text: &str) -> Option<String> {
    let (prefix, name) = text.split_once('/').map_or((None, text), |(prefix, name)| (Some(prefix), name));
    let domain = |prefix: &str| {
        let good = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"-.".contains(&byte);
        (1..=LONGEST_PREFIX).contains(&prefix.len())
            && prefix.bytes().all(good)
            && prefix
                .split('.')
                .all(|part| !part.is_empty() && !part.starts_with('-') && !part.ends_with('-'))
    };
    let good = !name.is_empty() && is_word(name) && prefix.is_none_or(domain);
    // `in` and `notin` are operators wherever they stand.
    (good && !matches!(text, "in" | "notin")).then(|| text.to_owned())
}

fn label_value(text: &str) -> Option<String> {
    (text.is_empty() || is_word(text)).then(|| text.to_owned())
}

/// Letters, digits, `-`, `_` and `.`, with a letter or a digit at both ends.
fn is_word(text: &str) -> bool {
    let ends = [text.bytes().next(), text.bytes().next_back()];
    text.len() <= LONGEST
        && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte))
        && ends.into_iter().flatten().all(|byte| byte.is_ascii_alphanumeric())
}

#[cfg(test)]
mod tests;
