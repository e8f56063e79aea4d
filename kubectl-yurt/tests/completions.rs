//! `completions/` is what the program prints. `make completions` writes it anew.

#![allow(clippy::unwrap_used)]

use std::{path::Path, process::Command};

const FILES: [(&str, &str); 4] = [
    ("bash", "kubectl-yurt.bash"),
    ("zsh", "_kubectl-yurt"),
    ("fish", "kubectl-yurt.fish"),
    ("kubectl", "kubectl_complete-yurt"),
];

fn folder() -> &'static Path {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../completions"))
}

#[test]
fn the_committed_scripts_are_those_that_the_program_prints() {
    for (shell, file) in FILES {
        let output =
            Command::new(env!("CARGO_BIN_EXE_kubectl-yurt")).args(["completion", shell]).output().unwrap();
        assert!(output.status.success(), "{shell}");
        let committed = std::fs::read(folder().join(file)).unwrap();
        assert!(output.stdout == committed, "completions/{file} has drifted: run `make completions`");
    }
}

#[cfg(unix)]
#[test]
fn the_shim_can_be_executed() {
    use std::os::unix::fs::PermissionsExt as _;
    let mode = std::fs::metadata(folder().join("kubectl_complete-yurt")).unwrap().permissions().mode();
    assert_eq!(mode & 0o111, 0o111);
}
