//! libFuzzer over one target, the one that `FUZZ_TARGET` names. `make fuzz` calls it for each.

#![no_main]

use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use yurt_fuzz::{TARGETS, Target, target};

static CHOSEN: LazyLock<Target> = LazyLock::new(|| {
    let name = std::env::var("FUZZ_TARGET").unwrap_or_default();
    target(&name).unwrap_or_else(|| {
        let names: Vec<_> = TARGETS.iter().map(|target| target.name).collect();
        eprintln!("error: FUZZ_TARGET is {name:?}, not one of {}", names.join(", "));
        std::process::exit(2)
    })
});

fuzz_target!(|input: &[u8]| (CHOSEN.run)(input));
