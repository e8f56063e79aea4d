//! The command line of the kubelet that runs.

use super::host::{Host, HostError};

/// kubelet's arguments, as far as they matter here. The last of several wins, as with kubelet.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Arguments {
    pub kubeconfig: Option<String>,
    pub config: Option<String>,
    pub client_ca_file: Option<String>,
    pub port: Option<u16>,
}

impl Arguments {
    /// Takes a command line apart; the program's own name is of no interest.
    pub(crate) fn of(words: &[String]) -> Self {
        let mut found = Self::default();
        let mut words = words.iter().peekable();
        while let Some(word) = words.next() {
            let Some(flag) = word.strip_prefix('-').map(|rest| rest.strip_prefix('-').unwrap_or(rest)) else {
                continue;
            };
            let (name, value) = match flag.split_once('=') {
                Some((name, value)) => (name, value.to_owned()),
                None => {
                    let value = words.next_if(|next| !next.starts_with('-')).cloned().unwrap_or_default();
                    (flag, value)
                }
            };
            let value = (!value.is_empty()).then_some(value);
            match name {
                "kubeconfig" => found.kubeconfig = value,
                "config" => found.config = value,
                "client-ca-file" => found.client_ca_file = value,
                "port" => found.port = value.and_then(|port| port.parse().ok()),
                _ => {}
            }
        }
        found
    }
}

/// Arguments of the running kubelet; `None` when it does not run.
pub(crate) fn of_process(host: &Host, pid: u32) -> Result<Option<Arguments>, HostError> {
    Ok(command_line(host, pid)?.map(|words| Arguments::of(&words)))
}

/// The words of a process's command line; `None` when it does not run.
pub(crate) fn command_line(host: &Host, pid: u32) -> Result<Option<Vec<String>>, HostError> {
    if pid == 0 {
        return Ok(None);
    }
    let cmdline = host.read(format!("/proc/{pid}/cmdline"))?;
    Ok(cmdline.filter(|cmdline| !cmdline.is_empty()).map(|cmdline| split(&cmdline)))
}

/// The words of `/proc/PID/cmdline`.
pub(crate) fn split(cmdline: &[u8]) -> Vec<String> {
    let cmdline = cmdline.strip_suffix(&[0]).unwrap_or(cmdline);
    cmdline.split(|byte| *byte == 0).map(|word| String::from_utf8_lossy(word).into_owned()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_of_kubelets_arguments_wins_in_every_spelling() {
        let cmdline = b"/usr/bin/kubelet\0--bootstrap-kubeconfig=/etc/kubernetes/bootstrap-kubelet.conf\0\
            --kubeconfig\0/etc/kubernetes/kubelet.conf\0--config=/var/lib/kubelet/config.yaml\0--v=2\0\
            -kubeconfig=/second.conf\0--port=10255\0--fail-swap-on\0--client-ca-file=/ca.crt\0";
        assert_eq!(
            Arguments::of(&split(cmdline)),
            Arguments {
                kubeconfig: Some("/second.conf".into()),
                config: Some("/var/lib/kubelet/config.yaml".into()),
                client_ca_file: Some("/ca.crt".into()),
                port: Some(10255),
            }
        );
    }

    #[test]
    fn an_empty_value_is_none() {
        assert_eq!(Arguments::of(&split(b"kubelet\0--kubeconfig=\0")).kubeconfig, None);
        assert_eq!(Arguments::of(&split(b"")), Arguments::default());
    }
}
