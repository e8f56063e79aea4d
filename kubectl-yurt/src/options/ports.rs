//! `[LOCAL:]REMOTE` of `port-forward`: what somebody wrote. Which port of the pod that means is seen from the
//! pod and its Service later.

use crate::error::Error;

/// A parsed `[LOCAL:]REMOTE`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wanted {
    /// `None`: the same as the remote one; 0: a free one.
    pub local: Option<u16>,
    /// The pod's or the Service's.
    pub remote: Port,
}

/// A port by number or name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Port {
    /// `80`
    Number(u16),
    /// `http`
    Name(String),
}

/// Parses `[LOCAL:]REMOTE`.
///
/// # Errors
///
/// [`Error::Failed`] in kubectl's words.
pub fn parse(text: &str) -> Result<Wanted, Error> {
    let number = |text: &str, which: &str| {
        text.parse::<u16>()
            .map_err(|_| Error::Failed(format!("error parsing {which} port {text:?}: not a port")))
    };
    let (local, remote) = match text.split_once(':') {
        None => (None, text),
        Some(("", remote)) => (Some(0), remote),
        Some((local, remote)) => (Some(number(local, "local")?), remote),
    };
    if remote.is_empty() || remote.contains(':') {
        return Err(Error::Failed(format!("invalid port format '{text}'")));
    }
    let remote = if remote.bytes().all(|byte| byte.is_ascii_digit()) {
        Port::Number(number(remote, "remote")?)
    } else {
        Port::Name(remote.to_owned())
    };
    if remote == Port::Number(0) {
        return Err(Error::Failed("remote port must be > 0".into()));
    }
    Ok(Wanted { local, remote })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_a_port_is_refused() {
        for text in ["", ":", "a:80", "70000", "1:2:3", "0", "80:0"] {
            assert!(parse(text).is_err(), "{text:?}");
        }
    }
}
