//! Which lists and watches arrive at the API server with the credentials of nodes, from its audit log.

use std::fs;
use std::path::PathBuf;

use anyhow::Result;
use serde_json::Value;

use crate::machine::Machine;

/// One request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request {
    /// The first word of the user agent: `kubelet`, `yurtd`.
    pub program: String,
    pub uri: String,
    /// The whole state was sent: a list, or a watch that begins with it.
    pub is_list: bool,
}

/// The log from a moment on.
#[derive(Debug)]
pub struct Since {
    path: PathBuf,
    offset: usize,
    user: String,
}

impl Since {
    /// From now on, what `node` asks for.
    pub fn now(master: &Machine, node: &str) -> Result<Self> {
        let path = master.root().join("var/log/kubernetes/audit.log");
        let offset = usize::try_from(fs::metadata(&path)?.len())?;
        Ok(Self { path, offset, user: format!("system:node:{node}") })
    }

    /// What has been asked for since then.
    pub fn requests(&self) -> Result<Vec<Request>> {
        let log = fs::read(&self.path)?;
        // A log that was rotated in between is shorter.
        let log = String::from_utf8_lossy(log.get(self.offset..).unwrap_or(&log)).into_owned();
        Ok(log.lines().filter_map(|line| parse(line, &self.user)).collect())
    }

    /// The lists among them, as text.
    pub fn lists(&self) -> Result<Vec<String>> {
        let requests = self.requests()?.into_iter().filter(|request| request.is_list);
        Ok(requests.map(|request| format!("{}: {}", request.program, request.uri)).collect())
    }
}

/// A watch is logged twice, when it begins and when it ends; only its beginning counts.
fn parse(line: &str, user: &str) -> Option<Request> {
    let event: Value = serde_json::from_str(line).ok()?;
    if event["user"]["username"] != user {
        return None;
    }
    let watch = event["verb"] == "watch";
    if watch && event["stage"] != "ResponseStarted" {
        return None;
    }
    let uri = event["requestURI"].as_str()?.to_owned();
    Some(Request {
        program: event["userAgent"].as_str()?.split(['/', ' ']).next()?.to_owned(),
        is_list: !watch || uri.contains("sendInitialEvents=true"),
        uri,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(verb: &str, stage: &str, uri: &str) -> String {
        serde_json::json!({
            "verb": verb, "stage": stage, "requestURI": uri, "userAgent": "kubelet/v1.36.3 (linux/amd64)",
            "user": {"username": "system:node:a"},
        })
        .to_string()
    }

    #[test]
    fn a_watch_that_begins_with_the_whole_state_is_a_list() {
        let parse = |verb, stage, uri| parse(&line(verb, stage, uri), "system:node:a");
        assert!(parse("list", "ResponseComplete", "/api/v1/pods").unwrap().is_list);
        assert!(!parse("watch", "ResponseStarted", "/api/v1/pods?resourceVersion=7").unwrap().is_list);
        assert!(parse("watch", "ResponseStarted", "/api/v1/pods?sendInitialEvents=true").unwrap().is_list);
        assert_eq!(parse("watch", "ResponseComplete", "/api/v1/pods?sendInitialEvents=true"), None);
    }

    #[test]
    fn another_node_s_requests_do_not_count() {
        assert_eq!(parse(&line("list", "ResponseComplete", "/api/v1/pods"), "system:node:b"), None);
        assert_eq!(parse("{\"half", "system:node:a"), None);
    }
}
