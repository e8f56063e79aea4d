//! systemd of the world.

use yurt_api::names;

use super::{Shared, World};
use crate::systemd::{Service, Systemd, SystemdError, Unit};
use crate::units;

/// systemd of the world.
pub(crate) struct FakeSystemd(pub Shared);

impl FakeSystemd {
    fn act(&self) -> Result<std::cell::RefMut<'_, World>, SystemdError> {
        let world = self.0.borrow_mut();
        world.fuse.burn().map_err(|error| SystemdError::Simulated(error.into()))?;
        Ok(world)
    }
}

impl Systemd for FakeSystemd {
    async fn version(&mut self) -> Result<String, SystemdError> {
        Ok(self.0.borrow().systemd_version.clone())
    }

    async fn unit(&mut self, unit: &str) -> Result<Unit, SystemdError> {
        let mut world = self.0.borrow_mut();
        if unit == units::KUBELET {
            let active_state = match (world.kubelet_stopped, world.kubelet_down) {
                (true, _) => "inactive",
                (_, true) => "activating",
                _ => "active",
            };
            return Ok(Unit {
                load_state: "loaded".into(),
                active_state: active_state.into(),
                need_reload: world.kubelet_arguments != world.drop_in_arguments(),
                drop_in_paths: world.drop_ins.clone(),
                service: Service {
                    main_pid: if active_state != "active" { 0 } else { world.kubelet_pid },
                    exec_start: world.exec_start.clone(),
                    environment: vec![format!("{}={}", units::KUBECONFIG_VARIABLE, world.kubelet_arguments)],
                    environment_files: world.environment_files.clone(),
                    ..Service::default()
                },
            });
        }
        if world.others.contains(unit) {
            return Ok(Unit {
                load_state: "loaded".into(),
                active_state: "active".into(),
                ..Unit::default()
            });
        }
        let on_disk = world.text(&format!("{}/{unit}", names::SYSTEMD_DIR));
        if let Some(text) = &on_disk
            && !world.loaded.contains_key(unit)
        {
            world.loaded.insert(unit.into(), text.clone());
        }
        let loaded = world.loaded.get(unit).cloned();
        Ok(Unit {
            load_state: if loaded.is_some() { "loaded" } else { "not-found" }.into(),
            active_state: if world.is_active(unit) { "active" } else { "inactive" }.into(),
            need_reload: loaded.is_some() && loaded != on_disk,
            ..Unit::default()
        })
    }

    async fn reload(&mut self) -> Result<(), SystemdError> {
        self.act()?.reload();
        Ok(())
    }

    async fn start(&mut self, unit: &str) -> Result<(), SystemdError> {
        self.act()?.start(unit)
    }

    async fn restart(&mut self, unit: &str) -> Result<(), SystemdError> {
        let mut world = self.act()?;
        if unit == units::SOCKET.name && world.is_active(units::SERVICE.name) {
            return Err(SystemdError::Simulated("socket service already active, refusing".into()));
        }
        if unit == units::ADDRESS.name && world.is_active(unit) {
            world.stop_address();
        }
        world.start(unit)
    }

    async fn stop(&mut self, unit: &str) -> Result<(), SystemdError> {
        let mut world = self.act()?;
        let ran = world.active.remove(unit);
        if ran && unit == units::ADDRESS.name {
            world.stop_address();
        }
        if unit == units::SOCKET.name {
            world.active.remove(units::SERVICE.name);
        }
        Ok(())
    }

    async fn clean_state(&mut self, unit: &str) -> Result<(), SystemdError> {
        let world = self.act()?;
        if world.is_active(unit) || !world.loaded.contains_key(unit) {
            return Err(SystemdError::Simulated(format!("{unit} cannot be cleaned")));
        }
        std::fs::remove_dir_all(world.root.join("var/lib/yurt")).ok();
        Ok(())
    }

    async fn run(&mut self, _unit: &str, command: &[String]) -> Result<(), SystemdError> {
        let mut world = self.act()?;
        if let [program, verb, action] = command {
            assert_eq!([verb.as_str(), action], ["address", "remove"]);
            if !world.remove_address(program) {
                return Err(SystemdError::Simulated("no such file".into()));
            }
            return Ok(());
        }
        let [program, verb, id, flag, _] = command else { panic!("{command:?}") };
        assert_eq!(verb, "end-container");
        // A keeper's own release knows what it asks for.
        let old = program.starts_with("/opt/yurt/current/");
        if world.program(program).is_none_or(|content| old && content.starts_with(b"old")) {
            return Err(SystemdError::Simulated("exit status 2".into()));
        }
        assert_eq!(flag, "--grace-seconds");
        world.ended.push(id.clone());
        let way_in = world.way_in();
        world.way_in_when_an_agent_ends.iter_mut().for_each(|seen| seen.push(way_in.clone()));
        world.link_down |= std::mem::take(&mut world.cut_at_first_agent);
        if world.delete_ended_agents {
            world.agents.clear();
        }
        world.start_anew(id);
        Ok(())
    }

    async fn reset_failed(&mut self, _unit: &str) -> Result<(), SystemdError> {
        Ok(())
    }
}
