//! Since when what begins on this node can be sent to the hub: kubelet worked through it, and the CA by which it vouches
//! for itself now was there for kubelet to show to pods. The one rule that says what runs from before, for who is sent to
//! the hub and for what a person is told.

use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use yurt_api::agent::Moment;

use super::pod::Status;

/// In the state's folder.
const FILE: &str = "ca-since.json";

/// When that was, and which boot this is.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Since<'a> {
    /// When kubelet came to the hub, if that is known.
    pub(crate) came: Option<&'a Moment>,
    /// When the CA was first there; nothing when it does not matter.
    pub(crate) ca: Option<&'a Moment>,
    /// This boot.
    pub(crate) boot: Option<&'a str>,
}

impl Since<'_> {
    /// Whether a container that runs began before; nothing when that cannot be known. Nothing that ran before a reboot
    /// runs after it.
    pub(crate) fn began_before(&self, status: &Status) -> Option<bool> {
        let (came, boot) = (self.came?, self.boot?);
        let moments = || [Some(came), self.ca].into_iter().flatten();
        let before = |started: Option<i64>| match started {
            Some(started) => moments().any(|moment| moment.is_after(started, Some(boot))),
            // It runs, and nobody says since when.
            None => moments().any(|moment| moment.is_after(moment.second, Some(boot))),
        };
        Some(status.starts().any(before))
    }

    /// Whether it is certain, whatever runs, that all of it began since.
    pub(crate) fn all_began_since(&self) -> bool {
        let (Some(came), Some(boot)) = (self.came, self.boot) else { return false };
        let here = |moment: &Moment| moment.is_after(moment.second, Some(boot));
        !here(came) && !self.ca.is_some_and(here)
    }
}

/// When a CA was first there, kept beside it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct CaSince {
    /// SHA-256 of its certificate.
    ca: String,
    pub(crate) since: Moment,
}

impl CaSince {
    /// What is written down for this CA (PEM), or this moment, which is written down then: so it is for one that was made
    /// anew, and for one of a release that wrote nothing down.
    pub(crate) fn open(state_dir: &Path, ca: &str, now: Moment) -> Self {
        let path = state_dir.join(FILE);
        let digest = hex(&Sha256::digest(ca.as_bytes()));
        let read = std::fs::read(&path).ok().and_then(|text| serde_json::from_slice::<Self>(&text).ok());
        if let Some(read) = read.filter(|read| read.ca == digest) {
            return read;
        }
        let new = Self { ca: digest, since: now };
        if let Err(error) = new.save(&path) {
            // The next start begins anew, which covers fewer.
            tracing::warn!(%error, path = %path.display(), "cannot write down since when the node's CA is there");
        }
        new
    }

    fn save(&self, path: &PathBuf) -> io::Result<()> {
        let beside = path.with_extension("new");
        std::fs::write(&beside, serde_json::to_vec(self)?)?;
        std::fs::rename(&beside, path)
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn moment(boot: &str, second: i64) -> Moment {
        Moment { boot_id: Some(boot.into()), second }
    }

    fn started(at: &str) -> Status {
        serde_json::from_value(json!({"containerStatuses": [{"state": {"running": {"startedAt": at}}}]}))
            .unwrap()
    }

    #[test]
    fn what_began_before_kubelet_came_or_before_the_ca_was_there_is_from_before() {
        let (came, ca) = (moment("one", 100), moment("one", 200));
        let before = |ca: Option<&Moment>, at| {
            Since { came: Some(&came), ca, boot: Some("one") }.began_before(&started(at)).unwrap()
        };
        assert!(before(None, "1970-01-01T00:01:40Z") && !before(None, "1970-01-01T00:01:41Z"));
        assert!(before(Some(&ca), "1970-01-01T00:03:20Z") && !before(Some(&ca), "1970-01-01T00:03:21Z"));
        assert!(before(None, "?"), "nobody says since when it runs");
    }

    #[test]
    fn after_a_reboot_all_began_since_and_without_knowing_when_nothing_is_known() {
        let (came, ca) = (moment("one", 100), moment("two", 50));
        let since = |came, ca, boot| Since { came, ca, boot };
        let rebooted = since(Some(&came), None, Some("two"));
        assert!(rebooted.all_began_since());
        assert_eq!(rebooted.began_before(&started("1970-01-01T00:00:01Z")), Some(false));
        assert_eq!(rebooted.began_before(&started("?")), Some(false));
        let upgraded = since(Some(&came), Some(&ca), Some("two"));
        assert!(!upgraded.all_began_since());
        assert_eq!(
            upgraded.began_before(&started("1970-01-01T00:00:01Z")),
            Some(true),
            "in the boot of the CA"
        );
        for unknown in [since(None, None, Some("two")), since(Some(&came), None, None)] {
            assert!(!unknown.all_began_since());
            assert_eq!(unknown.began_before(&started("1970-01-01T00:00:01Z")), None);
        }
    }

    #[test]
    fn a_ca_that_is_made_anew_begins_anew() {
        let dir = tempfile::tempdir().unwrap();
        let first = CaSince::open(dir.path(), "a", moment("one", 1));
        assert_eq!(CaSince::open(dir.path(), "a", moment("two", 2)), first);
        assert_eq!(CaSince::open(dir.path(), "b", moment("two", 3)).since, moment("two", 3));
        std::fs::write(dir.path().join(FILE), "{").unwrap();
        assert_eq!(CaSince::open(dir.path(), "b", moment("two", 4)).since, moment("two", 4));
    }
}
