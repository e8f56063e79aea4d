//! How a test says who may do what and what goes wrong, and looks at what was asked.

use std::sync::Arc;

use serde_json::json;

use super::faults::{Fault, Listening, When};
use super::rights::{Rights, User};
use super::{FakeApi, Seen};
use crate::issuer::SigningKey;
use crate::pki::TestCa;

/// People.
impl FakeApi {
    pub fn accept_token(&self, token: &str, user: &str) {
        self.accept_token_of(token, user, &[]);
    }

    pub fn accept_token_of(&self, token: &str, user: &str, groups: &[&str]) {
        self.state().people.tokens.insert(token.to_owned(), User::new(user, groups));
    }

    /// From now on nobody is this.
    pub fn refuse_token(&self, token: &str) {
        self.state().people.refused_tokens.insert(token.to_owned());
    }

    /// Publishes these keys as those of the issuer of tokens, and no others.
    pub fn publish(&self, keys: &[&SigningKey]) {
        let keys: Vec<_> = keys.iter().map(|key| key.public()).collect();
        self.state().people.keys = Some(json!({"keys": keys}));
    }

    /// Nobody but administrators may do anything that is not [allowed](Self::allow).
    pub fn allow_nothing(&self) {
        self.state().people.rights.nothing();
    }

    /// `user`, `verb` and `resource` (`pods`, `pods/log`) may end in `*`. The last rule that fits decides.
    pub fn allow(&self, user: &str, verb: &str, resource: &str) {
        self.state().people.rights.rule(user, verb, resource, true);
    }

    /// The opposite. Access reviews hear of it also when an administrator asks, who is never refused anything.
    pub fn forbid(&self, user: &str, verb: &str, resource: &str) {
        self.state().people.rights.rule(user, verb, resource, false);
    }

    /// Takes all rules back.
    pub fn allow_everything(&self) {
        self.state().people.rights = Rights::default();
    }

    /// Approves and signs certificate signing requests for this signer, also those that wait already; or stops to.
    pub fn sign(&self, signer: &str, ca: Option<Arc<TestCa>>) {
        match ca {
            Some(ca) => drop(self.state().people.signers.insert(signer.to_owned(), ca)),
            None => drop(self.state().people.signers.remove(signer)),
        }
        self.shared.react();
    }
}

/// Requests so far.
impl FakeApi {
    pub fn requests(&self) -> Vec<Seen> {
        self.state().requests.clone()
    }

    /// Requests whose method and path are these.
    pub fn seen(&self, method: &str, path: &str) -> Vec<Seen> {
        let state = self.state();
        state.requests.iter().filter(|seen| seen.method == method && seen.path == path).cloned().collect()
    }

    fn count(&self, fits: impl Fn(&Seen) -> bool) -> usize {
        self.state().requests.iter().filter(|seen| fits(seen)).count()
    }

    /// Requests that are no watches.
    pub fn lists(&self) -> usize {
        self.count(|seen| !seen.is_watch())
    }

    pub fn watches(&self) -> usize {
        self.count(Seen::is_watch)
    }

    /// Requests that are no reads.
    pub fn writes(&self) -> usize {
        self.count(|seen| seen.method != "GET")
    }

    /// Connections that are open.
    pub fn connections(&self) -> usize {
        self.state().connections
    }
}

/// Faults.
impl FakeApi {
    /// From now on this becomes of such requests. The first that fits counts.
    pub fn fault(&self, when: When, fault: Fault) {
        self.shared.faults.arm(when, fault, None);
    }

    /// The same, so many times.
    pub fn fault_times(&self, when: When, fault: Fault, times: usize) {
        self.shared.faults.arm(when, fault, Some(times));
    }

    /// Everything is as it should be again.
    pub fn no_faults(&self) {
        self.shared.faults.clear();
    }

    /// Every request is answered with this status, or none.
    pub fn answer_with(&self, code: Option<u16>) {
        self.no_faults();
        if let Some(code) = code {
            self.fault(When::all(), Fault::Answer(code));
        }
    }

    pub fn listen(&self, listening: Listening) {
        self.state().listening = listening;
        self.shared.changed.send_replace(());
    }

    /// Ends every connection and takes no more.
    pub fn cut(&self) {
        self.listen(Listening::Refuse);
        self.cut_connections();
    }

    /// Ends every connection.
    pub fn cut_connections(&self) {
        self.shared.cut();
    }

    /// Takes connections again.
    pub fn restore(&self) {
        self.listen(Listening::Serve);
    }

    /// The most objects a page, whatever was asked for.
    pub fn page_size(&self, objects: usize) {
        self.state().page = objects;
    }
}
