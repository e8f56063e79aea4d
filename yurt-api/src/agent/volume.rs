//! Which pods have a credential for the API server, by their volumes. Pure.

use serde::Deserialize;

use super::is_kubeconfig;

/// A volume of a pod: as much of it as says whether it leads to the API server.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Volume {
    #[serde(default)]
    name: String,
    config_map: Option<Named>,
    secret: Option<NamedSecret>,
    projected: Option<Projected>,
}

#[derive(Debug, Clone, Deserialize)]
struct Named {
    #[serde(default)]
    name: String,
    items: Option<Vec<Item>>,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
struct NamedSecret {
    #[serde(default)]
    secret_name: String,
    items: Option<Vec<Item>>,
}

#[derive(Debug, Clone, Deserialize)]
struct Item {
    #[serde(default)]
    key: String,
}

#[derive(Debug, Clone, Deserialize)]
struct Projected {
    sources: Option<Vec<Source>>,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Source {
    service_account_token: Option<Token>,
}

#[derive(Debug, Clone, Deserialize)]
struct Token {
    audience: Option<String>,
}

impl Volume {
    /// Whether what is in it leads to the API server: a ServiceAccount's token for it, or a kubeconfig.
    pub fn uses_api(&self) -> bool {
        let sources = self.projected.iter().flat_map(|projected| projected.sources.iter().flatten());
        let mut tokens = sources.filter_map(|source| source.service_account_token.as_ref());
        if tokens.any(|token| token.audience.is_none()) {
            return true;
        }
        let map = self.config_map.as_ref().map(|map| (&map.name, &map.items));
        let secret = self.secret.as_ref().map(|secret| (&secret.secret_name, &secret.items));
        let mut objects = map.into_iter().chain(secret).peekable();
        (objects.peek().is_some() && is_kubeconfig(&self.name))
            || objects.any(|(name, items)| {
                is_kubeconfig(name) || items.iter().flatten().any(|item| is_kubeconfig(&item.key))
            })
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    #[test]
    fn a_token_for_the_api_server_or_a_kubeconfig_leads_there() {
        let tokens = |source: Value| json!({"name": "v", "projected": {"sources": [source]}});
        let table = [
            (tokens(json!({"serviceAccountToken": {"path": "token"}})), true),
            (tokens(json!({"serviceAccountToken": {"path": "token", "audience": "vault"}})), false),
            (tokens(json!({"configMap": {"name": "kube-root-ca.crt"}})), false),
            (
                json!({"name": "v", "configMap": {"name": "proxy", "items": [{"key": "kubeconfig.conf"}]}}),
                true,
            ),
            (json!({"name": "v", "secret": {"secretName": "agent-kubeconfig"}}), true),
            (json!({"name": "kubeconfig", "emptyDir": {}}), false),
            (json!({"name": "v", "hostPath": {"path": "/"}}), false),
        ];
        for (volume, uses) in table {
            assert_eq!(
                serde_json::from_value::<Volume>(volume.clone()).unwrap().uses_api(),
                uses,
                "{volume}"
            );
        }
    }
}
