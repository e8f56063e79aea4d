//! The variable by which kubelet's unit is given its kubeconfig: who sets it, and what else is in it.
//!
//! Our drop-in sets the variable anew. That has an effect only if nothing is read after it: of drop-ins systemd takes
//! the last by file name, whichever folder it is in, and an `EnvironmentFile=` outweighs them all (systemd.exec(5)).
//! Whatever else somebody put into the variable is carried over.

use yurt_api::names;

use super::arguments::Arguments;
use super::host::{Host, HostError};
use super::systemd::Unit;
use super::units::KUBECONFIG_VARIABLE;

/// The flags that are ours to set.
const OURS: [&str; 2] = ["kubeconfig", "bootstrap-kubeconfig"];

/// Why our drop-in could not point this kubelet at the hub.
#[derive(Debug, thiserror::Error)]
pub(crate) enum FlagsError {
    #[error(
        "kubelet's drop-in {path} is read after {ours} and {does} ${variable}; give it a name that sorts before {ours} first",
        ours = names::KUBELET_DROP_IN.rsplit('/').next().unwrap_or_default(),
        variable = KUBECONFIG_VARIABLE
    )]
    LaterDropIn { path: String, does: &'static str },
    #[error(
        "kubelet's environment file {path} sets ${variable}, which outweighs every drop-in; move that to a drop-in first",
        variable = KUBECONFIG_VARIABLE
    )]
    EnvironmentFile { path: String },
    #[error(
        "kubelet does not run with the --kubeconfig that ${variable} of its unit gives it: an environment file ({files}) or a later argument outweighs it, or it was not restarted since",
        variable = KUBECONFIG_VARIABLE
    )]
    Overridden { files: String },
    #[error("{word:?} in ${variable} of kubelet's unit cannot be carried over; move it to $KUBELET_EXTRA_ARGS first", variable = KUBECONFIG_VARIABLE)]
    OddFlag { word: String },
    #[error(transparent)]
    Host(#[from] HostError),
}

/// Refuses a kubelet whose variable a drop-in of ours cannot set. Returns the other flags in it.
pub(crate) fn check(host: &Host, kubelet: &Unit, cmdline: &[String]) -> Result<Vec<String>, FlagsError> {
    for path in &kubelet.drop_in_paths {
        if file_name(path) <= file_name(names::KUBELET_DROP_IN) {
            continue;
        }
        match host.read_text(path)? {
            Some(text) if !drop_in_sets(&text) => {}
            Some(_) => return Err(FlagsError::LaterDropIn { path: path.clone(), does: "sets" }),
            // Outside of what is mounted here.
            None => return Err(FlagsError::LaterDropIn { path: path.clone(), does: "may set" }),
        }
    }
    let files = &kubelet.service.environment_files;
    for path in files {
        if host.read_text(path)?.is_some_and(|text| file_sets(&text)) {
            return Err(FlagsError::EnvironmentFile { path: path.clone() });
        }
    }
    // What cannot be read here is seen by what it does.
    let overridden = || FlagsError::Overridden { files: files.join(", ") };
    let given = words(value(&kubelet.service.environment).ok_or_else(overridden)?);
    let found = Arguments::of(cmdline);
    let is_given = cmdline.windows(given.len().max(1)).any(|part| part == given);
    if !is_given || Arguments::of(&given).kubeconfig != found.kubeconfig {
        return Err(overridden());
    }
    let others = others(&given);
    match others.iter().find(|word| !is_plain(word)) {
        Some(word) => Err(FlagsError::OddFlag { word: word.clone() }),
        None => Ok(others),
    }
}

fn file_name(path: &str) -> &str {
    path.rsplit('/').next().unwrap_or(path)
}

/// The variable's value in what systemd has read from unit files.
fn value(environment: &[String]) -> Option<&str> {
    environment.iter().rev().find_map(|entry| entry.strip_prefix(KUBECONFIG_VARIABLE)?.strip_prefix('='))
}

/// Whether a drop-in sets the variable, or clears all of them.
fn drop_in_sets(text: &str) -> bool {
    let text = text.replace("\\\n", " ");
    text.lines().filter_map(|line| line.split_once('=')).any(|(key, value)| match key.trim() {
        "Environment" => value.trim().is_empty() || value.contains(KUBECONFIG_VARIABLE),
        "UnsetEnvironment" => value.contains(KUBECONFIG_VARIABLE),
        _ => false,
    })
}

/// Whether a file of assignments sets the variable.
fn file_sets(text: &str) -> bool {
    text.lines().filter_map(|line| line.split_once('=')).any(|(name, _)| name.trim() == KUBECONFIG_VARIABLE)
}

/// The words of a variable's value: systemd splits it at whitespace and takes quotes away.
fn words(value: &str) -> Vec<String> {
    let mut found = Vec::new();
    let mut word: Option<String> = None;
    let mut quote = None;
    for character in value.chars() {
        match (quote, character) {
            (Some(open), _) if character == open => quote = None,
            (None, '"' | '\'') => {
                quote = Some(character);
                word.get_or_insert_default();
            }
            (None, _) if character.is_whitespace() => found.extend(word.take()),
            _ => word.get_or_insert_default().push(character),
        }
    }
    found.extend(word);
    found
}

/// The words that belong to other flags than [`OURS`].
fn others(words: &[String]) -> Vec<String> {
    let mut found = Vec::new();
    let mut words = words.iter().peekable();
    while let Some(word) = words.next() {
        let flag = word.strip_prefix("--").or_else(|| word.strip_prefix('-')).unwrap_or_default();
        let (name, value) = flag.split_once('=').map_or((flag, None), |(name, value)| (name, Some(value)));
        if !OURS.contains(&name) {
            found.push(word.clone());
        } else if value.is_none() {
            words.next_if(|next| !next.starts_with('-'));
        }
    }
    found
}

/// Whether a word means the same inside the quotes of a unit file and of the variable, `%` aside.
fn is_plain(word: &str) -> bool {
    !word.is_empty() && word.chars().all(|c| !c.is_whitespace() && !c.is_control() && !"\"'\\".contains(c))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sim::Fuse;
    use crate::systemd::Service;

    const GIVEN: &str = "--bootstrap-kubeconfig=/b --kubeconfig=/etc/kubernetes/kubelet.conf";

    fn check_with(
        value: &str,
        cmdline: &str,
        drop_ins: &[(&str, &str)],
        files: &[(&str, &str)],
    ) -> Result<Vec<String>, FlagsError> {
        let folder = tempfile::tempdir().unwrap();
        for (path, text) in drop_ins.iter().chain(files).filter(|(_, text)| !text.is_empty()) {
            let path = folder.path().join(path.trim_start_matches('/'));
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        }
        let paths = |all: &[(&str, &str)]| all.iter().map(|(path, _)| (*path).to_owned()).collect();
        let kubelet = Unit {
            drop_in_paths: paths(drop_ins),
            service: Service {
                environment: vec!["OTHER=x".into(), format!("{KUBECONFIG_VARIABLE}={value}")],
                environment_files: paths(files),
                ..Service::default()
            },
            ..Unit::default()
        };
        let cmdline: Vec<String> = cmdline.split(' ').map(str::to_owned).collect();
        check(&Host::with_fuse(folder.path(), Fuse::default()), &kubelet, &cmdline)
    }

    fn cmdline(flags: &str) -> String {
        format!("/usr/bin/kubelet {flags} --config=/c")
    }

    #[test]
    fn kubeadms_variable_is_ours_to_set() {
        let drop_ins = [
            ("/usr/lib/systemd/system/kubelet.service.d/10-kubeadm.conf", ""),
            (
                "/etc/systemd/system/kubelet.service.d/kubeadm.conf",
                "[Service]\nEnvironment=KUBELET_KUBECONFIG_ARGS=x",
            ),
            ("/etc/systemd/system/kubelet.service.d/zzz.conf", "[Service]\nEnvironment=GOGC=50\n"),
        ];
        let files = [("/etc/default/kubelet", "KUBELET_EXTRA_ARGS=--v=2\n"), ("/not/mounted", "")];
        assert_eq!(check_with(GIVEN, &cmdline(GIVEN), &drop_ins, &files).unwrap(), [""; 0]);
    }

    #[test]
    fn a_later_drop_in_that_sets_it_is_named() {
        let path = "/etc/systemd/system/kubelet.service.d/zzz-last.conf";
        for text in [
            "[Service]\nEnvironment=\"KUBELET_KUBECONFIG_ARGS=--kubeconfig=/x\"\n",
            "[Service]\nEnvironment = A=b \\\n  KUBELET_KUBECONFIG_ARGS=--kubeconfig=/x\n",
            "[Service]\nEnvironment=\n",
            "[Service]\nUnsetEnvironment=KUBELET_KUBECONFIG_ARGS\n",
            "",
        ] {
            let error = check_with(GIVEN, &cmdline(GIVEN), &[(path, text)], &[]).unwrap_err().to_string();
            assert!(error.contains(path) && error.contains(file_name(names::KUBELET_DROP_IN)), "{error}");
        }
    }

    #[test]
    fn a_file_that_sets_it_is_named_and_one_that_cannot_be_read_is_seen_by_what_it_does() {
        let file = "/etc/default/kubelet";
        let text = "KUBELET_KUBECONFIG_ARGS=--kubeconfig=/x";
        let error = check_with(GIVEN, &cmdline(GIVEN), &[], &[(file, text)]).unwrap_err();
        assert!(matches!(&error, FlagsError::EnvironmentFile { path } if path == file), "{error}");
        for found in ["--kubeconfig=/x", &format!("{GIVEN} --kubeconfig=/x")] {
            let error = check_with(GIVEN, &cmdline(found), &[], &[(file, "")]).unwrap_err();
            assert!(matches!(&error, FlagsError::Overridden { files } if files == file), "{error}");
        }
    }

    #[test]
    fn other_flags_in_the_variable_are_carried_over() {
        let given =
            "--kubeconfig /etc/kubernetes/kubelet.conf --node-ip=10.0.0.7 -bootstrap-kubeconfig= --v 2";
        assert_eq!(check_with(given, &cmdline(given), &[], &[]).unwrap(), ["--node-ip=10.0.0.7", "--v", "2"]);
        let quoted = "--kubeconfig=/k '--node-labels=a=b c'";
        let words = ["/usr/bin/kubelet", "--kubeconfig=/k", "--node-labels=a=b c"].map(str::to_owned);
        assert_eq!(super::words(quoted), words[1..]);
        let odd = "--kubeconfig=/k --node-labels=a\\b";
        assert!(matches!(check_with(odd, &cmdline(odd), &[], &[]), Err(FlagsError::OddFlag { .. })));
    }
}
