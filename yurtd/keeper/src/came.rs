//! When the node's kubelet came to the hub, and which of its agents are about to, for who runs on the node itself: some
//! fields of the [journal](super::journal), whatever else is in it.

use std::io;
use std::path::Path;

use serde::Deserialize;
use yurt_api::agent::{Believed, Course, Moment, Turn};
use yurt_api::way_in::WayIn;

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Fields {
    #[serde(default)]
    came: Option<Moment>,
    #[serde(default)]
    left: Option<Moment>,
    #[serde(default)]
    believed: Option<Believed>,
    #[serde(default)]
    turn: Option<Turn>,
    #[serde(default)]
    way_in: Option<WayIn>,
    #[serde(default)]
    environment_until: Option<Moment>,
}

/// What the keeper has written down; nothing of it where no keeper has brought kubelet to the hub, or it has left again.
///
/// # Errors
///
/// When the journal cannot be read.
pub fn read(journal: &Path) -> io::Result<Course> {
    match std::fs::read(journal) {
        Ok(text) => {
            let Fields { came, left, believed, turn, way_in, environment_until } =
                serde_json::from_slice(&text)?;
            let environment = environment_until.is_some();
            let came = came.filter(|_| left.is_none());
            Ok(Course { came, believed, turn, way_in, environment })
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Course::default()),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_moment_is_the_one_in_the_journal_unless_kubelet_has_left() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("journal.json");
        assert_eq!(read(&file).unwrap(), Course::default());
        let mut journal = json!({"format": 2, "came": {"bootId": "one", "second": 100}});
        std::fs::write(&file, journal.to_string()).unwrap();
        let came = Moment { boot_id: Some("one".into()), second: 100 };
        assert_eq!(read(&file).unwrap(), came.clone().into());
        journal["turn"] = json!({"second": 101, "pods": ["a/b"]});
        std::fs::write(&file, journal.to_string()).unwrap();
        let turn = Turn { second: 101, pods: vec!["a/b".into()] };
        assert_eq!(read(&file).unwrap(), Course { turn: Some(turn), ..came.into() });
        journal["left"] = json!({"bootId": "one", "second": 200});
        std::fs::write(&file, journal.to_string()).unwrap();
        assert_eq!(read(&file).unwrap().came, None);
        std::fs::write(&file, "{").unwrap();
        assert!(read(&file).is_err());
    }
}
