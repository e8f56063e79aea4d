//! API server and hub of the world.

use std::collections::BTreeMap;

use jiff::Timestamp;
use yurt_api::doctor::TunnelSession;
use yurt_api::status::ConversionStatus;

use super::{Shared, World};
use crate::agents::Agent;
use crate::cluster::{Access, Cluster, ClusterError, HubWayIn, OwnNode, Route};
use crate::containers::Running;
use crate::units;

/// API server and hub of the world.
pub(crate) struct FakeCluster {
    pub world: Shared,
    pub access: Option<Access>,
    /// The CA that the hub is believed by beside the cluster's.
    pub believed: Option<String>,
}

impl FakeCluster {
    fn direct(&self) -> Result<std::cell::RefMut<'_, World>, ClusterError> {
        let world = self.world.borrow_mut();
        let Some(access) = &self.access else { return Err(ClusterError::Credentials("not read yet".into())) };
        assert_eq!(access.certificate, b"client certificate and key");
        if world.link_down || world.fuse.is_blown() {
            return Err(ClusterError::Unreachable { what: "the API server", message: "no route".into() });
        }
        Ok(world)
    }

    fn question(&self) -> Result<std::cell::RefMut<'_, World>, ClusterError> {
        let mut world = self.direct()?;
        match world.hiccups.pop_front() {
            Some(error) => Err(error),
            None => Ok(world),
        }
    }
}

impl Cluster for FakeCluster {
    fn set_access(&mut self, access: Access) {
        self.access = Some(access);
    }

    async fn node(&mut self) -> Result<OwnNode, ClusterError> {
        let world = self.question()?;
        Ok(OwnNode {
            ready: world.kubelet_works() && !world.not_ready,
            kubelet_version: world.kubelet_version.clone(),
            edge: true,
            target: None,
            keep_agents: world.keep_agents,
            conversion: None,
        })
    }

    async fn clock_skew(&mut self) -> Result<i64, ClusterError> {
        Ok(self.direct()?.clock_skew)
    }

    async fn lease(&mut self) -> Result<Option<Timestamp>, ClusterError> {
        let mut world = self.question()?;
        if world.kubelet_works() {
            world.renewals += 1;
        }
        Ok(Some(Timestamp::from_second(world.renewals).unwrap()))
    }

    async fn containers(&mut self) -> Result<Running, ClusterError> {
        Ok(self.question()?.containers.clone())
    }

    async fn agents(&mut self, route: Route) -> Result<Vec<Agent>, ClusterError> {
        if route == Route::Direct {
            return Ok(self.question()?.agents.clone());
        }
        self.hub_ready().await?;
        let mut world = self.world.borrow_mut();
        if world.agents_unknown {
            let message = "the view is not complete".into();
            return Err(ClusterError::Refused { what: "the hub", code: 504, message });
        }
        let seen = world.agents.clone();
        if world.agents_crash {
            for container in seen.iter().flat_map(|agent| &agent.containers) {
                // The first ones ran before anybody ended them.
                if container.id.ends_with('+') {
                    world.start_anew(&container.id);
                }
            }
        }
        Ok(seen)
    }

    async fn config_map(&mut self, name: &str) -> Result<Option<BTreeMap<String, String>>, ClusterError> {
        Ok(self.direct()?.config_maps.get(name).cloned())
    }

    async fn report(&mut self, status: &ConversionStatus) -> Result<(), ClusterError> {
        let mut world = self.direct()?;
        world
            .fuse
            .burn()
            .map_err(|error| ClusterError::Unreachable { what: "the API server", message: error.into() })?;
        world.reports.push(status.clone());
        Ok(())
    }

    async fn hub_ready(&mut self) -> Result<(), ClusterError> {
        if self.world.borrow().hub_answers() {
            return Ok(());
        }
        Err(ClusterError::Unreachable { what: "the hub", message: "connection refused".into() })
    }

    async fn hub_way_in(&mut self) -> Result<HubWayIn, ClusterError> {
        self.hub_ready().await?;
        Ok(self.world.borrow().way_in())
    }

    async fn hub_tunnel(&mut self) -> Result<Vec<TunnelSession>, ClusterError> {
        self.hub_ready().await?;
        Ok(self.world.borrow().tunnel.clone())
    }

    async fn hub_ca(&mut self) -> Result<Option<String>, ClusterError> {
        if !self.world.borrow().is_active(units::SOCKET.name)
            && let Some(ca) = &self.world.borrow().impostor
        {
            return Ok(Some(ca.clone()));
        }
        self.hub_ready().await?;
        Ok(self.world.borrow().hub_ca())
    }

    fn believe_hub(&mut self, node_ca: Option<&str>) {
        self.believed = node_ca.map(str::to_owned);
    }

    async fn hub_serves(&mut self) -> Result<(), ClusterError> {
        self.hub_ready().await?;
        assert_eq!(self.believed, self.world.borrow().hub_ca(), "whom the keeper believes");
        Ok(())
    }
}
