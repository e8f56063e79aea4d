//! The API server's word that an identity may list and watch exactly what a view shows: it is asked for when nobody
//! asks for the view itself, because it is fed from another one, and kept in the view's record.
//!
//! A word costs two requests, more than the watch that is saved would. So it outlives the process, which may end at any
//! time, but nothing else: not its time, nor an absence in which nobody could have heard that the right is gone. It is
//! of one boot, and its times are seconds of that ([`Boot`]): a clock that is set back, or that says 1970 after a
//! reboot, makes no word last longer. What a power cut takes from the disk is of another boot already, so it need not
//! be synced.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::clock::Boot;

/// The longest that a word is believed, whatever is in the store.
pub(crate) const LONGEST: Duration = Duration::from_secs(3600);
/// A hub that was not there for longer asks again, as one does whose link was lost. It says that it is there every five
/// minutes.
const ABSENT_FOR: u64 = 600;

/// The word. Times are in seconds since the boot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Confirmation {
    boot: String,
    /// It is believed until then.
    until: u64,
    /// When the hub was last there and had a link.
    seen: u64,
    /// How often this process had lost the link when it was given.
    #[serde(skip)]
    losses: u64,
}

impl Confirmation {
    /// A word that was given just now, for so long at most.
    pub(crate) fn new(boot: &Boot, lasts: Duration, losses: u64) -> Self {
        let seen = boot.seconds();
        let until = seen.saturating_add(lasts.min(LONGEST).as_secs());
        Self { boot: boot.name().to_owned(), until, seen, losses }
    }

    /// For how long it is believed from now on; `losses`: of the link, by now.
    pub(crate) fn lasts(&self, boot: &Boot, losses: u64) -> Option<Duration> {
        self.lasts_at(boot.name(), boot.seconds(), losses)
    }

    fn lasts_at(&self, boot: &str, now: u64, losses: u64) -> Option<Duration> {
        let absent = now.checked_sub(self.seen)?;
        let left = self.until.checked_sub(now).filter(|left| *left > 0)?;
        let is_believed =
            self.boot == boot && self.losses == losses && absent <= ABSENT_FOR && left <= LONGEST.as_secs();
        is_believed.then(|| Duration::from_secs(left))
    }

    /// The hub is there and has a link.
    pub(crate) fn see(&mut self, boot: &Boot) {
        self.seen = boot.seconds();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const WORD: u64 = 1000;

    fn word() -> Confirmation {
        Confirmation { boot: "one".into(), until: WORD + 1800, seen: WORD, losses: 2 }
    }

    #[test]
    fn a_word_is_believed_in_its_boot_and_its_time_while_the_link_holds() {
        let left = |at| word().lasts_at("one", at, 2).map(|left| left.as_secs());
        assert_eq!((left(WORD), left(WORD + 600)), (Some(1800), Some(1200)));
        assert_eq!(left(WORD - 1), None, "no time of this boot's");
        assert_eq!(word().lasts_at("two", WORD, 2), None);
        assert_eq!(word().lasts_at("one", WORD, 3), None, "the link was lost");
    }

    #[test]
    fn a_word_ends_with_its_time_and_with_an_absence() {
        assert_eq!(word().lasts_at("one", WORD + 601, 2), None);
        let there = |at| Confirmation { seen: at, ..word() }.lasts_at("one", at, 2);
        assert_eq!(there(WORD + 1799), Some(Duration::from_secs(1)));
        assert_eq!(there(WORD + 1800), None);
        let endless = Confirmation { until: u64::MAX, ..word() };
        assert_eq!(endless.lasts_at("one", WORD, 2), None, "nobody has given such a word");
    }

    #[test]
    fn a_process_finds_the_word_of_the_one_before_while_it_has_lost_no_link() {
        let found: Confirmation = serde_json::from_str(&serde_json::to_string(&word()).unwrap()).unwrap();
        assert!(found.lasts_at("one", WORD + 1, 0).is_some());
        assert_eq!(found.lasts_at("one", WORD + 1, 1), None);
    }

    #[test]
    fn a_word_that_was_given_in_a_boot_without_a_name_is_this_processs_alone() {
        let boot = Boot::new("");
        let word = Confirmation::new(&boot, Duration::MAX, 0);
        assert!(word.lasts(&boot.clone(), 0).unwrap() <= LONGEST);
        assert_eq!(word.lasts(&Boot::new(""), 0), None);
    }
}
