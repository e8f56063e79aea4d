//! What is tried: the plugin and the image as they are released.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use serde_json::Value;

use crate::paths;

#[derive(Debug, Clone)]
pub struct Product {
    /// The folder with `kubectl-yurt` in it.
    pub plugin: PathBuf,
    /// The archive that `ctr images import` takes.
    pub archive: PathBuf,
    /// The reference of the image in it.
    pub image: String,
}

impl Product {
    /// What `make demo` and `make test-e2e` have built; `YURT_PLUGIN` (a folder) and
    /// `YURT_IMAGE_ARCHIVE` (a file) stand for something that was built elsewhere.
    pub fn find() -> Result<Self> {
        let architecture = if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" };
        let plugin = from_environment("YURT_PLUGIN").unwrap_or_else(|| paths::target().join("plugin"));
        let archive = from_environment("YURT_IMAGE_ARCHIVE")
            .unwrap_or_else(|| paths::target().join(format!("image/yurtd-{architecture}.tar")));
        for file in [&plugin.join("kubectl-yurt"), &archive] {
            if !file.is_file() {
                bail!("{} is not there; `make demo` and `make test-e2e` build it", file.display());
            }
        }
        let image = reference(&archive)?;
        Ok(Self { plugin, archive, image })
    }
}

fn from_environment(name: &str) -> Option<PathBuf> {
    std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from)
}

/// The name that an archive gives its image, in Docker's form or in OCI's.
fn reference(archive: &Path) -> Result<String> {
    let file = File::open(archive).with_context(|| format!("opening {}", archive.display()))?;
    for entry in tar::Archive::new(file).entries()? {
        let mut entry = entry?;
        let name = entry.path()?.to_string_lossy().trim_start_matches("./").to_owned();
        if !["manifest.json", "index.json"].contains(&name.as_str()) {
            continue;
        }
        let mut text = String::new();
        entry.read_to_string(&mut text)?;
        if let Some(reference) = named_in(&serde_json::from_str(&text)?) {
            return Ok(reference);
        }
    }
    bail!("{} names no image", archive.display())
}

fn named_in(document: &Value) -> Option<String> {
    let docker = &document[0]["RepoTags"][0];
    let annotations = &document["manifests"][0]["annotations"];
    let oci = &annotations["io.containerd.image.name"];
    docker.as_str().or(oci.as_str()).map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn an_image_is_named_in_either_form_of_archive() {
        assert_eq!(named_in(&json!([{"RepoTags": ["a/b:1"]}])).as_deref(), Some("a/b:1"));
        let oci = json!({"manifests": [{"annotations": {"io.containerd.image.name": "a/b:2"}}]});
        assert_eq!(named_in(&oci).as_deref(), Some("a/b:2"));
        assert_eq!(named_in(&json!({"manifests": []})), None);
    }
}
