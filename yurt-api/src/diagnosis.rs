//! What a walk along the way to a node finds, hop by hop: `kubectl yurt tunnel diagnose`, and the part of it that a tunnel
//! server walks, at `/apis/tunnel.openyurt.io/v1alpha1/agents/NODE/diagnosis`.
//!
//! A reader does not mind fields that it does not know.

use serde::{Deserialize, Serialize};

/// What a tunnel server finds between itself and a node's kubelet.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Diagnosis {
    /// `tunnel.openyurt.io/v1alpha1`.
    pub api_version: String,
    /// `Diagnosis`.
    pub kind: String,
    /// The node.
    pub node: String,
    /// Name of the tunnel server that looked.
    pub server: String,
    /// In the order of the way.
    pub checks: Vec<Check>,
}

/// One hop, or a property of one.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Check {
    /// What was looked at, for programs: `session`, `kubelet`.
    pub check: String,
    /// How it is.
    pub verdict: Verdict,
    /// Why it is not well, for programs; a word that stays: `NotConnected`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub code: Option<String>,
    /// What was seen, for a person.
    pub message: String,
    /// What to do about it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hint: Option<String>,
}

/// How a hop is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Verdict {
    /// As it should be.
    Passed,
    /// It works, and will not for long, or not well.
    Warning,
    /// Here the way ends, or leads somewhere else.
    Failed,
    /// It could not be looked at, for want of what comes before it or of a right.
    Skipped,
    /// A newer release's word.
    #[default]
    #[serde(other)]
    Unknown,
}

impl Check {
    /// As it should be.
    pub fn passed(check: &str, message: impl Into<String>) -> Self {
        let message = message.into();
        Self { check: check.to_owned(), verdict: Verdict::Passed, message, ..Self::default() }
    }

    /// It works, and will not for long, or not well.
    pub fn warning(check: &str, code: &str, message: impl Into<String>, hint: impl Into<String>) -> Self {
        Self { verdict: Verdict::Warning, ..Self::failed(check, code, message, hint) }
    }

    /// Here the way ends.
    pub fn failed(check: &str, code: &str, message: impl Into<String>, hint: impl Into<String>) -> Self {
        Self {
            check: check.to_owned(),
            verdict: Verdict::Failed,
            code: Some(code.to_owned()),
            message: message.into(),
            hint: Some(hint.into()),
        }
    }

    /// It could not be looked at.
    pub fn skipped(check: &str, why: impl Into<String>) -> Self {
        Self { verdict: Verdict::Skipped, ..Self::passed(check, why) }
    }

    /// Whether the way ends here.
    pub fn is_failed(&self) -> bool {
        self.verdict == Verdict::Failed
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_newer_servers_words_are_read() {
        let newer = r#"{"apiVersion":"v","kind":"Diagnosis","node":"n","server":"s","checks":[
            {"check":"moon","verdict":"waxing","message":"half","phase":3}]}"#;
        let diagnosis: Diagnosis = serde_json::from_str(newer).unwrap();
        assert_eq!(diagnosis.checks[0].verdict, Verdict::Unknown);
        let check = Check::warning("clock", "ClockOff", "a day behind", "set it");
        let text = serde_json::to_string(&check).unwrap();
        assert_eq!(serde_json::from_str::<Check>(&text).unwrap(), check, "{text}");
        assert!(!check.is_failed());
    }
}
