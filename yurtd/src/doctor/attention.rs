//! What of a report needs somebody's attention, and what there is to do about it. Pure.

use std::collections::BTreeMap;

use yurt_api::doctor::{
    Attention, Certificate, Hub, LinkState, Pod, Reboot, Report, TunnelSession, View, Way,
};
use yurt_api::names;

use super::words::{count, size, span};

/// What has just changed is given so long to come right by itself.
const SETTLES_WITHIN: u64 = 300;
/// The hub makes a new certificate long before.
const CERTIFICATE_LEFT: i64 = 24 * 3600;
/// Of pods of one kind so many are named; all of them are in the table.
const NAMED: usize = 10;
const JOURNAL: &str = "look at `journalctl -u yurtd`";

fn item(what: impl Into<String>, advice: impl Into<String>) -> Attention {
    Attention { what: what.into(), advice: advice.into() }
}

/// Everything, the most important first.
pub(super) fn attention(report: &Report) -> Vec<Attention> {
    let mut all = Vec::new();
    let Some(hub) = &report.hub else {
        let error = report.outside.as_ref().map_or("nothing is known", |outside| &outside.error);
        all.push(item(
            format!("the hub cannot be asked: {error}"),
            "look at `systemctl status yurtd` and `journalctl -u yurtd`; be root",
        ));
        return all;
    };
    link(hub, &mut all);
    if !hub.missing_addresses.is_empty() {
        let addresses = hub.missing_addresses.join(", ");
        let advice = "`systemctl restart yurt-address`; if it goes again, find out who removes it";
        all.push(item(format!("the node does not have {addresses}, at which pods look for the hub"), advice));
    }
    way_in(hub, &mut all);
    own_address(hub, &mut all);
    all.extend(certificate(&hub.certificate));
    store(hub, &mut all);
    waiting(hub, &mut all);
    if !hub.not_stored.is_empty() {
        all.push(item(
            format!("no pod would start after a reboot without a link: kubelet needs {}, which the hub does not have",
                hub.not_stored.join(", ")),
            format!("see that kubelet runs and takes {} (`systemctl status kubelet`), and, while there is a link, \
                restart it", names::KUBELET_KUBECONFIG),
        ));
    }
    let pods = hub.pods.as_deref().unwrap_or_default();
    past(pods, &mut all);
    left_behind(pods, &mut all);
    if hub.link.state == LinkState::Online {
        all.extend(hub.views.iter().filter_map(view));
        all.extend(report.tunnel.iter().filter_map(tunnel));
    }
    all
}

fn link(hub: &Hub, all: &mut Vec<Attention>) {
    match hub.link.state {
        LinkState::Online => {}
        LinkState::Offline => all.push(item(
            format!("no API server can be reached, for {}", span(hub.link.for_seconds)),
            "look at the uplink (`ip route`, name server, firewall); the node works on with what it knows",
        )),
        LinkState::Unknown => {
            all.push(item("it is not known yet whether there is a link", "ask again in a few seconds"));
        }
    }
}

/// How pods are led to the hub.
fn way_in(hub: &Hub, all: &mut Vec<Attention>) {
    if let Some(missing) = &hub.way_in_missing {
        all.push(item(
            format!("pods are not led to the hub as they should be: {missing}"),
            "look at `systemctl status yurt-address` and `journalctl -u yurt-address`",
        ));
    }
    if !hub.host_held_up_by.is_empty() {
        let (pods, count) = (&hub.host_held_up_by, hub.host_held_up_by.len());
        let named = pods.iter().take(NAMED).cloned().collect::<Vec<_>>().join(", ");
        let more = if count > NAMED { format!(" and {} more", count - NAMED) } else { String::new() };
        all.push(item(
            format!("whatever uses the host's network talks past the hub at the Service's address, because of {named}{more}, \
                which began before the conversion"),
            "while there is a link, restart it: delete the pod, or what began it",
        ));
    }
}

/// The rest of it.
fn own_address(hub: &Hub, all: &mut Vec<Attention>) {
    if hub.host_would_loop {
        all.push(item(
            "whatever uses the host's network talks past the hub: kubelet's own kubeconfig names the Service's address as \
                the API server's",
            "name the API server's own address there, or convert with `--way-in environment`",
        ));
    }
}

fn certificate(certificate: &Certificate) -> Option<Attention> {
    if !certificate.present {
        return Some(item("the hub has no serving certificate: nobody can talk to it", JOURNAL));
    }
    if let Some(error) = &certificate.error {
        let advice = format!("see that {} can be written: disk full, or mounted read-only", names::STATE_DIR);
        return Some(item(format!("the serving certificate is not on the disk: {error}"), advice));
    }
    let left = certificate.ends_in_seconds.filter(|left| *left < CERTIFICATE_LEFT)?;
    let what = match u64::try_from(left) {
        Ok(left) => format!("the serving certificate ends in {} and was not renewed", span(left)),
        Err(_) => "the serving certificate has ended".to_owned(),
    };
    Some(item(what, format!("see that the clock is right (`date`), and {JOURNAL}")))
}

fn store(hub: &Hub, all: &mut Vec<Attention>) {
    let store = &hub.store;
    let of = format!("{} of {}", size(store.used_bytes), size(store.limit_bytes));
    let views = "see in the list of views who keeps so much";
    if store.full {
        all.push(item(
            format!("the store is full ({of}): what it knows for the time without a link gets old"),
            format!("free space on the disk of {}; {views}", names::STATE_DIR),
        ));
    } else if store.limit_bytes > 0 && store.used_bytes >= store.limit_bytes / 10 * 9 {
        all.push(item(format!("the store is nearly full ({of})"), views));
    }
}

fn waiting(hub: &Hub, all: &mut Vec<Attention>) {
    let waiting = &hub.waiting;
    if hub.link.state != LinkState::Online || hub.link.for_seconds < SETTLES_WITHIN {
        return;
    }
    if !waiting.status_patches.is_empty() {
        let patches = waiting.status_patches.iter().take(NAMED).cloned().collect::<Vec<_>>().join(", ");
        all.push(item(format!("status changes wait although there is a link: {patches}"), JOURNAL));
    }
    if waiting.events > 0 {
        all.push(item(format!("{} wait although there is a link", count(waiting.events, "Event")), JOURNAL));
    }
}

/// Pods that talk past the hub.
fn past(pods: &[Pod], all: &mut Vec<Attention>) {
    let past: Vec<&Pod> = pods.iter().filter(|pod| pod.way == Way::Past).collect();
    if past.is_empty() {
        return;
    }
    let mut commands: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    let mut bare = Vec::new();
    for pod in past.iter().take(NAMED) {
        if pod.controlled {
            commands.entry(&pod.namespace).or_default().push(&pod.name);
        } else {
            bare.push(format!("{}/{}", pod.namespace, pod.name));
        }
    }
    let mut advice: Vec<String> = Vec::new();
    for (namespace, names) in commands {
        advice.push(format!("`kubectl -n {namespace} delete pod {}`", names.join(" ")));
    }
    if !bare.is_empty() {
        advice.push(format!("delete and create again: {}", bare.join(", ")));
    }
    if past.len() > NAMED {
        advice.push(format!("and {} more", past.len() - NAMED));
    }
    all.push(item(
        format!("{} began before kubelet came to the hub and still {} past it: without a link the API server is gone \
            for {}", count(past.len(), "pod"), if past.len() == 1 { "talks" } else { "talk" },
            if past.len() == 1 { "it" } else { "them" }),
        format!("while there is a link, restart what uses the API server: {}", advice.join("; ")),
    ));
}

/// Pods that a reboot without a link would not bring back.
fn left_behind(pods: &[Pod], all: &mut Vec<Attention>) {
    let lost: Vec<&Pod> = pods.iter().filter(|pod| pod.reboot == Reboot::DoesNot).collect();
    for pod in lost.iter().take(NAMED) {
        all.push(item(
            format!("{}/{} would not start after a reboot without a link: not stored: {}", pod.namespace, pod.name,
                pod.not_stored.join(", ")),
            "while there is a link, see that it runs; if it does, restart it once, so that kubelet asks for all of \
                it through the hub",
        ));
    }
    if lost.len() > NAMED {
        let more = count(lost.len() - NAMED, "more pod");
        all.push(item(
            format!("{more} would not start after a reboot without a link"),
            "see the list of pods",
        ));
    }
}

/// What should be followed and is not.
fn view(view: &View) -> Option<Attention> {
    let age = view.age_seconds.filter(|age| *age >= SETTLES_WITHIN)?;
    if !(view.kept && view.troubled) {
        return None;
    }
    let why = view.why.as_deref().unwrap_or("unknown");
    let what =
        format!("{} as {} is {} old, although there is a link: {why}", view.path, view.user, span(age));
    Some(item(what, format!("see that {} may list and watch it, and {JOURNAL}", view.user)))
}

fn tunnel(session: &TunnelSession) -> Option<Attention> {
    // One that was found perhaps leads nowhere from here; those that were given are what has to work.
    if session.found
        || session.connected
        || session.stands_by_for.is_some()
        || session.for_seconds < SETTLES_WITHIN
    {
        return None;
    }
    let error = session.error.as_deref().map(|error| format!(": {error}")).unwrap_or_default();
    let what = format!("no tunnel to {} for {}{error}", session.server, span(session.for_seconds));
    Some(item(
        what,
        "kubectl logs and exec do not reach this node; see that the address can be reached from here and \
        that the tunnel server runs",
    ))
}

#[cfg(test)]
mod tests {
    use yurt_api::doctor::{Link, Outside, Store};

    use super::*;

    fn well() -> Hub {
        Hub {
            link: Link { state: LinkState::Online, for_seconds: 1000, servers: Vec::new() },
            certificate: Certificate {
                present: true,
                ends_in_seconds: Some(90 * 86_400),
                ..Certificate::default()
            },
            store: Store { used_bytes: 1 << 20, limit_bytes: 1 << 30, ..Store::default() },
            pods: Some(vec![Pod { way: Way::Hub, reboot: Reboot::ComesBack, ..pod("web-0") }]),
            ..Hub::default()
        }
    }

    fn pod(name: &str) -> Pod {
        Pod { namespace: "shop".into(), name: name.into(), controlled: true, ..Pod::default() }
    }

    fn behind() -> View {
        View {
            path: "/api/v1/services".into(),
            user: "proxy".into(),
            kept: true,
            troubled: true,
            age_seconds: Some(400),
            ..View::default()
        }
    }

    fn of(change: impl FnOnce(&mut Hub)) -> Vec<Attention> {
        let mut hub = well();
        change(&mut hub);
        attention(&Report { hub: Some(hub), ..Report::default() })
    }

    #[test]
    fn a_node_that_is_well_needs_none() {
        assert_eq!(of(|_| {}), []);
        let quiet: [fn(&mut Hub); 6] = [
            |hub| hub.views = vec![View { troubled: false, ..behind() }],
            |hub| hub.views = vec![View { kept: false, ..behind() }],
            |hub| hub.views = vec![View { age_seconds: Some(5), ..behind() }],
            |hub| {
                hub.link.for_seconds = 3;
                hub.waiting.events = 7;
            },
            |hub| hub.waiting.dropped_events = 7,
            |hub| hub.pods = Some(vec![Pod { way: Way::Own, reboot: Reboot::Static, ..Pod::default() }]),
        ];
        for change in quiet {
            assert_eq!(of(change), []);
        }
    }

    #[test]
    fn every_trouble_is_named_with_what_to_do() {
        /// What is made wrong, and what is said of it.
        type Row = (fn(&mut Hub), &'static str, &'static str);
        let table: [Row; 17] = [
            (
                |hub| hub.link = Link { state: LinkState::Offline, for_seconds: 7200, servers: Vec::new() },
                "for 2 h",
                "uplink",
            ),
            (|hub| hub.link = Link::default(), "not known yet", "ask again"),
            (|hub| hub.missing_addresses = vec!["169.254.2.1".into()], "169.254.2.1", "yurt-address"),
            (|hub| hub.way_in_missing = Some("no nf_tables".into()), "no nf_tables", "yurt-address"),
            (|hub| hub.host_held_up_by = vec!["shop/exporter".into()], "shop/exporter", "restart it"),
            (|hub| hub.host_would_loop = true, "kubelet's own kubeconfig", "--way-in environment"),
            (|hub| hub.certificate.present = false, "no serving certificate", "journalctl"),
            (|hub| hub.certificate.error = Some("EROFS".into()), "EROFS", "/var/lib/yurt"),
            (|hub| hub.certificate.ends_in_seconds = Some(60), "ends in 1 min", "clock"),
            (|hub| hub.certificate.ends_in_seconds = Some(-1), "has ended", "clock"),
            (|hub| hub.store.full = true, "store is full (1.0 MiB of 1.0 GiB)", "free space"),
            (|hub| hub.store.used_bytes = 1 << 30, "nearly full", "views"),
            (
                |hub| hub.waiting.status_patches = vec!["/api/v1/nodes/edge".into()],
                "/api/v1/nodes/edge",
                "journalctl",
            ),
            (|hub| hub.waiting.events = 1, "1 Event wait", "journalctl"),
            (|hub| hub.not_stored = vec!["its Node".into()], "its Node", "systemctl status kubelet"),
            (
                |hub| hub.views = vec![behind()],
                "/api/v1/services as proxy is 6 min 40 s old",
                "list and watch",
            ),
            (
                |hub| {
                    hub.pods = Some(vec![Pod {
                        reboot: Reboot::DoesNot,
                        not_stored: vec!["Secret shop/key".into()],
                        ..pod("web-1")
                    }]);
                },
                "shop/web-1 would not start after a reboot without a link: not stored: Secret shop/key",
                "restart it once",
            ),
        ];
        for (change, what, advice) in table {
            let found = of(change);
            assert_eq!(found.len(), 1, "{what}: {found:?}");
            assert!(found[0].what.contains(what), "{what}: {found:?}");
            assert!(found[0].advice.contains(advice), "{advice}: {found:?}");
        }
    }

    #[test]
    fn pods_that_talk_past_the_hub_are_named_with_the_commands_that_restart_them() {
        let past = |count: usize| {
            let pods = (0..count).map(|number| Pod { way: Way::Past, ..pod(&format!("p{number}")) });
            let mut pods: Vec<Pod> = pods.collect();
            pods[0].controlled = false;
            of(move |hub| hub.pods = Some(pods))
        };
        let two = past(2);
        assert!(
            two[0].what.starts_with("2 pods began before kubelet came to the hub and still talk past it"),
            "{two:?}"
        );
        assert!(
            two[0].advice.ends_with("`kubectl -n shop delete pod p1`; delete and create again: shop/p0"),
            "{two:?}"
        );
        let many = past(13);
        assert!(many[0].advice.contains("p9") && !many[0].advice.contains("p10"), "{many:?}");
        assert!(many[0].advice.ends_with("and 3 more"), "{many:?}");
        let lost: Vec<Pod> =
            (0..13).map(|number| Pod { reboot: Reboot::DoesNot, ..pod(&format!("p{number}")) }).collect();
        let found = of(move |hub| hub.pods = Some(lost));
        assert_eq!(found.len(), 11);
        assert!(found[10].what.starts_with("3 more pods"), "{found:?}");
    }

    #[test]
    fn a_lost_link_is_said_once_and_not_again_of_all_that_depends_on_it() {
        let session =
            TunnelSession { server: "cloud:10262".into(), for_seconds: 999, ..TunnelSession::default() };
        let mut hub = Hub { views: vec![behind()], ..well() };
        hub.waiting.events = 3;
        let online =
            attention(&Report { hub: Some(hub.clone()), tunnel: vec![session.clone()], ..Report::default() });
        assert_eq!(online.len(), 3);
        assert!(online[2].what.starts_with("no tunnel to cloud:10262 for 16 min 39 s"), "{online:?}");
        let other = TunnelSession { stands_by_for: Some("vpn:10262".into()), ..session.clone() };
        let standing_by =
            attention(&Report { hub: Some(hub.clone()), tunnel: vec![other], ..Report::default() });
        assert_eq!(standing_by.len(), 2, "{standing_by:?}");
        let found = TunnelSession { found: true, ..session.clone() };
        let found = attention(&Report { hub: Some(hub.clone()), tunnel: vec![found], ..Report::default() });
        assert_eq!(found.len(), 2, "{found:?}");
        hub.link.state = LinkState::Offline;
        let offline = attention(&Report { hub: Some(hub), tunnel: vec![session], ..Report::default() });
        assert_eq!(offline.len(), 1, "{offline:?}");
    }

    #[test]
    fn a_hub_that_cannot_be_asked_is_one_trouble() {
        let outside = Outside { error: "yurtd has ended".into(), ..Outside::default() };
        let found = attention(&Report { outside: Some(outside), ..Report::default() });
        assert_eq!(found.len(), 1);
        assert!(
            found[0].what.ends_with("yurtd has ended") && found[0].advice.contains("systemctl status yurtd")
        );
    }
}
