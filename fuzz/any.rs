//! libFuzzer on the target that `PORTICO_FUZZ_TARGET` names: one program for all of them, since each
//! would take as long to link as the whole of portico.

#![no_main]

#[path = "../tests/fuzz/targets.rs"]
mod targets;

use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;

static TARGET: LazyLock<fn(&[u8])> = LazyLock::new(|| {
    let name = std::env::var("PORTICO_FUZZ_TARGET").expect("PORTICO_FUZZ_TARGET names a target");
    let target = targets::TARGETS.iter().find(|target| target.name == name);
    target.expect("the target is known").run
});

fuzz_target!(|data: &[u8]| TARGET(data));
