//! How far a view can be trusted: one state, kept in its record, and the one question that is asked of it. Pure.
//!
//! ```text
//!            listed                      lost: the connection, the server, the store, nobody asks
//!  Empty ─────────────▶ Following ─────────────────────────────────────────▶ Behind
//!                        │     ▲              listed, caught up                │
//!                        │     └────────────────────────────────────────────────┤
//!                        │ forbidden                                forbidden │
//!                        └─────────────────────▶ Refused ◀────────────────────┘   (a list ends it)
//! ```
//!
//! resourceVersions of one resource can be compared (KEP-5504), so of two things that are known the newer one is the
//! one with the higher version. What a view does not have is only then known not to exist if the view was followed
//! until the link went, or if nothing of the resource that is known is newer than the view.

use serde::{Deserialize, Serialize};

/// What a view's content is worth. Times are in seconds since 1970.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", tag = "is")]
pub(crate) enum State {
    /// No whole list was ever committed.
    #[default]
    Empty,
    /// A reflector keeps it equal to the API server's collection; in the store: when that was last certain.
    Following {
        /// When.
        seen: u64,
    },
    /// It is as it was once.
    Behind {
        /// Since when: then the API server last let the identity read this.
        since: u64,
        /// Why nobody follows.
        why: Why,
        /// A resourceVersion of the resource that was told to the identity since, past the view.
        #[serde(default)]
        heard: u64,
    },
    /// The API server has refused it to the identity. What is stored is told to nobody until a list succeeds.
    Refused {
        /// Since when.
        since: u64,
    },
}

/// Why a view is not followed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) enum Why {
    /// The connection was lost, and nothing has come from the API server since.
    Disconnected,
    /// The process that followed it has ended, and this one has not reached the API server yet.
    Restarted,
    /// Nobody asks for it, or nobody has caught up yet.
    Unfollowed,
    /// 401: the credential.
    Credential,
    /// 403, and it is not known yet whether that lasts.
    Forbidden,
    /// The API server answers with errors.
    Failed,
    /// What comes cannot be stored.
    Store,
    /// The identity may list it and not watch it, or it cannot be watched.
    CannotBeWatched,
}

/// Something that changes the state.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Transition {
    /// A whole list is committed.
    Listed,
    /// A resumed watch has sent what was missed.
    CaughtUp,
    /// The reflector cannot follow, or has ended.
    Lost(Why),
    /// A refusal that is believed.
    Refused,
    /// The link is there: whatever nobody has followed up to now may have changed unseen.
    Online,
    /// The identity was told something with this resourceVersion of the resource.
    Heard(u64),
}

/// What is asked of a view.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Question {
    /// Any state that once was (`resourceVersion=0`, a watch).
    Any,
    /// A state that is not older than this resourceVersion.
    NotOlderThan(u64),
    /// What was known last, in place of the API server.
    AsLastKnown,
    /// Whether something does not exist. `known` is the highest resourceVersion that other views of the resource have.
    Absence {
        /// Of the identity's other views.
        known: u64,
    },
}

/// How many views are in which state.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct StateCounts {
    following: usize,
    behind: usize,
    refused: usize,
    empty: usize,
    /// For how many seconds the view that has waited longest has been behind.
    pub(crate) oldest: u64,
}

impl StateCounts {
    /// With one view more.
    pub(crate) fn with(mut self, state: State, now: u64) -> Self {
        match state {
            State::Empty => self.empty += 1,
            State::Following { .. } => self.following += 1,
            State::Behind { since, .. } => {
                self.behind += 1;
                self.oldest = self.oldest.max(now.saturating_sub(since));
            }
            State::Refused { .. } => self.refused += 1,
        }
        self
    }

    /// By the states' names.
    pub(crate) fn by_name(self) -> [(&'static str, usize); 4] {
        [
            ("following", self.following),
            ("behind", self.behind),
            ("refused", self.refused),
            ("empty", self.empty),
        ]
    }
}

impl State {
    /// The state as another process finds it in the store.
    pub(crate) fn found(self) -> Self {
        match self {
            Self::Following { seen } => Self::Behind { since: seen, why: Why::Restarted, heard: 0 },
            Self::Behind { since, why: Why::Disconnected, heard } => {
                Self::Behind { since, why: Why::Restarted, heard }
            }
            other => other,
        }
    }

    /// The state after `transition`, at the time `now`.
    pub(crate) fn after(self, transition: Transition, now: u64) -> Self {
        match (self, transition) {
            (_, Transition::Listed) => Self::Following { seen: now },
            (Self::Following { .. } | Self::Behind { .. }, Transition::CaughtUp) => {
                Self::Following { seen: now }
            }
            (_, Transition::Refused) => Self::Refused { since: now },
            (Self::Following { .. }, Transition::Lost(why)) => Self::Behind { since: now, why, heard: 0 },
            // The reflector ends because of it: that is no other reason.
            (Self::Behind { why: Why::CannotBeWatched, .. }, Transition::Lost(Why::Unfollowed)) => self,
            // Lost again before it was followed again: it has not become any fresher by that.
            (Self::Behind { since, heard, .. }, Transition::Lost(why)) if why != Why::Disconnected => {
                Self::Behind { since, why, heard }
            }
            (Self::Behind { since, why: Why::Disconnected | Why::Restarted, heard }, Transition::Online) => {
                Self::Behind { since, why: Why::Unfollowed, heard }
            }
            (Self::Behind { since, why, heard }, Transition::Heard(version)) => {
                Self::Behind { since, why, heard: heard.max(version) }
            }
            (state, _) => state,
        }
    }

    /// Whether it follows upstream now.
    pub(crate) fn is_following(self) -> bool {
        matches!(self, Self::Following { .. })
    }

    /// Whether the API server's last word was a 403.
    pub(crate) fn is_refused(self) -> bool {
        matches!(self, Self::Refused { .. })
    }

    /// Whether a view that was followed as long as there was a link has this state: its silence is the API server's.
    pub(crate) fn was_followed(self) -> bool {
        let last = |why| matches!(why, Why::Disconnected | Why::Restarted);
        matches!(self, Self::Following { .. }) || matches!(self, Self::Behind { why, .. } if last(why))
    }

    /// Whether who watches has to ask again: a refusal is theirs to hear, and what the hub cannot store or watch is
    /// forwarded.
    pub(crate) fn ends_watches(self) -> bool {
        matches!(self, Self::Refused { .. } | Self::Behind { why: Why::Store | Why::CannotBeWatched, .. })
    }

    /// Whether another process would be told something else by `stored`. Times do not count, nor what a restart makes
    /// the same.
    pub(crate) fn differs_from(self, stored: Self) -> bool {
        let timeless = |state: Self| match state {
            Self::Following { .. } | Self::Behind { why: Why::Disconnected | Why::Restarted, .. } => {
                Self::Following { seen: 0 }
            }
            Self::Behind { why, heard, .. } => Self::Behind { since: 0, why, heard },
            Self::Refused { .. } => Self::Refused { since: 0 },
            Self::Empty => Self::Empty,
        };
        timeless(self) != timeless(stored)
    }

    /// Whether a view in this state whose collection is at `version` may answer.
    pub(crate) fn may_answer(self, question: Question, version: u64) -> bool {
        let stored = matches!(self, Self::Following { .. } | Self::Behind { .. });
        let newest = match (self, question) {
            (Self::Behind { heard, .. }, Question::Absence { known }) => {
                heard <= version && (self.was_followed() || known <= version)
            }
            (_, Question::NotOlderThan(wanted)) => version >= wanted,
            _ => true,
        };
        stored && newest
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FOLLOWING: State = State::Following { seen: 10 };

    fn behind(why: Why) -> State {
        FOLLOWING.after(Transition::Lost(why), 20)
    }

    #[test]
    fn only_what_was_listed_and_not_refused_is_told() {
        for question in
            [Question::Any, Question::AsLastKnown, Question::NotOlderThan(5), Question::Absence { known: 5 }]
        {
            assert!(FOLLOWING.may_answer(question, 5));
            assert!(behind(Why::Disconnected).may_answer(question, 5));
            assert!(!State::Empty.may_answer(question, 5));
            assert!(!FOLLOWING.after(Transition::Refused, 20).may_answer(question, 5));
        }
        assert!(!FOLLOWING.may_answer(Question::NotOlderThan(6), 5));
        // Nothing but a list ends a refusal.
        let refused = FOLLOWING.after(Transition::Refused, 20);
        for transition in [
            Transition::CaughtUp,
            Transition::Lost(Why::Unfollowed),
            Transition::Online,
            Transition::Heard(9),
        ] {
            assert_eq!(refused.after(transition, 30), refused, "{transition:?}");
        }
        assert_eq!(refused.after(Transition::Listed, 30), State::Following { seen: 30 });
    }

    #[test]
    fn what_cannot_be_watched_goes_on_ending_watches_when_its_reflector_has_ended() {
        let unwatchable = behind(Why::CannotBeWatched);
        let ended = unwatchable.after(Transition::Lost(Why::Unfollowed), 30);
        assert_eq!(ended, unwatchable);
        assert!(ended.ends_watches());
        assert!(!ended.after(Transition::Listed, 40).ends_watches());
        assert!(!behind(Why::Failed).after(Transition::Lost(Why::Unfollowed), 30).ends_watches());
    }

    #[test]
    fn absence_is_proved_by_what_was_followed_until_the_link_went_or_is_newest() {
        let absent = |state: State, known| state.may_answer(Question::Absence { known }, 5);
        assert!(absent(FOLLOWING, 9), "another view has had a bookmark");
        let lost = behind(Why::Disconnected);
        assert!(absent(lost, 9) && absent(lost.found(), 9) && absent(FOLLOWING.found(), 9));
        // The link came, and nobody followed.
        let late = FOLLOWING.found().after(Transition::Online, 30);
        assert_eq!(late, State::Behind { since: 10, why: Why::Unfollowed, heard: 0 });
        assert!(absent(late, 5) && !absent(late, 6));
        assert_eq!(late.after(Transition::Lost(Why::Disconnected), 40), late, "no link makes it no fresher");
        assert!(!absent(late.after(Transition::Heard(6), 40), 5), "the identity was told something newer");
        assert!(absent(late.after(Transition::Heard(5), 40), 5));
        assert!(absent(late.after(Transition::Heard(6), 40).after(Transition::CaughtUp, 50), 9));
    }

    #[test]
    fn a_record_survives_its_codec_and_a_restart_changes_nothing_twice() {
        for state in [
            State::Empty,
            FOLLOWING,
            behind(Why::Disconnected).after(Transition::Heard(7), 0),
            behind(Why::CannotBeWatched),
            State::Refused { since: 3 },
        ] {
            let text = serde_json::to_string(&state).unwrap();
            assert_eq!(serde_json::from_str::<State>(&text).unwrap(), state, "{text}");
            assert_eq!(state.found().found(), state.found());
            assert!(!state.differs_from(state));
        }
        assert!(!FOLLOWING.differs_from(behind(Why::Disconnected)), "not worth a write at every cut");
        assert!(FOLLOWING.differs_from(behind(Why::Unfollowed)));
    }
}
