//! A report for people: what needs attention first, then how everything stands. Pure.

use std::fmt::Write;

use yurt_api::doctor::{Hub, LinkState, Outside, Pod, Reboot, Report, TunnelSession, View, ViewState, Way};

use yurt_api::way_in::WayIn;

use super::words::{count, size, span, table};

/// The whole text.
pub(super) fn text(report: &Report) -> String {
    let mut text = String::new();
    let node = report.hub.as_ref().map_or("this node", |hub| &hub.node);
    match report.attention.len() {
        0 => writeln!(text, "{node}: all is well"),
        1 => writeln!(text, "{node}: 1 thing needs attention"),
        many => writeln!(text, "{node}: {many} things need attention"),
    }
    .ok();
    for (number, item) in report.attention.iter().enumerate() {
        write!(text, "\n{}. {}\n   what to do: {}\n", number + 1, item.what, item.advice).ok();
    }
    if let Some(outside) = &report.outside {
        text.push('\n');
        text.push_str(&table(&from_outside(outside)));
    }
    if let Some(hub) = &report.hub {
        text.push('\n');
        text.push_str(&table(&summary(hub, &report.tunnel)));
        pods(hub, &mut text);
        views(&hub.views, &mut text);
    }
    text
}

fn row<const N: usize>(cells: [&str; N]) -> Vec<String> {
    cells.map(str::to_owned).to_vec()
}

fn from_outside(outside: &Outside) -> Vec<Vec<String>> {
    let store = outside.store_bytes.map_or("none that can be seen".to_owned(), size);
    vec![
        row(["health port", outside.readyz.as_deref().unwrap_or("does not answer")]),
        row(["store", &format!("{store}; not opened while the hub cannot be asked")]),
        row(["the rest", "not known: link, views, pods, what waits, certificate, tunnel"]),
    ]
}

fn summary(hub: &Hub, tunnel: &[TunnelSession]) -> Vec<Vec<String>> {
    let state = match hub.link.state {
        LinkState::Online => "online",
        LinkState::Offline => "offline",
        LinkState::Unknown => "not known yet",
    };
    let mut rows =
        vec![row(["time", &hub.time]), row(["link", &format!("{state} for {}", span(hub.link.for_seconds))])];
    if !hub.link.servers.is_empty() {
        rows.push(row(["API servers", &hub.link.servers.join(", ")]));
    }
    if tunnel.is_empty() {
        rows.push(row(["tunnel", "none is configured"]));
    }
    for session in tunnel {
        let (state, why) = match (session.connected, &session.stands_by_for) {
            (true, _) => ("connected", None),
            (false, Some(other)) => {
                ("stands by", Some(format!("{other} has a session with the same server")))
            }
            (false, None) => ("not connected", session.error.clone()),
        };
        let why = why.map(|why| format!(" ({why})")).unwrap_or_default();
        let server = &session.server;
        let found = if session.found { " (found)" } else { "" };
        rows.push(row([
            "tunnel",
            &format!("{server}{found} {state} for {}{why}", span(session.for_seconds)),
        ]));
    }
    let certificate = match (&hub.certificate.ends, hub.certificate.ends_in_seconds.map(u64::try_from)) {
        (Some(ends), Some(Ok(left))) => format!("good until {ends} ({})", span(left)),
        (Some(ends), _) => format!("ended {ends}"),
        (None, _) => "none".to_owned(),
    };
    if !hub.way_in.is_empty() {
        let why = hub.way_in_why.as_deref().map(|why| format!(" ({why})")).unwrap_or_default();
        let at = match hub.way_in_services.join(", ") {
            services if services.is_empty() => String::new(),
            services => format!(": {services}"),
        };
        rows.push(row(["way in", &format!("{}{at}{why}", way_in(&hub.way_in))]));
    }
    rows.push(row(["certificate", &certificate]));
    let store = &hub.store;
    let full = if store.full { ", FULL" } else { "" };
    let (used, file, limit) = (size(store.used_bytes), size(store.file_bytes), size(store.limit_bytes));
    rows.push(row(["store", &format!("{used} in use, {file} on the disk, at most {limit}{full}")]));
    let waiting = &hub.waiting;
    let patches = count(waiting.status_patches.len(), "status change");
    let dropped = match waiting.dropped_events {
        0 => String::new(),
        dropped => format!(" ({dropped} were dropped)"),
    };
    rows.push(row(["waiting", &format!("{patches}, {}{dropped}", count(waiting.events, "Event"))]));
    rows
}

fn pods(hub: &Hub, text: &mut String) {
    let Some(pods) = &hub.pods else {
        text.push_str("\nPods: not known\n");
        return;
    };
    let mut rows = vec![row(["NAMESPACE", "POD", "PHASE", "API SERVER", "AFTER A REBOOT WITHOUT A LINK"])];
    rows.extend(
        pods.iter().map(|pod| row([&pod.namespace, &pod.name, &pod.phase, way(pod.way), &reboot(pod)])),
    );
    text.push('\n');
    text.push_str(&table(&rows));
    if let Some(unknown) = &hub.ways_unknown {
        writeln!(text, "  Which pods talk past the hub is not known: {unknown}.").ok();
    }
    text.push_str(
        "  Not checked: whether images are on the node, and volumes of claims and CSI drivers. kubelet before 1.31 \
         pulls\n  anew what has imagePullPolicy Always, and so does not start it without a link.\n",
    );
}

/// How pods are led to the hub.
fn way_in(name: &str) -> &str {
    match WayIn::of(name) {
        Some(WayIn::Service) => "at the address of Service default/kubernetes, by table inet yurt-edge",
        Some(WayIn::Environment) => "by pods' environment",
        None => name,
    }
}

fn way(way: Way) -> &'static str {
    match way {
        Way::Hub => "through the hub",
        Way::Past => "PAST THE HUB",
        Way::None => "-",
        Way::Own => "itself, on purpose",
        Way::Unknown => "not known",
    }
}

fn reboot(pod: &Pod) -> String {
    match pod.reboot {
        Reboot::ComesBack => match pod.token_ends_in_seconds.map(u64::try_from) {
            // kubelet renews them while there is a link, once an hour at the latest.
            Some(Ok(left)) => format!("comes back, within {}", span(left)),
            _ => "comes back".to_owned(),
        },
        Reboot::DoesNot => format!("DOES NOT: {}", pod.not_stored.join(", ")),
        Reboot::Static => "comes back (static)".to_owned(),
        Reboot::Ended => "- (ended)".to_owned(),
        Reboot::Unknown => "not known".to_owned(),
    }
}

fn views(views: &[View], text: &mut String) {
    let mut rows = vec![row(["KEPT FOR", "COLLECTION", "STATE", "AGE"])];
    for view in views {
        let mut collection = view.path.clone();
        for selector in [&view.label_selector, &view.field_selector] {
            if !selector.is_empty() {
                write!(collection, " ?{selector}").ok();
            }
        }
        if view.encoding != "json" {
            write!(collection, " ({})", view.encoding).ok();
        }
        let state = match view.state {
            ViewState::Following => match &view.of {
                Some(source) => format!("up to date, of {source}"),
                None => "up to date".to_owned(),
            },
            ViewState::Behind => match &view.why {
                Some(why) => format!("behind: {why}"),
                None => "behind".to_owned(),
            },
            ViewState::Refused => "refused by the API server".to_owned(),
            ViewState::Empty => "not listed yet".to_owned(),
            ViewState::Unknown => "not known".to_owned(),
        };
        let age = match (view.state, view.age_seconds) {
            (ViewState::Following, _) | (_, None) => "-".to_owned(),
            (_, Some(age)) => span(age),
        };
        rows.push(row([&view.user, &collection, &state, &age]));
    }
    text.push('\n');
    text.push_str(&table(&rows));
}

#[cfg(test)]
mod tests {
    use yurt_api::doctor::{Attention, Certificate, Link, Store, Waiting};

    use super::*;

    fn hub() -> Hub {
        let pod = |name: &str| Pod {
            namespace: "shop".into(),
            name: name.into(),
            phase: "Running".into(),
            ..Pod::default()
        };
        Hub {
            node: "edge-1".into(),
            time: "2026-11-28T01:00:00Z".into(),
            link: Link {
                state: LinkState::Offline,
                for_seconds: 7260,
                servers: vec!["10.80.0.2:6443".into(), "10.80.0.3:6443".into()],
            },
            certificate: Certificate {
                present: true,
                ends: Some("2027-11-28T01:00:00Z".into()),
                ends_in_seconds: Some(365 * 86_400),
                error: None,
            },
            store: Store { file_bytes: 3 << 20, used_bytes: 1 << 20, limit_bytes: 1 << 30, full: false },
            waiting: Waiting {
                status_patches: vec!["/api/v1/nodes/edge-1".into()],
                events: 2,
                dropped_events: 3,
            },
            way_in: "service".into(),
            way_in_services: vec!["10.96.0.1:443".into()],
            pods: Some(vec![
                Pod {
                    way: Way::Past,
                    reboot: Reboot::ComesBack,
                    token_ends_in_seconds: Some(3600),
                    ..pod("web-0")
                },
                Pod {
                    way: Way::Hub,
                    reboot: Reboot::DoesNot,
                    not_stored: vec!["Secret shop/key".into()],
                    ..pod("db")
                },
            ]),
            views: vec![
                View {
                    user: "system:node:edge-1".into(),
                    path: "/api/v1/pods".into(),
                    field_selector: "spec.nodeName=edge-1".into(),
                    encoding: "json".into(),
                    state: ViewState::Behind,
                    why: Some("the link was lost".into()),
                    age_seconds: Some(7260),
                    ..View::default()
                },
                View {
                    user: "proxy".into(),
                    path: "/api/v1/services".into(),
                    encoding: "protobuf".into(),
                    state: ViewState::Following,
                    of: Some("system:node:edge-1".into()),
                    ..View::default()
                },
            ],
            ..Hub::default()
        }
    }

    #[test]
    fn a_person_reads_what_to_do_first_and_then_how_everything_stands() {
        let session = TunnelSession {
            server: "cloud:10262".into(),
            connected: true,
            for_seconds: 5,
            ..TunnelSession::default()
        };
        let other = TunnelSession {
            server: "vpn:10262".into(),
            for_seconds: 5,
            stands_by_for: Some("cloud:10262".into()),
            ..TunnelSession::default()
        };
        let beside = TunnelSession { server: "10.80.0.3:10262".into(), found: true, ..session.clone() };
        let attention = vec![Attention { what: "no API server".into(), advice: "look at the uplink".into() }];
        let report =
            Report { hub: Some(hub()), tunnel: vec![session, other, beside], attention, ..Report::default() };
        let expected = "\
edge-1: 1 thing needs attention

1. no API server
   what to do: look at the uplink

  time         2026-11-28T01:00:00Z
  link         offline for 2 h 1 min
  API servers  10.80.0.2:6443, 10.80.0.3:6443
  tunnel       cloud:10262 connected for 5 s
  tunnel       vpn:10262 stands by for 5 s (cloud:10262 has a session with the same server)
  tunnel       10.80.0.3:10262 (found) connected for 5 s
  way in       at the address of Service default/kubernetes, by table inet yurt-edge: 10.96.0.1:443
  certificate  good until 2027-11-28T01:00:00Z (365 d)
  store        1.0 MiB in use, 3.0 MiB on the disk, at most 1.0 GiB
  waiting      1 status change, 2 Events (3 were dropped)

  NAMESPACE  POD    PHASE    API SERVER       AFTER A REBOOT WITHOUT A LINK
  shop       web-0  Running  PAST THE HUB     comes back, within 1 h
  shop       db     Running  through the hub  DOES NOT: Secret shop/key
  Not checked: whether images are on the node, and volumes of claims and CSI drivers. kubelet before 1.31 pulls
  anew what has imagePullPolicy Always, and so does not start it without a link.

  KEPT FOR            COLLECTION                          STATE                              AGE
  system:node:edge-1  /api/v1/pods ?spec.nodeName=edge-1  behind: the link was lost          2 h 1 min
  proxy               /api/v1/services (protobuf)         up to date, of system:node:edge-1  -
";
        assert_eq!(text(&report), expected);
    }

    #[test]
    fn what_is_not_known_is_said_so() {
        let hub = Hub { pods: None, views: Vec::new(), ..hub() };
        let told = text(&Report { hub: Some(hub), ..Report::default() });
        assert!(told.starts_with("edge-1: all is well\n") && told.contains("\nPods: not known\n"), "{told}");
        assert!(told.contains("none is configured"), "{told}");
        let outside =
            Outside { error: "it has ended".into(), store_bytes: Some(1 << 20), ..Outside::default() };
        let told = text(&Report { outside: Some(outside), ..Report::default() });
        assert!(told.contains("health port  does not answer\n"), "{told}");
        assert!(told.contains("1.0 MiB; not opened while"), "{told}");
        assert!(told.contains("not known: link, views, pods"), "{told}");
    }
}
