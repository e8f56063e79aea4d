//! The pods that stand for business: `nginx`, as in the article, and a shop with ten pods that between
//! them use everything a pod may need from the API server to start.

use std::time::Duration;

use anyhow::{Context, Result};
use serde_json::{Value, json};

use super::Story;
use crate::build::NGINX;
use crate::cluster::{Cluster, EDGE};
use crate::kubectl::Kubectl;

pub(super) const NAMESPACE: &str = "shop";

/// The name, the page and what is on it: the proof that the pod got what it needed.
pub(super) const PODS: &[(&str, &str, &str)] = &[
    ("token", "/proof.txt", "token of system:serviceaccount:shop:teller"),
    ("audience", "/proof.txt", "token for shop.example"),
    ("config-volume", "/config/greeting", "hello from a ConfigMap"),
    ("config-env", "/proof.txt", "hello from a ConfigMap"),
    ("secret-volume", "/secret/password", "from a Secret"),
    ("secret-env", "/proof.txt", "from a Secret"),
    ("init", "/prepared/page", "prepared by an init container"),
    ("plain", "/", "nginx on the edge"),
    ("web-", "/", "nginx on the edge"),
    ("web-", "/", "nginx on the edge"),
];

/// The nginx pod of S1.
pub(super) fn apply_nginx(story: &Story) -> Result<()> {
    let mut pod = pod("nginx", json!({}), json!({}));
    pod["metadata"]["namespace"] = json!("default");
    wait_for_account(&story.cluster.kubectl, "default")?;
    apply(&story.cluster.kubectl, vec![pod])?;
    story.cluster.wait_pod_ready("default", "nginx", Duration::from_secs(60))?;
    Ok(())
}

/// The nginx pod again, this one with all the patience in the world: however long a slow machine takes over what
/// happens to its node, nobody evicts it.
pub(super) fn replace_nginx_by_patient(story: &Story) -> Result<()> {
    let patient = json!({"tolerations": [{"operator": "Exists", "effect": "NoExecute"}]});
    replace_nginx(story, pod("nginx", json!({}), patient))
}

/// The nginx pod of S1 in the patient one's place.
pub(super) fn replace_patient_by_nginx(story: &Story) -> Result<()> {
    replace_nginx(story, pod("nginx", json!({}), json!({})))
}

fn replace_nginx(story: &Story, mut pod: Value) -> Result<()> {
    pod["metadata"]["namespace"] = json!("default");
    story.cluster.kubectl.ok(["delete", "pod", "nginx", "--ignore-not-found", "--timeout=60s"])?;
    apply(&story.cluster.kubectl, vec![pod])?;
    story.cluster.wait_pod_ready("default", "nginx", Duration::from_secs(60))?;
    Ok(())
}

/// A pod in the namespace of the nginx pod.
pub(super) fn apply_caller(story: &Story) -> Result<()> {
    let mut pod = pod("caller", json!({}), json!({}));
    pod["metadata"]["namespace"] = json!("default");
    apply(&story.cluster.kubectl, vec![pod])?;
    story.cluster.wait_pod_ready("default", "caller", Duration::from_secs(60))?;
    Ok(())
}

/// The shop.
pub(super) fn apply_shop(cluster: &Cluster) -> Result<()> {
    let kubectl = &cluster.kubectl;
    apply(kubectl, vec![json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE}})])?;
    wait_for_account(kubectl, NAMESPACE)?;
    apply(kubectl, shop())?;
    for (name, ..) in PODS.iter().filter(|(name, ..)| !name.ends_with('-')) {
        cluster.wait_pod_ready(NAMESPACE, name, Duration::from_secs(90))?;
    }
    kubectl.ok(["rollout", "status", "-n", NAMESPACE, "deployment/web", "--timeout=90s"])?;
    Ok(())
}

/// DNS for the edge: a CoreDNS there, and every node asks its own.
pub(super) fn apply_dns(story: &Story) -> Result<()> {
    let kubectl = &story.cluster.kubectl;
    let mut dns = kubectl.json(["get", "deployment", "-n", "kube-system", "coredns"])?;
    let template = dns["spec"]["template"].take();
    let mut dns = json!({
        "apiVersion": "apps/v1", "kind": "Deployment",
        "metadata": {"name": "coredns-edge", "namespace": "kube-system"},
        "spec": {
            "replicas": 1,
            "selector": {"matchLabels": {"app": "coredns-edge"}},
            "template": template,
        },
    });
    dns["spec"]["template"]["metadata"]["labels"]["app"] = json!("coredns-edge");
    dns["spec"]["template"]["spec"]["nodeSelector"] = json!({"kubernetes.io/hostname": EDGE});
    apply(kubectl, vec![dns])?;
    kubectl.ok([
        "patch",
        "service",
        "-n",
        "kube-system",
        "kube-dns",
        "-p",
        r#"{"spec":{"internalTrafficPolicy":"Local"}}"#,
    ])?;
    kubectl.ok(["rollout", "status", "-n", "kube-system", "deployment/coredns-edge", "--timeout=90s"])?;
    Ok(())
}

/// Pods may be made once the controllers have caught up with a new namespace.
fn wait_for_account(kubectl: &Kubectl, namespace: &str) -> Result<()> {
    crate::wait::until_true(
        &format!("ServiceAccount default in {namespace}"),
        Duration::from_secs(60),
        || {
            let found = kubectl.run(["get", "serviceaccount", "-n", namespace, "default"])?;
            Ok((!found.ok()).then(|| found.stderr()))
        },
    )?;
    Ok(())
}

fn apply(kubectl: &Kubectl, items: Vec<Value>) -> Result<()> {
    let list = json!({"apiVersion": "v1", "kind": "List", "items": items});
    kubectl.apply(&list.to_string()).context("applying the workload")?;
    Ok(())
}

fn shop() -> Vec<Value> {
    let object = |kind: &str, name: &str, fields: Value| {
        let version = if kind.starts_with("Role") { "rbac.authorization.k8s.io/v1" } else { "v1" };
        let base =
            json!({"apiVersion": version, "kind": kind, "metadata": {"name": name, "namespace": NAMESPACE}});
        merged(base, fields)
    };
    let prove =
        |script: &str| json!({"command": ["sh", "-ec", format!("{script}\nexec nginx -g 'daemon off;'")]});
    let account = "/var/run/secrets/kubernetes.io/serviceaccount";
    let claims = "cut -d. -f2 \"$TOKEN\" | tr '_-' '/+' | awk '{while (length($0) % 4) $0 = $0 \"=\"; print}' | base64 -d";

    vec![
        object("ServiceAccount", "teller", json!({})),
        object("Role", "teller", json!({"rules": [{"apiGroups": [""], "resources": ["configmaps"], "verbs": ["get"]}]})),
        object(
            "RoleBinding",
            "teller",
            json!({
                "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": "teller"},
                "subjects": [{"kind": "ServiceAccount", "name": "teller", "namespace": NAMESPACE}],
            }),
        ),
        object("ConfigMap", "greeting", json!({"data": {"greeting": "hello from a ConfigMap"}})),
        object("Secret", "password", json!({"stringData": {"password": "from a Secret"}})),
        // Its projected token is proved by what is written in it.
        pod(
            "token",
            prove(&format!(
                "TOKEN={account}/token; test -s {account}/ca.crt; test \"$(cat {account}/namespace)\" = {NAMESPACE}
                 echo \"token of $({claims} | grep -o 'system:serviceaccount:[a-z:]*')\" > /var/www/proof.txt"
            )),
            json!({"serviceAccountName": "teller"}),
        ),
        pod(
            "audience",
            merged(
                prove(&format!(
                    "TOKEN=/tokens/shop; echo \"token for $({claims} | grep -o 'shop.example')\" > /var/www/proof.txt"
                )),
                json!({"volumeMounts": [{"name": "tokens", "mountPath": "/tokens"}]}),
            ),
            json!({"volumes": [{"name": "tokens", "projected": {"sources": [
                {"serviceAccountToken": {"path": "shop", "audience": "shop.example", "expirationSeconds": 3600}},
            ]}}]}),
        ),
        pod(
            "config-volume",
            json!({"volumeMounts": [{"name": "config", "mountPath": "/var/www/config"}]}),
            json!({"volumes": [{"name": "config", "configMap": {"name": "greeting"}}]}),
        ),
        pod(
            "config-env",
            merged(
                prove("echo \"$greeting\" > /var/www/proof.txt"),
                json!({"envFrom": [{"configMapRef": {"name": "greeting"}}]}),
            ),
            json!({}),
        ),
        pod(
            "secret-volume",
            json!({"volumeMounts": [{"name": "secret", "mountPath": "/var/www/secret"}]}),
            json!({"volumes": [{"name": "secret", "secret": {"secretName": "password"}}]}),
        ),
        pod(
            "secret-env",
            merged(
                prove("echo \"$PASSWORD\" > /var/www/proof.txt"),
                json!({"env": [
                    {"name": "PASSWORD", "valueFrom": {"secretKeyRef": {"name": "password", "key": "password"}}},
                ]}),
            ),
            json!({}),
        ),
        pod(
            "init",
            json!({"volumeMounts": [{"name": "prepared", "mountPath": "/var/www/prepared"}]}),
            json!({
                "volumes": [{"name": "prepared", "emptyDir": {}}],
                "initContainers": [{
                    "name": "prepare", "image": NGINX, "imagePullPolicy": "IfNotPresent",
                    "command": ["sh", "-c", "echo prepared by an init container > /prepared/page"],
                    "volumeMounts": [{"name": "prepared", "mountPath": "/prepared"}],
                }],
            }),
        ),
        pod("plain", json!({}), json!({})),
        deployment("web", 2),
        object(
            "Service",
            "web",
            json!({"spec": {"selector": {"app": "web"}, "ports": [{"port": 80, "targetPort": 80}]}}),
        ),
    ]
}

/// A pod on the edge node that lets itself be evicted after five seconds.
fn pod(name: &str, container: Value, spec: Value) -> Value {
    let toleration = |key: &str| {
        json!({"key": format!("node.kubernetes.io/{key}"), "operator": "Exists", "effect": "NoExecute",
               "tolerationSeconds": 5})
    };
    let base = json!({
        "nodeSelector": {"kubernetes.io/hostname": EDGE},
        "terminationGracePeriodSeconds": 1,
        "tolerations": [toleration("not-ready"), toleration("unreachable")],
        "containers": [merged(
            json!({
                "name": name, "image": NGINX, "imagePullPolicy": "IfNotPresent",
                "ports": [{"containerPort": 80}],
                "readinessProbe": {"httpGet": {"path": "/", "port": 80}, "periodSeconds": 2},
            }),
            container,
        )],
    });
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": name, "namespace": NAMESPACE, "labels": {"app": name}},
        "spec": merged(base, spec),
    })
}

fn deployment(name: &str, replicas: u8) -> Value {
    let pod = pod(name, json!({}), json!({}));
    json!({
        "apiVersion": "apps/v1", "kind": "Deployment",
        "metadata": {"name": name, "namespace": NAMESPACE},
        "spec": {
            "replicas": replicas,
            "selector": {"matchLabels": {"app": name}},
            "template": {"metadata": {"labels": {"app": name}}, "spec": pod["spec"]},
        },
    })
}

fn merged(mut base: Value, extra: Value) -> Value {
    if let (Some(base), Value::Object(extra)) = (base.as_object_mut(), extra) {
        base.extend(extra);
    }
    base
}
