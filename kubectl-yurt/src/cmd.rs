//! One file a verb, and none reads another one's. Each takes the session, the console and its options, and returns why it
//! did not succeed.

pub mod autonomy;
pub mod completion;
pub mod convert;
pub mod exec;
pub mod logs;
pub mod port_forward;
pub mod revert;
pub mod status;
pub mod tunnel;
pub mod version;
