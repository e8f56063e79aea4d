//! Whether anybody is at the other end of a connection, as its kernel knows: keep-alive segments and their
//! acknowledgements are not seen in what is read.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::time::{Duration, Instant};

/// What the kernel knows of a TCP connection at one moment.
#[derive(Debug, Clone, Copy)]
pub(super) struct Heard {
    /// Since the last segment of the other side.
    pub(super) ago: Duration,
    /// Data that is not acknowledged.
    pub(super) unanswered: bool,
    /// Keep-alive segments that are not.
    pub(super) unanswered_probes: bool,
    /// Smoothed.
    pub(super) round_trip: Duration,
}

/// Asks the kernel (`TCP_INFO`).
///
/// # Errors
///
/// When it does not say.
#[allow(unsafe_code, reason = "no crate that is used here has this socket option")]
pub(super) fn heard(socket: BorrowedFd<'_>) -> io::Result<Heard> {
    let mut info = std::mem::MaybeUninit::<libc::tcp_info>::zeroed();
    let mut length = size_of::<libc::tcp_info>() as libc::socklen_t;
    // SAFETY: the kernel writes at most `length` bytes; any bytes are a `tcp_info`, zero ones too.
    let info = unsafe {
        let got = libc::getsockopt(
            socket.as_raw_fd(),
            libc::IPPROTO_TCP,
            libc::TCP_INFO,
            info.as_mut_ptr().cast(),
            &raw mut length,
        );
        if got != 0 {
            return Err(io::Error::last_os_error());
        }
        info.assume_init()
    };
    let last = info.tcpi_last_ack_recv.min(info.tcpi_last_data_recv);
    Ok(Heard {
        ago: Duration::from_millis(last.into()),
        unanswered: info.tcpi_unacked > 0,
        unanswered_probes: info.tcpi_probes > 0,
        round_trip: Duration::from_micros(info.tcpi_rtt.into()),
    })
}

/// Data without an answer for so long is silence.
const DATA: Duration = Duration::from_secs(2);
/// The same for keep-alive segments, which the idle time is added to.
const PROBES: Duration = Duration::from_millis(600);
/// However long round trips are.
const LONGEST: Duration = Duration::from_secs(5);

/// Judges what is heard: a machine without clock or sockets.
#[derive(Debug)]
pub(super) struct Ear {
    /// Before the first keep-alive segment.
    idle: Duration,
    waiting_since: Option<Instant>,
}

impl Ear {
    pub(super) fn new(idle: Duration) -> Self {
        Self { idle, waiting_since: None }
    }

    /// Whether nobody answers any more. `round_trip` is the longest of late.
    pub(super) fn is_silent(&mut self, now: Instant, heard: &Heard, round_trip: Duration) -> bool {
        if !heard.unanswered && !heard.unanswered_probes {
            self.waiting_since = None;
            return false;
        }
        let heard_at = now.checked_sub(heard.ago).unwrap_or(now);
        let since = match self.waiting_since {
            Some(since) if heard_at <= since => since,
            // When the first of the unanswered segments left is known of keep-alive ones alone.
            _ if heard.unanswered_probes => (heard_at + self.idle).min(now),
            _ => now,
        };
        self.waiting_since = Some(since);
        let patience = if heard.unanswered_probes { PROBES } else { DATA };
        now - since >= patience.max((round_trip * 2).min(LONGEST))
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use super::*;

    const IDLE: Duration = Duration::from_secs(3);
    const STEP: Duration = Duration::from_millis(200);

    /// After how long the silence of a connection on which nothing comes is noticed.
    fn noticed(round_trip: Duration, at: impl Fn(Duration) -> (bool, bool)) -> Duration {
        let (start, mut ear) = (Instant::now(), Ear::new(IDLE));
        let mut ago = Duration::ZERO;
        loop {
            let (unanswered, unanswered_probes) = at(ago);
            let heard = Heard { ago, unanswered, unanswered_probes, round_trip };
            if ear.is_silent(start + ago, &heard, round_trip) {
                return ago;
            }
            ago += STEP;
            assert!(ago < Duration::from_secs(60));
        }
    }

    #[test]
    fn a_black_hole_is_noticed_in_time_for_a_round_within_five_seconds() {
        let short = Duration::from_millis(50);
        let idle = noticed(short, |ago| (false, ago >= IDLE));
        assert!(idle <= Duration::from_millis(3800), "{idle:?}");
        let busy = noticed(short, |ago| (ago >= STEP, false));
        assert!(busy <= Duration::from_millis(2500), "{busy:?}");
    }

    #[test]
    fn where_round_trips_are_long_more_is_waited_for() {
        let long = Duration::from_secs(2);
        assert!(noticed(long, |ago| (false, ago >= IDLE)) >= IDLE + long * 2);
        assert!(noticed(long, |ago| (ago >= STEP, false)) >= long * 2);
    }

    #[test]
    fn answers_that_come_late_are_no_silence() {
        let (start, mut ear) = (Instant::now(), Ear::new(IDLE));
        // Data all the time, each acknowledged after a second and a half.
        for step in 0..100_u32 {
            let now = start + STEP * step;
            let ago = STEP * (step % 8);
            let heard = Heard { ago, unanswered: true, unanswered_probes: false, round_trip: ago };
            assert!(!ear.is_silent(now, &heard, Duration::ZERO), "{step}");
        }
    }

    #[tokio::test]
    async fn the_kernel_says_when_it_has_heard_something() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let client = tokio::net::TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let _server = listener.accept().await.unwrap();
        tokio::time::sleep(Duration::from_millis(300)).await;
        let heard = heard(client.as_fd()).unwrap();
        assert!(heard.ago >= Duration::from_millis(200) && heard.ago < Duration::from_secs(30), "{heard:?}");
        assert!(!heard.unanswered && !heard.unanswered_probes, "{heard:?}");
        assert!(heard.round_trip < Duration::from_millis(200), "{heard:?}");
    }
}
