//! Admission on `CONNECT`: policies and webhooks that decide about exec, attach and port-forward
//! (<https://kubernetes.io/docs/reference/access-authn-authz/admission-controllers/>). They are asked by the API server, and
//! by nobody else. So where the cluster has one, this port is no way around it: what it decides about is refused here, unless
//! the operator has said otherwise.
//!
//! Which pods such a rule selects by labels, namespaces or expressions is not judged here: it is taken for all of them.

use std::fmt::Debug;
use std::hash::Hash;
use std::sync::Arc;
use std::time::Duration;

use futures::future::join4;
use futures::{Stream, StreamExt, TryStreamExt};
use k8s_openapi::api::admissionregistration::v1::{
    MutatingWebhookConfiguration, RuleWithOperations, ValidatingAdmissionPolicy,
    ValidatingAdmissionPolicyBinding, ValidatingWebhookConfiguration,
};
use k8s_openapi::serde::de::DeserializeOwned;
use kube::runtime::WatchStreamExt;
use kube::runtime::reflector::store::Writer;
use kube::runtime::reflector::{self, Lookup, Store};
use kube::runtime::watcher::{self, watcher};
use kube::{Api, Resource, ResourceExt};
use tokio_util::sync::CancellationToken;

use super::status::ApiError;
use super::target::Action;

/// How long a request waits until the cluster's rules are known for the first time.
const KNOWN_WITHIN: Duration = Duration::from_secs(5);

/// What the cluster has of such rules.
pub(in crate::server) struct ConnectAdmission {
    bypass: bool,
    policies: Store<ValidatingAdmissionPolicy>,
    bindings: Store<ValidatingAdmissionPolicyBinding>,
    validating: Store<ValidatingWebhookConfiguration>,
    mutating: Store<MutatingWebhookConfiguration>,
}

/// What fills it.
pub(in crate::server) struct Followed {
    policies: Writer<ValidatingAdmissionPolicy>,
    bindings: Writer<ValidatingAdmissionPolicyBinding>,
    validating: Writer<ValidatingWebhookConfiguration>,
    mutating: Writer<MutatingWebhookConfiguration>,
}

impl ConnectAdmission {
    /// With `bypass` nothing is refused because of such rules.
    pub(in crate::server) fn new(bypass: bool) -> (Arc<Self>, Followed) {
        let ((policies, to_policies), (bindings, to_bindings)) = (reflector::store(), reflector::store());
        let ((validating, to_validating), (mutating, to_mutating)) = (reflector::store(), reflector::store());
        let followed = Followed {
            policies: to_policies,
            bindings: to_bindings,
            validating: to_validating,
            mutating: to_mutating,
        };
        (Arc::new(Self { bypass, policies, bindings, validating, mutating }), followed)
    }

    /// Whether the way through this port is open to `action`.
    ///
    /// # Errors
    ///
    /// [`ApiError::Refused`] with the rule's name, [`ApiError::Unavailable`] while it is not known what there is.
    pub(super) async fn admits(&self, action: &Action) -> Result<(), ApiError> {
        if self.bypass || !action.is_upgrade() {
            return Ok(());
        }
        let known = join4(
            self.policies.wait_until_ready(),
            self.bindings.wait_until_ready(),
            self.validating.wait_until_ready(),
            self.mutating.wait_until_ready(),
        );
        if !matches!(tokio::time::timeout(KNOWN_WITHIN, known).await, Ok((Ok(()), Ok(()), Ok(()), Ok(())))) {
            return Err(ApiError::Unavailable(
                "which admission policies and webhooks decide about connections to pods is not known; try again \
                 later, or use kubectl itself"
                    .into(),
            ));
        }
        let subresource = action.subresource();
        match self.rule_about(subresource) {
            None => Ok(()),
            Some(rule) => Err(ApiError::Refused(format!(
                "{rule} decides about connections to pods/{subresource}, and the API server alone asks it: use kubectl \
                 {} itself, or allow the way past it with `kubectl yurt convert … \
                 --allow-connect-admission-bypass`",
                command(action)
            ))),
        }
    }

    /// The first rule that matches.
    fn rule_about(&self, subresource: &str) -> Option<String> {
        let name = |kind: &str, name: String| format!("{kind} {name:?}");
        let bindings = self.bindings.state();
        let is_bound = |policy: &str| bindings.iter().any(|binding| binding.spec.policy_name == policy);
        let policies = self.policies.state().into_iter().filter(|policy| {
            let constraints = policy.spec.as_ref().and_then(|spec| spec.match_constraints.as_ref());
            let mut rules = constraints.into_iter().flat_map(|found| found.resource_rules.iter().flatten());
            rules.any(|rule| {
                matches(
                    &Rule {
                        groups: &rule.api_groups,
                        versions: &rule.api_versions,
                        operations: &rule.operations,
                        resources: &rule.resources,
                    },
                    subresource,
                )
            }) && is_bound(&policy.name_any())
        });
        let validating = self.validating.state().into_iter().filter(|hooks| {
            let mut rules = hooks.webhooks.iter().flatten().flat_map(|hook| hook.rules.iter().flatten());
            rules.any(|rule| matches(&rule.into(), subresource))
        });
        let mutating = self.mutating.state().into_iter().filter(|hooks| {
            let mut rules = hooks.webhooks.iter().flatten().flat_map(|hook| hook.rules.iter().flatten());
            rules.any(|rule| matches(&rule.into(), subresource))
        });
        let policies = policies.map(|found| name("ValidatingAdmissionPolicy", found.name_any()));
        let validating = validating.map(|found| name("ValidatingWebhookConfiguration", found.name_any()));
        let mutating = mutating.map(|found| name("MutatingWebhookConfiguration", found.name_any()));
        policies.chain(validating).chain(mutating).min()
    }
}

fn command(action: &Action) -> &'static str {
    match action {
        Action::Log(_) => "logs",
        Action::Exec(_) => "exec",
        Action::Attach(_) => "attach",
        Action::PortForward(_) => "port-forward",
    }
}

impl Followed {
    /// Follows the cluster until `stop`.
    pub(in crate::server) async fn follow(self, client: kube::Client, stop: CancellationToken) {
        let all = join4(
            follow(client.clone(), self.policies),
            follow(client.clone(), self.bindings),
            follow(client.clone(), self.validating),
            follow(client, self.mutating),
        );
        tokio::select! {
            () = stop.cancelled() => {}
            _ = all => {}
        }
    }
}

async fn follow<K>(client: kube::Client, store: Writer<K>)
where
    K: Resource<DynamicType = (), Scope = k8s_openapi::ClusterResourceScope>
        + Lookup<DynamicType = ()>
        + Clone
        + Debug
        + DeserializeOwned
        + Send
        + Sync
        + 'static,
    <K as Lookup>::DynamicType: Hash + Eq + Clone,
{
    let events = watcher(Api::<K>::all(client), watcher::Config::default()).default_backoff();
    let changes = events.inspect_err(|error| {
        tracing::warn!(%error, kind = %<K as Resource>::kind(&()), "cannot follow the cluster's admission rules; trying again");
    });
    drain(changes.reflect(store)).await;
}

async fn drain(changes: impl Stream) {
    changes.for_each(|_| std::future::ready(())).await;
}

/// What a rule of either kind says.
struct Rule<'a> {
    groups: &'a Option<Vec<String>>,
    versions: &'a Option<Vec<String>>,
    operations: &'a Option<Vec<String>>,
    resources: &'a Option<Vec<String>>,
}

impl<'a> From<&'a RuleWithOperations> for Rule<'a> {
    fn from(rule: &'a RuleWithOperations) -> Self {
        Self {
            groups: &rule.api_groups,
            versions: &rule.api_versions,
            operations: &rule.operations,
            resources: &rule.resources,
        }
    }
}

/// Whether the rule is about `CONNECT` to this subresource of pods. `*` is every resource without its subresources, `*/*`
/// everything, `pods/*` and `*/exec` what they look like.
fn matches(rule: &Rule<'_>, subresource: &str) -> bool {
    let has = |list: &Option<Vec<String>>, what: &[&str]| {
        list.iter().flatten().any(|entry| what.contains(&entry.as_str()))
    };
    let (exactly, of_all) = (format!("pods/{subresource}"), format!("*/{subresource}"));
    has(rule.operations, &["CONNECT", "*"])
        && has(rule.groups, &["", "*"])
        && has(rule.versions, &["v1", "*"])
        && has(rule.resources, &[&exactly, "pods/*", &of_all, "*/*"])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn about(operations: &str, group: &str, resources: &str) -> bool {
        let list = |text: &str| Some(text.split(',').map(str::to_owned).collect::<Vec<_>>());
        let (groups, versions) = (list(group), list("v1"));
        let (operations, resources) = (list(operations), list(resources));
        let rule =
            Rule { groups: &groups, versions: &versions, operations: &operations, resources: &resources };
        matches(&rule, "exec")
    }

    #[test]
    fn rules_are_read_as_the_api_server_reads_them() {
        assert!(about("CONNECT", "", "pods/exec"));
        assert!(about("CREATE,CONNECT", "*", "pods,pods/attach,pods/exec"));
        for all in ["pods/*", "*/exec", "*/*"] {
            assert!(about("*", "", all), "{all}");
        }
        for none in ["pods", "*", "pods/attach", "services/exec", "*/log"] {
            assert!(!about("CONNECT", "", none), "{none}");
        }
        assert!(!about("CREATE,UPDATE,DELETE", "", "pods/exec"));
        assert!(!about("CONNECT", "apps", "pods/exec"));
    }
}
