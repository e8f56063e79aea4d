//! What the repository says about itself, kept true: the compiler it names, and the paths its documents name.

#[cfg(test)]
mod tests {
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
}
