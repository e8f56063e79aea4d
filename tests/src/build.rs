//! What a cluster is made of, built once per machine and kept outside the work tree.
//!
//! Every artifact lies in the cache under a name with the hash of all that went into it, and appears
//! there by a rename: half of one is never found, and two work trees do not disturb each other. What a
//! killed build left is removed by the next ([`partial`]).

mod go;
mod image;
mod partial;
mod root;

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context, Result};
use sha2::{Digest, Sha256};

pub use go::{COREDNS_VERSION, ETCD_VERSION, KUBERNETES_VERSION};
pub use image::{FLANNEL, METRICS_SERVER, NGINX, PAUSE, REPOSITORY};

use crate::paths;

/// Everything a cluster needs, on disk.
#[derive(Debug, Clone)]
pub struct Artifacts {
    /// `kubernetes` (and its names), `etcd`, `coredns`, `pause`.
    pub bin: PathBuf,
    /// The root that machines are copied from.
    pub root: PathBuf,
    /// Image archives for `ctr images import`.
    pub images: PathBuf,
}

/// Builds what is not in the cache.
pub fn all() -> Result<Artifacts> {
    partial::sweep(&paths::cache())?;
    let bin = go::build()?;
    let root = root::build(&bin)?;
    let images = image::build(&bin, &root)?;
    Ok(Artifacts { bin, root, images })
}

/// The image archive of metrics-server. Not part of [`all`]: it takes minutes and one test.
pub fn metrics_server() -> Result<PathBuf> {
    image::metrics_server(&go::metrics_server()?)
}

/// The image archive of flannel. Not part of [`all`]: one test needs it.
pub fn flannel(artifacts: &Artifacts) -> Result<PathBuf> {
    let (agent, plugin) = go::flannel()?;
    image::flannel(&agent, &plugin, &artifacts.root)
}

/// What `make torture` needs: the folders of etcd and `kube-apiserver`, and of its clients.
#[derive(Debug, Clone)]
pub struct TortureArtifacts {
    /// As [`Artifacts::bin`].
    pub bin: PathBuf,
    /// The clients, written with client-go.
    pub clients: PathBuf,
}

/// Builds what of it is not in the cache.
pub fn torture() -> Result<TortureArtifacts> {
    partial::sweep(&paths::cache())?;
    Ok(TortureArtifacts { bin: go::build()?, clients: go::torture()?.join("torture") })
}

/// One artifact of the cache: a folder, filled by `make` if it is not there yet.
fn cached(name: &str, key: &Key, make: impl FnOnce(&Path) -> Result<()>) -> Result<PathBuf> {
    let folder = paths::cache().join(format!("{name}-{}", key.text()));
    if folder.exists() {
        return Ok(folder);
    }
    let started = Instant::now();
    eprintln!("testbed: making {name} ...");
    fs::create_dir_all(paths::cache())?;
    let partial = partial::Partial::create(&paths::cache())?;
    make(partial.path()).with_context(|| format!("making the testbed's {name}"))?;
    partial.finish(&folder)?;
    eprintln!("testbed: {name} made in {:.0?}", started.elapsed());
    Ok(folder)
}

/// A hash over everything that goes into an artifact.
struct Key(Sha256);

impl Key {
    fn new() -> Self {
        Self(Sha256::new())
    }

    fn add(mut self, data: impl AsRef<[u8]>) -> Self {
        let data = data.as_ref();
        self.0.update((data.len() as u64).to_le_bytes());
        self.0.update(data);
        self
    }

    /// All files below a folder, with their names.
    fn add_folder(mut self, folder: &Path) -> Result<Self> {
        let mut names: Vec<PathBuf> =
            fs::read_dir(folder)?.map(|entry| entry.map(|entry| entry.path())).collect::<Result<_, _>>()?;
        names.sort();
        for path in names {
            self = self.add(path.file_name().unwrap_or_default().as_encoded_bytes());
            self = if path.is_dir() { self.add_folder(&path)? } else { self.add(fs::read(&path)?) };
        }
        Ok(self)
    }

    fn text(&self) -> String {
        hex(&self.0.clone().finalize()[..6])
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
