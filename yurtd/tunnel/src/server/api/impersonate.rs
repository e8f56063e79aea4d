//! Acting as somebody else, as the API server lets a caller do it
//! (<https://kubernetes.io/docs/reference/access-authn-authz/authentication/#user-impersonation>): headers say as whom, and
//! the caller needs the verb `impersonate` on every part of that.

use std::collections::BTreeMap;

use http::{HeaderMap, HeaderName};
use percent_encoding::percent_decode_str;

use super::authenticate::{AUTHENTICATED, User};
use super::authorise::{self, Attributes};
use super::status::ApiError;

const PREFIX: &str = "impersonate-";
const USER: HeaderName = HeaderName::from_static("impersonate-user");
const GROUP: HeaderName = HeaderName::from_static("impersonate-group");
const UID: HeaderName = HeaderName::from_static("impersonate-uid");
const EXTRA: &str = "impersonate-extra-";
const ANONYMOUS: &str = "system:anonymous";
const UNAUTHENTICATED: &str = "system:unauthenticated";
/// Each is a question to the API server.
const PARTS: usize = 64;
/// API group of the parts of a user that no object stands for.
const AUTHENTICATION: &str = "authentication.k8s.io";

/// Whom the request is to be run as, if the caller may: the caller himself where the headers say nothing.
///
/// # Errors
///
/// [`ApiError::Forbidden`] in the API server's words, [`ApiError::Internal`] for groups, a UID or extras of nobody,
/// [`ApiError::BadRequest`] for headers that cannot be read or ask for too much.
pub(super) async fn apply(
    client: &kube::Client,
    caller: &User,
    headers: &HeaderMap,
) -> Result<Option<User>, ApiError> {
    let Some(wanted) = Wanted::read(headers)? else { return Ok(None) };
    for part in wanted.parts() {
        authorise::ask(client, caller, &part).await?;
    }
    Ok(Some(wanted.user()))
}

/// As whom, by the headers.
#[derive(Debug, Default, PartialEq, Eq)]
struct Wanted {
    name: String,
    groups: Vec<String>,
    uid: Option<String>,
    extra: BTreeMap<String, Vec<String>>,
}

impl Wanted {
    /// Nothing if no such header is there.
    fn read(headers: &HeaderMap) -> Result<Option<Self>, ApiError> {
        let mut wanted = Self::default();
        let mut parts = 0;
        for (name, value) in headers.iter().filter(|(name, _)| name.as_str().starts_with(PREFIX)) {
            let value = value
                .to_str()
                .map_err(|_| ApiError::BadRequest(format!("the header {name} cannot be read")))?
                .to_owned();
            parts += 1;
            match name {
                name if (name == USER && !wanted.name.is_empty())
                    || (name == UID && wanted.uid.is_some()) =>
                {
                    return Err(ApiError::BadRequest(format!("the header {name} is there twice")));
                }
                name if name == USER => wanted.name = value,
                name if name == GROUP => wanted.groups.push(value),
                name if name == UID => wanted.uid = Some(value),
                name => match name.as_str().strip_prefix(EXTRA) {
                    Some(key) => {
                        let key = percent_decode_str(key).decode_utf8_lossy().to_lowercase();
                        wanted.extra.entry(key).or_default().push(value);
                    }
                    // One that is not known must not be passed over: the request would run as somebody else than it says.
                    None => return Err(ApiError::BadRequest(format!("the header {name} is not known"))),
                },
            }
        }
        if parts == 0 {
            return Ok(None);
        }
        if parts > PARTS {
            return Err(ApiError::BadRequest(format!("more than {PARTS} headers say as whom to act")));
        }
        if wanted.name.is_empty() {
            return Err(ApiError::Internal(
                "groups, a UID or extra fields are to be impersonated without a user".into(),
            ));
        }
        Ok(Some(wanted))
    }

    /// What the caller needs `impersonate` on.
    fn parts(&self) -> Vec<Attributes> {
        let part = |group, resource, name: &str| Attributes {
            verb: "impersonate",
            group,
            version: "v1",
            resource,
            subresource: String::new(),
            namespace: String::new(),
            name: name.to_owned(),
        };
        let user = match service_account(&self.name) {
            Some((namespace, name)) => {
                Attributes { namespace: namespace.to_owned(), ..part("", "serviceaccounts", name) }
            }
            None => part("", "users", &self.name),
        };
        let groups = self.groups.iter().map(|group| part("", "groups", group));
        let uid = self.uid.iter().map(|uid| part(AUTHENTICATION, "uids", uid));
        let extra = self.extra.iter().flat_map(|(key, values)| {
            values.iter().map(|value| Attributes {
                subresource: key.clone(),
                ..part(AUTHENTICATION, "userextras", value)
            })
        });
        std::iter::once(user).chain(groups).chain(uid).chain(extra).collect()
    }

    /// Who that is: in the groups in which everybody of his kind is.
    fn user(self) -> User {
        let Self { name, mut groups, uid, extra } = self;
        if groups.is_empty()
            && let Some((namespace, _)) = service_account(&name)
        {
            groups = vec!["system:serviceaccounts".into(), format!("system:serviceaccounts:{namespace}")];
        }
        let everybody: &[&str] =
            if name == ANONYMOUS { &[UNAUTHENTICATED] } else { &[AUTHENTICATED, UNAUTHENTICATED] };
        if !groups.iter().any(|group| everybody.contains(&group.as_str())) {
            groups.push(everybody[0].to_owned());
        }
        User { name, uid, groups, extra }
    }
}

/// Namespace and name in `system:serviceaccount:NAMESPACE:NAME`.
fn service_account(user: &str) -> Option<(&str, &str)> {
    let (namespace, name) = user.strip_prefix("system:serviceaccount:")?.split_once(':')?;
    (!namespace.is_empty() && !name.is_empty() && !name.contains(':')).then_some((namespace, name))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(pairs: &[(&str, &str)]) -> Result<Option<Wanted>, ApiError> {
        let mut headers = HeaderMap::new();
        for (name, value) in pairs {
            headers.append(HeaderName::try_from(*name).unwrap(), value.parse().unwrap());
        }
        Wanted::read(&headers)
    }

    fn questions(wanted: &Wanted) -> Vec<String> {
        let text = |part: Attributes| {
            let Attributes { group, resource, subresource, namespace, name, .. } = part;
            format!("{group}/{resource}/{subresource} {namespace}/{name}")
        };
        wanted.parts().into_iter().map(text).collect()
    }

    #[test]
    fn every_part_is_asked_for() {
        let wanted = read(&[
            ("Impersonate-User", "jane"),
            ("Impersonate-Group", "shop"),
            ("Impersonate-Group", "till"),
            ("Impersonate-Uid", "17"),
            ("Impersonate-Extra-Example.Com%2Fscope", "view"),
        ])
        .unwrap()
        .unwrap();
        assert_eq!(
            questions(&wanted),
            [
                "/users/ /jane",
                "/groups/ /shop",
                "/groups/ /till",
                "authentication.k8s.io/uids/ /17",
                "authentication.k8s.io/userextras/example.com/scope /view",
            ]
        );
        let user = wanted.user();
        assert_eq!((&*user.name, user.uid.as_deref()), ("jane", Some("17")));
        assert_eq!(user.groups, ["shop", "till", "system:authenticated"]);
        assert_eq!(user.extra["example.com/scope"], ["view"]);
    }

    #[test]
    fn a_service_account_is_one_and_brings_its_groups() {
        let wanted = read(&[("impersonate-user", "system:serviceaccount:shop:teller")]).unwrap().unwrap();
        assert_eq!(questions(&wanted), ["/serviceaccounts/ shop/teller"]);
        assert_eq!(
            wanted.user().groups,
            ["system:serviceaccounts", "system:serviceaccounts:shop", "system:authenticated"]
        );
        let wanted = read(&[("impersonate-user", "system:serviceaccount:shop")]).unwrap().unwrap();
        assert_eq!(questions(&wanted), ["/users/ /system:serviceaccount:shop"]);
    }

    #[test]
    fn anonymous_is_not_authenticated() {
        let wanted = read(&[("impersonate-user", ANONYMOUS)]).unwrap().unwrap();
        assert_eq!(wanted.user().groups, [UNAUTHENTICATED]);
    }

    #[test]
    fn nobody_else_is_meant_without_a_name_or_by_a_header_that_is_not_known() {
        assert_eq!(read(&[("accept", "*/*")]).unwrap(), None);
        assert!(matches!(read(&[("impersonate-group", "system:masters")]), Err(ApiError::Internal(_))));
        assert!(matches!(
            read(&[("impersonate-user", "jane"), ("impersonate-everything", "yes")]),
            Err(ApiError::BadRequest(_))
        ));
        for twice in ["impersonate-user", "impersonate-uid"] {
            let headers = [("impersonate-user", "jane"), (twice, "a"), (twice, "b")];
            assert!(matches!(read(&headers), Err(ApiError::BadRequest(_))), "{twice}");
        }
        let many: Vec<_> = std::iter::once(("impersonate-user", "jane"))
            .chain(std::iter::repeat_n(("impersonate-group", "shop"), PARTS))
            .collect();
        assert!(matches!(read(&many), Err(ApiError::BadRequest(_))));
    }
}
