//! Since when what begins on this node can be sent to the hub: kubelet worked through it, and had been restarted to believe
//! the CA by which it vouches for itself now, which it then shows to pods. The one rule that says what runs from before, for
//! who is sent to the hub and for what a person is told.

use yurt_api::agent::{Course, Moment};

use super::pod::Status;

/// When that was, and which boot this is.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Since<'a> {
    /// When kubelet came to the hub, if that is known.
    pub(crate) came: Option<&'a Moment>,
    /// When it had been restarted to believe the hub's CA; nothing when that does not matter.
    pub(crate) believed: Option<&'a Moment>,
    /// This boot.
    pub(crate) boot: Option<&'a str>,
}

impl<'a> Since<'a> {
    /// As the keeper has written it down, for a hub that has this CA (PEM). While kubelet believes another, or nobody
    /// knows which, it is not known either: what it starts is shown that one.
    pub(crate) fn of(course: Option<&'a Course>, ca: &str, boot: Option<&'a str>) -> Self {
        let believed = course.and_then(|course| course.believed.as_ref());
        let believed = believed.filter(|believed| believed.ca.trim() == ca.trim());
        let came = course.filter(|_| believed.is_some()).and_then(|course| course.came.as_ref());
        Self { came, believed: believed.map(|believed| &believed.since), boot }
    }

    /// Whether a container that runs began before; nothing when that cannot be known. Nothing that ran before a reboot
    /// runs after it.
    pub(crate) fn began_before(&self, status: &Status) -> Option<bool> {
        let (came, boot) = (self.came?, self.boot?);
        let moments = || [Some(came), self.believed].into_iter().flatten();
        let before = |started: Option<i64>| match started {
            Some(started) => moments().any(|moment| moment.is_after(started, Some(boot))),
            // It runs, and nobody says since when.
            None => moments().any(|moment| moment.is_after(moment.second, Some(boot))),
        };
        Some(status.starts().any(before))
    }

    /// Whether it is certain, whatever runs, that all of it began since.
    pub(crate) fn all_began_since(&self) -> bool {
        let (Some(came), Some(boot)) = (self.came, self.boot) else { return false };
        let here = |moment: &Moment| moment.is_after(moment.second, Some(boot));
        !here(came) && !self.believed.is_some_and(here)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;
    use yurt_api::agent::Believed;

    use super::*;

    fn moment(boot: &str, second: i64) -> Moment {
        Moment { boot_id: Some(boot.into()), second }
    }

    fn started(at: &str) -> Status {
        serde_json::from_value(json!({"containerStatuses": [{"state": {"running": {"startedAt": at}}}]}))
            .unwrap()
    }

    #[test]
    fn what_began_before_kubelet_came_or_before_it_believed_the_ca_is_from_before() {
        let (came, believed) = (moment("one", 100), moment("one", 200));
        let before = |believed: Option<&Moment>, at| {
            Since { came: Some(&came), believed, boot: Some("one") }.began_before(&started(at)).unwrap()
        };
        assert!(before(None, "1970-01-01T00:01:40Z") && !before(None, "1970-01-01T00:01:41Z"));
        assert!(before(Some(&believed), "1970-01-01T00:03:20Z"));
        assert!(!before(Some(&believed), "1970-01-01T00:03:21Z"));
        assert!(before(None, "?"), "nobody says since when it runs");
    }

    #[test]
    fn after_a_reboot_all_began_since_and_without_knowing_when_nothing_is_known() {
        let (came, believed) = (moment("one", 100), moment("two", 50));
        let since = |came, believed, boot| Since { came, believed, boot };
        let rebooted = since(Some(&came), None, Some("two"));
        assert!(rebooted.all_began_since());
        assert_eq!(rebooted.began_before(&started("1970-01-01T00:00:01Z")), Some(false));
        assert_eq!(rebooted.began_before(&started("?")), Some(false));
        let upgraded = since(Some(&came), Some(&believed), Some("two"));
        assert!(!upgraded.all_began_since());
        assert_eq!(
            upgraded.began_before(&started("1970-01-01T00:00:01Z")),
            Some(true),
            "in the boot in which kubelet was told"
        );
        for unknown in [since(None, None, Some("two")), since(Some(&came), None, None)] {
            assert!(!unknown.all_began_since());
            assert_eq!(unknown.began_before(&started("1970-01-01T00:00:01Z")), None);
        }
    }

    #[test]
    fn nothing_is_known_while_kubelet_believes_another_ca_than_the_hubs() {
        let believed = Believed { ca: "CA 1\n".into(), since: moment("one", 200) };
        let course = Course { came: Some(moment("one", 100)), believed: Some(believed), ..Course::default() };
        let came = |course: &Course, ca| {
            Since::of(Some(course), ca, Some("one")).began_before(&started("1970-01-01T00:03:21Z"))
        };
        assert_eq!(came(&course, "CA 1"), Some(false));
        assert_eq!(came(&course, "CA 2"), None);
        assert_eq!(came(&Course { believed: None, ..course.clone() }, "CA 1"), None);
        assert_eq!(came(&Course { came: None, ..course }, "CA 1"), None);
    }
}
