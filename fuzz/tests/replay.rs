//! Every target over its corpus, and over a few thousand inputs that nobody chose.

use std::fmt::Display;
use std::panic::catch_unwind;
use std::path::Path;

use sluice_sim::watched::mix;

type Target = fn(&[u8]);

const TARGETS: [(&str, Target); 7] = [
    ("virtqueue_split", sluice_fuzz::virtqueue_split),
    ("virtqueue_packed", sluice_fuzz::virtqueue_packed),
    ("blk_request", sluice_fuzz::blk_request),
    ("slice", sluice_fuzz::slice),
    ("control_events", sluice_fuzz::control_events),
    ("inflight_region", sluice_fuzz::inflight_region),
    ("parked_record", sluice_fuzz::parked_record),
];

/// Names the input that was not survived.
fn run(target: Target, data: &[u8], name: &dyn Display) {
    if catch_unwind(|| target(data)).is_err() {
        panic!("not survived: {name}");
    }
}

#[test]
fn the_corpus_is_survived() {
    for (name, target) in TARGETS {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus").join(name);
        let files = std::fs::read_dir(&folder).expect("a corpus");
        let mut count = 0;
        for file in files {
            let path = file.expect("a file").path();
            run(target, &std::fs::read(&path).expect("a file"), &path.display());
            count += 1;
        }
        assert!(count > 0, "{name} has seeds");
    }
}

#[test]
fn random_input_is_survived() {
    for (name, target) in TARGETS {
        for seed in 0..3000 {
            let words = 2 + mix(seed) % 60;
            let data: Vec<u8> =
                (0..words).flat_map(|at| mix(seed << 8 | at).to_le_bytes()).collect();
            run(target, &data, &format_args!("{name} {seed}"));
        }
    }
}
