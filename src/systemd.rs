//! Telling systemd how it goes: ready, status, stopping, and a watchdog that is fed only by proof of life.
//!
//! Outside systemd (no NOTIFY_SOCKET) everything here does nothing. The watchdog must never be fed by a timer
//! alone: a heartbeat has to come back through the path that live work takes, else a stuck daemon would look well.

use std::{io, sync::Arc, time::Duration};

use sd_notify::NotifyState;

use crate::base::Shutdown;

/// Of each watchdog interval this part is the time between heartbeats, and the time that one may take: a beat that
/// is lost or late still leaves time for the next.
const BEATS_PER_INTERVAL: u32 = 3;

/// Speaks to systemd; cheap to clone. A message that cannot be sent is logged, never an error: nobody could act on it.
#[derive(Clone)]
pub struct Notifier {
    send: Arc<Tell>,
    watchdog: Option<Duration>,
}

type Tell = dyn Fn(&[NotifyState<'_>]) -> io::Result<()> + Send + Sync;

impl Notifier {
    /// As systemd asked for in this process's environment (NOTIFY_SOCKET, WATCHDOG_USEC).
    pub fn from_env() -> Notifier {
        Notifier { send: Arc::new(sd_notify::notify), watchdog: sd_notify::watchdog_enabled() }
    }

    /// Everything listens. Units that come after this one start now.
    pub fn ready(&self, status: &str) {
        self.tell(&[NotifyState::Ready, NotifyState::Status(&one_line(status))]);
    }

    /// What `systemctl status` shows.
    pub fn status(&self, status: &str) {
        self.tell(&[NotifyState::Status(&one_line(status))]);
    }

    /// Shutdown has begun.
    pub fn stopping(&self) {
        self.tell(&[NotifyState::Stopping]);
    }

    /// Within this time systemd wants to hear of life, if it watches at all.
    pub fn watchdog_interval(&self) -> Option<Duration> {
        self.watchdog
    }

    fn tell(&self, states: &[NotifyState<'_>]) {
        if let Err(error) = (self.send)(states) {
            log::warn!("systemd cannot be told how it goes: {error}");
        }
    }
}

/// A line end would begin another message.
fn one_line(text: &str) -> String {
    text.replace(['\n', '\r'], " ")
}

/// Feeds the watchdog until shutdown, after each heartbeat that answers `true` in time. Returns at once when
/// systemd does not watch.
pub async fn watchdog(notifier: Notifier, mut heartbeat: impl AsyncFnMut() -> bool, shutdown: Shutdown) {
    let Some(interval) = notifier.watchdog_interval() else { return };
    let pause = interval / BEATS_PER_INTERVAL;
    loop {
        tokio::select! {
            biased;
            () = shutdown.wait() => break,
            () = tokio::time::sleep(pause) => (),
        }
        let beat = tokio::select! {
            biased;
            () = shutdown.wait() => break,
            beat = tokio::time::timeout(pause, heartbeat()) => beat,
        };
        match beat {
            Ok(true) => notifier.tell(&[NotifyState::Watchdog]),
            Ok(false) => log::error!("the heartbeat failed: the watchdog is not fed"),
            Err(_) => log::error!("the heartbeat did not come back within {pause:?}: the watchdog is not fed"),
        }
    }
    // Stopping has a limit of its own (TimeoutStopSec); give it the whole interval.
    notifier.tell(&[NotifyState::Watchdog]);
}

#[cfg(test)]
mod tests {
    use std::{
        os::unix::net::UnixDatagram,
        process::{Child, Command, Stdio},
        sync::Mutex,
    };

    use super::*;

    /// What was sent, in order.
    type Said = Arc<Mutex<Vec<String>>>;

    fn recorded(watchdog: Option<Duration>) -> (Notifier, Said) {
        let said = Said::default();
        let send = {
            let said = Arc::clone(&said);
            move |states: &[NotifyState<'_>]| {
                said.lock().unwrap().extend(states.iter().map(ToString::to_string));
                Ok(())
            }
        };
        (Notifier { send: Arc::new(send), watchdog }, said)
    }

    fn fed(said: &Said) -> usize {
        said.lock().unwrap().iter().filter(|text| *text == "WATCHDOG=1").count()
    }

    const SHORT: Option<Duration> = Some(Duration::from_millis(60));
    const LIMIT: Duration = Duration::from_secs(10);

    #[tokio::test]
    async fn feeds_while_the_heart_beats_and_once_more_at_shutdown() {
        let (notifier, said) = recorded(SHORT);
        let shutdown = Shutdown::new();
        let mut beats = 0;
        let heartbeat = async || {
            beats += 1;
            if beats == 4 {
                shutdown.start();
            }
            true
        };
        tokio::time::timeout(LIMIT, watchdog(notifier, heartbeat, shutdown.clone())).await.unwrap();
        assert_eq!((beats, fed(&said)), (4, 5));
    }

    #[tokio::test]
    async fn a_heart_that_answers_no_or_not_at_all_is_not_fed() {
        for stuck in [false, true] {
            let (notifier, said) = recorded(SHORT);
            let shutdown = Shutdown::new();
            let mut beats = 0;
            let heartbeat = async || {
                beats += 1;
                if beats == 3 {
                    shutdown.start();
                }
                if stuck {
                    std::future::pending::<()>().await;
                }
                false
            };
            tokio::time::timeout(LIMIT, watchdog(notifier, heartbeat, shutdown.clone())).await.unwrap();
            assert_eq!((beats, fed(&said)), (3, 1), "the one is the last, at shutdown");
        }
    }

    #[tokio::test]
    async fn can_be_spawned_and_ends_at_once_when_nobody_watches() {
        let (notifier, said) = recorded(None);
        let task = tokio::spawn(watchdog(notifier, async || true, Shutdown::new()));
        tokio::time::timeout(LIMIT, task).await.unwrap().unwrap();
        assert_eq!(fed(&said), 0);
    }

    #[test]
    fn a_status_stays_one_message() {
        let (notifier, said) = recorded(None);
        notifier.status("listening\nSTOPPING=1");
        assert_eq!(*said.lock().unwrap(), ["STATUS=listening STOPPING=1"]);
    }

    #[test]
    fn a_socket_that_is_gone_is_no_error() {
        let gone = Notifier { send: Arc::new(|_| Err(io::ErrorKind::NotFound.into())), watchdog: None };
        gone.ready("listening");
        gone.stopping();
    }

    const CHILD: &str = "VIGIA_TEST_CHILD_OF_SYSTEMD";

    /// Not a test of its own: the process that `a_real_socket_hears_all_of_it` starts with systemd's variables, as the
    /// environment of this process is shared by all tests.
    #[test]
    fn child_of_systemd() {
        if std::env::var_os(CHILD).is_none() {
            return;
        }
        let notifier = Notifier::from_env();
        notifier.ready("listening on 127.0.0.1:8090");
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let shutdown = Shutdown::new();
        let mut beats = 0;
        let heartbeat = async || {
            beats += 1;
            if beats == 2 {
                shutdown.start();
            }
            true
        };
        runtime.block_on(watchdog(notifier.clone(), heartbeat, shutdown.clone()));
        notifier.stopping();
    }

    fn child(set: impl FnOnce(&mut Command) -> &mut Command) -> Child {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args(["--exact", "systemd::tests::child_of_systemd"]).env(CHILD, "1");
        command.env_remove("NOTIFY_SOCKET").env_remove("WATCHDOG_USEC").env_remove("WATCHDOG_PID");
        command.stdout(Stdio::null());
        set(&mut command).spawn().unwrap()
    }

    #[test]
    fn a_real_socket_hears_all_of_it() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("notify");
        let socket = UnixDatagram::bind(&path).unwrap();
        socket.set_read_timeout(Some(LIMIT)).unwrap();
        let mut child = child(|command| command.env("NOTIFY_SOCKET", &path).env("WATCHDOG_USEC", "60000"));

        let mut said = String::new();
        let mut buffer = [0; 512];
        while !said.contains("STOPPING=1") {
            let length = socket.recv(&mut buffer).unwrap();
            said.push_str(std::str::from_utf8(&buffer[..length]).unwrap());
        }
        assert!(child.wait().unwrap().success());
        let wanted = "READY=1\nSTATUS=listening on 127.0.0.1:8090\nWATCHDOG=1\nWATCHDOG=1\nWATCHDOG=1\nSTOPPING=1\n";
        assert_eq!(said, wanted);
    }

    #[test]
    fn without_systemd_nothing_happens() {
        assert!(child(|command| command).wait().unwrap().success());
    }
}
