//! systemd behind the system bus.

use std::time::Duration;

use futures::StreamExt;
use zbus::proxy::CacheProperties;
use zbus::{Connection, OwnedObjectPath, Variant};

use super::{JOB_LIMIT, Service, Systemd, SystemdError, Unit};

/// What a program that is run once may do (`capabilities(7)`): signal everybody's processes (CAP_KILL), and see them
/// where `/proc` hides them (CAP_SYS_PTRACE).
const CAPABILITIES: u64 = 1 << 5 | 1 << 19;
/// After how long it is ended; shorter than [`JOB_LIMIT`].
const RUN_LIMIT: Duration = Duration::from_secs(90);

/// Between two looks at a unit that is being cleaned; systemd sends no job for it.
const POLL: Duration = Duration::from_millis(50);

#[zbus::proxy(
    interface = "org.freedesktop.systemd1.Manager",
    default_service = "org.freedesktop.systemd1",
    default_path = "/org/freedesktop/systemd1"
)]
trait Manager {
    fn subscribe(&self) -> zbus::Result<()>;
    fn reload(&self) -> zbus::Result<()>;
    fn load_unit(&self, name: &str) -> zbus::Result<OwnedObjectPath>;
    fn start_unit(&self, name: &str, mode: &str) -> zbus::Result<OwnedObjectPath>;
    fn restart_unit(&self, name: &str, mode: &str) -> zbus::Result<OwnedObjectPath>;
    fn stop_unit(&self, name: &str, mode: &str) -> zbus::Result<OwnedObjectPath>;
    fn start_transient_unit(
        &self,
        name: &str,
        mode: &str,
        properties: &[(&str, Variant<'_>)],
        auxiliary: &[(&str, Vec<(&str, Variant<'_>)>)],
    ) -> zbus::Result<OwnedObjectPath>;
    fn clean_unit(&self, name: &str, mask: &[&str]) -> zbus::Result<()>;
    fn reset_failed_unit(&self, name: &str) -> zbus::Result<()>;

    #[zbus(property)]
    fn version(&self) -> zbus::Result<String>;

    #[zbus(signal)]
    fn job_removed(&self, id: u32, job: OwnedObjectPath, unit: String, result: String) -> zbus::Result<()>;
}

#[zbus::proxy(
    interface = "org.freedesktop.systemd1.Unit",
    default_service = "org.freedesktop.systemd1",
    assume_defaults = false
)]
trait UnitObject {
    #[zbus(property)]
    fn load_state(&self) -> zbus::Result<String>;
    #[zbus(property)]
    fn active_state(&self) -> zbus::Result<String>;
    #[zbus(property)]
    fn need_daemon_reload(&self) -> zbus::Result<bool>;
    #[zbus(property)]
    fn drop_in_paths(&self) -> zbus::Result<Vec<String>>;
}

/// path, arguments, ignore failure, four timestamps, pid, code, status
type ExecCommand = (String, Vec<String>, bool, u64, u64, u64, u64, u32, i32, i32);

#[zbus::proxy(
    interface = "org.freedesktop.systemd1.Service",
    default_service = "org.freedesktop.systemd1",
    assume_defaults = false
)]
trait ServiceObject {
    #[zbus(property, name = "MainPID")]
    fn main_pid(&self) -> zbus::Result<u32>;
    #[zbus(property)]
    fn exec_main_start_timestamp(&self) -> zbus::Result<u64>;
    #[zbus(property)]
    fn exec_start(&self) -> zbus::Result<Vec<ExecCommand>>;
    #[zbus(property)]
    fn environment(&self) -> zbus::Result<Vec<String>>;
    /// path, whether it may be missing
    #[zbus(property)]
    fn environment_files(&self) -> zbus::Result<Vec<(String, bool)>>;
    #[zbus(property)]
    fn result(&self) -> zbus::Result<String>;
    #[zbus(property)]
    fn clean_result(&self) -> zbus::Result<String>;
    #[zbus(property)]
    fn status_text(&self) -> zbus::Result<String>;
    #[zbus(property, name = "NRestarts")]
    fn n_restarts(&self) -> zbus::Result<u32>;
}

/// systemd of the host.
#[derive(Debug)]
pub(crate) struct Bus {
    address: String,
    connection: Option<Connection>,
}

impl Bus {
    /// systemd behind the system bus whose socket is at `socket`.
    pub(crate) fn new(socket: &std::path::Path) -> Self {
        Self { address: format!("unix:path={}", socket.display()), connection: None }
    }

    async fn connection(&mut self) -> Result<Connection, SystemdError> {
        if let Some(connection) = &self.connection
            && !connection.is_closed()
        {
            return Ok(connection.clone());
        }
        let connect = async {
            let connection = zbus::connection::Builder::address(self.address.as_str())
                .method_timeout(JOB_LIMIT)
                .build()
                .await?;
            // Without this systemd sends no JobRemoved.
            ManagerProxy::new(&connection).await?.subscribe().await?;
            Ok(connection)
        };
        let connection = connect
            .await
            .map_err(|source| SystemdError::Connect { address: self.address.clone(), source })?;
        self.connection = Some(connection.clone());
        Ok(connection)
    }

    async fn manager(&mut self) -> Result<ManagerProxy<'static>, SystemdError> {
        let connection = self.connection().await?;
        ManagerProxy::builder(&connection)
            .cache_properties(CacheProperties::No)
            .build()
            .await
            .map_err(call("talk about its units"))
    }

    async fn service_object(&mut self, unit: &str) -> Result<ServiceObjectProxy<'static>, SystemdError> {
        let failed = || call(format!("describe {unit}"));
        let path = self.manager().await?.load_unit(unit).await.map_err(failed())?;
        let connection = self.connection().await?;
        ServiceObjectProxy::builder(&connection)
            .cache_properties(CacheProperties::No)
            .path(path)
            .build()
            .await
            .map_err(failed())
    }

    /// Queues a job and waits for its end.
    async fn job(&mut self, action: &'static str, unit: &str) -> Result<(), SystemdError> {
        self.job_of(action, unit, &[]).await
    }

    /// The same for a unit that is made with these properties.
    async fn job_of(
        &mut self,
        action: &'static str,
        unit: &str,
        properties: &[(&str, Variant<'_>)],
    ) -> Result<(), SystemdError> {
        let failed = || call(format!("{action} {unit}"));
        let manager = self.manager().await?;
        // Listen first: the job may be over before its path has come back.
        let mut removed = manager.receive_job_removed().await.map_err(failed())?;
        let job = match action {
            "start" => manager.start_unit(unit, "replace").await,
            "stop" => manager.stop_unit(unit, "replace").await,
            "run" => manager.start_transient_unit(unit, "fail", properties, &[]).await,
            _ => manager.restart_unit(unit, "replace").await,
        }
        .map_err(failed())?;
        let result = tokio::time::timeout(JOB_LIMIT, async {
            while let Some(signal) = removed.next().await {
                if let Ok(args) = signal.args()
                    && args.job == job
                {
                    return Some(args.result);
                }
            }
            None
        })
        .await
        .map_err(|_| SystemdError::Late { unit: unit.into(), action })?
        .unwrap_or_else(|| "the bus was closed".into());
        if result == "done" {
            return Ok(());
        }
        let detail = match self.unit(unit).await {
            Ok(found) if !found.service.result.is_empty() => {
                format!(" ({}; {})", found.service.result, found.service.status_text)
            }
            _ => String::new(),
        };
        Err(SystemdError::Job { unit: unit.into(), action, result, detail })
    }
}

impl Systemd for Bus {
    async fn version(&mut self) -> Result<String, SystemdError> {
        self.manager().await?.version().await.map_err(call("tell its version"))
    }

    async fn unit(&mut self, unit: &str) -> Result<Unit, SystemdError> {
        let failed = || call(format!("describe {unit}"));
        // LoadUnit, unlike GetUnit, also answers for units that are not there.
        let path = self.manager().await?.load_unit(unit).await.map_err(failed())?;
        let connection = self.connection().await?;
        let object = UnitObjectProxy::builder(&connection)
            .cache_properties(CacheProperties::No)
            .path(path)
            .build()
            .await
            .map_err(failed())?;
        let read = async {
            Ok(Unit {
                load_state: object.load_state().await?,
                active_state: object.active_state().await?,
                need_reload: object.need_daemon_reload().await?,
                drop_in_paths: object.drop_in_paths().await?,
                service: Service::default(),
            })
        };
        let mut found: Unit = read.await.map_err(failed())?;
        if unit.ends_with(".service") && found.is_loaded() {
            let service = self.service_object(unit).await?;
            let read = async {
                let commands = service.exec_start().await?;
                Ok(Service {
                    main_pid: service.main_pid().await?,
                    started_micros: service.exec_main_start_timestamp().await?,
                    exec_start: commands.into_iter().next().map(|command| command.1).unwrap_or_default(),
                    environment: service.environment().await?,
                    environment_files: service
                        .environment_files()
                        .await?
                        .into_iter()
                        .map(|(path, _)| path)
                        .collect(),
                    result: service.result().await?,
                    status_text: service.status_text().await?,
                    restarts: service.n_restarts().await?,
                })
            };
            found.service = read.await.map_err(failed())?;
        }
        Ok(found)
    }

    async fn reload(&mut self) -> Result<(), SystemdError> {
        self.manager().await?.reload().await.map_err(call("reload its units"))
    }

    async fn start(&mut self, unit: &str) -> Result<(), SystemdError> {
        self.job("start", unit).await
    }

    async fn restart(&mut self, unit: &str) -> Result<(), SystemdError> {
        self.job("restart", unit).await
    }

    async fn stop(&mut self, unit: &str) -> Result<(), SystemdError> {
        self.job("stop", unit).await
    }

    async fn clean_state(&mut self, unit: &str) -> Result<(), SystemdError> {
        let manager = self.manager().await?;
        manager.clean_unit(unit, &["state"]).await.map_err(call(format!("clean {unit}")))?;
        let cleaned = async {
            loop {
                let state = self.unit(unit).await?.active_state;
                if state == "inactive" || state == "failed" {
                    return Ok::<(), SystemdError>(());
                }
                tokio::time::sleep(POLL).await;
            }
        };
        tokio::time::timeout(JOB_LIMIT, cleaned)
            .await
            .map_err(|_| SystemdError::Late { unit: unit.into(), action: "clean" })??;
        let result = self
            .service_object(unit)
            .await?
            .clean_result()
            .await
            .map_err(call(format!("describe {unit}")))?;
        if result == "success" {
            return Ok(());
        }
        Err(SystemdError::Job { unit: unit.into(), action: "clean", result, detail: String::new() })
    }

    async fn run(&mut self, unit: &str, command: &[String]) -> Result<(), SystemdError> {
        let Some(program) = command.first() else { return Ok(()) };
        // path, arguments, whether its failure is ignored
        let start = vec![(program.clone(), command.to_vec(), false)];
        let properties = [
            ("Description", Variant::from("Run once by yurtd-keeper")),
            ("Type", Variant::from("oneshot")),
            ("ExecStart", Variant::from(start)),
            ("TimeoutStartUSec", Variant::from(micros(RUN_LIMIT))),
            ("CollectMode", Variant::from("inactive-or-failed")),
            ("CapabilityBoundingSet", Variant::from(CAPABILITIES)),
            ("NoNewPrivileges", Variant::from(true)),
            ("ProtectSystem", Variant::from("strict")),
        ];
        match self.job_of("run", unit, &properties).await {
            Err(SystemdError::Call { source: zbus::Error::MethodError(name, ..), .. })
                if name.as_str() == "org.freedesktop.systemd1.UnitExists" =>
            {
                Ok(())
            }
            outcome => outcome,
        }
    }

    async fn reset_failed(&mut self, unit: &str) -> Result<(), SystemdError> {
        match self.manager().await?.reset_failed_unit(unit).await {
            // A unit that is not loaded has not failed.
            Err(zbus::Error::MethodError(name, ..))
                if name.as_str() == "org.freedesktop.systemd1.NoSuchUnit" =>
            {
                Ok(())
            }
            outcome => outcome.map_err(call(format!("forget the failure of {unit}"))),
        }
    }
}

fn micros(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}

fn call(action: impl Into<String>) -> impl FnOnce(zbus::Error) -> SystemdError {
    let action = action.into();
    move |source| SystemdError::Call { action, source }
}

#[cfg(test)]
mod tests {
    use super::super::major;
    use super::*;

    /// Against a real systemd: `systemd --user --unit=basic.target` with a scratch `XDG_RUNTIME_DIR`, whose `bus` and
    /// whose folder of user units the two variables name.
    #[tokio::test]
    #[ignore = "needs a systemd user instance: YURT_TEST_SYSTEMD_SOCKET, YURT_TEST_SYSTEMD_UNITS"]
    async fn a_real_systemd_starts_restarts_stops_and_cleans_a_service() {
        let socket = std::env::var("YURT_TEST_SYSTEMD_SOCKET").unwrap();
        let units = std::path::PathBuf::from(std::env::var("YURT_TEST_SYSTEMD_UNITS").unwrap());
        let mut bus = Bus::new(std::path::Path::new(&socket));
        assert!(major(&bus.version().await.unwrap()).unwrap() >= 245);
        assert!(!bus.unit("yurt-test.service").await.unwrap().is_loaded());
        assert!(!bus.unit("yurt-test.socket").await.unwrap().is_loaded());

        let file = units.join("yurt-test.service");
        let text = "[Service]\nType=exec\nStateDirectory=yurt-test\nEnvironment=SECONDS_=1000\nEnvironmentFile=-/does/not/exist\nExecStart=/bin/sleep $SECONDS_\n";
        std::fs::write(&file, text).unwrap();
        let drop_in = units.join("yurt-test.service.d/10-test.conf");
        std::fs::create_dir(drop_in.parent().unwrap()).unwrap();
        std::fs::write(&drop_in, "[Service]\n").unwrap();
        bus.reload().await.unwrap();
        bus.start("yurt-test.service").await.unwrap();
        let first = bus.unit("yurt-test.service").await.unwrap();
        assert!(first.is_active() && first.is_loaded() && !first.need_reload, "{first:?}");
        assert!(first.service.main_pid > 0 && first.service.started_micros > 0);
        assert_eq!(first.service.exec_start, ["/bin/sleep", "$SECONDS_"]);
        assert_eq!(first.service.environment, ["SECONDS_=1000"]);
        assert_eq!(first.service.environment_files, ["/does/not/exist"]);
        assert_eq!(first.drop_in_paths, [drop_in.display().to_string()]);
        assert_eq!(first.service.result, "success");
        bus.restart("yurt-test.service").await.unwrap();
        let second = bus.unit("yurt-test.service").await.unwrap();
        assert_ne!(first.service.main_pid, second.service.main_pid);

        std::fs::write(&file, text.replace("1000", "2000")).unwrap();
        assert!(bus.unit("yurt-test.service").await.unwrap().need_reload);
        bus.reload().await.unwrap();
        assert!(!bus.unit("yurt-test.service").await.unwrap().need_reload);
        assert!(bus.clean_state("yurt-test.service").await.is_err(), "it still runs");
        bus.stop("yurt-test.service").await.unwrap();
        assert_eq!(bus.unit("yurt-test.service").await.unwrap().active_state, "inactive");
        bus.clean_state("yurt-test.service").await.unwrap();
        bus.clean_state("yurt-test.service").await.unwrap();

        let command = |words: &[&str]| words.iter().map(|&word| word.to_owned()).collect::<Vec<_>>();
        let begun = std::time::Instant::now();
        bus.run("yurt-test-run.service", &command(&["/bin/sleep", "0.5"])).await.unwrap();
        assert!(begun.elapsed() >= Duration::from_millis(500), "it has ended when this returns");
        let refused = bus.run("yurt-test-run.service", &command(&["/bin/false"])).await.unwrap_err();
        assert!(matches!(&refused, SystemdError::Job { result, .. } if result == "failed"), "{refused}");
        assert!(!bus.unit("yurt-test-run.service").await.unwrap().is_loaded(), "it leaves nothing");

        std::fs::write(&file, text.replace("/bin/sleep", "/does/not/exist")).unwrap();
        bus.reload().await.unwrap();
        let refused = bus.start("yurt-test.service").await.unwrap_err();
        assert!(matches!(&refused, SystemdError::Job { result, .. } if result == "failed"), "{refused}");
        bus.reset_failed("yurt-test.service").await.unwrap();
        bus.clean_state("yurt-test.service").await.unwrap();
        std::fs::remove_file(&file).unwrap();
        std::fs::remove_dir_all(drop_in.parent().unwrap()).unwrap();
        bus.reload().await.unwrap();
        bus.reset_failed("yurt-test.service").await.unwrap();
        assert!(!bus.unit("yurt-test.service").await.unwrap().is_loaded());
    }
}
