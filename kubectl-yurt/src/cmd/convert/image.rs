//! Which image of `yurtd` a run uses, and which release is in it. Pure.

use yurt_api::names;

/// The image of this plugin's own version.
pub fn default_image() -> String {
    format!("{}:v{}", names::IMAGE_REPOSITORY, env!("CARGO_PKG_VERSION"))
}

/// The image to use: the one that was asked for; else the one in use, which may come from a registry that is the
/// only one the nodes reach; else this plugin's own. Our own repository with another tag means an upgrade.
pub fn choose(asked: Option<&str>, live: Option<&str>) -> String {
    match (asked, live) {
        (Some(asked), _) => asked.to_owned(),
        (None, Some(live)) if !is_ours(live) => live.to_owned(),
        (None, _) => default_image(),
    }
}

/// True for a tag of our own repository; who names a digest means that one.
fn is_ours(image: &str) -> bool {
    image
        .strip_prefix(names::IMAGE_REPOSITORY)
        .is_some_and(|rest| rest.is_empty() || (rest.starts_with(':') && !rest.contains('@')))
}

/// The release in an image, if its tag is that of one.
pub fn release(image: &str) -> Option<String> {
    let name = image.split_once('@').map_or(image, |(name, _)| name);
    let (_, tag) = name.rsplit_once(':').filter(|(_, tag)| !tag.contains('/'))?;
    let version = tag.strip_prefix('v').unwrap_or(tag);
    let is_release = version.split('.').count() == 3
        && version.split('.').all(|part| !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_digit()));
    (is_release || version == env!("CARGO_PKG_VERSION")).then(|| version.to_owned())
}

/// The release that a node reports when a run with this image is through; `None` if that is not known. An image
/// that has just been chosen and whose tag says nothing is taken for this plugin's.
pub fn expected_release(image: &str, before: Option<&str>) -> Option<String> {
    let changes = before.is_some_and(|before| before != image);
    release(image).or_else(|| changes.then(|| env!("CARGO_PKG_VERSION").to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_image_of_another_registry_is_kept_and_our_own_is_upgraded() {
        let ours = |tag: &str| format!("{}{tag}", names::IMAGE_REPOSITORY);
        assert_eq!(choose(None, None), default_image());
        assert_eq!(choose(Some("r/y:1"), Some("registry.corp:5000/yurtd:v0.0.1")), "r/y:1");
        let private = "registry.corp:5000/mirror/yurtd:v0.0.1";
        assert_eq!(choose(None, Some(private)), private);
        assert_eq!(choose(None, Some(&ours(":v0.0.1"))), default_image());
        assert_eq!(choose(None, Some(&ours(""))), default_image());
        for kept in ["-fork:v0.0.1", "/arm:v0.0.1", "@sha256:00", ":v0.0.1@sha256:00"] {
            assert_eq!(choose(None, Some(&ours(kept))), ours(kept));
        }
    }

    #[test]
    fn a_release_is_read_from_its_tag() {
        assert_eq!(release("registry.corp:5000/yurtd:v1.20.3"), Some("1.20.3".into()));
        assert_eq!(release("yurtd:1.2.3@sha256:00"), Some("1.2.3".into()));
        assert_eq!(release(&default_image()), Some(env!("CARGO_PKG_VERSION").into()));
        for unknown in ["registry.corp:5000/yurtd", "yurtd:latest", "yurtd:v1", "yurtd:v1.2.3-site", "yurtd"]
        {
            assert_eq!(release(unknown), None, "{unknown}");
        }
    }

    #[test]
    fn what_is_expected_is_not_guessed_for_an_image_that_stays() {
        assert_eq!(expected_release("r/y:dev", Some("r/y:dev")), None);
        assert_eq!(expected_release("r/y:dev", Some("r/y:old")), Some(env!("CARGO_PKG_VERSION").into()));
        assert_eq!(expected_release("r/y:v9.9.9", Some("r/y:old")), Some("9.9.9".into()));
        assert_eq!(expected_release("r/y:v9.9.9", Some("r/y:v9.9.9")), Some("9.9.9".into()));
    }
}
