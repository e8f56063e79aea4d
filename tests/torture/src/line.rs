//! The link between hub and API server: a relay for what happens on the way, and the kernel's rules for a black hole. A
//! relay alone cannot be one: its kernel acknowledges what nobody passes on.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, Result};
use tokio::runtime::Runtime;
use yurt_fakes::link::{Mode, Shape, Wire};
use yurt_tests::run;

/// The link.
pub(crate) struct Line {
    wire: Wire,
    // Behind it: the relay runs there.
    _runtime: Runtime,
}

/// What is wrong with it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Trouble {
    /// Connections are reset, new ones, too.
    Reset,
    /// Packets vanish.
    BlackHole,
    /// Everything takes so much longer.
    Slow(Duration),
    /// So many bits a second get through on a connection.
    Narrow(u64),
    /// After so many more bytes everything that is open breaks in the middle; then all is well again.
    Breaks(u64),
    /// What is open falls silent; what is new is well.
    Forgotten,
}

impl Line {
    /// One to this server.
    pub(crate) fn to(server: SocketAddr) -> Result<Self> {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
        let wire = runtime.block_on(Wire::to(server));
        Ok(Self { wire, _runtime: runtime })
    }

    /// Where the hub finds the API server.
    pub(crate) fn address(&self) -> SocketAddr {
        self.wire.address
    }

    /// From now on this is wrong, and nothing else.
    pub(crate) fn set(&self, trouble: Trouble) -> Result<()> {
        self.restore()?;
        match trouble {
            Trouble::Reset => self.wire.set(Mode::Reset),
            Trouble::BlackHole => {
                let port = self.wire.address.port();
                nft(&format!(
                    "table inet torture {{
                        chain arriving {{
                            type filter hook input priority 0; policy accept;
                            tcp dport {port} drop
                            tcp sport {port} drop
                        }}
                    }}"
                ))?;
            }
            Trouble::Slow(delay) => self.wire.shape(Shape { delay, bits_per_second: None }),
            Trouble::Narrow(bits) => {
                self.wire.shape(Shape { delay: Duration::ZERO, bits_per_second: Some(bits) })
            }
            Trouble::Breaks(bytes) => self.wire.break_after(bytes),
            Trouble::Forgotten => self.wire.forget(),
        }
        Ok(())
    }

    /// All is well again, but for what was forgotten.
    pub(crate) fn restore(&self) -> Result<()> {
        self.wire.set(Mode::Pass);
        self.wire.shape(Shape::default());
        nft("table inet torture {}\ndelete table inet torture")
    }
}

fn nft(rules: &str) -> Result<()> {
    let mut command = std::process::Command::new("nft");
    command.args(["-f", "-"]);
    run::run_with(command, Some(rules.as_bytes()), run::DEFAULT_TIMEOUT)?
        .success()
        .context("the link's rules")?;
    Ok(())
}
