//! Reflectors: each keeps one [view](crate::view) equal to the API server's collection, with one LIST and one WATCH.
//!
//! [`Views`] is what the rest of the hub sees of them and of the views they keep; here alone is the store's writer of
//! views. What a reflector does after what is decided by [`step`], a machine without I/O. A reflector
//!
//! - resumes its watch at the last resourceVersion after the link was lost, and lists again only on 410; the
//!   difference reaches local watchers as ordinary events (`view::table`),
//! - sleeps while the link is down, and while its credential is refused; a 403 is marked in the store, and the view
//!   served to nobody until a list succeeds,
//! - uses whichever credential of the identity's last few the API server accepts (`credentials`),
//! - ends when nobody has used its view for a while, unless kubelet needs it (`kept`) or a pod of its identity is on the
//!   node (`accounts`). The view stays in the store.

mod accounts;
mod confirmed;
mod credentials;
mod fetch;
mod followers;
mod housekeeping;
mod kept;
mod local;
pub(crate) mod needs;
mod open;
mod overlay;
mod reflector;
mod rights;
mod sources;
mod step;
mod views;

pub(crate) use credentials::OF_ONE;
pub(crate) use local::Present;
pub(crate) use overlay::Publishing;
use step::Start;
pub(crate) use views::Views;

#[cfg(test)]
mod tests;
