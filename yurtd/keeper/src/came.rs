//! When the node's kubelet came to the hub, for who runs on the node itself: one field of the [journal](super::journal),
//! whatever else is in it.

use std::io;
use std::path::Path;

use serde::Deserialize;
use yurt_api::agent::Moment;

#[derive(Deserialize)]
struct Came {
    #[serde(default)]
    came: Option<Moment>,
}

/// When kubelet was last restarted to come to the hub; nothing where no keeper has done that.
///
/// # Errors
///
/// When the journal cannot be read.
pub fn read(journal: &Path) -> io::Result<Option<Moment>> {
    match std::fs::read(journal) {
        Ok(text) => Ok(serde_json::from_slice::<Came>(&text)?.came),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_moment_is_the_one_in_the_journal() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("journal.json");
        assert_eq!(read(&file).unwrap(), None);
        std::fs::write(&file, json!({"format": 2, "came": {"bootId": "one", "second": 100}}).to_string())
            .unwrap();
        assert_eq!(read(&file).unwrap(), Some(Moment { boot_id: Some("one".into()), second: 100 }));
        std::fs::write(&file, "{").unwrap();
        assert!(read(&file).is_err());
    }
}
