//! Container images without a registry or a daemon: one layer, made from a folder, in the archive
//! form that `ctr images import` reads.

use std::fs::{self, File};
use std::io::Read;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};
use serde_json::json;
use sha2::{Digest, Sha256};

use super::go::{COREDNS_VERSION, ETCD_VERSION, KUBERNETES_VERSION};
use super::{Key, cached, hex};
use crate::{paths, run};

/// The repository in every name, a registry that does not exist: nothing is ever pulled.
pub const REPOSITORY: &str = "testbed.yurt";
pub const PAUSE: &str = "testbed.yurt/pause:1";
pub const NGINX: &str = "testbed.yurt/nginx:1.22";

/// For the manifest of a test that installs it.
pub const METRICS_SERVER: &str = "testbed.yurt/metrics-server:v0.9.0";

/// For flannel's manifest.
pub const FLANNEL: &str = "testbed.yurt/flannel:v0.28.4";

/// All image archives, one file per image.
pub(super) fn build(bin: &Path, root: &Path) -> Result<PathBuf> {
    let key = Key::new()
        .add(bin.as_os_str().as_encoded_bytes())
        .add(root.as_os_str().as_encoded_bytes())
        .add(include_str!("image.rs"))
        .add_folder(&paths::sources().join("nginx"))?;
    cached("images", &key, |folder| {
        let control_plane: Vec<String> =
            ["kube-apiserver", "kube-controller-manager", "kube-scheduler", "kube-proxy"]
                .iter()
                .map(|name| format!("{REPOSITORY}/{name}:{KUBERNETES_VERSION}"))
                .collect();
        // kube-proxy is the one that needs more than itself: `nft`, and in its other mode iptables.
        let kubernetes = layer(folder, "kubernetes", |to| {
            fs::copy(bin.join("kubernetes"), to.join("usr/bin/kubernetes"))?;
            fs::create_dir_all(to.join("usr/local/bin"))?;
            for name in ["kube-apiserver", "kube-controller-manager", "kube-scheduler", "kube-proxy"] {
                symlink("/usr/bin/kubernetes", to.join("usr/local/bin").join(name))?;
            }
            copy_with_libraries(root, "/usr/sbin/nft", to)?;
            copy_iptables(root, to)
        })?;
        archive(&folder.join("kubernetes.tar"), kubernetes.path(), &control_plane, json!({}))?;

        for (program, tag, place) in [
            ("etcd", format!("{REPOSITORY}/etcd:{ETCD_VERSION}"), "usr/local/bin/etcd"),
            ("coredns", format!("{REPOSITORY}/coredns:{COREDNS_VERSION}"), "coredns"),
            ("pause", PAUSE.to_owned(), "pause"),
        ] {
            one_program(folder, bin, program, tag, place)?;
        }

        let nginx = layer(folder, "nginx", |to| fill_nginx(root, to))?;
        archive(
            &folder.join("nginx.tar"),
            nginx.path(),
            &[NGINX.to_owned()],
            json!({"Entrypoint": ["/usr/sbin/nginx", "-g", "daemon off;"], "StopSignal": "SIGQUIT"}),
        )
    })
}

/// The image of metrics-server, which only a test of `kubectl top` imports.
pub(super) fn metrics_server(bin: &Path) -> Result<PathBuf> {
    let key = Key::new().add(bin.as_os_str().as_encoded_bytes()).add(include_str!("image.rs"));
    let folder = cached("image-metrics-server", &key, |folder| {
        one_program(folder, bin, "metrics-server", METRICS_SERVER.to_owned(), "metrics-server")
    })?;
    Ok(folder.join("metrics-server.tar"))
}

/// The image of flannel, which only a cluster with that network imports: its agent with `nft`, its CNI plugin, and a `cp`
/// for the containers that install it.
pub(super) fn flannel(agent: &Path, plugin: &Path, root: &Path) -> Result<PathBuf> {
    let key = Key::new()
        .add(agent.as_os_str().as_encoded_bytes())
        .add(plugin.as_os_str().as_encoded_bytes())
        .add(root.as_os_str().as_encoded_bytes())
        .add(include_str!("image.rs"));
    let folder = cached("image-flannel", &key, |folder| {
        let image = layer(folder, "flannel", |to| {
            fs::create_dir_all(to.join("opt/bin"))?;
            fs::copy(agent.join("flannel"), to.join("opt/bin/flanneld"))?;
            fs::copy(plugin.join("flannel-cni"), to.join("flannel"))?;
            fs::copy(root.join("usr/bin/busybox"), to.join("usr/bin/cp"))?;
            copy_with_libraries(root, "/usr/sbin/nft", to)
        })?;
        archive(&folder.join("flannel.tar"), image.path(), &[FLANNEL.to_owned()], json!({}))
    })?;
    Ok(folder.join("flannel.tar"))
}

/// An image with a static program and nothing else.
fn one_program(folder: &Path, bin: &Path, program: &str, tag: String, place: &str) -> Result<()> {
    let image = layer(folder, program, |to| {
        if let Some(parent) = to.join(place).parent() {
            fs::create_dir_all(parent)?;
        }
        fs::copy(bin.join(program), to.join(place))?;
        Ok(())
    })?;
    let config = json!({"Entrypoint": [format!("/{place}")]});
    archive(&folder.join(format!("{program}.tar")), image.path(), &[tag], config)
}

/// A folder that will be an image's layer, with the places that every program expects.
fn layer(folder: &Path, name: &str, fill: impl FnOnce(&Path) -> Result<()>) -> Result<tempfile::TempDir> {
    let layer = tempfile::tempdir_in(folder)?;
    fs::set_permissions(layer.path(), fs::Permissions::from_mode(0o755))?;
    for place in ["etc", "tmp", "usr/bin", "usr/sbin", "var/run"] {
        fs::create_dir_all(layer.path().join(place))?;
    }
    fs::set_permissions(layer.path().join("tmp"), fs::Permissions::from_mode(0o1777))?;
    fill(layer.path()).with_context(|| format!("filling the image of {name}"))?;
    Ok(layer)
}

/// iptables over nftables under its names, with what it loads while it runs: a library for each match and target.
fn copy_iptables(root: &Path, to: &Path) -> Result<()> {
    const PROGRAM: &str = "xtables-nft-multi";
    copy_with_libraries(root, &format!("/usr/sbin/{PROGRAM}"), to)?;
    for version in ["iptables", "ip6tables"] {
        for suffix in ["", "-save", "-restore"] {
            symlink(PROGRAM, to.join(format!("usr/sbin/{version}{suffix}")))?;
        }
    }
    let libraries = root.join("usr/lib");
    let mut extensions = fs::read_dir(&libraries)?
        .flatten()
        .map(|folder| folder.path().join("xtables"))
        .filter(|path| path.is_dir());
    let extensions = extensions.next().context("the machines' root has no extensions of iptables")?;
    for extension in fs::read_dir(&extensions)?.flatten() {
        let inside = extension.path();
        copy_with_libraries(root, &format!("/{}", inside.strip_prefix(root)?.display()), to)?;
    }
    Ok(())
}

/// Debian's nginx and curl, and busybox for everything a person or `kubectl cp` wants to run beside it.
fn fill_nginx(root: &Path, to: &Path) -> Result<()> {
    copy_with_libraries(root, "/usr/sbin/nginx", to)?;
    copy_with_libraries(root, "/usr/bin/curl", to)?;
    fs::copy(root.join("usr/bin/busybox"), to.join("usr/bin/busybox"))?;
    let mut list = Command::new(root.join("usr/bin/busybox"));
    list.arg("--list");
    symlink("usr/bin", to.join("bin"))?;
    for applet in run::output(list)?.lines().filter(|applet| *applet != "busybox") {
        symlink("busybox", to.join("usr/bin").join(applet))?;
    }
    for folder in ["etc/nginx", "var/www", "var/lib/nginx", "var/log/nginx"] {
        fs::create_dir_all(to.join(folder))?;
    }
    let ours = paths::sources().join("nginx");
    fs::copy(ours.join("nginx.conf"), to.join("etc/nginx/nginx.conf"))?;
    fs::copy(ours.join("index.html"), to.join("var/www/index.html"))?;
    fs::copy(root.join("etc/nginx/mime.types"), to.join("etc/nginx/mime.types"))?;
    fs::write(
        to.join("etc/passwd"),
        "root:x:0:0:root:/root:/bin/sh\nwww-data:x:33:33::/var/www:/bin/false\nnobody:x:65534:65534::/:/bin/false\n",
    )?;
    fs::write(to.join("etc/group"), "root:x:0:\nwww-data:x:33:\nnogroup:x:65534:\n")?;
    Ok(())
}

/// Copies a program of the machines' root, and every library that its loader would map.
fn copy_with_libraries(root: &Path, program: &str, to: &Path) -> Result<()> {
    let mut ldd = Command::new("chroot");
    ldd.arg(root).args(["ldd", program]);
    let listed = run::output(ldd)?;
    let libraries = listed
        .lines()
        .flat_map(|line| line.split_whitespace().find(|word| word.starts_with('/')).map(str::to_owned));
    for file in libraries.chain([program.to_owned()]) {
        let inside = file.trim_start_matches('/');
        let target = to.join(inside);
        if let Some(parent) = target.parent() {
            fs::create_dir_all(parent)?;
        }
        // Follows links, so that a library has the name under which it is looked for. The loader's
        // own folders (`lib64`, `lib`) are links in the root and plain folders in the image.
        fs::copy(root.join(inside), &target).with_context(|| format!("copying {file}"))?;
    }
    Ok(())
}

/// Writes one image: `manifest.json`, its configuration, its layer.
fn archive(path: &Path, layer: &Path, tags: &[String], config: serde_json::Value) -> Result<()> {
    let mut tar = tar::Builder::new(tempfile::tempfile_in(layer.parent().unwrap_or(layer))?);
    tar.follow_symlinks(false);
    tar.mode(tar::HeaderMode::Complete);
    tar.append_dir_all(".", layer)?;
    let mut packed = tar.into_inner()?;
    let size = packed.metadata()?.len();
    let diff_id = {
        use std::io::Seek;
        packed.rewind()?;
        let mut hasher = Sha256::new();
        let mut buffer = vec![0; 1 << 20];
        loop {
            let n = packed.read(&mut buffer)?;
            if n == 0 {
                break;
            }
            hasher.update(&buffer[..n]);
        }
        packed.rewind()?;
        hex(&hasher.finalize())
    };
    let config = serde_json::to_vec(&json!({
        "architecture": if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" },
        "os": "linux",
        "config": merged(config, json!({"Env": ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"], "WorkingDir": "/"})),
        "rootfs": {"type": "layers", "diff_ids": [format!("sha256:{diff_id}")]},
    }))?;
    let config_name = format!("{}.json", hex(&Sha256::digest(&config)));
    let layer_name = format!("{diff_id}.tar");
    let manifest =
        serde_json::to_vec(&json!([{"Config": config_name, "RepoTags": tags, "Layers": [layer_name]}]))?;

    let mut out = tar::Builder::new(File::create(path)?);
    let mut append = |name: &str, size: u64, data: &mut dyn Read| -> Result<()> {
        let mut header = tar::Header::new_gnu();
        header.set_size(size);
        header.set_mode(0o644);
        header.set_cksum();
        out.append_data(&mut header, name, data)?;
        Ok(())
    };
    append(&layer_name, size, &mut packed)?;
    append(&config_name, config.len() as u64, &mut config.as_slice())?;
    append("manifest.json", manifest.len() as u64, &mut manifest.as_slice())?;
    out.finish()?;
    Ok(())
}

fn merged(mut base: serde_json::Value, extra: serde_json::Value) -> serde_json::Value {
    if let (Some(base), Some(extra)) = (base.as_object_mut(), extra.as_object()) {
        base.extend(extra.clone());
    }
    base
}
