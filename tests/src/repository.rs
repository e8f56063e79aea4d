//! What the repository says about itself, kept true: the compiler it names, and the paths its documents name.

use std::path::{Path, PathBuf};

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned()
}

fn read(path: &str) -> String {
    std::fs::read_to_string(root().join(path)).unwrap()
}

/// The value of `key = "value"` in TOML.
fn value(text: &str, key: &str) -> String {
    let line = text.lines().find(|line| line.split('=').next().unwrap().trim() == key).unwrap();
    line.split('"').nth(1).unwrap().to_owned()
}

#[test]
fn the_compiler_that_is_promised_is_the_one_that_is_used() {
    let promised = value(&read("Cargo.toml"), "rust-version");
    assert_eq!(promised, value(&read("rust-toolchain.toml"), "channel"));
}

/// ARCHITECTURE.md, everything in docs/, and the other documents at the root.
fn documents() -> Vec<String> {
    let mut found: Vec<String> = Vec::new();
    let mut folders = vec![PathBuf::new()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(root().join(&folder)).unwrap() {
            let entry = entry.unwrap();
            let path = folder.join(entry.file_name());
            if entry.file_type().unwrap().is_dir() {
                folders.extend(path.starts_with("docs").then_some(path));
            } else if path.extension().is_some_and(|extension| extension == "md") {
                found.push(path.to_str().unwrap().to_owned());
            }
        }
    }
    found.push("tests/README.md".to_owned());
    found.sort();
    found
}

/// What stands between two marks on one line.
fn between<'a>(text: &'a str, open: &'static str, close: &'static str) -> impl Iterator<Item = &'a str> {
    text.lines().flat_map(move |line| {
        let (mut rest, mut found) = (line, Vec::new());
        while let Some((_, after)) = rest.split_once(open) {
            let Some((inside, after)) = after.split_once(close) else { break };
            found.push(inside);
            rest = after;
        }
        found
    })
}

/// Whether it can be a path of the repository, and not one on a node, a command or a type.
fn is_path(text: &str) -> bool {
    let plain = text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"/._-".contains(&byte));
    let known = ["rs", "md", "yaml", "toml", "sh", "mk", "service", "socket"];
    let file = text.rsplit_once('.').is_some_and(|(_, extension)| known.contains(&extension));
    let here = text.contains('/') || text.ends_with(".rs");
    plain && here && !text.starts_with('/') && (file || text.ends_with('/'))
}

#[test]
fn every_path_that_the_documents_name_is_there() {
    let mut missing = Vec::new();
    for document in documents() {
        let text = read(&document);
        let mut bases = vec![PathBuf::new(), Path::new(&document).parent().unwrap().to_owned()];
        bases.extend(between(&text, "Paths are below `", "`").map(PathBuf::from));
        for path in between(&text, "`", "`").filter(|path| is_path(path)) {
            if !bases.iter().any(|base| root().join(base).join(path).exists()) {
                missing.push(format!("{document}: {path}"));
            }
        }
    }
    assert!(missing.is_empty(), "not in the repository:\n{}", missing.join("\n"));
}

/// GitHub's anchor of a heading.
fn anchor(heading: &str) -> String {
    let heading = heading.trim_start_matches('#').trim().to_lowercase();
    let kept = heading.chars().filter(|c| c.is_alphanumeric() || " -_".contains(*c));
    kept.map(|c| if c == ' ' { '-' } else { c }).collect()
}

#[test]
fn every_link_between_the_documents_leads_somewhere() {
    let mut broken = Vec::new();
    for document in documents() {
        let folder = Path::new(&document).parent().unwrap().to_owned();
        let text = read(&document);
        for link in between(&text, "](", ")").filter(|link| !link.contains("://")) {
            let (path, fragment) = link.split_once('#').unwrap_or((link, ""));
            let target =
                if path.is_empty() { root().join(&document) } else { root().join(&folder).join(path) };
            let found = match std::fs::read_to_string(&target) {
                Ok(text) => {
                    let mut headings = text.lines().filter(|line| line.starts_with('#'));
                    fragment.is_empty() || headings.any(|heading| anchor(heading) == fragment)
                }
                Err(_) => fragment.is_empty() && target.exists(),
            };
            if !found {
                broken.push(format!("{document}: {link}"));
            }
        }
    }
    assert!(broken.is_empty(), "links to nowhere:\n{}", broken.join("\n"));
}

#[test]
fn the_door_is_short() {
    assert!(read("ARCHITECTURE.md").len() <= 10_000);
    for document in documents().iter().filter(|path| path.starts_with("docs") || *path == "ARCHITECTURE.md") {
        for line in read(document).lines().filter(|line| !line.starts_with('|')) {
            assert!(line.chars().count() <= 120, "{document}: too long: {line}");
        }
    }
}
